"""Rotary positions equal the reference in both styles at any size, a row's bits whatever stands around it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from kernel_runs import assembly, check, machine, make

from hwq.graph import Activation
from hwq.lowering import pipeline
from hwq.schedule import kernel_for
from hwq.schedules.generic import rope
from hwq.target import Target
from hwq.workload import Workload

# (B, S, H, D)
SIZES = ((1, 1, 1, 2), (2, 7, 3, 6), (1, 16, 2, 16), (1, 17, 4, 34), (1, 33, 2, 64), (1, 3, 1, 254))


def _make(size: tuple[int, ...], style: str, **more: int) -> Workload:
    batch, length, heads, width = size
    shape = (batch, length, heads * width)
    return make("rope", "f32", [shape], shape, heads=heads, style=style, **more)


def _arguments(size: tuple[int, ...], rng: np.random.Generator) -> list[np.ndarray]:
    """No cosines: each place has factors of its own."""
    batch, length, heads, width = size
    shapes = ((batch, length, heads * width), (length, width), (length, width))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize("name", ["x86-generic", "x86-avx2", "host"])
def test_equals_the_reference(name: str, style: str, rng: np.random.Generator) -> None:
    """Three roundings at most of values of 16 or so at most: 3 * 6e-8 * 16."""
    for size in SIZES:
        check(_make(size, style), Target.load(name), _arguments(size, rng), tolerance=3e-6)


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_a_row_has_the_same_bits_among_any_number_of_rows(style: str, rng: np.random.Generator) -> None:
    x, cos, sin = _arguments((1, 17, 2, 34), rng)
    found = []
    for rows in (1, 17):
        kernel = kernel_for(_make((1, rows, 2, 34), style), machine())
        library = tvm.compile(tvm.IRModule(kernel.functions), machine().tvm(), tir_pipeline=pipeline())
        values = [tvm.runtime.tensor(np.ascontiguousarray(each)) for each in (x[:, -rows:], cos[-rows:], sin[-rows:])]
        out = tvm.runtime.empty((1, rows, 68), "float32")
        library[kernel.symbol](*values, out)
        found.append(out.numpy())
    np.testing.assert_array_equal(found[0][0, 0], found[1][0, -1])


def test_large_ones_are_split_over_threads(rng: np.random.Generator) -> None:
    size = (1, 256, 32, 64)
    workload = _make(size, "half", parallel=2)
    kernel = rope.apply(workload, machine())
    assert kernel is not None
    assert "T.parallel" in kernel.func.script()
    check(workload, machine(), _arguments(size, rng), tolerance=3e-6, kernel=kernel)


@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(("name", "register"), [("x86-avx2", "%ymm"), ("x86-avx512-vnni", "%zmm")])
def test_is_vectorized(name: str, register: str, size: int, style: str) -> None:
    target = Target.load(name)
    lines = assembly(kernel_for(_make((1, 64, 8, size), style), target), target)
    for wanted in ("vmulps", "vfn?m(add|sub)"):
        assert any(re.match(rf"\s*({wanted})", line) and register in line for line in lines), wanted
    assert [line for line in lines if re.match(r"\s*v?movss\s.*\)$", line)] == []


def test_only_float_without_activation() -> None:
    shape = (1, 2, 8)
    for scheme, kind in (("w8a8", "none"), ("f32", "relu")):
        attrs = {"heads": 1, "style": "half", "activation": Activation(kind=kind)}
        assert rope.apply(make("rope", scheme, [shape], shape, **attrs), machine()) is None
    assert rope.apply(make("softmax", "f32", [(1, 8)], (1, 8), axis=1), machine()) is None
