"""AMX kernels on rows with scales of their own, and with float residuals, equal the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amx_runs import amx_target, on_tiles
from anchor_runs import RELU, anchor, check_anchor

from hwq.graph import Activation
from hwq.schedule import kernel_for
from hwq.schedules.x86.amx import apply

# name: (input shape, output channels, the rest of ``anchor``)
CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "17": ((17, 33), 17, {"residual": True, "activation": RELU}),
    "33 three axes": ((3, 11, 127), 48, {"activation": Activation(kind="gelu")}),
    "7": ((7, 200), 100, {}),
}


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("case", CASES)
def test_rows_equal_the_reference(case: str, seed: int | None, rng: np.random.Generator) -> None:
    shape, out_c, given = CASES[case]
    with on_tiles():
        kernel = check_anchor(apply, anchor("dense", "w8a8_dyn", shape, out_c, **given), amx_target(), rng, seed=seed)
    assert kernel.instruction == "tdpbusd"


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_a_float_residual_is_added_in_float(scheme: str, rng: np.random.Generator) -> None:
    given = {"residual": True, "float_residual": True, "out": "float32"}
    with on_tiles():
        check_anchor(apply, anchor("dense", scheme, (17, 130), 49, **given), amx_target(), rng)


def test_few_rows_go_to_vectors() -> None:
    target = amx_target()
    assert kernel_for(anchor("dense", "w8a8_dyn", (1, 256), 64), target).schedule.startswith("cpu/dense")
    assert kernel_for(anchor("dense", "w8a8_dyn", (64, 256), 64), target).schedule.startswith("x86/amx")
    assert kernel_for(anchor("dense", "w4a8_g64_dyn", (64, 256), 64), target).schedule.startswith("cpu/grouped")
