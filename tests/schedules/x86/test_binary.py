"""Sums and products by packed vectors equal the reference on every tier, and are vectors."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from anchor_runs import TIERS, tier
from kernel_runs import CHANNELS, assembly, check, ints, machine, make, numbers

from hwq.graph import Activation, Shape
from hwq.schedules.x86 import binary
from hwq.target import Target

FACTORS = {"add": [0.71, 0.453], "multiply": [0.0071]}
# (first input, second input): flat ones, and those with one number a channel.
SHAPES: list[tuple[Shape, Shape]] = [
    *(((3, 5, 7, channels), (3, 5, 7, channels)) for channels in CHANNELS),
    ((64,), (64,)),
    ((2, 9, 9, 24), (2, 1, 1, 24)),
    ((1, 16, 16, 7), (1, 1, 1, 7)),
    ((3, 7, 7, 64), (3, 1, 1, 64)),
    ((1, 7, 7, 320), (1, 1, 1, 320)),
]


@pytest.mark.parametrize("op", ["add", "multiply"])
@pytest.mark.parametrize("name", TIERS)
def test_equals_the_reference(name: str, op: str, rng: np.random.Generator) -> None:
    target = tier(name)
    for a, b in SHAPES:
        workload = make(op, "w8a8", [a, b], a, activation=Activation(kind="relu"))
        kernel = binary.apply(workload, target)
        assert kernel is not None
        arguments = [numbers(rng, a, "uint8"), numbers(rng, b, "uint8"), ints("uint8")]
        check(workload, target, [*arguments, np.array(FACTORS[op], np.float32)], kernel=kernel)


@pytest.mark.parametrize(
    ("op", "factors"),
    [("add", [0.5, 0.25]), ("add", [1 / 3, 2 / 3]), ("add", [1e9, 3e8]), ("multiply", [1 / 16]), ("multiply", [1e9])],
)
def test_every_pair_of_bytes_equals_the_reference(op: str, factors: list[float]) -> None:
    """All 65,536 sums and products, with factors that make ties common, or leave int32."""
    a, b = (np.ascontiguousarray(grid.astype(np.uint8)) for grid in np.meshgrid(np.arange(256), np.arange(256)))
    workload, target = make(op, "w8a8", [a.shape, b.shape], a.shape), machine()
    kernel = binary.apply(workload, target)
    check(workload, target, [a, b, ints("uint8"), np.array(factors, np.float32)], kernel=kernel)


def test_large_ones_are_split_over_threads(rng: np.random.Generator) -> None:
    shape, target = (2, 128, 128, 48), machine()
    for other in (shape, (2, 1, 1, 48)):
        workload = make("multiply", "w8a8", [shape, other], shape, parallel=2)
        kernel = binary.apply(workload, target)
        assert kernel is not None
        assert "T.parallel" in kernel.func.script()
        arguments = [numbers(rng, shape, "uint8"), numbers(rng, other, "uint8"), ints("uint8")]
        check(workload, target, [*arguments, np.array([0.0071], np.float32)], kernel=kernel)


@pytest.mark.parametrize("second", [(1, 14, 14, 64), (1, 1, 1, 64)])
def test_the_loop_is_vectors_only(second: Shape) -> None:
    shape = (1, 14, 14, 64)
    for name, register in (("x86-avx2", "%ymm"), ("x86-avx512-vnni", "%zmm")):
        target = Target.load(name)
        kernel = binary.apply(make("add", "w8a8", [shape, second], shape), target)
        assert kernel is not None
        lines = assembly(kernel, target)
        end = max(number for number, line in enumerate(lines) if "packuswb" in line)
        start = max(number for number in range(end) if re.match(r"\.LBB", lines[number]))
        body = [line for line in lines[start : end + 4] if re.match(r"\s+v?[a-z]", line)]
        assert all(register in line for line in body if "ps" in line or "pack" in line), body
        assert not any(re.search(r", -?\d*\(%rsp.*\)$", line) for line in body), "registers are spilled"
        assert ("vpdpbusd" in "".join(body)) == ("vnni" in name)


def test_what_is_declined() -> None:
    shape, target = (1, 2, 2, 32), Target.load("x86-avx2")
    assert binary.apply(make("add", "f32", [shape, shape], shape), target) is None
    assert binary.apply(make("add", "w8a8", [shape, (1, 2, 1, 32)], shape), target) is None
    assert binary.apply(make("add", "w8a8", [(31,), (31,)], (31,)), target) is None, "no whole group"
    wide = make("add", "w8a8", [(1, 99, 99, 1021), (1, 1, 1, 1021)], (1, 99, 99, 1021))
    assert binary.apply(wide, target) is None, "numbers that fill the first cache"
    arm = replace(Target.load("arm-cortex-a76"), activation_storage="uint8")
    assert binary.apply(make("add", "w8a8", [shape, shape], shape), arm) is None, "packuswb is an x86's"
    signed = replace(target, activation_storage="int8")
    assert binary.apply(make("add", "w8a8", [shape, shape], shape), signed) is None
