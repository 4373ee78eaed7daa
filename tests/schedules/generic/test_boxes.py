"""concat and pad copy exactly, whatever the axis, and fill what is left."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runs import STORAGES, assembly, check, machine, make, numbers

from hwq.graph import Activation, Shape
from hwq.schedules.generic import boxes

CONCATS: list[tuple[int, list[Shape]]] = [
    (3, [(1, 5, 3, 64), (1, 5, 3, 17), (1, 5, 3, 1)]),
    (1, [(3, 5, 7, 9), (3, 2, 7, 9)]),
    (-1, [(1, 127), (1, 3)]),
    (0, [(2, 5), (1, 5)]),
    (0, [(7,)]),
]
PADS: list[tuple[Shape, tuple[tuple[int, int], ...]]] = [
    ((1, 9, 9, 64), ((0, 0), (1, 1), (1, 1), (0, 0))),
    ((2, 5, 7, 3), ((0, 1), (2, 0), (0, 3), (1, 1))),
    ((3, 17), ((0, 0), (0, 0))),
    ((1, 1, 1, 33), ((0, 0), (0, 2), (0, 0), (0, 0))),
]


@pytest.mark.parametrize("storage", ["float32", *STORAGES])
def test_concat(storage: str, rng: np.random.Generator) -> None:
    target, scheme = (machine(), "f32") if storage == "float32" else (machine(storage), "w8a8")
    for axis, shapes in CONCATS:
        out = list(shapes[0])
        out[axis] = sum(shape[axis] for shape in shapes)
        arguments = [numbers(rng, shape, storage) for shape in shapes]
        check(make("concat", scheme, shapes, tuple(out), axis=axis), target, arguments)


@pytest.mark.parametrize("storage", ["float32", *STORAGES])
def test_pad(storage: str, rng: np.random.Generator) -> None:
    target, scheme = (machine(), "f32") if storage == "float32" else (machine(storage), "w8a8")
    for shape, pads in PADS:
        out = tuple(before + size + after for size, (before, after) in zip(shape, pads, strict=True))
        fill = [] if storage == "float32" else [np.array([77], np.int32)]
        check(make("pad", scheme, [shape], out, pads=pads, value=-1.5), target, [numbers(rng, shape, storage), *fill])


def test_boxes_cover_every_element_once() -> None:
    for shape, pads in PADS:
        out = tuple(before + size + after for size, (before, after) in zip(shape, pads, strict=True))
        seen = np.zeros(out, int)
        for box in boxes.pad_boxes(make("pad", "f32", [shape], out, pads=pads, value=0.0)):
            seen[tuple(slice(start, start + size) for start, size in zip(box.begin, box.extent, strict=True))] += 1
        assert (seen == 1).all()


def test_large_ones_are_split_over_threads(rng: np.random.Generator) -> None:
    shapes = [(1, 64, 64, 256), (1, 64, 64, 512)]
    workload = make("concat", "w8a8", shapes, (1, 64, 64, 768), axis=3, parallel=2)
    kernel = boxes.apply(workload, machine())
    assert kernel is not None
    assert "T.parallel" in kernel.func.script()
    check(workload, machine(), [numbers(rng, shape, "uint8") for shape in shapes], kernel=kernel)


def test_rows_are_copied_whole() -> None:
    """A row of channels is vector moves or one call of memcpy: no loop over bytes."""
    shapes = [(1, 14, 14, 64), (1, 14, 14, 32)]
    target = machine()
    kernel = boxes.apply(make("concat", "w8a8", shapes, (1, 14, 14, 96), axis=3), target)
    assert kernel is not None
    assert [line for line in assembly(kernel, target) if line.split()[:1] == ["movb"]] == []


def test_what_is_declined() -> None:
    relu = Activation(kind="relu")
    assert boxes.apply(make("concat", "f32", [(1, 2)], (1, 2), axis=1, activation=relu), machine()) is None
    assert boxes.apply(make("pad", "f32", [(1, 5)], (1, 4), pads=((0, 0), (-1, 0)), value=0.0), machine()) is None
    assert boxes.apply(make("slice", "f32", [(1, 5)], (1, 4)), machine()) is None
