"""append and rows_at: the rows where a sequence stands, and no others, at any position, also at impossible ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import tvm
from kernel_runs import Array, at_the_edge, machine, make, shared

from hwq import row_scales
from hwq.cost import moved_bytes, op_macs, price_roofline
from hwq.lowering import pipeline
from hwq.reference import evaluate
from hwq.schedule import kernel_for
from hwq.workload import Workload

SPANS = ((1, 1), (1, 5), (3, 3), (2, 6), (3, 9), (0, 4), (4, 2), (1, 0), (1, 100), (-3, -5), (7, 2**30))
WIDTHS = (1, 7, 33, 64)


def _call(workload: Workload) -> Callable[..., Array]:
    """The kernel as a function of its arguments, the last of which it writes and returns; around each of them are pages
    that nobody may touch."""
    target = machine("int8")
    kernel = kernel_for(workload, target)
    library = tvm.compile(tvm.IRModule(kernel.functions), target.tvm(), tir_pipeline=pipeline())

    def call(*arguments: Array) -> Array:
        held = [at_the_edge(argument) for argument in arguments]
        library[kernel.symbol](*map(shared, held))
        return held[-1].copy()

    return call


def _span(n: int, t: int) -> Array:
    return np.array([n, t], np.int32)


@pytest.mark.parametrize("width", WIDTHS)
def test_append_writes_its_rows_and_leaves_the_others(width: int, rng: np.random.Generator) -> None:
    call = _call(make("append", "f32", [(1, 3, width), (2,)], (1, 9, width)))
    for n, t in SPANS:
        x = rng.standard_normal((1, 3, width)).astype(np.float32)
        cache = rng.standard_normal((1, 9, width)).astype(np.float32)
        expected = cache.copy()
        for row in range(min(n, 3)):
            if 0 <= t - n + row < 9:
                expected[0, t - n + row] = x[0, row]
        np.testing.assert_array_equal(call(x, _span(n, t), cache), expected, str((n, t)))


def test_append_takes_bytes_too(rng: np.random.Generator) -> None:
    x = rng.integers(-128, 128, (1, 1, 24)).astype(np.int8)
    cache = rng.integers(-128, 128, (1, 4, 24)).astype(np.int8)
    found = _call(make("append", "w8a8", [(1, 1, 24), (2,)], (1, 4, 24)))(x, _span(1, 3), cache)
    np.testing.assert_array_equal(found[0, 2], x[0, 0])
    np.testing.assert_array_equal(np.delete(found, 2, 1), np.delete(cache, 2, 1))


@pytest.mark.parametrize(("heads", "depth"), [(1, 7), (3, 8), (2, 33)])
def test_append_to_int8_rounds_by_the_scale_of_each_head(heads: int, depth: int, rng: np.random.Generator) -> None:
    """A scale of 0 is of a head of zeros."""
    width = heads * depth
    workload = make("append_int8", "f32", [(1, 2, width), (2 * heads,), (2,)], (1, 5, width))
    x = rng.standard_normal((1, 2, width)).astype(np.float32)
    x[0, 1, :depth] = 0
    scales = row_scales.row_scale(x.reshape(-1, depth))
    assert scales[heads] == 0
    assert (np.delete(scales, heads) > 0).all()
    cache = rng.integers(-128, 128, (1, 5, width)).astype(np.int8)
    found = _call(workload)(x, scales, _span(2, 4), cache)
    np.testing.assert_array_equal(found[0, 2:4], evaluate(workload, [x, scales, _span(2, 4)])[0, 2:4])
    np.testing.assert_array_equal(np.delete(found, (2, 3), 1), np.delete(cache, (2, 3), 1))
    back = found[0, 2:4].reshape(-1, depth) * scales[:, None]
    assert (np.abs(back - x.reshape(-1, depth)) <= scales[:, None] * 0.501).all()


def test_the_reference_of_append_writes_into_zeros(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 2, 5)).astype(np.float32)
    workload = make("append", "f32", [x.shape, (2,)], (1, 6, 5))
    found = evaluate(workload, [x, _span(2, 5)])
    np.testing.assert_array_equal(found, _call(workload)(x, _span(2, 5), np.zeros((1, 6, 5), np.float32)))
    np.testing.assert_array_equal(found[0, 3:5], x[0])


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_those_of_the_positions(width: int, rng: np.random.Generator) -> None:
    table = rng.standard_normal((9, width)).astype(np.float32)
    for shape in ((1, 1, width), (3, width)):
        workload = make("rows_at", "f32", [(2,)], shape, rows=9, width=width)
        call = _call(workload)
        for span in SPANS:
            found = call(_span(*span), table, np.full(shape, 99, np.float32))
            np.testing.assert_array_equal(found, evaluate(workload, [_span(*span), table]), str(span))
    np.testing.assert_array_equal(evaluate(workload, [_span(3, 5), table]), table[2:5])


def test_an_append_costs_what_it_writes() -> None:
    short = make("append", "f32", [(1, 1, 64), (2,)], (1, 16, 64))
    long = replace(short, output_shape=(1, 4096, 64))
    assert op_macs(short) == op_macs(long) == 64
    assert moved_bytes(short) == moved_bytes(long) == 2 * 4 * 64
    assert price_roofline(short, machine()) == price_roofline(long, machine())
