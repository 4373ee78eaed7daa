"""Rows with scales of their own on NEON: what makes them, and dense layers on them, equal the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from anchor_runs import RELU, anchor
from arm_runs import check_layers, results
from kernel_runs import make

from hwq import device, row_scales
from hwq.graph import Activation
from hwq.schedule import kernel_for
from hwq.target import Target

GELU = Activation(kind="gelu")
SHAPES = (((1, 64), 64), ((7, 33), 127), ((16, 127), 16), ((2, 5, 130), 33), ((17, 7), 1))


@pytest.mark.parametrize(
    ("name", "instructions"),
    [("arm-cortex-a72", {"smlal"}), ("arm-cortex-a76", {"sdot"}), ("arm-neoverse-n2", {"sdot", "smmla"})],
)
def test_layers_equal_the_reference(
    board: device.Device, name: str, instructions: set[str], tmp_path: Path, rng: np.random.Generator
) -> None:
    layers = [anchor("dense", "w8a8_dyn", shape, out_c) for shape, out_c in SHAPES]
    layers += [anchor("dense", "w4a8_g64_dyn", shape, out_c) for shape, out_c in SHAPES[::2]]
    more = {"residual": True, "activation": RELU}
    layers += [anchor("dense", scheme, (7, 70), 18, **more) for scheme in ("w8a8_dyn", "w4a8_g64_dyn")]
    layers.append(anchor("dense", "w8a8_dyn", (9, 40), 32, activation=GELU))
    in_float = {"residual": True, "float_residual": True, "out": "float32"}
    layers += [anchor("dense", scheme, (9, 70), 33, **in_float) for scheme in ("w8a8", "w4a8", "w4a8_g64")]
    kernels = check_layers(board, Target.load(name), tmp_path, layers, rng)
    assert {kernel.instruction for kernel in kernels} == instructions


def test_rows_equal_the_reference(board: device.Device, tmp_path: Path, rng: np.random.Generator) -> None:
    target, cases, expected = Target.load("arm-cortex-a76"), [], []
    for rows, size in ((1, 1), (7, 33), (3, 127), (2, 384)):
        x = (rng.standard_normal((rows, size)) * 10.0 ** rng.uniform(-3, 3, (rows, 1))).astype(np.float32)
        scale = row_scales.row_scale(x)
        first = make("row_scale", "w8a8_dyn", [x.shape], (rows,), out_dtype="float32")
        second = make("quantize_rows", "w8a8_dyn", [x.shape, (rows,)], x.shape)
        cases += [(first, kernel_for(first, target), [x]), (second, kernel_for(second, target), [x, scale])]
        expected += [scale, row_scales.quantize_rows(x, scale, "int8")]
    for found, wanted in zip(results(board, target, tmp_path, cases), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
