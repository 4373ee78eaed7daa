"""AMX kernels equal the reference at any shape, by their machine code; the emulator refuses what hardware would."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from amx_emulator import Amx, AmxFault, Instruction, decode, execute
from amx_runs import amx_target, on_tiles
from anchor_runs import RELU, RELU6, TABLED, anchor, check_anchor, make_arguments, result_of
from kernel_runs import Array, assembly

from hwq import numerics
from hwq.reference import evaluate
from hwq.schedule import kernel_for
from hwq.schedules.x86 import amx_tiles as tiles
from hwq.schedules.x86.amx import apply, make_plan, pack, plans_of
from hwq.target import Target
from hwq.workload import Workload

INSTRUCTIONS = {"w8a8": "tdpbusd", "w4a8": "tdpbusd", "bf16": "tdpbf16ps"}
SCHEMES = tuple(INSTRUCTIONS)
SQUARE: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
# name: (operator, input shape, output channels, the rest of ``anchor``)
CASES: dict[str, tuple[str, tuple[int, ...], int, dict[str, Any]]] = {
    "3x3": ("conv2d", (1, 7, 7, 16), 32, SQUARE),
    "3x3 full steps": ("conv2d", (1, 6, 9, 64), 64, {**SQUARE, "activation": RELU}),
    "residual, lopsided": (
        "conv2d",
        (2, 11, 7, 33),
        17,
        {"kernel": (3, 3), "strides": (2, 2), "padding": (0, 1, 1, 2), "residual": True},
    ),
    "5x5": ("conv2d", (1, 9, 8, 20), 40, {"kernel": (5, 5), "padding": (2, 2, 2, 2), "activation": RELU6}),
    "stem": ("conv2d", (1, 16, 33, 3), 64, {"kernel": (7, 7), "strides": (2, 2), "padding": (3, 3, 3, 3)}),
    "dilated, float out": (
        "conv2d",
        (1, 9, 17, 32),
        48,
        {"kernel": (3, 3), "padding": (2, 2, 2, 2), "dilation": (2, 2), "out": "float32", "residual": True},
    ),
    "dilated and strided": (
        "conv2d",
        (1, 13, 14, 8),
        24,
        {"kernel": (3, 3), "padding": (2, 1, 0, 2), "dilation": (2, 3), "strides": (2, 2)},
    ),
    "strides apart": ("conv2d", (1, 12, 9, 32), 16, {**SQUARE, "strides": (2, 3), "residual": True}),
    "1x1 table": ("conv2d", (3, 7, 7, 127), 24, {"activation": TABLED}),
    "1x1 residual table": ("conv2d", (1, 7, 7, 64), 100, {"activation": TABLED, "residual": True}),
    "strided 1x1": ("conv2d", (1, 15, 14, 64), 128, {"strides": (2, 2)}),
    "few pixels, many channels": ("conv2d", (1, 3, 3, 48), 160, {}),
    "smallest": ("conv2d", (1, 5, 1, 1), 1, {}),
    "one pixel": ("conv2d", (1, 1, 1, 20), 20, SQUARE),
    "column": ("conv2d", (1, 33, 1, 1), 7, {"kernel": (3, 1), "padding": (1, 0, 1, 0)}),
    "tall input, few pixels": ("conv2d", (1, 16, 4, 7), 127, {"kernel": (4, 3), "strides": (4, 1)}),
    "all reads in padding": (
        "conv2d",
        (1, 1, 3, 64),
        32,
        {"kernel": (1, 3), "strides": (10, 10), "padding": (0, 5, 0, 0)},
    ),
    "strided to a pixel of each picture": ("conv2d", (5, 2, 2, 32), 32, {"strides": (2, 2)}),
    "dense 5": ("dense", (5, 200), 100, {"out": "float32"}),
    "dense 16": ("dense", (16, 64), 64, {"activation": RELU}),
    "dense 17": ("dense", (17, 127), 33, {"residual": True}),
    "dense 128": ("dense", (128, 65), 31, {"activation": TABLED}),
    "dense of one": ("dense", (7, 17), 1, {}),
}

# Weights as they are packed -> their values, and as many zeros as there may be.
VALUES: dict[str, Callable[[Array], Array]] = {
    "w8a8": lambda packed: packed,
    "w4a8": lambda packed: np.stack([packed & 15, packed >> 4]).astype(np.int8) - 8,
    "bf16": numerics.from_bf16,
}


def make(scheme: str, case: str) -> Workload:
    op, shape, out_c, more = CASES[case]
    return anchor(op, scheme, shape, out_c, **more)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_equals_the_reference(scheme: str, case: str, rng: np.random.Generator) -> None:
    """bf16: is as near as any order of sums."""
    workload, target = make(scheme, case), amx_target()
    with on_tiles() as amx:
        kernel = check_anchor(apply, workload, target, rng)
    assert kernel.instruction == INSTRUCTIONS[scheme]
    if amx is not None:
        plan = make_plan(workload, target)
        assert amx.counts[kernel.instruction] == plan.products
        assert amx.counts["ldtilecfg"] == amx.counts["tilerelease"] == plan.chunks[0] * plan.chunks[1]


@pytest.mark.parametrize("case", ["residual, lopsided", "dilated and strided", "stem", "1x1 table", "dense 17"])
@pytest.mark.parametrize("seed", range(2))
def test_sampled_plans_are_right_too(case: str, seed: int, rng: np.random.Generator) -> None:
    with on_tiles():
        for scheme in SCHEMES:
            check_anchor(apply, make(scheme, case), amx_target(), rng, seed=seed)


def test_seeds_reach_different_plans() -> None:
    workload, target = make("w8a8", "residual, lopsided"), Target.load("x86-amx")
    assert len({make_plan(workload, target, seed) for seed in range(8)}) > 4


@pytest.mark.parametrize("case", ["3x3", "dense 17"])
def test_activations_may_be_stored_signed(case: str, rng: np.random.Generator) -> None:
    target = replace(amx_target(), activation_storage="int8")
    with on_tiles() as amx:
        kernel = check_anchor(apply, make("w8a8", case), target, rng)
    assert kernel.instruction == "tdpbssd"
    assert amx is None or amx.counts["tdpbssd"] > 0


def test_the_instruction_follows_from_the_signs() -> None:
    """All four, multiplied by the emulator: activations with one set of bits, weights with another."""
    named = {
        (act, weight): tiles.dot_instruction(act, weight) for act in ("uint8", "int8") for weight in ("uint8", "int8")
    }
    assert len(set(named.values())) == 4
    for (act, weight), name in named.items():
        state = _configured()
        state.tiles[1], state.tiles[2] = 0x81, 0xFE
        execute(state, Instruction(name=name, length=5, tile=0, first=1, second=2))
        expected = 64 * int(np.uint8(0x81).view(act)) * int(np.uint8(0xFE).view(weight))
        assert np.all(state.tiles[0].view(np.int32) == expected), name
    assert tiles.dot_instruction("bfloat16", "bfloat16") == "tdpbf16ps"


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_extreme_values_do_not_saturate(scheme: str, rng: np.random.Generator) -> None:
    workload, target = anchor("dense", scheme, (9, 512), 32, out="float32"), amx_target()
    for end in {"w8a8": (-127, 127), "w4a8": (-8, 7)}[scheme]:
        arguments = make_arguments(workload, target, rng)
        arguments[0][:], arguments[1][:] = 255, end
        arguments[5][1:] = (-1e30, 1e30)
        kernel = apply(workload, target)
        assert kernel is not None
        with on_tiles():
            result = result_of(workload, target, kernel, arguments)
        np.testing.assert_array_equal(result, evaluate(workload, arguments))


@pytest.mark.parametrize(("scheme", "more"), [("w8a8", SQUARE), ("bf16", SQUARE), ("bf16", {})])
def test_sections_are_right_in_one_thread_and_named_parallel(
    scheme: str, more: dict[str, Any], rng: np.random.Generator
) -> None:
    """Enough work for two threads, on one: every section configures the tiles for itself."""
    workload, target = anchor("conv2d", scheme, (1, 20, 20, 64), 64, **more, parallel=2), amx_target()
    slow = replace(target, clock_hz=target.clock_hz / 10)
    plan = make_plan(workload, slow)
    assert plan.parallel
    assert plan.chunks[0] * plan.chunks[1] % 2 == 0
    with on_tiles() as amx:
        kernel = check_anchor(apply, workload, slow, rng)
    assert "T.parallel" in kernel.func.script()
    assert amx is None or amx.counts["ldtilecfg"] == plan.chunks[0] * plan.chunks[1]
    assert not make_plan(workload, target).parallel


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", ["3x3 full steps", "1x1 residual table"])
def test_tiles_stay_in_registers(scheme: str, case: str) -> None:
    """No load or store but the plan's; the epilogue is whole vectors, and the state is asked for at one place."""
    target = Target.load("x86-amx")
    kernel = apply(make(scheme, case), target)
    assert kernel is not None
    lines = assembly(kernel, target)
    ops = Counter(match[1] for line in lines if (match := re.match(r"\s+(\w+)", line)))
    plan = make_plan(make(scheme, case), target)
    products = ops[INSTRUCTIONS[scheme]]
    assert products % (plan.mt * plan.nt) == 0
    assert products > 0
    loads = ops["tileloadd"] - plan.biased * plan.mt * plan.nt
    assert loads * plan.mt * plan.nt == products * (plan.mt + plan.nt)
    assert ops["ldtilecfg"] == ops["tilerelease"] == 1
    assert sum("syscall" in line for line in lines) == 1
    assert [line for line in lines if "gather" in line] == []
    if scheme == "bf16":
        assert any(re.match(r"\s+vcvtneps2bf16\s.*%ymm\d+$", line) for line in lines), "sixteen at once"
        assert [line for line in lines if "call" in line and "bf16" in line] == []
    else:
        assert ops["vpackuswb"] > 0
        assert ops["vpmovdb"] == 0
    assert scheme != "w4a8" or ops["vpermb"] > 0


def test_groups_depthwise_and_few_rows_are_left_to_vectors(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    target = Target.load("x86-amx")
    grouped = anchor("conv2d", "w8a8", (1, 8, 8, 32), 24, **SQUARE, groups=2)
    assert apply(grouped, target) is None
    assert kernel_for(grouped, target).instruction == "vpdpbusd"
    assert kernel_for(replace(grouped, scheme="bf16"), target).instruction == "vdpbf16ps"
    one_row = anchor("dense", "w8a8", (1, 256), 64)
    assert apply(one_row, target) is None
    assert kernel_for(one_row, target).schedule.startswith("cpu/dense")
    assert apply(anchor("depthwise_conv2d", "w8a8", (1, 8, 8, 16), 16, **SQUARE), target) is None
    assert apply(anchor("dense", "f32", (16, 16), 16), target) is None
    assert apply(anchor("dense", "w8a8", (16, 16), 16), Target.load("x86-avx512-vnni")) is None
    assert caplog.text.count("declined") >= 4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_packed_weights_hold_every_weight_once(scheme: str) -> None:
    """Whatever the plan: as many non-zero weights as went in; and no waste where tiles are full."""
    for case in ("residual, lopsided", "dense 17", "3x3 full steps"):
        workload = make(scheme, case)
        for plan in plans_of(workload)[::5]:
            shape = plan.geometry
            kind = np.float32 if scheme == "bf16" else np.int8
            weight = np.ones((shape.out_c, shape.kernel_h, shape.kernel_w, shape.in_c), kind)
            assert int(VALUES[scheme](pack(plan, weight)).sum()) == weight.size
    full = make(scheme, "3x3 full steps")
    packed = pack(make_plan(full, Target.load("x86-amx")), np.zeros((64, 3, 3, 64), np.int8))
    assert packed.nbytes == 64 * 9 * 64 * {"w4a8": 1, "w8a8": 2, "bf16": 4}[scheme] // 2


def test_the_emulator_multiplies_bfloat16() -> None:
    """tdpbf16ps: sums + a0 * b0 + a1 * b1 over the pairs of a row; numbers below the least normal one count as 0."""
    state = _configured(rows=(2, 2, 3), colsb=(8, 12, 8))
    a, b = np.float32([[1, 2, -3, 0.5, 4, 1e-39], [0, 0, 7, 0, 0, 0]]), np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    sums = np.float32([[100, 0], [0, -1]])
    state.tiles[0, :2, :8], state.tiles[1, :2, :12] = sums.view(np.uint8), numerics.to_bf16(a).view(np.uint8)
    state.tiles[2, :3, :8] = numerics.to_bf16(b).reshape(3, 4).view(np.uint8)
    execute(state, Instruction(name="tdpbf16ps", length=5, tile=0, first=1, second=2))
    first = [1 * 0 + 2 * 1 - 3 * 4 + 0.5 * 5 + 4 * 8, 1 * 2 + 2 * 3 - 3 * 6 + 0.5 * 7 + 4 * 10]
    expected = sums + np.float32([first, [7 * 4, 7 * 6]])
    np.testing.assert_array_equal(state.tiles[0, :2, :8].view(np.float32), expected)


def _configured(rows: tuple[int, ...] = (16, 16, 16), colsb: tuple[int, ...] = (64, 64, 64)) -> Amx:
    state = Amx(configured=True)
    for tile, (high, wide) in enumerate(zip(rows, colsb, strict=True)):
        state.rows[tile], state.colsb[tile] = high, wide
    return state


@pytest.mark.parametrize(
    ("state", "name", "message"),
    [
        (Amx(), "tilezero", "without a tile configuration"),
        (_configured(), "tilezero", "tile 7, which is not configured"),
        (_configured(rows=(8, 16, 16)), "tdpbusd", "do not match"),
        (_configured(colsb=(64, 32, 64)), "tdpbusd", "do not match"),
        (_configured(rows=(16, 16, 15)), "tdpbusd", "do not match"),
    ],
)
def test_the_emulator_refuses_what_hardware_would(state: Amx, name: str, message: str) -> None:
    tile = 7 if name == "tilezero" else 0
    with pytest.raises(AmxFault, match=message):
        execute(state, Instruction(name=name, length=5, tile=tile, first=1, second=2))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("c4e27b4b0c07", Instruction(name="tileloadd", length=6, tile=1, address=107, stride_bytes=100)),
        ("c4a27b4b5c0f40", Instruction(name="tileloadd", length=7, tile=3, address=171, stride_bytes=109)),
        ("c4e27a4b845000010000", Instruction(name="tilestored", length=10, tile=0, address=356, stride_bytes=204)),
        ("c4e2694dc0", None),
        ("c4e2515ec4", Instruction(name="tdpbusd", length=5, tile=0, first=4, second=5)),
        ("c4e27b49d8", Instruction(name="tilezero", length=5, tile=3)),
        ("c4e27849c0", Instruction(name="tilerelease", length=5)),
        ("c4e278490510000000", Instruction(name="ldtilecfg", length=9, address=5000 + 9 + 16)),
    ],
)
def test_instructions_are_decoded(code: str, expected: Instruction | None) -> None:
    """Encoded by hand from the manual; register n holds 100 + n, but rdx (2) 102 and so on."""
    assert decode(bytes.fromhex(code).ljust(15, b"\x90"), lambda number: 100 + number, 5000) == expected
