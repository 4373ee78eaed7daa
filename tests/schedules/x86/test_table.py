"""Tables looked up by shuffles are exact at every size, and are shuffles."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from kernel_runs import CHANNELS, assembly, assert_vectorized, check, machine, make, numbers

from hwq import cpu
from hwq.graph import Shape
from hwq.schedules.x86 import table
from hwq.target import Target

INSTRUCTIONS = ("vpshufb", "vpermi2b")
NEEDED = {"vpshufb": "avx2", "vpermi2b": "avx512vbmi"}


def with_vbmi(target: Target) -> Target:
    """``target`` with AVX512-VBMI, which the tier may leave out."""
    return replace(target, cpu_flags=(*target.cpu_flags, "avx512vbmi"), mattr=(*target.mattr, "+avx512vbmi"))


def fast_machine(instruction: str = "vpshufb") -> Target:
    """This machine as a target whose tables use ``instruction``."""
    target = machine()
    if NEEDED[instruction] not in cpu.cpu_flags():
        pytest.skip(f"this machine ({target.description}) has no {NEEDED[instruction]}")
    if instruction == "vpshufb":
        return replace(target, cpu_flags=tuple(flag for flag in target.cpu_flags if flag != "avx512vbmi"))
    return target if table.instructions(target)[0] == instruction else with_vbmi(target)


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("shape", [*((3, 5, 3, channels) for channels in CHANNELS), (32,), (1, 64), (31, 33), (1, 63)])
def test_every_byte_of_every_size(instruction: str, shape: Shape, rng: np.random.Generator) -> None:
    workload, target = make("unary", "w8a8", [shape], shape), fast_machine(instruction)
    kernel = table.apply(workload, target)
    assert kernel is not None
    assert kernel.instruction == (instruction if math.prod(shape) >= 64 else "vpshufb")
    check(workload, target, [numbers(rng, shape, "uint8"), rng.permutation(256).astype(np.uint8)], kernel=kernel)


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_all_bytes_in_all_lanes(instruction: str, rng: np.random.Generator) -> None:
    x = np.stack([np.roll(np.arange(256, dtype=np.uint8), shift) for shift in range(table.LANES[instruction])])
    workload, target = make("unary", "w8a8", [x.shape], x.shape), fast_machine(instruction)
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
    workload = make("unary", "w8a8", [shape], shape)
    assert_vectorized(workload, "vpshufb", width=256)
    target = with_vbmi(Target.load("x86-avx512-vnni"))
    kernel = table.apply(workload, target)
    assert kernel is not None
    lines = assembly(kernel, target)
    assert any("vpermt2b" in line or "vpermi2b" in line for line in lines)
    assert not any("pshufb" in line or "(%rsp" in line for line in lines), "rows stay in registers"


def test_what_is_declined() -> None:
    shape = (1, 2, 2, 8)
    target = Target.load("x86-avx2")
    assert table.apply(make("unary", "f32", [shape], shape), target) is None
    assert table.apply(make("unary", "w8a8", [(31,)], (31,)), target) is None
    assert table.apply(make("unary", "w8a8", [shape], shape), Target.load("x86-generic")) is None
    assert table.apply(make("unary", "w8a8", [shape], shape), replace(target, activation_storage="int8")) is None
