"""softmax along any axis: right, stable and without library calls."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runs import assembly, assert_vectorized, check, machine, make

from hwq.errors import HwqError
from hwq.graph import Shape
from hwq.schedule import kernel_for
from hwq.schedules.generic import softmax

CASES: list[tuple[Shape, int]] = [
    ((1, 20, 2), -1),
    ((7, 17), -1),
    ((1, 1000), 1),
    ((3, 127), 1),
    ((64,), 0),
    ((3, 5), 0),
    ((3, 8), 1),
    ((2, 3, 4, 9), 3),
    ((2, 3, 4, 5), 1),
    ((1, 21, 7, 9), 1),
    ((5, 1), 1),
]


def test_equals_the_reference(rng: np.random.Generator) -> None:
    """exp is within 2e-7 and a sum of up to 1000 positive terms in 32 lanes rounds some 40 times: 40 * 6e-8 + 4e-7."""
    for shape, axis in CASES:
        x = (rng.standard_normal(shape) * 5).astype(np.float32)
        check(make("softmax", "f32", [shape], shape, axis=axis), machine(), [x], tolerance=3e-6)


@pytest.mark.parametrize("shape", [(2, 6), (2, 40)])
def test_large_and_equal_values_are_no_trouble(shape: Shape) -> None:
    x = np.full(shape, 3e38, np.float32)
    x[1, 1:] = -3e38
    check(make("softmax", "f32", [shape], shape, axis=1), machine(), [x], tolerance=3e-6)


@pytest.mark.parametrize(("shape", "axis"), [((4096, 128), 1), ((65536, 4), 1), ((8, 32, 2048), 1)])
def test_large_ones_are_split_over_threads(shape: Shape, axis: int, rng: np.random.Generator) -> None:
    workload = make("softmax", "f32", [shape], shape, axis=axis, parallel=2)
    kernel = softmax.apply(workload, machine())
    assert kernel is not None
    assert "T.parallel" in kernel.func.script()
    x = (rng.standard_normal(shape) * 5).astype(np.float32)
    check(workload, machine(), [x], tolerance=3e-6, kernel=kernel)


def test_is_vectorized() -> None:
    workload = make("softmax", "f32", [(16, 256)], (16, 256), axis=1)
    assert_vectorized(workload, "vmaxps", "vmulps", "vaddps")
    target = machine()
    assert [line for line in assembly(kernel_for(workload, target), target) if "call" in line and "exp" in line] == []


def test_integers_have_none() -> None:
    with pytest.raises(HwqError, match="no kernel on host for softmax"):
        kernel_for(make("softmax", "w8a8", [(1, 8)], (1, 8), axis=1), machine())
