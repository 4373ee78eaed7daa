"""Sums become bytes by NEON's own conversions, rounded to nearest even and clamped, at both ends of every type."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from anchor_runs import anchor, make_arguments, packed
from arm_runs import results
from kernel_runs import assembly

from hwq import device
from hwq.reference import evaluate
from hwq.schedule import kernel_for
from hwq.schedules.arm.narrow import narrow
from hwq.target import Target

A76 = Target.load("arm-cortex-a76")
SQUARE = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}


@pytest.mark.parametrize("op", ["conv2d", "depthwise_conv2d"])
def test_no_element_is_converted_or_stored_by_itself(op: str) -> None:
    workload = anchor(op, "w8a8", (1, 14, 14, 64), 64, **SQUARE, residual=True)
    lines = assembly(kernel_for(workload, A76), A76)
    for wanted in (r"scvtf\s+v", r"fmul\s+v", r"fcvtns\s+v", r"sqxtn\s+v", r"sqxtn2\s+v", r"smax\s+v", r"str\s+q"):
        assert any(re.search(wanted, line) for line in lines), wanted
    assert [line for line in lines if re.search(r"\s(strb|st1|scvtf\s+s|fcvt\w+\s+[ws]\d)", line)] == []


def test_it_is_registered_once() -> None:
    assert narrow(4) == narrow(4)
    assert len({narrow(4), narrow(2), narrow(2, 2)}) == 3


def test_values_beyond_int32_are_clamped(board: device.Device, tmp_path: Path, rng: np.random.Generator) -> None:
    """Multipliers of every size there is, so that values overflow int32, and float32 too, on both sides."""
    cases, expected = [], []
    for rows, clamp in enumerate(((0, -128, 127), (127, -125, 122), (-128, 127, 127), (-108, -38, 90)), start=17):
        workload = anchor("conv2d", "w8a8", (1, rows, 1, 33), 48, residual=True)
        values = make_arguments(workload, A76, rng)
        values[4][:] = 10.0 ** rng.uniform(-40, 38, 48)
        values[5][2:] = clamp
        kernel = kernel_for(workload, A76)
        cases.append((workload, kernel, packed(workload, kernel, values)))
        with np.errstate(over="ignore"):
            expected.append(evaluate(workload, values, "int8"))
    for result, wanted in zip(results(board, A76, tmp_path, cases), expected, strict=True):
        np.testing.assert_array_equal(result, wanted)


def test_halves_round_to_even(board: device.Device, tmp_path: Path, rng: np.random.Generator) -> None:
    """Sums of every integer from -200 to 200 times one half."""
    workload = anchor("conv2d", "w8a8", (1, 401, 1, 4), 16)
    values = make_arguments(workload, A76, rng)
    sums = np.arange(-200, 201)
    values[0][:] = np.stack([sums // 2, sums - sums // 2, 0 * sums, 0 * sums], axis=1)[None, :, None]
    values[1][:], values[2][:], values[3][:] = 1, 0, 0.5
    values[4][:] = (0, 0, 3, -97, 103)
    kernel = kernel_for(workload, A76)
    (result,) = results(board, A76, tmp_path, [(workload, kernel, packed(workload, kernel, values))])
    np.testing.assert_array_equal(result[0, :, 0, 5], np.clip(np.rint(sums / 2) + 3, -97, 103))
