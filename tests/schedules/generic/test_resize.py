"""Linear resizing: the same integers as NumPy at every width, in whole vectors, and close in float."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_runs import STORAGES, Array, assembly, check, machine, make, numbers

from hwq.graph import Activation, Shape
from hwq.numerics import resize_weights
from hwq.operators import COORDINATES, linear_sources
from hwq.schedule import kernel_for
from hwq.schedules.generic import resize
from hwq.target import Target

# Up, down, by fractions, from and to a single pixel.
SIZES = (((5, 7), (10, 21)), ((6, 9), (3, 4)), ((7, 4), (11, 5)), ((1, 3), (4, 1)), ((33, 2), (5, 2)))


def _constants(old: Shape, new: Shape, scheme: str, coordinates: str) -> list[Array]:
    found: list[Array] = []
    for before, after in zip(old, new, strict=True):
        places, weights = linear_sources(before, after, coordinates)
        found += [places, weights if scheme == "f32" else resize_weights(weights)]
    return found


@pytest.mark.parametrize("channels", [1, 3, 7, 16, 17, 33, 64, 127])
@pytest.mark.parametrize("storage", ["float32", *STORAGES])
def test_equals_the_reference(storage: str, channels: int, rng: np.random.Generator) -> None:
    """Floats: two means that round three times each, of values up to 12 large: 6 * 6e-8 of them."""
    scheme = "f32" if storage == "float32" else "w8a8"
    target = machine() if storage == "float32" else machine(storage)
    for index, (old, new) in enumerate(SIZES):
        x = numbers(rng, (2, *old, channels), storage)
        arguments = [x, *_constants(old, new, scheme, COORDINATES[index % len(COORDINATES)])]
        workload = make("resize_linear", scheme, [x.shape], (2, *new, channels))
        check(workload, target, arguments, tolerance=4e-6 if scheme == "f32" else 0.0)


@pytest.mark.parametrize("name", ["x86-generic", "x86-avx2"])
@pytest.mark.parametrize("channels", [3, 19, 64])
def test_on_other_tiers(name: str, channels: int, rng: np.random.Generator) -> None:
    (old, new), target = SIZES[0], Target.load(name)
    x = numbers(rng, (1, *old, channels), "uint8")
    workload = make("resize_linear", "w8a8", [x.shape], (1, *new, channels))
    check(workload, target, [x, *_constants(old, new, "w8a8", "half_pixel")])


@pytest.mark.parametrize("storage", STORAGES)
def test_the_largest_values_do_not_overflow(storage: str) -> None:
    x = np.array([0, 255, 255, 0, 255, 255, 0, 0, 255], np.uint8).reshape(1, 3, 3, 1).view(storage)
    for coordinates in COORDINATES:
        arguments = [x, *_constants((3, 3), (64, 100), "w8a8", coordinates)]
        check(make("resize_linear", "w8a8", [x.shape], (1, 64, 100, 1)), machine(storage), arguments)


@pytest.mark.parametrize("channels", [19, 64])
def test_large_ones_are_split_over_threads(channels: int, rng: np.random.Generator) -> None:
    old, new = (64, 64), (128, 128)
    x = numbers(rng, (1, *old, channels), "uint8")
    workload = make("resize_linear", "w8a8", [x.shape], (1, *new, channels), parallel=2)
    kernel = resize.apply(workload, machine())
    assert kernel is not None
    assert "T.parallel" in kernel.func.script()
    check(workload, machine(), [x, *_constants(old, new, "w8a8", "half_pixel")], kernel=kernel)


@pytest.mark.parametrize("channels", [19, 64])
@pytest.mark.parametrize(("name", "register"), [("x86-avx2", "%ymm"), ("x86-avx512-vnni", "%zmm")])
def test_products_are_in_vectors_and_nothing_is_gathered(name: str, register: str, channels: int) -> None:
    target = Target.load(name)
    workload = make("resize_linear", "w8a8", [(1, 28, 28, channels)], (1, 56, 56, channels))
    lines = assembly(kernel_for(workload, target), target)
    assert len([line for line in lines if "vpmulld" in line and register in line]) >= 2
    assert [line for line in lines if "gather" in line] == []


def test_another_operator_or_an_activation_is_declined() -> None:
    shapes: tuple[list[Shape], Shape] = ([(1, 2, 2, 3)], (1, 4, 4, 3))
    assert resize.apply(make("resize_nearest", "f32", *shapes), machine()) is None
    workload = make("resize_linear", "f32", *shapes)
    assert resize.apply(replace(workload, activation=Activation(kind="relu")), machine()) is None
