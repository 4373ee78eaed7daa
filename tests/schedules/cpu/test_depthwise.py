"""Depthwise kernels equal the reference on every tier, whatever the shape, and are vector code."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anchor_runs import (
    RELU,
    RELU6,
    SCHEMES,
    TABLED,
    TIER_SCHEMES,
    anchor,
    check_anchor,
    check_variants,
    loop_bodies,
    tier,
)
from kernel_runs import assembly

from hwq.compile_kernel import compile_object
from hwq.schedules.cpu.depthwise import apply, templates
from hwq.target import Target
from hwq.workload import Workload

SQUARE: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
# name: (input shape, the rest of ``anchor``)
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((1, 7, 7, 16), SQUARE),
    "residual, lopsided": (
        (3, 17, 16, 33),
        {"kernel": (3, 3), "strides": (2, 2), "padding": (0, 1, 1, 2), "residual": True},
    ),
    "dilated, float out": (
        (1, 9, 17, 32),
        {"kernel": (3, 3), "padding": (2, 2, 2, 2), "dilation": (2, 2), "out": "float32"},
    ),
    "5x5 table": ((1, 14, 14, 48), {"kernel": (5, 5), "padding": (2, 2, 2, 2), "activation": TABLED}),
    "one channel": ((1, 16, 16, 1), {**SQUARE, "activation": RELU}),
    "7 channels, 7x7, table": ((1, 16, 16, 7), {"kernel": (7, 7), "padding": (3, 3, 3, 3), "activation": TABLED}),
    "127 channels": ((1, 17, 16, 127), {**SQUARE, "activation": RELU6}),
    "24 channels": ((1, 7, 33, 24), {**SQUARE, "residual": True, "out": "float32"}),
    "in place": ((3, 9, 9, 32), {"kernel": (3, 3), "strides": (2, 2), "activation": RELU}),
    "strided": ((1, 15, 17, 32), {"kernel": (3, 3), "strides": (2, 2), "padding": (1, 1, 1, 1), "activation": RELU}),
    "wide": ((2, 5, 31, 16), {**SQUARE, "residual": True}),
    "large kernel": ((1, 12, 12, 16), {"kernel": (9, 9), "padding": (4, 4, 4, 4), "residual": True}),
    "one row": ((1, 1, 33, 17), {"kernel": (1, 3), "has_bias": False}),
    "1x1": ((1, 5, 7, 17), {}),
}


def make(scheme: str, case: str, **more: Any) -> Workload:
    shape, rest = CASES[case]
    return anchor("depthwise_conv2d", scheme, shape, shape[-1], **rest, **more)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "scheme"), TIER_SCHEMES)
def test_equals_the_reference(name: str, scheme: str, case: str, rng: np.random.Generator) -> None:
    check_anchor(apply, make(scheme, case), tier(name), rng)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_avx_vnni_has_one_instruction_for_products_and_sum(scheme: str, tmp_path: Path) -> None:
    """LLVM makes vpdpwssd of vpmaddwd and vpaddd, and compiling takes it for the instruction that the target names."""
    target = Target.load("x86-avx-vnni")
    kernel = apply(make(scheme, "127 channels"), target)
    assert kernel is not None
    assert any("vpdpwssd" in line for line in assembly(kernel, target))
    assert compile_object(kernel, target, tmp_path).stat().st_size > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sampled_decisions_are_right_too(scheme: str, rng: np.random.Generator) -> None:
    check_variants(templates, make(scheme, "127 channels"), tier("x86-avx2"), rng, count=6)


@pytest.mark.parametrize("name", ["x86-avx2", "x86-generic"])
@pytest.mark.parametrize("case", ["residual, lopsided", "5x5 table"])
def test_activations_may_be_stored_signed(name: str, case: str, rng: np.random.Generator) -> None:
    for scheme in ("w8a8", "w4a8"):
        check_anchor(apply, make(scheme, case), replace(tier(name), activation_storage="int8"), rng)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_threads_share_out_the_work(scheme: str, rng: np.random.Generator) -> None:
    for batch in (1, 3):
        workload = anchor("depthwise_conv2d", scheme, (batch, 30, 33, 64), 64, **SQUARE, parallel=2)
        assert "T.parallel" in check_anchor(apply, workload, tier("x86-avx2"), rng).func.script()


def test_threads_are_left_alone_where_they_do_not_pay() -> None:
    for scheme, parallel in (("w8a8", 2), ("f32", 1)):
        kernel = apply(make(scheme, "3x3", parallel=parallel), Target.load("x86-avx2"))
        assert kernel is not None
        assert "T.parallel" not in kernel.func.script()


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
@pytest.mark.parametrize("channels", [32, 24])
def test_multiplies_whole_vectors(name: str, scheme: str, mnemonic: str, register: str, channels: int) -> None:
    """The instruction on whole registers, and no gathers. Float tiles at an edge may take half registers: of those the
    loop over the middle counts.
    """
    workload = anchor("depthwise_conv2d", scheme, (1, 28, 28, channels), channels, **SQUARE, activation=RELU)
    target = Target.load(name)
    kernel = apply(workload, target)
    assert kernel is not None
    lines = assembly(kernel, target)
    multiplies = [line for line in lines if mnemonic in line]
    taps = {"vpdpbusd": 3, "vpmaddwd": 2 * 3}.get(mnemonic, 9)  # in groups of four or two rows
    assert len(multiplies) >= taps * 4  # of four pixels
    inner = loop_bodies(lines, mnemonic)[0] if scheme == "f32" else lines
    assert all(register in line for line in inner if mnemonic in line)
    assert [line for line in lines if "gather" in line] == []


def test_declines_what_is_not_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert apply(anchor("conv2d", "w8a8", (1, 8, 8, 16), 16, **SQUARE), Target.load("x86-avx2")) is None
    assert apply(make("w8a8", "3x3"), Target.load("cuda-t4")) is None
    assert caplog.text.count("declined") == 2
