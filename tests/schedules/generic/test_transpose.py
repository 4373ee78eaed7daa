"""transpose moves every element to its place, in tiles of any shape."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runs import CHANNELS, assembly, check, machine, make, numbers, run

from hwq.graph import Activation, Shape
from hwq.schedules.generic import transpose

NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
OTHERS: list[tuple[Shape, tuple[int, ...]]] = [
    ((3, 5, 7, 9), (3, 1, 0, 2)),
    ((2, 3, 4, 16), (1, 0, 2, 3)),
    ((7, 5), (1, 0)),
    ((4,), (0,)),
    ((1, 20, 2), (0, 2, 1)),
    ((16, 2, 24), (2, 1, 0)),
]


def moved(shape: Shape, axes: tuple[int, ...]) -> Shape:
    return tuple(shape[axis] for axis in axes)


def test_borders_at_every_channel_count(rng: np.random.Generator) -> None:
    for channels in (3, 64, *CHANNELS):
        for batch, shape, axes in ((1, (channels, 7, 16), NHWC), (3, (5, 3, channels), NCHW)):
            full = (batch, *shape)
            check(
                make("transpose", "f32", [full], moved(full, axes), axes=axes),
                machine(),
                [numbers(rng, full, "float32")],
            )


def test_other_orders(rng: np.random.Generator) -> None:
    for shape, axes in OTHERS:
        out, x, q = moved(shape, axes), numbers(rng, shape, "float32"), numbers(rng, shape, "uint8")
        check(make("transpose", "f32", [shape], out, axes=axes), machine(), [x])
        kernel = transpose.apply(make("transpose", "w8a8", [shape], out, axes=axes), machine())
        assert kernel is not None
        np.testing.assert_array_equal(run(kernel, machine(), [q], out, "uint8"), q.transpose(axes))


def test_sampled_decisions_are_right(rng: np.random.Generator) -> None:
    shape = (1, 48, 6, 8)
    workload = make("transpose", "f32", [shape], moved(shape, NHWC), axes=NHWC)
    kernels = [transpose.apply(workload, machine(), seed=seed) for seed in range(1, 5)]
    assert len({kernel.func.script() for kernel in kernels if kernel is not None}) > 1
    for kernel in kernels:
        check(workload, machine(), [numbers(rng, shape, "float32")], kernel=kernel)


def test_large_ones_are_split_over_threads(rng: np.random.Generator) -> None:
    for shape in ((1, 64, 128, 128), (1, 3, 512, 512), (1, 512, 512, 3)):
        workload = make("transpose", "f32", [shape], moved(shape, NHWC), axes=NHWC, parallel=2)
        kernel = transpose.apply(workload, machine())
        assert kernel is not None
        assert "T.parallel" in kernel.func.script()
        check(workload, machine(), [numbers(rng, shape, "float32")], kernel=kernel)


def test_runs_are_the_axes_that_stay_neighbours() -> None:
    assert transpose.runs(NHWC) == [[0], [1, 2], [3]]
    assert transpose.runs((0, 1, 2)) == [[0, 1, 2]]
    assert transpose.runs((3, 1, 0, 2)) == [[0], [1], [2], [3]]


def test_tiles_are_shuffled_in_registers() -> None:
    target, shape = machine(), (1, 64, 14, 16)
    kernel = transpose.apply(make("transpose", "f32", [shape], moved(shape, NHWC), axes=NHWC), target)
    assert kernel is not None
    lines = assembly(kernel, target)
    if not any(flag in target.cpu_flags for flag in ("avx2", "avx512f")):
        pytest.skip(f"{target.name} has no vectors of more than four lanes to shuffle")
    assert any("unpck" in line or "perm" in line or "shuf" in line for line in lines)
    assert [line for line in lines if "gather" in line] == []


def test_what_is_declined() -> None:
    assert transpose.apply(make("slice", "f32", [(1, 2)], (1, 2)), machine()) is None
    relu = Activation(kind="relu")
    assert transpose.apply(make("transpose", "f32", [(1, 2)], (2, 1), axes=(1, 0), activation=relu), machine()) is None
