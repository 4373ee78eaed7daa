"""Pictures become pixels of bytes: equal to the reference on every tier that has the instructions, and by vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from anchor_runs import TIERS, tier
from kernel_runs import assembly, check, machine, make

from hwq.graph import Shape
from hwq.schedules.x86 import picture
from hwq.target import Target
from hwq.workload import Workload

NHWC = (0, 2, 3, 1)


def moved(shape: Shape, **more: int) -> Workload:
    return make("quantize", "w8a8", [shape], (shape[0], *shape[2:], shape[1]), axes=NHWC, **more)


@pytest.mark.parametrize("name", [name for name in TIERS if name != "x86-generic"])
def test_equals_the_reference(name: str, rng: np.random.Generator) -> None:
    target = tier(name)
    for planes in picture.PLANES:
        for size in ((4, 4), (7, 9), (1, 17), (16, 33), (127, 1)):
            shape = (2, planes, *size)
            kernel = picture.apply(moved(shape), target)
            assert kernel is not None
            x = rng.uniform(-60, 60, shape).astype(np.float32)
            x.flat[:6] = (-1e30, 1e30, 0.5, 1.5, 2.5, -0.5)
            for scale in (2.7, 1.0):
                arguments = [x, np.array([131], np.int32), np.array([scale], np.float32)]
                check(moved(shape), target, arguments, kernel=kernel)


def test_large_ones_are_split_over_threads_and_small_ones_are_not(rng: np.random.Generator) -> None:
    target, shape = machine(), (1, 3, 512, 512)
    kernel = picture.apply(moved(shape, parallel=2), target)
    assert kernel is not None
    assert "T.parallel" in kernel.func.script()
    x = rng.uniform(-60, 60, shape).astype(np.float32)
    check(moved(shape, parallel=2), target, [x, np.array([131], np.int32), np.array([2.7], np.float32)], kernel=kernel)
    small = picture.apply(moved((1, 3, 32, 32), parallel=2), target)
    assert small is not None
    assert "T.parallel" not in small.func.script()


def test_it_is_vectors_only() -> None:
    for name, register in (("x86-avx2", "%ymm"), ("x86-avx512-vnni", "%zmm")):
        target = Target.load(name)
        kernel = picture.apply(moved((1, 3, 64, 64)), target)
        assert kernel is not None
        lines = assembly(kernel, target)
        for wanted in ("vmulps", "vcvtps2dq", "vpackssdw", "vpackuswb", "vpshufb"):
            assert any(wanted in line and register in line for line in lines), (name, wanted)
        assert not any("pextr" in line or "pinsr" in line or "(%rsp" in line for line in lines)


def test_what_is_declined() -> None:
    target = Target.load("x86-avx2")
    assert picture.apply(make("quantize", "w8a8", [(1, 3, 8, 8)], (1, 3, 8, 8)), target) is None, "nothing moves"
    assert picture.apply(moved((1, 5, 8, 8)), target) is None, "five planes"
    assert picture.apply(moved((1, 3, 1, 7)), target) is None, "no vector of pixels"
    assert picture.apply(make("quantize", "w8a8", [(1, 3, 8, 8)], (1, 8, 3, 8), axes=(0, 2, 1, 3)), target) is None
    assert picture.apply(moved((1, 3, 8, 8)), Target.load("x86-generic")) is None
    assert picture.apply(moved((1, 3, 8, 8)), replace(target, activation_storage="int8")) is None
