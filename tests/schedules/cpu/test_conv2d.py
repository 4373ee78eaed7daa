"""Convolution and dense kernels equal the reference on every tier at any shape, and use the tier's instruction."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from anchor_runs import (
    BF16_TIER,
    RELU,
    RELU6,
    SCHEMES,
    TABLED,
    TIER_SCHEMES,
    TIERS,
    anchor,
    check_anchor,
    check_variants,
    loop_bodies,
    make_arguments,
    result_of,
    tier,
    weight_shape,
)
from kernel_runs import assembly
from tvm.s_tir import Schedule

from hwq.compile_kernel import compile_object
from hwq.graph import Activation
from hwq.lowering import pipeline
from hwq.reference import evaluate
from hwq.schedules.cpu.conv2d import apply, computation, schedule, templates
from hwq.schedules.cpu.conv2d_plan import core_of, default_chunks, make_plan
from hwq.schedules.cpu.geometry import form
from hwq.target import Target
from hwq.workload import Workload

SQUARE: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
# name: (input shape, output channels, the rest of ``anchor``)
CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "3x3": ((1, 7, 7, 16), 32, SQUARE),
    "residual, lopsided": (
        (3, 17, 7, 33),
        17,
        {"kernel": (3, 3), "strides": (2, 2), "padding": (0, 1, 1, 2), "residual": True},
    ),
    "stem": (
        (1, 16, 33, 3),
        64,
        {"kernel": (7, 7), "strides": (2, 2), "padding": (3, 3, 3, 3), "activation": RELU},
    ),
    "dilated, float out": (
        (1, 9, 17, 32),
        48,
        {"kernel": (3, 3), "padding": (2, 2, 2, 2), "dilation": (2, 2), "out": "float32", "residual": True},
    ),
    "1x1 table": ((3, 7, 7, 127), 24, {"activation": TABLED}),
    "1x1 float out": ((3, 1, 7, 16), 127, {"out": "float32", "activation": RELU6}),
    "2 groups": ((1, 8, 8, 32), 24, {**SQUARE, "groups": 2, "residual": True}),
    "3 ragged groups": ((3, 8, 8, 33), 27, {**SQUARE, "strides": (2, 1), "groups": 3, "residual": True}),
    "2 ragged groups, table": ((1, 8, 8, 34), 14, {"kernel": (3, 3), "groups": 2, "activation": TABLED}),
    "strided 1x1": ((1, 15, 14, 64), 256, {"strides": (2, 2)}),
    "smallest": ((1, 1, 1, 1), 1, {"has_bias": False}),
    "column": ((1, 33, 1, 1), 7, {"kernel": (3, 1), "padding": (1, 0, 1, 0)}),
    "tall input, few pixels": ((1, 16, 4, 7), 127, {"kernel": (4, 3), "strides": (4, 1), "activation": RELU6}),
    "8 channels, table": ((1, 20, 21, 3), 8, {**SQUARE, "activation": TABLED}),
    "16 channels, table": ((1, 9, 8, 24), 16, {**SQUARE, "activation": TABLED, "residual": True}),
    "8 channels, many rows": ((1, 80, 20, 3), 8, {**SQUARE, "activation": RELU}),
    "two pictures, chunks": ((2, 80, 56, 127), 128, {"strides": (2, 2), "activation": RELU}),
    "one tile": ((1, 4, 4, 64), 64, {**SQUARE, "activation": RELU}),
}
DENSE: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "wide": ((1, 128), 1000, {"out": "float32"}),
    "odd": ((3, 127), 33, {"activation": TABLED}),
    "one": ((1, 17), 1, {"activation": RELU, "has_bias": False}),
    "many": ((33, 16), 16, {"residual": True}),
}


def make(scheme: str, case: str) -> Workload:
    op, (shape, out_c, more) = ("conv2d", CASES[case]) if case in CASES else ("dense", DENSE[case])
    return anchor(op, scheme, shape, out_c, **more)


@pytest.mark.parametrize("case", [*CASES, *DENSE])
@pytest.mark.parametrize(("name", "scheme"), TIER_SCHEMES)
def test_equals_the_reference(name: str, scheme: str, case: str, rng: np.random.Generator) -> None:
    check_anchor(apply, make(scheme, case), tier(name), rng)


@pytest.mark.parametrize("case", [*CASES, *DENSE])
def test_bf16_is_as_near_as_any_order_of_sums(case: str, rng: np.random.Generator) -> None:
    kernel = check_anchor(apply, make("bf16", case), tier(BF16_TIER), rng)
    assert kernel.instruction == "vdpbf16ps"


@pytest.mark.parametrize("case", ["3x3", "3 ragged groups", "tall input, few pixels", "many"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_sampled_decisions_are_right_too(scheme: str, case: str, rng: np.random.Generator) -> None:
    check_variants(templates, make(scheme, case), tier("x86-avx2"), rng)


def test_decisions_can_be_replayed_and_changed() -> None:
    """What auto-scheduling does: the trace on a fresh computation gives the same function, another decision another."""
    target, workload = Target.load("x86-avx512-vnni"), make("w4a8", "3x3")
    found = form(workload, target)
    assert found is not None
    plan = make_plan(workload, found, core_of(workload, found, target))
    function = computation(plan)[0]
    scheduled = Schedule(function)
    schedule(scheduled, plan, target)
    chunks, steps = ([int(size) for size in cut] for cut in list(scheduled.trace.decisions.values())[:2])
    assert (chunks, steps) == ([1, plan.out_h // plan.tile.rows], [plan.run_steps // 2, 1])
    again, other = Schedule(function), Schedule(function)
    scheduled.trace.apply_to_schedule(again, remove_postproc=False)
    assert again.mod.script() == scheduled.mod.script()
    first = next(iter(scheduled.trace.decisions))
    changed = scheduled.trace.with_decision(first, [plan.out_h // plan.tile.rows, 1], remove_postproc=False)
    changed.apply_to_schedule(other, remove_postproc=False)
    assert other.mod.script() != scheduled.mod.script()


@pytest.mark.parametrize("kind", ["leaky_relu", "hard_swish", "hard_sigmoid", "sigmoid", "silu", "tanh", "gelu"])
def test_float_activations(kind: str, rng: np.random.Generator) -> None:
    activation = Activation(kind=kind, alpha=0.2, beta=0.5)
    check_anchor(apply, anchor("conv2d", "f32", (1, 5, 5, 4), 16, activation=activation), tier("x86-avx2"), rng)


@pytest.mark.parametrize("name", TIERS)
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("weight", ["least", "most"])
def test_extreme_values_do_not_saturate(name: str, scheme: str, weight: str, rng: np.random.Generator) -> None:
    """All inputs 255 with all weights at one end: where instructions add pairs in 16 bits, they would saturate."""
    workload, target = anchor("dense", scheme, (2, 512), 32, out="float32"), tier(name)
    arguments = make_arguments(workload, target, rng)
    ends = {"w8a8": (-127, 127), "w4a8": (-8, 7)}[scheme]
    arguments[0][:] = 255
    arguments[1][:] = ends[weight == "most"]
    arguments[5][1:] = (-1e30, 1e30)
    kernel = apply(workload, target)
    assert kernel is not None
    np.testing.assert_array_equal(result_of(workload, target, kernel, arguments), evaluate(workload, arguments))


@pytest.mark.parametrize("name", TIERS)
@pytest.mark.parametrize("parallel", [1, 2])
def test_tables_are_looked_up_by_vectors(name: str, parallel: int, rng: np.random.Generator) -> None:
    target = tier(name)
    for out_c in (32, 64, 192):
        workload = anchor("conv2d", "w8a8", (1, 29, 13, 40), out_c, **SQUARE, activation=TABLED, parallel=parallel)
        kernel = check_anchor(apply, workload, target, rng)
        if name != "x86-generic" and parallel == 1:
            assert any("vpshufb" in line for line in assembly(kernel, target))


def test_tables_of_vbmi(rng: np.random.Generator) -> None:
    base = Target.load("x86-avx512-vnni")
    target = replace(base, mattr=(*base.mattr, "+avx512vbmi"), cpu_flags=(*base.cpu_flags, "avx512vbmi"))
    workload = anchor("conv2d", "w8a8", (1, 7, 7, 40), 64, **SQUARE, activation=TABLED)
    kernel = apply(workload, target)
    assert kernel is not None
    assert any(re.search("vperm[it]2b", line) for line in assembly(kernel, target))
    if not target.missing_flags():
        check_anchor(apply, workload, target, rng)


@pytest.mark.parametrize("name", TIERS)
@pytest.mark.parametrize("out_c", [16, 64, 33])
def test_values_beyond_int32_are_clamped(name: str, out_c: int, rng: np.random.Generator) -> None:
    """Multipliers of every size there is, so that values overflow int32, and float32 too, on both sides."""
    workload, target = anchor("dense", "w8a8", (5, 33), out_c, residual=True), tier(name)
    arguments = make_arguments(workload, target, rng)
    arguments[4][:] = 10.0 ** rng.uniform(-40, 38, out_c)
    for clamp in ((0, 128, 0, 255), (255, 0, 3, 250), (7, 255, 255, 255), (7, 100, 20, 90)):
        arguments[5][1:] = clamp
        kernel = apply(workload, target)
        assert kernel is not None
        result = result_of(workload, target, kernel, arguments)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(result, evaluate(workload, arguments))


@pytest.mark.parametrize("name", TIERS)
def test_halves_round_to_even(name: str, rng: np.random.Generator) -> None:
    """Sums of every integer from -200 to 200 times one half."""
    workload, target = anchor("dense", "w8a8", (401, 2), 4), tier(name)
    arguments = make_arguments(workload, target, rng)
    arguments[0][:] = np.stack([np.minimum(np.arange(401), 200), np.maximum(np.arange(401), 200) - 200], axis=1)
    arguments[1][:], arguments[2][:], arguments[3][:] = 1, -200, 0.5
    arguments[4][:] = (0, 0, 128, 28, 228)
    kernel = apply(workload, target)
    assert kernel is not None
    result = result_of(workload, target, kernel, arguments)
    np.testing.assert_array_equal(result[:, 0], np.clip(np.rint(np.arange(-200, 201) / 2) + 128, 28, 228))


@pytest.mark.parametrize("name", ["x86-avx2", "x86-generic"])
@pytest.mark.parametrize("case", ["residual, lopsided", "1x1 table", "odd"])
def test_activations_may_be_stored_signed(name: str, case: str, rng: np.random.Generator) -> None:
    for scheme in ("w8a8", "w4a8"):
        check_anchor(apply, make(scheme, case), replace(tier(name), activation_storage="int8"), rng)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_threads_share_out_the_work(scheme: str, rng: np.random.Generator) -> None:
    target = tier("x86-avx2")
    for shape, out_c, more in (
        ((1, 33, 33, 16), 128, {**SQUARE, "residual": True}),  # in rows
        ((1, 7, 7, 256), 512, {}),  # in blocks of channels
        ((3, 12, 12, 64), 40, {**SQUARE, "strides": (2, 2)}),  # in neither evenly
    ):
        kernel = check_anchor(apply, anchor("conv2d", scheme, shape, out_c, **more, parallel=2), target, rng)
        assert "T.parallel" in kernel.func.script()


@pytest.mark.parametrize("scheme", [*SCHEMES, "bf16"])
def test_one_parallel_loop_where_rows_share_out_evenly(scheme: str, rng: np.random.Generator) -> None:
    """Each thread copies its own rows, padding and halo included."""
    target = tier(BF16_TIER if scheme == "bf16" else "x86-avx2")
    workload = anchor("conv2d", scheme, (1, 48, 33, 32), 64, **SQUARE, parallel=2)
    assert str(check_anchor(apply, workload, target, rng).func).count("T.parallel") == 1


def test_weights_are_counted_as_they_are_read() -> None:
    """In bytes, though AVX2 multiplies words: those that fill more than half of the L2 pass once, in one chunk."""
    target = Target.load("x86-avx2")
    for out_c, chunks in ((target.l2_bytes // 2 // 512, 2), (target.l2_bytes // 2 // 512 + 16, 1)):
        workload = anchor("conv2d", "w8a8", (1, 28, 28, 512), out_c, strides=(2, 2))
        found = form(workload, target)
        assert found is not None
        plan = make_plan(workload, found, core_of(workload, found, target))
        assert default_chunks(plan, target, plan.out_h // plan.tile.rows) == chunks


@pytest.mark.parametrize("name", ["x86-avx512-vnni", "x86-avx2"])
def test_ragged_groups_leave_their_tile_as_bytes(name: str) -> None:
    """Their sums stay on the stack: nothing is taken from TVM's pool, where no input is copied."""
    target = Target.load(name)
    kernel = apply(anchor("conv2d", "f32", (1, 34, 34, 32), 24, kernel=(3, 3), groups=4), target)
    assert kernel is not None
    library = tvm.compile(tvm.IRModule({kernel.symbol: kernel.func}), target.tvm(), tir_pipeline=pipeline())
    assert "BackendAllocWorkspace" not in library.mod.inspect_source("asm")


def test_threads_are_left_alone_where_they_do_not_pay() -> None:
    target = Target.load("x86-avx2")
    for shape, parallel in (((1, 33, 33, 64), 1), ((1, 7, 7, 16), 2)):
        kernel = apply(anchor("conv2d", "w8a8", shape, 64, **SQUARE, parallel=parallel), target)
        assert kernel is not None
        assert "T.parallel" not in kernel.func.script()


@pytest.mark.parametrize(
    ("name", "scheme", "mnemonic", "register"),
    [
        ("x86-avx512-vnni", "w8a8", "vpdpbusd", "%zmm"),
        ("x86-avx512-vnni", "w4a8", "vpdpbusd", "%zmm"),
        ("x86-avx512-vnni", "f32", "vfmadd", "%zmm"),
        ("x86-avx512-bf16", "bf16", "vdpbf16ps", "%zmm"),
        ("x86-avx2", "w8a8", "vpmaddwd", "%ymm"),
        ("x86-avx2", "w4a8", "vpmaddwd", "%ymm"),
        ("x86-avx2", "f32", "vfmadd", "%ymm"),
    ],
)
@pytest.mark.parametrize("case", ["3x3 14x14", "1x1 7x7"])
def test_sums_stay_in_registers(name: str, scheme: str, mnemonic: str, register: str, case: str) -> None:
    """The innermost loop multiplies as its instruction does, eight sums or more at a time, and stores nothing; nothing
    is gathered anywhere, and pairs are never added in 16 bits."""
    shape, out_c, more = {"3x3 14x14": ((1, 14, 14, 128), 128, SQUARE), "1x1 7x7": ((1, 7, 7, 256), 256, {})}[case]
    target = Target.load(name)
    kernel = apply(anchor("conv2d", scheme, shape, out_c, **more), target)
    assert kernel is not None
    assert kernel.instruction == mnemonic
    lines = assembly(kernel, target)
    inner = loop_bodies(lines, mnemonic)[0]
    multiplies = [line for line in inner if mnemonic in line]
    assert len(multiplies) >= 7
    assert all(register in line for line in multiplies)
    assert [line for line in inner if re.search(rf"{register}\d+, -?\w*\(", line)] == []
    assert [line for line in lines if "gather" in line or "vpmaddubsw" in line] == []


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("case", ["3x3", "3 ragged groups", "many"])
def test_avx_vnni_is_encoded_as_such(scheme: str, case: str) -> None:
    """The instruction in its VEX form, whatever this CPU has (``anchor_runs.tier`` runs it in the one it has)."""
    target = Target.load("x86-avx-vnni")
    kernel = apply(make(scheme, case), target)
    assert kernel is not None
    assert kernel.instruction == "vpdpbusd"
    lines = [line for line in assembly(kernel, target) if "vpdpbusd" in line]
    assert lines
    assert all("{vex}" in line and "%zmm" not in line for line in lines)


def test_avx_vnni_compiles_to_an_object(tmp_path: Path) -> None:
    target = Target.load("x86-avx-vnni")
    kernel = apply(make("w8a8", "3x3"), target)
    assert kernel is not None
    assert compile_object(kernel, target, tmp_path).stat().st_size > 0


def test_weights_are_packed_without_waste() -> None:
    """int4 weights take half a byte each where channels fill the vectors, int8 one, bfloat16 two."""
    count = 64 * 9 * 64
    for scheme, expected in (("w8a8", count), ("w4a8", count // 2), ("bf16", 2 * count), ("f32", 4 * count)):
        workload = anchor("conv2d", scheme, (1, 14, 14, 64), 64, **SQUARE)
        kernel = apply(workload, Target.load(BF16_TIER))
        assert kernel is not None
        assert kernel.pack is not None
        dtype = np.int8 if scheme in ("w8a8", "w4a8") else np.float32
        assert kernel.pack(np.zeros(weight_shape(workload), dtype)).nbytes == expected


def test_declines_what_is_not_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    vnni = Target.load("x86-avx512-vnni")
    assert apply(anchor("depthwise_conv2d", "w8a8", (1, 8, 8, 16), 16, **SQUARE), vnni) is None
    assert apply(anchor("dense", "w8a8", (1, 16), 16), Target.load("cuda-t4")) is None
    assert apply(anchor("dense", "w8a8", (1, 16), 16), replace(vnni, activation_storage="int8")) is None
    assert apply(anchor("dense", "bf16", (1, 16), 16), vnni) is None
    assert caplog.text.count("declined") == 4
