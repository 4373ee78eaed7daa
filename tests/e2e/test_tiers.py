"""The same bits on every tier: one plan, built for each x86 target that this CPU can run, gives equal outputs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import hwq
from hwq.demo import load_demo

TIERS = ("x86-generic", "x86-avx2", "x86-avx512-vnni")


@pytest.fixture(scope="module")
def plans() -> dict[str, hwq.Plan]:
    """The demo network's plan for the generic tier in each integer scheme, with every layer that can be integer so."""
    path, calibration, _ = load_demo()
    model = hwq.load(path)
    return {
        scheme: hwq.plan(model, "x86-generic", calibration=calibration, schemes=[scheme], measure=False, threads=1)
        for scheme in ("w8a8", "w4a8")
    }


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_equal_outputs_on_every_tier(plans: dict[str, hwq.Plan], scheme: str) -> None:
    path, _, (inputs, _) = load_demo()
    model = hwq.load(path)
    outputs = {}
    for tier in TIERS:
        target = hwq.Target.load(tier)
        if missing := target.missing_flags():
            pytest.skip(f"{tier} needs {', '.join(missing)}, which this CPU lacks; equal so far: {', '.join(outputs)}")
        plan = dataclasses.replace(plans[scheme], target=tier)
        outputs[tier] = hwq.build(model, plan, threads=1)(inputs[:32])
    first = outputs[TIERS[0]]
    assert len(np.unique(first)) > 100
    for tier, output in outputs.items():
        np.testing.assert_array_equal(output, first, err_msg=tier)
