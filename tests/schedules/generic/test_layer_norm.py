"""Layer norm over the last axis: right at every length, also far from zero, and without library calls."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from kernel_runs import assembly, check, machine, make

from hwq.errors import HwqError
from hwq.graph import Activation, Shape
from hwq.schedule import kernel_for
from hwq.schedules.generic import layer_norm
from hwq.target import Target

SIZES = (1, 7, 16, 17, 33, 127, 384, 768, 2048)


def _arguments(shape: Shape, rng: np.random.Generator, mean: float = 2.0) -> list[np.ndarray]:
    scale, bias = rng.standard_normal((2, shape[-1])).astype(np.float32)
    return [(rng.standard_normal(shape) * 3 + mean).astype(np.float32), scale, bias]


@pytest.mark.parametrize("name", ["x86-generic", "x86-avx2", "host"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_reference(name: str, size: int, rng: np.random.Generator) -> None:
    """A sum rounds at most 32 + 6 times (steps of a row of 2048, halves; others less), each 6e-8 of values as large as
    their deviation; the outputs are up to 10 deviations large, and it is 38 * 6e-8 * 10 = 2.3e-5 of them.
    """
    target = Target.load(name)
    for shape in ((3, size), (2, 5, 1, size), (size,)):
        workload = make("layer_norm", "f32", [shape], shape, epsilon=1e-5)
        check(workload, target, _arguments(shape, rng), tolerance=2.3e-5)


def test_a_mean_far_from_zero_does_not_cancel(rng: np.random.Generator) -> None:
    """Means of 1000 are off by some 10 roundings of 6e-5, of a deviation of 3: 2e-4. A difference of mean squares near
    10^6 would be off by 0.6 of a variance of 9."""
    workload = make("layer_norm", "f32", [(4, 384)], (4, 384), epsilon=1e-5)
    check(workload, machine(), _arguments((4, 384), rng, mean=1000.0), tolerance=2e-4)


def test_equal_values_are_the_bias(rng: np.random.Generator) -> None:
    shape = (2, 64)
    x, scale, bias = _arguments(shape, rng)
    workload = make("layer_norm", "f32", [shape], shape, epsilon=1e-12)
    check(workload, machine(), [np.full_like(x, 3.0), scale, bias], tolerance=1e-30)


@pytest.mark.parametrize("rows", [197, 512])
def test_large_ones_are_split_over_threads(rows: int, rng: np.random.Generator) -> None:
    shape = (1, rows, 1536)
    workload = make("layer_norm", "f32", [shape], shape, epsilon=1e-6, parallel=2)
    kernel = layer_norm.apply(workload, machine())
    assert kernel is not None
    assert "T.parallel" in kernel.func.script()
    check(workload, machine(), _arguments(shape, rng), tolerance=1.5e-5, kernel=kernel)


@pytest.mark.parametrize(("name", "register"), [("x86-avx2", "%ymm"), ("x86-avx512-vnni", "%zmm")])
def test_is_vectorized(name: str, register: str) -> None:
    """Single floats are stored for a row's mean and factor only, on the stack, and no library is called."""
    target = Target.load(name)
    lines = assembly(kernel_for(make("layer_norm", "f32", [(64, 384)], (64, 384), epsilon=1e-5), target), target)
    for wanted in ("vaddps", "vsubps", "vfmadd", "vmovaps|vmovups"):
        assert any(re.match(rf"\s*({wanted})", line) and register in line for line in lines), wanted
    assert [line for line in lines if re.match(r"\s*v?movss\s.*\)$", line) and "%rsp" not in line] == []
    assert [line for line in lines if "call" in line and "*" not in line] == []  # the runtime's are by pointer


def test_lanes_and_rows_by_size() -> None:
    assert [layer_norm.sum_lanes(size, 16) for size in (1, 31, 33, 127, 384, 768)] == [0, 0, 16, 16, 64, 64]
    target = replace(Target.load("x86-avx512-vnni"), l1_bytes=32768)
    assert [layer_norm.rows_together(rows, 768, target) for rows in (1, 6, 128, 197)] == [1, 6, 8, 8]
    assert layer_norm.rows_together(64, 4096, target) == 2
    assert layer_norm.rows_together(64, 100_000, target) == 1


def test_only_float_without_activation() -> None:
    with pytest.raises(HwqError, match="no kernel on host for layer_norm"):
        kernel_for(make("layer_norm", "w8a8", [(1, 8)], (1, 8), epsilon=1e-5), machine())
    relu = Activation(kind="relu")
    assert layer_norm.apply(make("layer_norm", "f32", [(1, 8)], (1, 8), activation=relu), machine()) is None
    assert layer_norm.apply(make("softmax", "f32", [(1, 8)], (1, 8), axis=1), machine()) is None
