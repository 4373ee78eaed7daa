"""Winograd kernels give the bits of the direct convolution, at any shape and at the ends of the range, and say no where
it is faster."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from anchor_runs import RELU, TABLED, anchor, loop_bodies, make_arguments, packed, tier
from kernel_runs import Array, assembly, at_the_edge, shared

from hwq.lowering import pipeline
from hwq.reference import evaluate
from hwq.schedules.cpu import conv2d
from hwq.schedules.cpu.geometry import form
from hwq.schedules.x86 import winograd
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAMES = ("x86-avx512-vnni", "x86-avx-vnni", "x86-avx2")
# Where weights are expanded from int4, and bands shared out to threads, AVX-VNNI does as AVX2.
APART = ("x86-avx512-vnni", "x86-avx2")
SAME = (1, 1, 1, 1)
# name: (input shape, output channels, the rest of ``anchor``)
CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "one pixel": ((1, 1, 1, 16), 16, {"padding": SAME}),
    "whole tiles": ((1, 16, 16, 64), 64, {"padding": SAME, "activation": RELU}),
    "shared stores": ((1, 8, 8, 24), 16, {"padding": SAME, "residual": True}),
    "nearly shared stores": ((1, 5, 8, 24), 16, {"padding": SAME, "activation": TABLED}),
    "residual": ((2, 7, 7, 33), 33, {"padding": SAME, "residual": True}),
    "lopsided": ((1, 17, 3, 17), 127, {"padding": (0, 2, 1, 1)}),
    "no padding": ((2, 33, 7, 16), 1, {"activation": RELU}),
    "float out": ((1, 3, 33, 32), 48, {"padding": SAME, "out": "float32", "residual": True}),
    "table": ((1, 9, 8, 16), 32, {"padding": SAME, "activation": TABLED}),
    "ragged table": ((1, 4, 5, 64), 7, {"padding": SAME, "activation": TABLED}),
    "chunks": ((1, 5, 6, 231), 16, {"padding": SAME}),
}


def make(scheme: str, case: str, **more: Any) -> Workload:
    shape, out_c, given = CASES[case]
    return anchor("conv2d", scheme, shape, out_c, kernel=(3, 3), **(given | more))


def kernel_of(workload: Workload, target: Target, seed: int | None = None, place: int = 0) -> Kernel:
    return list(winograd.templates(workload, target))[place].kernel(seed)


def result_of(workload: Workload, target: Target, kernel: Kernel, *turns: list[Array]) -> list[Array]:
    """What the kernel writes for each list of arguments, its weights packed and expanded."""
    library = tvm.compile(tvm.IRModule(kernel.functions), target.tvm(), tir_pipeline=pipeline())
    dtype = target.activation_storage if workload.out_dtype == "int8" else "float32"
    at, results = len(workload.input_shapes), []
    for arguments in turns:
        values = [shared(at_the_edge(value)) for value in packed(workload, kernel, arguments)]
        assert kernel.expand is not None
        expanded = shared(at_the_edge(np.full(kernel.expand.shape, 99, kernel.expand.dtype)))
        library[kernel.expand.symbol](values[at], expanded)
        out = at_the_edge(np.full(workload.output_shape, 99, dtype))
        library[kernel.symbol](*values[:at], expanded, *values[at + 1 :], shared(out))
        results.append(out)
    return results


def check(workload: Workload, target: Target, *turns: list[Array], seed: int | None = None, place: int = 0) -> Kernel:
    """The kernel's results equal the reference's."""
    kernel = kernel_of(workload, target, seed, place)
    for found, arguments in zip(result_of(workload, target, kernel, *turns), turns, strict=True):
        expected = evaluate(workload, arguments, target.activation_storage)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    return kernel


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name: str, case: str, rng: np.random.Generator) -> None:
    workload, target = make("w8a8", case), tier(name)
    check(workload, target, make_arguments(workload, target, rng))


@pytest.mark.parametrize("case", ["residual", "lopsided", "table"])
@pytest.mark.parametrize("name", APART)
def test_nibbles_equal_the_reference(name: str, case: str, rng: np.random.Generator) -> None:
    workload, target = make("w4a8", case), tier(name)
    check(workload, target, make_arguments(workload, target, rng))


def extreme(workload: Workload, target: Target, pattern: str, rng: np.random.Generator) -> list[Array]:
    """Weights and inputs at the ends of their ranges."""
    arguments = make_arguments(workload, target, rng)
    least, most = (-127, 127) if workload.scheme == "w8a8" else (-8, 7)
    up = rng.random(arguments[1].shape) < {"least": 0.0, "most": 1.0}.get(pattern, 0.5)
    arguments[1][:] = np.where(up, most, least)
    arguments[0][:] = 255
    if pattern == "against":  # over the window of one output, the largest sum there is
        arguments[0][0, 2:5, 2:5] = np.where(up[0], 255, 0)
    elif pattern == "random":
        arguments[0][:] = np.where(rng.random(arguments[0].shape) < 0.5, 0, 255)
    arguments[2][:] = 0
    arguments[4][0] = 255
    arguments[5][1:] = (-1e30, 1e30)
    return arguments


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("scheme", "channels"), [("w8a8", 228), ("w8a8", 230), ("w4a8", 512)])
def test_extremes_are_exact(name: str, scheme: str, channels: int, rng: np.random.Generator) -> None:
    """Sums as large as 8 bits make them: in one chunk of its greatest length, and in two."""
    target = tier(name)
    workload = anchor("conv2d", scheme, (1, 7, 7, channels), 16, kernel=(3, 3), padding=SAME, out="float32")
    patterns = ("least", "most", "against", "random")
    check(workload, target, *(extreme(workload, target, pattern, rng) for pattern in patterns))


def test_sampled_decisions_are_right_too(rng: np.random.Generator) -> None:
    workload, target = make("w8a8", "whole tiles"), tier("x86-avx2")
    arguments = make_arguments(workload, target, rng)
    found = list(winograd.templates(workload, target))
    texts = {str(check(workload, target, arguments, seed=seed, place=-seed).func) for seed in (1, 2, len(found))}
    assert len(texts) == 3


def test_activations_may_be_stored_signed(rng: np.random.Generator) -> None:
    target = replace(tier("x86-avx2"), activation_storage="int8")
    workload = make("w8a8", "residual")
    check(workload, target, make_arguments(workload, target, rng))


@pytest.mark.parametrize("name", APART)
def test_threads_share_out_the_blocks(name: str, rng: np.random.Generator) -> None:
    target = tier(name)
    for shape, out_c in (((1, 33, 33, 32), 128), ((3, 14, 14, 64), 40)):
        workload = anchor("conv2d", "w8a8", shape, out_c, kernel=(3, 3), padding=SAME, residual=True, parallel=2)
        kernel = check(workload, target, make_arguments(workload, target, rng))
        assert "T.parallel" in kernel.func.script()


@pytest.mark.parametrize(
    ("name", "mnemonic", "register"),
    [
        ("x86-avx512-vnni", "vpdpwssd", "%zmm"),
        ("x86-avx-vnni", "vpdpwssd", "%ymm"),
        ("x86-avx2", "vpmaddwd", "%ymm"),
    ],
)
def test_sums_stay_in_registers(name: str, mnemonic: str, register: str) -> None:
    """The innermost loop multiplies, stores nothing and moves no sum; nothing is gathered anywhere."""
    target = Target.load(name)
    kernel = kernel_of(anchor("conv2d", "w8a8", (1, 28, 28, 128), 128, kernel=(3, 3), padding=SAME), target)
    assert kernel.instruction == mnemonic
    lines = [line.replace("{vex}", "") for line in assembly(kernel, target)]
    inner = max(loop_bodies(lines, mnemonic), key=lambda body: sum("broadcast" in x or "1to16" in x for x in body))
    assert sum(mnemonic in line for line in inner) >= 7
    assert [line for line in inner if re.search(rf"{register}\d+, -?\w*\(", line)] == []
    assert [line for line in lines if "gather" in line] == []


def test_takes_what_it_does_faster_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    vnni = Target.load("x86-avx512-vnni")

    def taken(shape: tuple[int, ...], out_c: int, **more: Any) -> bool:
        given = {"kernel": (3, 3), "padding": SAME} | more
        return winograd.apply(anchor("conv2d", "w8a8", shape, out_c, **given), vnni) is not None

    assert taken((1, 56, 56, 64), 64)
    assert taken((1, 28, 28, 128), 128)
    assert taken((1, 32, 32, 16), 16)
    assert taken((1, 16, 16, 32), 32)
    assert taken((1, 8, 8, 64), 64)
    refused = caplog.text.count("declined")
    assert refused == 0
    assert not taken((1, 32, 32, 3), 16)
    assert not taken((1, 1, 1, 64), 64)
    assert not taken((1, 56, 56, 64), 64, strides=(2, 2))
    assert not taken((1, 56, 56, 64), 64, dilation=(2, 2))
    assert not taken((1, 56, 56, 64), 64, groups=2)
    assert not taken((1, 56, 56, 64), 64, kernel=(1, 1))
    assert winograd.apply(anchor("conv2d", "f32", (1, 56, 56, 64), 64, kernel=(3, 3)), vnni) is None
    assert winograd.apply(anchor("dense", "w8a8", (1, 64), 64), vnni) is None
    generic = Target.load("x86-generic")
    assert winograd.apply(anchor("conv2d", "w8a8", (1, 56, 56, 64), 64, kernel=(3, 3)), generic) is None
    assert caplog.text.count("declined") == 9


def test_weights_are_stored_as_small_as_the_direct_kernel_has_them() -> None:
    for scheme in ("w8a8", "w4a8"):
        workload = anchor("conv2d", scheme, (1, 28, 28, 128), 128, kernel=(3, 3), padding=SAME)
        weight = np.zeros((128, 3, 3, 128), np.int8)
        direct = conv2d.apply(workload, Target.load("x86-avx512-vnni"))
        kernel = kernel_of(workload, Target.load("x86-avx512-vnni"))
        assert form(workload, Target.load("x86-avx512-vnni")) is not None
        assert direct is not None
        assert direct.pack is not None
        assert kernel.pack is not None
        assert kernel.pack(weight).nbytes == direct.pack(weight).nbytes
