"""Scales of rows and rows in bytes: equal to the reference at any shape, whatever lies in the rows, and vectorized."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runs import STORAGES, Array, assembly, assert_vectorized, check, machine, make

from hwq import row_scales
from hwq.schedule import kernel_for
from hwq.target import Target
from hwq.workload import Workload

SHAPES = ((1, 1), (1, 7), (7, 16), (3, 17), (2, 5, 33), (16, 127), (64, 384), (1, 2048), (5, 4100))


def scale_of(shape: tuple[int, ...], parallel: int = 1) -> Workload:
    rows = int(np.prod(shape[:-1]))
    return make("row_scale", "w8a8_dyn", [shape], (rows,), out_dtype="float32", parallel=parallel)


def bytes_of(shape: tuple[int, ...], parallel: int = 1) -> Workload:
    rows = int(np.prod(shape[:-1]))
    return make("quantize_rows", "w8a8_dyn", [shape, (rows,)], shape, parallel=parallel)


def values(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Rows of very different sizes: the first is zero, of the others one is too small for a scale."""
    x = rng.standard_normal(shape).astype(np.float32).reshape(-1, shape[-1])
    x *= 10.0 ** rng.uniform(-3, 3, (len(x), 1)).astype(np.float32)
    if len(x) > 2:
        x[0], x[1] = 0, np.float32(1e-35) * x[1]
    return x.reshape(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_scales_equal_the_reference(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    check(scale_of(shape), machine(), [values(rng, shape)])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_equal_the_reference(shape: tuple[int, ...], storage: str, rng: np.random.Generator) -> None:
    x = values(rng, shape)
    check(bytes_of(shape), machine(storage), [x, row_scales.row_scale(x)])


def test_halves_go_to_the_even_neighbour(rng: np.random.Generator) -> None:
    x = np.concatenate([[127.0], rng.integers(-126, 126, 63) + 0.5]).astype(np.float32)[None]
    scale = row_scales.row_scale(x)
    assert scale == 127 * row_scales.SHARE
    check(bytes_of(x.shape), machine("int8"), [x, np.ones(1, np.float32)])


def test_threads_share_out_rows(rng: np.random.Generator) -> None:
    x = values(rng, (512, 4096))
    check(scale_of(x.shape, 2), machine(), [x])
    check(bytes_of(x.shape, 2), machine(), [x, row_scales.row_scale(x)])


def test_both_use_whole_registers() -> None:
    assert_vectorized(bytes_of((4, 1024)), "vmulps")
    for name, register in (("x86-avx2", "%ymm"), ("x86-avx512-vnni", "%zmm")):
        target = Target.load(name)
        lines = assembly(kernel_for(scale_of((1, 1024)), target), target)
        assert any("vmaxps" in line and register in line for line in lines), name
        assert sum("movss" in line for line in lines) <= 8, "a row's own few"
