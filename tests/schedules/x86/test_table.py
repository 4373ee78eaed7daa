"""Tables looked up by shuffles are exact at every size, and are shuffles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_runs import CHANNELS, assert_vectorized, check, machine, make, numbers

from hwq.graph import Shape
from hwq.schedules.x86 import table
from hwq.target import Target


def fast_machine() -> Target:
    target = machine()
    if not table.usable(target):
        pytest.skip(f"this machine ({target.description}) has no avx2")
    return target


@pytest.mark.parametrize("shape", [*((3, 5, 3, channels) for channels in CHANNELS), (32,), (1, 64), (31, 33), (1, 63)])
def test_every_byte_of_every_size(shape: Shape, rng: np.random.Generator) -> None:
    workload, target = make("unary", "w8a8", [shape], shape), fast_machine()
    kernel = table.apply(workload, target)
    assert kernel is not None
    assert kernel.instruction == "vpshufb"
    check(workload, target, [numbers(rng, shape, "uint8"), rng.permutation(256).astype(np.uint8)], kernel=kernel)


def test_all_bytes_in_all_lanes(rng: np.random.Generator) -> None:
    x = np.stack([np.roll(np.arange(256, dtype=np.uint8), shift) for shift in range(32)])
    workload, target = make("unary", "w8a8", [x.shape], x.shape), fast_machine()
    check(workload, target, [x, rng.permutation(256).astype(np.uint8)], kernel=table.apply(workload, target))


def test_large_tensors_are_split_over_threads(rng: np.random.Generator) -> None:
    shape = (1, 128, 128, 64)
    workload, target = make("unary", "w8a8", [shape], shape, parallel=2), fast_machine()
    kernel = table.apply(workload, target)
    assert kernel is not None
    assert "T.parallel" in kernel.func.script()
    check(workload, target, [numbers(rng, shape, "uint8"), rng.permutation(256).astype(np.uint8)], kernel=kernel)


def test_is_vectorized() -> None:
    shape = (1, 14, 14, 64)
    assert_vectorized(make("unary", "w8a8", [shape], shape), "vpshufb", width=256)


def test_what_is_declined() -> None:
    shape = (1, 2, 2, 8)
    target = Target.load("x86-avx2")
    assert table.apply(make("unary", "f32", [shape], shape), target) is None
    assert table.apply(make("unary", "w8a8", [(31,)], (31,)), target) is None
    assert table.apply(make("unary", "w8a8", [shape], shape), Target.load("x86-generic")) is None
    assert table.apply(make("unary", "w8a8", [shape], shape), replace(target, activation_storage="int8")) is None
