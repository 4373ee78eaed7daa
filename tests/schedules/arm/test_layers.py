"""Layers on NEON equal the reference, at sizes at which vector code goes wrong, on an emulated board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anchor_runs import RELU, RELU6, TABLED, anchor, make_arguments, packed
from arm_runs import TARGETS, check_layers, results
from boards import serving
from kernel_runs import CHANNELS
from random_layers import drawn

from hwq import device
from hwq.graph import Shape
from hwq.reference import evaluate
from hwq.schedule import kernel_for, templates
from hwq.target import Target
from hwq.workload import Workload

SQUARE: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
WIDE: dict[str, Any] = {"kernel": (5, 5), "strides": (2, 2), "padding": (2, 2, 1, 2)}
CONVOLUTIONS: list[tuple[Shape, int, dict[str, Any]]] = [
    ((1, 7, 7, 16), 32, SQUARE),
    ((1, 14, 14, 64), 64, SQUARE),
    ((3, 17, 7, 33), 17, {"kernel": (3, 3), "strides": (2, 2), "padding": (0, 1, 1, 2), "residual": True}),
    ((1, 16, 33, 3), 64, {"kernel": (7, 7), "strides": (2, 2), "padding": (3, 3, 3, 3), "activation": RELU}),
    ((1, 16, 33, 3), 32, {"kernel": (3, 3), "strides": (2, 2), "padding": (0, 0, 1, 1), "activation": RELU6}),
    ((1, 9, 17, 32), 48, {"kernel": (3, 3), "padding": (2, 2, 2, 2), "dilation": (2, 2), "residual": True}),
    ((1, 5, 9, 7), 127, {"activation": TABLED}),
    ((3, 7, 7, 127), 24, {"activation": TABLED}),
    ((1, 8, 8, 32), 24, {**SQUARE, "groups": 2, "residual": True}),
    ((3, 8, 8, 33), 27, {**SQUARE, "strides": (2, 1), "groups": 3, "residual": True}),
    ((1, 14, 14, 24), 144, {}),
    ((1, 5, 5, 1), 1, SQUARE),
]
PRODUCTS: list[tuple[Shape, int]] = [
    *(((rows, inputs), outputs) for rows, inputs, outputs in ((1, 64, 64), (1, 1000, 17), (4, 64, 33), (7, 33, 127))),
    *(((rows, inputs), outputs) for rows, inputs, outputs in ((1, 7, 1), (16, 127, 16), (33, 17, 7), (20, 256, 48))),
]
DEPTHWISE: list[tuple[Shape, dict[str, Any]]] = [
    *(((1, 9, 11, channels), SQUARE) for channels in CHANNELS),
    *(((1, 9, 11, channels), {**WIDE, "residual": True}) for channels in (24, 48)),
    ((1, 8, 8, 48), {**SQUARE, "activation": TABLED}),
    ((1, 12, 12, 32), {"kernel": (7, 7), "padding": (3, 3, 3, 3)}),
    ((1, 12, 12, 24), {"kernel": (3, 3), "padding": (2, 2, 2, 2), "dilation": (2, 2)}),
    ((1, 12, 12, 16), {"kernel": (9, 9), "padding": (4, 4, 4, 4)}),
]


def layers(scheme: str) -> list[Workload]:
    """One of each."""
    products = [anchor("dense", scheme, shape, out_c) for shape, out_c in PRODUCTS]
    if scheme in ("w4a8_g64", "w4a16_g128"):
        return products
    convolutions = [anchor("conv2d", scheme, shape, out_c, **more) for shape, out_c, more in CONVOLUTIONS]
    more = [] if scheme == "f32" else [anchor("conv2d", scheme, (3, 1, 7, 16), 127, out="float32", activation=RELU6)]
    depthwise = [anchor("depthwise_conv2d", scheme, shape, shape[-1], **more) for shape, more in DEPTHWISE]
    return [*products, *convolutions, *more, *depthwise]


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "f32", "w4a8_g64", "w4a16_g128"])
def test_layers_equal_the_reference(
    board: device.Device, scheme: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    kernels = check_layers(board, Target.load("arm-cortex-a76"), tmp_path, layers(scheme), rng)
    assert {"f32": "fmla", "w4a16_g128": "smlal"}.get(scheme, "sdot") in {kernel.instruction for kernel in kernels}


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a8_g64"])
def test_layers_without_a_dot_product(
    board: device.Device, scheme: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    kernels = check_layers(board, Target.load("arm-cortex-a72"), tmp_path, layers(scheme)[::2], rng)
    assert "sdot" not in {kernel.instruction for kernel in kernels}


def test_a_cpu_without_a_dot_product_runs_them(
    board_root: Path, tracker: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """qemu's Cortex-A72 ends a process that executes an instruction which that CPU lacks."""
    workloads = [each for scheme in ("w8a8", "w4a8", "f32") for each in layers(scheme)[3::11]]
    with serving(board_root, tracker, "old", cpu="cortex-a72"):
        found = device.connect(f"old@{tracker}")
        check_layers(found, Target.load("arm-cortex-a72"), tmp_path, workloads, rng)
        device.close(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_layers_drawn_at_random(board: device.Device, name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    check_layers(board, Target.load(name), tmp_path, drawn(20, seed=TARGETS.index(name)), rng, varied=False)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("op", ["conv2d", "dense", "depthwise_conv2d"])
def test_other_variants_equal_it_too(
    board: device.Device, op: str, scheme: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Some of a layer's tiles, each with samples of what its schedule leaves open."""
    target = Target.load("arm-cortex-a76")
    shape, more = ((9, 80), {}) if op == "dense" else ((1, 9, 14, 48), {**SQUARE, "residual": True})
    workload = anchor(op, scheme, shape, 48, **more)
    values = make_arguments(workload, target, rng)
    found = list(templates(workload, target))
    for number, template in enumerate(found[:: max(1, len(found) // 6)], start=1):
        kernel = template.kernel(seed=number)
        (result,) = results(board, target, tmp_path, [(workload, kernel, packed(workload, kernel, values))])
        np.testing.assert_array_equal(result, evaluate(workload, values, "int8"), template.variant)


@pytest.mark.parametrize("name", TARGETS)
def test_extreme_values_do_not_saturate(
    board: device.Device, name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """All activations at their lower end, all weights at one of theirs: where products are added up in 16 bits, one
    more would not fit. The output is the sum, times a number that differs by channel.
    """
    target, cases, expected = Target.load(name), [], []
    for scheme, ends in (("w8a8", (-127, 127)), ("w4a8", (-8, 7))):
        for count, end in enumerate(ends, start=1):
            for workload in (
                anchor("dense", scheme, (count, 512), 32, out="float32"),
                anchor("conv2d", scheme, (count, 6, 6, 32), 16, kernel=(3, 3), out="float32"),
                anchor("depthwise_conv2d", scheme, (count, 9, 9, 16), 16, kernel=(7, 7), out="float32"),
            ):
                kernel, values = kernel_for(workload, target), make_arguments(workload, target, rng)
                values[0][:], values[1][:], values[5][1:] = -128, end, (-1e30, 1e30)
                cases.append((workload, kernel, packed(workload, kernel, values)))
                expected.append(evaluate(workload, values, target.activation_storage))
    for (workload, *_), result, wanted in zip(cases, results(board, target, tmp_path, cases), expected, strict=True):
        np.testing.assert_array_equal(result, wanted, str(workload))
