"""Dense kernels equal the reference on every tier at any shape, and read their weights as one stream."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import replace
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
from tvm import te
from tvm.s_tir import Schedule

from hwq.graph import Activation
from hwq.reference import evaluate
from hwq.schedule import kernel_for
from hwq.schedules.cpu.dense import MOST_PIXELS, apply, computation, make_plan, schedule, templates
from hwq.schedules.cpu.geometry import form
from hwq.schedules.cpu.int4 import scaled_nibble, within_range
from hwq.target import Target, names
from hwq.workload import Workload

# name: (input shape, output channels, the rest of ``anchor``)
CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "1000 classes": ((1, 128), 1000, {"out": "float32"}),
    "odd": ((3, 127), 33, {"activation": TABLED}),
    "one": ((1, 17), 1, {"activation": RELU, "has_bias": False}),
    "smallest": ((1, 1), 1, {}),
    "most rows": ((16, 64), 48, {"residual": True}),
    "two passes": ((14, 33), 127, {"activation": RELU6}),
    "prime rows": ((13, 16), 16, {"activation": Activation(kind="tanh"), "residual": True}),
    "crowded rows": ((8, 4096), 7, {"out": "float32", "residual": True}),
    "of rows of rows": ((2, 3, 40), 24, {}),
    "ragged rows": ((37, 40), 40, {"residual": True}),
    "many rows, odd": ((29, 33), 33, {"activation": TABLED}),
}


def make(scheme: str, case: str, **more: Any) -> Workload:
    shape, out_c, given = CASES[case]
    return anchor("dense", scheme, shape, out_c, **{**given, **more})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "scheme"), TIER_SCHEMES)
def test_equals_the_reference(name: str, scheme: str, case: str, rng: np.random.Generator) -> None:
    workload, target = make(scheme, case), tier(name)
    found = form(workload, target)
    assert found is not None
    if scheme == "w4a8" and found.r < 4 and math.prod(workload.input_shapes[0][:-1]) > 4:
        assert apply(workload, target) is None  # unpacked once for all rows: conv2d's
    else:
        check_anchor(apply, workload, target, rng)


@pytest.mark.parametrize("case", CASES)
def test_bf16_is_as_near_as_any_order_of_sums(case: str, rng: np.random.Generator) -> None:
    kernel = check_anchor(apply, make("bf16", case), tier(BF16_TIER), rng)
    assert kernel.instruction == "vdpbf16ps"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_convolution_may_be_a_product_of_few_rows(scheme: str, rng: np.random.Generator) -> None:
    """As the two of a squeeze-and-excite block: one pixel."""
    check_anchor(apply, anchor("conv2d", scheme, (1, 1, 1, 40), 24, activation=RELU), tier("x86-avx2"), rng)


@pytest.mark.parametrize("storage", ["int8", "uint8"])
@pytest.mark.parametrize("name", ["x86-avx2", "x86-generic"])
def test_activations_may_be_stored_either_way(name: str, storage: str, rng: np.random.Generator) -> None:
    for scheme in ("w8a8", "w4a8"):
        check_anchor(apply, make(scheme, "odd"), replace(tier(name), activation_storage=storage), rng)


@pytest.mark.parametrize("name", TIERS)
def test_the_largest_sums_are_exact(name: str, rng: np.random.Generator) -> None:
    """Inputs of 255 and weights of -8, as many as are taken: 16 times the sum just fits int32."""
    assert within_range(65793)
    assert not within_range(65794)
    workload, target = anchor("dense", "w4a8", (1, 65793), 2, out="float32"), tier(name)
    arguments = make_arguments(workload, target, rng)
    arguments[0][:] = 255
    arguments[1][0], arguments[1][1], arguments[2][:] = -8, 7, 0
    arguments[5][1:] = (-1e30, 1e30)
    kernel = apply(workload, target)
    assert kernel is not None
    np.testing.assert_array_equal(result_of(workload, target, kernel, arguments), evaluate(workload, arguments))


def test_nibbles_of_every_byte_are_sixteen_times_their_weight() -> None:
    byte = te.placeholder((256,), "uint8")
    out = te.compute((2, 256), lambda odd, i: scaled_nibble(byte[i], odd))
    library = tvm.compile(te.create_prim_func([byte, out]), {"kind": "llvm"})
    everything, result = np.arange(256, dtype=np.uint8), tvm.runtime.tensor(np.zeros((2, 256), np.int8))
    library["main"](tvm.runtime.tensor(everything), result)
    expected = np.stack([everything & 15, everything >> 4]).astype(np.int32) - 8
    np.testing.assert_array_equal(result.numpy(), 16 * expected)


@pytest.mark.parametrize("case", ["odd", "two passes"])
@pytest.mark.parametrize("scheme", ["f32", "w8a8"])
def test_sampled_decisions_are_right_too(scheme: str, case: str, rng: np.random.Generator) -> None:
    check_variants(templates, make(scheme, case), tier("x86-avx2"), rng)


def test_decisions_can_be_replayed() -> None:
    """What auto-scheduling does: the trace on a fresh computation gives the same function."""
    target, workload = Target.load("x86-avx512-vnni"), make("w4a8", "two passes")
    found = form(workload, target)
    assert found is not None
    plan = make_plan(workload, found)
    function = te.create_prim_func(computation(plan)[0])
    scheduled, again = Schedule(function), Schedule(function)
    schedule(scheduled, plan, target)
    scheduled.trace.apply_to_schedule(again, remove_postproc=False)
    assert again.mod.script() == scheduled.mod.script()


@pytest.mark.parametrize(
    ("name", "scheme", "mnemonic", "register"),
    [
        ("x86-avx512-vnni", "w8a8", "vpdpbusd", "%zmm"),
        ("x86-avx512-vnni", "w4a8", "vpdpbusd", "%zmm"),
        ("x86-avx512-vnni", "f32", "vfmadd", "%zmm"),
        ("x86-avx2", "w8a8", "vpmaddwd", "%ymm"),
        ("x86-avx2", "f32", "vfmadd", "%ymm"),
    ],
)
@pytest.mark.parametrize("rows", [1, 8])
def test_sums_and_unpacked_weights_stay_in_registers(
    name: str, scheme: str, mnemonic: str, register: str, rows: int
) -> None:
    """The loop multiplies as its instruction does, and stores nothing; int4 takes no instruction more to unpack than
    a mask for each vector of weights and a shift for every other, with a sign where there is no ternary logic."""
    workload, target = anchor("dense", scheme, (rows, 256), 256), Target.load(name)
    kernel, found = apply(workload, target), form(workload, target)
    assert kernel is not None
    assert found is not None
    assert kernel.instruction == mnemonic
    inner = loop_bodies(assembly(kernel, target), mnemonic)[0]
    multiplies = [line for line in inner if mnemonic in line]
    assert len(multiplies) >= 4
    assert all(register in line for line in multiplies)
    assert [line for line in inner if "gather" in line or re.search(rf"{register}\d+, -?\w*\(", line)] == []
    if (name, scheme) == ("x86-avx512-vnni", "w4a8"):
        masks, shifts = ([line for line in inner if word in line] for word in ("vpternlog", "vpsllw"))
        assert len(masks) == 2 * len(shifts) == len(multiplies) // make_plan(workload, found).rows
        assert [line for line in inner if "vpsub" in line or "vpand" in line] == []


def test_weights_are_packed_without_waste() -> None:
    for scheme, expected in (("w8a8", 256 * 64), ("w4a8", 256 * 64 // 2)):
        workload = anchor("dense", scheme, (1, 256), 64)
        kernel = apply(workload, Target.load("x86-avx512-vnni"))
        assert kernel is not None
        assert kernel.pack is not None
        assert kernel.pack(np.zeros(weight_shape(workload), np.int8)).nbytes == expected


@pytest.mark.parametrize("scheme", SCHEMES)
def test_threads_share_out_blocks_of_channels(scheme: str, rng: np.random.Generator) -> None:
    target = tier("x86-avx2")
    kernel = check_anchor(apply, anchor("dense", scheme, (4, 1024), 1016, parallel=2), target, rng)
    assert "T.parallel" in kernel.func.script()
    small = apply(anchor("dense", scheme, (1, 64), 64, parallel=2), target)
    assert small is not None
    assert "T.parallel" not in small.func.script()


def test_declines_what_is_not_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    vnni = Target.load("x86-avx512-vnni")
    assert apply(anchor("conv2d", "w8a8", (1, 8, 8, 16), 16), vnni) is None
    assert apply(anchor("conv2d", "w8a8", (1, 1, 4, 16), 16, kernel=(1, 3), padding=(0, 1, 0, 1)), vnni) is None
    assert apply(anchor("conv2d", "w8a8", (1, 1, MOST_PIXELS + 1, 16), 16), vnni) is None
    assert apply(anchor("dense", "w4a8", (1, 65794), 16), vnni) is None
    assert apply(anchor("dense", "w8a8", (1, 16), 16), Target.load("cuda-t4")) is None
    assert caplog.text.count("declined") == 5
    assert kernel_for(anchor("dense", "w4a8", (1, 65794), 16), vnni).schedule.startswith("cpu/conv2d")
    assert kernel_for(anchor("dense", "w4a8", (1, 100), 16), vnni).schedule.startswith("cpu/dense")


@pytest.mark.parametrize("name", [name for name, _ in names() if Target.load(name).builds])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("channels", [31, 32, 64, 96, 128])
def test_a_table_behind_the_sums_takes_no_tile_away(name: str, scheme: str, channels: int) -> None:
    plain = Workload(
        op="dense", scheme=scheme, input_shapes=((4, 64),), output_shape=(4, channels), has_bias=True, out_dtype="int8"
    )
    found, tabled = (
        {template.variant for template in templates(workload, Target.load(name))}
        for workload in (plain, replace(plain, activation=Activation(kind="gelu")))
    )
    assert found
    assert found == tabled


@pytest.mark.parametrize(("kind", "shuffle"), [("gelu", "vpermi2b"), ("relu", None)])
def test_tiles_that_hold_a_shuffles_vectors_are_taken_behind_tables(kind: str, shuffle: str | None) -> None:
    target = Target.load("x86-avx512-bf16")
    workload = Workload(
        op="dense", scheme="w8a8", input_shapes=((64, 384),), output_shape=(64, 1536), has_bias=True, out_dtype="int8",
        activation=Activation(kind=kind),
    )  # fmt: skip
    found = form(workload, target)
    assert found is not None
    assert make_plan(workload, found).shuffle == shuffle
