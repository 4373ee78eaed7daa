"""slice, reshape and nearest resize copy exactly; the maps of every rounding rule are found as lines."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from kernel_runs import CHANNELS, STORAGES, assert_vectorized, check, machine, make, numbers

from hwq.graph import Activation, Shape
from hwq.schedules.generic import gather

SLICES: list[tuple[Shape, Shape, tuple[int | None, ...], Shape]] = [
    ((1, 9, 9, 64), (0, 1, 0, 0), (1, 9, 9, 64), (1, 2, 2, 1)),
    ((2, 9, 9, 33), (0, 8, 0, 32), (2, -10, 9, 0), (1, -1, 3, -2)),
    ((1, 5, 9, 16), (0, 0, 2, 8), (1, 5, 9, 16), (1, 1, 1, 1)),
    ((3, 127), (1, -7), (1000, 127), (1, 1)),
]
RESHAPES: list[tuple[Shape, Shape]] = [
    ((1, 7, 7, 64), (1, 3136)),
    ((3, 5, 17), (17, 15)),
    ((1, 1, 1, 127), (127,)),
    ((6,), (1, 2, 3)),
]
# Source coordinate of an output index, by the rules of ONNX's Resize, and the roundings of its "nearest_mode".
COORDINATES: dict[str, Callable[[int, float, int, int], float]] = {
    "asymmetric": lambda at, scale, size, out: at / scale,
    "half_pixel": lambda at, scale, size, out: (at + 0.5) / scale - 0.5,
    "align_corners": lambda at, scale, size, out: at * (size - 1) / max(out - 1, 1),
}
ROUNDINGS: dict[str, Callable[[float], int]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "prefer_floor": lambda place: math.ceil(place - 0.5),
    "prefer_ceil": lambda place: math.floor(place + 0.5),
}


@pytest.mark.parametrize("storage", ["float32", *STORAGES])
def test_slice_and_reshape(storage: str, rng: np.random.Generator) -> None:
    target, scheme = (machine(), "f32") if storage == "float32" else (machine(storage), "w8a8")
    for shape, begin, end, strides in SLICES:
        x = numbers(rng, shape, storage)
        out = x[tuple(slice(*key) for key in zip(begin, end, strides, strict=True))].shape
        check(make("slice", scheme, [shape], out, begin=begin, end=end, strides=strides), target, [x])
    for shape, out in RESHAPES:
        check(make("reshape", scheme, [shape], out), target, [numbers(rng, shape, storage)])


def test_a_slice_may_drop_axes(rng: np.random.Generator) -> None:
    x = numbers(rng, (2, 5, 7), "float32")
    check(make("slice", "f32", [x.shape], (2, 7), begin=(0, 3, 0), end=(2, 4, 7), strides=(1, 1, 1)), machine(), [x])


@pytest.mark.parametrize("channels", CHANNELS)
def test_resize(channels: int, rng: np.random.Generator) -> None:
    shape = (3, 5, 7, channels)
    maps = {"map_h": tuple(at // 2 for at in range(10)), "map_w": (0, 0, 3, 1, 6, 6, 6, 2, 2)}
    for storage, scheme in (("uint8", "w8a8"), ("float32", "f32")):
        workload = make("resize_nearest", scheme, [shape], (3, 10, 9, channels), **maps)
        check(workload, machine(), [numbers(rng, shape, storage)])


def test_maps_of_every_rounding_rule_are_lines() -> None:
    found = 0
    for size, out in ((5, 10), (28, 56), (7, 3), (10, 15), (13, 26), (224, 112), (1, 4), (9, 1)):
        for coordinate in COORDINATES.values():
            for rounding in ROUNDINGS.values():
                places = [rounding(coordinate(at, out / size, size, out)) for at in range(out)]
                wanted = [min(max(place, 0), size - 1) for place in places]
                line = gather.find_line(wanted, size)
                if line is not None:
                    clamped = [min(max((line.a * at + line.b) // line.c, 0), line.last) for at in range(out)]
                    assert clamped == wanted
                    found += 1
    assert found >= 92  # of 96: a float's rounding at a tie may break a line


def test_large_ones_are_split_over_threads(rng: np.random.Generator) -> None:
    doubled = tuple(at // 2 for at in range(128))
    shape, out = (1, 64, 64, 64), (1, 128, 128, 64)
    workload = make("resize_nearest", "w8a8", [shape], out, parallel=2, map_h=doubled, map_w=doubled)
    kernel = gather.apply(workload, machine())
    assert kernel is not None
    assert "T.parallel" in kernel.func.script()
    check(workload, machine(), [numbers(rng, shape, "uint8")], kernel=kernel)


def test_is_vectorized() -> None:
    doubled = tuple(at // 2 for at in range(28))
    workload = make("resize_nearest", "w8a8", [(1, 14, 14, 64)], (1, 28, 28, 64), map_h=doubled, map_w=doubled)
    assert_vectorized(workload, "vmov")


def test_another_operator_is_declined() -> None:
    assert gather.apply(make("pad", "f32", [(1, 2)], (1, 2)), machine()) is None
    relu = Activation(kind="relu")
    assert gather.apply(make("reshape", "f32", [(1, 2)], (2,), activation=relu), machine()) is None
