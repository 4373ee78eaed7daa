"""What attention is made of: pieces cover what is there, powers of two are near, columns are rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from kernel_runs import Array, at_the_edge, machine, shared
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.lowering import pipeline
from hwq.schedules.cpu import attention_parts as parts
from hwq.schedules.cpu import attention_stages as stages


@pytest.mark.parametrize("size", [1, 3, 4, 7, 16, 33, 80, 127])
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_pieces_cover_just_what_is_there(size: int, lanes: int) -> None:
    found = parts.pieces(size, lanes)
    assert [place for start, count in found for place in range(start, start + count)] == list(range(size))
    assert sum(count < lanes for _, count in found) < lanes.bit_length()


def test_places_end_with_the_last() -> None:
    assert stages.places(4, 8, 4) == [4, 5, 6, 7]
    assert stages.ceiling(17, 16) == 2
    assert stages.lesser(3, 2) == 2
    with IRBuilder(), T.seq_scope():
        found = stages.places(4, 7, 4)
        assert len(found) == 4
        assert all(isinstance(place, tirx.Var) for place in found)


def _run(size: int, body: Any, values: Array) -> Array:
    """``body`` of an input and an output buffer of ``size`` floats."""
    source, goal = (tirx.decl_buffer((size,), "float32", name) for name in ("source", "goal"))
    with IRBuilder() as builder:
        with T.seq_scope():
            body(source, goal)
        code = builder.get().body
    func = tirx.PrimFunc([source, goal], code).with_attrs({"global_symbol": "main", "tirx.noalias": True})
    library = tvm.compile(tvm.IRModule({"main": func}), machine().tvm(), tir_pipeline=pipeline())
    out = at_the_edge(np.full(size, 99, np.float32))
    library["main"](shared(at_the_edge(values)), shared(out))
    return out.copy()


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("square", [True, False])
def test_turned(lanes: int, square: bool) -> None:
    count = lanes if square else 4

    def body(source: Any, goal: Any) -> None:
        rows = [T.Bind(source[parts.at(lane * count, count)]) for lane in range(lanes)]
        for i, column in enumerate(parts.turned(rows) if square else parts.turned_quads(rows)):
            parts.put(goal, column, i * lanes, lanes)

    values = np.arange(lanes * count, dtype=np.float32)
    np.testing.assert_array_equal(_run(lanes * count, body, values), values.reshape(lanes, count).T.ravel())


@pytest.mark.parametrize("fused", [True, False])
def test_power(fused: bool) -> None:
    """Near 2^x down to the least power, 1 at 0, and nothing below. Unfused products round x once more: 2^-24 * x."""
    values = np.concatenate([-np.linspace(0, 126, 8000), [-126.5, -1e4, -3e38, -np.inf]]).astype(np.float32)
    values = np.resize(values, 8016)

    def body(source: Any, goal: Any) -> None:
        with T.serial(0, len(values) // 16) as step:
            some = T.Bind(source[parts.at(step * 16, 16)])
            parts.put(goal, parts.power(some, parts.wide(1.0, 16), 16, fused=fused), step * 16, 16)

    found, expected = _run(len(values), body, values), np.exp2(values.astype(np.float64))
    there = values >= -126
    assert np.abs(found[there] / expected[there] - 1).max() < 2e-7
    assert found[0] == 1.0
    assert not found[~there].any()


def test_fold() -> None:
    values = np.random.default_rng(0).standard_normal(16).astype(np.float32)

    def body(source: Any, goal: Any) -> None:
        whole = source[parts.at(0, 16)]
        parts.put(goal, parts.wide(parts.fold(whole, 16, tirx.max), 16), 0, 16)

    np.testing.assert_array_equal(_run(16, body, values), np.full(16, values.max()))
