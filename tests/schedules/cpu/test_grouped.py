"""Dense kernels with a scale for each group of inputs equal the reference on every tier at any shape."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from anchor_runs import (
    RELU,
    RELU6,
    TABLED,
    TIERS,
    anchor,
    check_anchor,
    check_variants,
    loop_bodies,
    tier,
    weight_shape,
)
from kernel_runs import assembly

from hwq.graph import Activation
from hwq.schedule import kernel_for
from hwq.schedules.cpu.grouped import apply, templates
from hwq.target import Target
from hwq.workload import Workload

SCHEME = "w4a8_g64"
# name: (input shape, output channels, the rest of ``anchor``)
CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "1000 classes": ((1, 128), 1000, {"out": "float32"}),
    "odd": ((3, 127), 33, {"activation": TABLED}),
    "one": ((1, 17), 1, {"activation": RELU, "has_bias": False}),
    "smallest": ((1, 1), 1, {}),
    "whole": ((16, 64), 48, {"residual": True}),
    "ragged all over": ((7, 133), 127, {"activation": RELU6}),
    "prime rows": ((37, 200), 40, {"activation": Activation(kind="tanh"), "residual": True}),
    "crowded rows": ((8, 4096), 7, {"out": "float32", "residual": True}),
}


def make(case: str, **more: Any) -> Workload:
    shape, out_c, given = CASES[case]
    return anchor("dense", SCHEME, shape, out_c, **{**given, **more})


def grouped(target: Target) -> Target:
    """``target`` with a row for groups; on x86-generic, which has no fused multiply-add, the file names none."""
    row = next(row for row in target.compute if row.weight == "int4" and row.lists("dense"))
    return replace(target, compute=(*target.compute, replace(row, weight="int4_g64", ops=("dense",))))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TIERS)
def test_equals_the_reference(name: str, case: str, rng: np.random.Generator) -> None:
    check_anchor(apply, make(case), grouped(tier(name)), rng)


@pytest.mark.parametrize("storage", ["int8", "uint8"])
def test_activations_may_be_stored_either_way(storage: str, rng: np.random.Generator) -> None:
    check_anchor(apply, make("odd"), replace(tier("x86-avx2"), activation_storage=storage), rng)


def test_sampled_decisions_are_right_too(rng: np.random.Generator) -> None:
    check_variants(templates, make("whole"), tier("x86-avx2"), rng)


@pytest.mark.parametrize("rows", [1, 4])
def test_parts_and_totals_stay_in_registers(rows: int) -> None:
    """A group's loop multiplies as the instruction does and stores nothing; each part is shifted, converted and added
    to its total by one fused multiply-add."""
    target = Target.load("x86-avx512-vnni")
    kernel = apply(anchor("dense", SCHEME, (rows, 1024), 256), target)
    assert kernel is not None
    assert kernel.instruction == "vpdpbusd"
    lines = assembly(kernel, target)
    for body in loop_bodies(lines, "vpdpbusd"):
        assert [line for line in body if "gather" in line or re.search(r"%zmm\d+, -?\w*\(", line)] == []
    fused = [line for line in lines if "vfmadd" in line]
    assert fused
    assert all("%zmm" in line for line in fused)


def test_threads_share_out_blocks_of_channels(rng: np.random.Generator) -> None:
    kernel = check_anchor(apply, anchor("dense", SCHEME, (4, 1024), 1016, parallel=2), tier("x86-avx2"), rng)
    assert "T.parallel" in kernel.func.script()


def test_weights_are_packed_without_waste() -> None:
    workload = anchor("dense", SCHEME, (1, 256), 64)
    kernel = apply(workload, Target.load("x86-avx512-vnni"))
    assert kernel is not None
    assert kernel.pack is not None
    assert kernel.pack(np.zeros(weight_shape(workload), np.int8)).nbytes == 256 * 64 // 2


def test_takes_what_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    vnni = Target.load("x86-avx512-vnni")
    assert apply(anchor("dense", "w4a8", (1, 64), 16), vnni) is None
    assert apply(anchor("conv2d", SCHEME, (1, 8, 8, 64), 16), grouped(vnni)) is None
    assert apply(anchor("dense", SCHEME, (1, 64), 16), Target.load("x86-generic")) is None
    assert caplog.text.count("declined") == 2
    for rows in (1, 64):
        assert kernel_for(anchor("dense", SCHEME, (rows, 64), 16), vnni).schedule.startswith("cpu/grouped")
