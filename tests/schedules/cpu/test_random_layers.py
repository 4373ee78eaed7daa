"""Layers drawn at random: for every target each has a kernel, and on this machine it equals the reference."""

from __future__ import annotations

import numpy as np
import pytest
from anchor_runs import make_arguments, result_of, tier
from random_layers import drawn

from hwq.reference import evaluate
from hwq.schedule import kernel_for
from hwq.target import Target

ARM = ("arm-cortex-a72", "arm-cortex-a76")  # run on a board by ``tests/schedules/arm/test_layers.py``
TARGETS = ("x86-amx", "x86-avx512-bf16", "x86-avx512-vnni", "x86-avx-vnni", "x86-avx2", "x86-generic")
# How many layers each target is asked for, and how many are run on each tier of this machine.
DRAWN, RUN = 200, 20


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TARGETS, *ARM])
def test_every_layer_has_a_kernel(name: str) -> None:
    target = Target.load(name)
    for workload in drawn(DRAWN, seed=1):
        assert kernel_for(workload, target).func is not None, workload


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TARGETS if name != "x86-amx"])
def test_its_kernel_equals_the_reference(name: str, rng: np.random.Generator) -> None:
    target = tier(name)
    varied = 0
    for workload in drawn(RUN, seed=TARGETS.index(name)):
        arguments = make_arguments(workload, target, rng)
        expected = evaluate(workload, arguments, target.activation_storage)
        result = result_of(workload, target, kernel_for(workload, target), arguments)
        np.testing.assert_array_equal(result, expected, str(workload))
        varied += len(np.unique(expected)) > 5
    assert varied > 0.8 * RUN, "not all clamped"
