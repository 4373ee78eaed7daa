"""Dense kernels of int4 weights with float activations equal the reference in every bit, on every tier at any shape."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from anchor_runs import RELU, anchor, check_anchor, loop_bodies, make_arguments, result_of, tier, weight_shape
from kernel_runs import assembly

from hwq.graph import Activation
from hwq.schedule import kernel_for
from hwq.schedules.cpu import weight_only, weight_only_plan
from hwq.target import Target
from hwq.workload import Kernel, Workload

SCHEME = "w4a16_g128"
TIERS = ("x86-avx512-vnni", "x86-avx-vnni", "x86-avx2")
# name: (input shape, output channels, the rest of ``anchor``)
CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "one row": ((1, 256), 1000, {}),
    "odd": ((3, 127), 33, {"activation": Activation(kind="silu")}),
    "one": ((1, 17), 1, {"activation": RELU, "has_bias": False}),
    "smallest": ((1, 1), 1, {}),
    "whole": ((16, 128), 48, {"residual": True}),
    "a group cut short": ((7, 133), 127, {}),
    "groups and a rest": ((17, 300), 33, {"activation": Activation(kind="gelu_tanh"), "residual": True}),
    "prime rows": ((37, 200), 40, {"residual": True, "has_bias": False}),
    "crowded rows": ((33, 2048), 16, {"activation": RELU}),
    "a sequence": ((2, 5, 96), 7, {}),
}


def make(case: str, **more: Any) -> Workload:
    shape, out_c, given = CASES[case]
    return anchor("dense", SCHEME, shape, out_c, **{**given, **more})


def apply(workload: Workload, target: Target, *, seed: int | None = None) -> Kernel | None:
    return weight_only.apply(workload, target)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TIERS)
def test_equals_the_reference(name: str, case: str, rng: np.random.Generator) -> None:
    check_anchor(apply, make(case), tier(name), rng)


def test_a_row_has_the_same_bits_among_any_number_of_rows(rng: np.random.Generator) -> None:
    """Whatever tile it falls into: decoding and whole sequences agree."""
    target = tier("x86-avx2")
    many = anchor("dense", SCHEME, (21, 300), 40)
    arguments = make_arguments(many, target, rng)
    kernel = apply(many, target)
    assert kernel is not None
    whole = result_of(many, target, kernel, arguments)
    for rows in (1, 2, 7):
        some = anchor("dense", SCHEME, (rows, 300), 40)
        kernel = apply(some, target)
        assert kernel is not None
        part = result_of(some, target, kernel, [arguments[0][-rows:].copy(), *arguments[1:]])
        np.testing.assert_array_equal(part, whole[-rows:])


def test_zeros_and_tiny_groups_give_the_bias(rng: np.random.Generator) -> None:
    target = tier("x86-avx2")
    workload = anchor("dense", SCHEME, (2, 256), 16)
    x, weight, multiplier, bias = make_arguments(workload, target, rng)
    x = np.where(np.arange(256) < 128, 0.0, 1e-38).astype(np.float32) * np.ones_like(x)
    kernel = apply(workload, target)
    assert kernel is not None
    result = result_of(workload, target, kernel, [x, weight, multiplier, bias])
    np.testing.assert_array_equal(result, np.broadcast_to(bias, (2, 16)))


@pytest.mark.parametrize(
    ("name", "mnemonic", "rows"),
    [("x86-avx512-vnni", "vpdpwssd", 1), ("x86-avx512-vnni", "vpdpwssd", 8), ("x86-avx2", "vpmaddwd", 1)],
)
def test_sums_stay_in_registers(name: str, mnemonic: str, rows: int) -> None:
    """The loop of chunks unpacks, multiplies and adds: no sum is stored or loaded, and no weight becomes a float."""
    target = Target.load(name)
    kernel = apply(anchor("dense", SCHEME, (rows, 1024), 256), target)
    assert kernel is not None
    assert kernel.instruction == mnemonic
    body = loop_bodies(assembly(kernel, target), mnemonic)[0]
    assert sum(mnemonic in line for line in body) >= 4 * rows
    assert [line for line in body if re.search(r"%[xyz]mm\d+, -?\w*\(", line) or "cvt" in line] == []
    assert any("vpsrlw" in line for line in body)
    assert sum("prefetch" in line for line in body) >= 1


def test_arm_multiplies_words() -> None:
    """As LLVM makes it of sums of products, one for four of them: two for each vector and row of a tile and each of a
    chunk's four inputs."""
    target = Target.load("arm-cortex-a76")
    kernel = apply(anchor("dense", SCHEME, (4, 256), 64), target)
    assert kernel is not None
    rows, vectors, _ = weight_only_plan.tile_of(4, 64, 8, 14, accumulates=True)
    body = loop_bodies(assembly(kernel, target), "smlal")[0]
    assert sum(re.match(r"\s+smlal2?\s", line) is not None for line in body) == 8 * rows * vectors
    assert [line for line in body if re.match(r"\s+(mul|mla|scvtf|str|stp)\s", line)] == []


def test_threads_share_out_blocks_of_channels(rng: np.random.Generator) -> None:
    kernel = check_anchor(apply, anchor("dense", SCHEME, (4, 1024), 1016, parallel=2), tier("x86-avx2"), rng)
    assert "T.parallel" in kernel.func.script()


def test_weights_are_packed_without_waste() -> None:
    for name in ("x86-avx512-vnni", "x86-avx2", "arm-cortex-a76"):
        workload = anchor("dense", SCHEME, (1, 256), 64)
        kernel = apply(workload, Target.load(name))
        assert kernel is not None
        assert kernel.pack is not None
        assert kernel.pack(np.zeros(weight_shape(workload), np.int8)).nbytes == 256 * 64 // 2


@pytest.mark.parametrize(("registers", "accumulates"), [(32, True), (16, True), (16, False)])
def test_tiles_have_registers(registers: int, accumulates: bool) -> None:
    for count in (1, 2, 3, 5, 8, 13, 64, 512):
        for channels in (1, 17, 64, 4096):
            rows, vectors, chains = weight_only_plan.tile_of(count, channels, 8, registers, accumulates=accumulates)
            assert rows * vectors * chains + 2 * vectors + 2 <= registers
            assert rows <= count
            assert vectors <= -(-channels // 8)
    rows, vectors, chains = weight_only_plan.tile_of(1, 4096, 16, 32, accumulates=True)
    assert vectors * chains >= 8, "sums enough that none waits for itself"


def test_takes_what_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    vnni = Target.load("x86-avx512-vnni")
    assert apply(anchor("dense", "w4a8_g64", (1, 64), 16), vnni) is None
    assert apply(anchor("dense", SCHEME, (1, 64), 16), Target.load("x86-generic")) is None
    assert caplog.text.count("declined") == 1
    assert apply(anchor("dense", SCHEME, (1, 64), 16), replace(vnni, compute=())) is None
    for rows in (1, 64):
        assert kernel_for(anchor("dense", SCHEME, (rows, 64), 16), vnni).schedule.startswith("cpu/weight_only")
