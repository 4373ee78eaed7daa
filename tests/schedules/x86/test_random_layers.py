"""Layers drawn at random: for every target each has a kernel, and on this machine it equals the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anchor_runs import check_anchor, tier
from random_layers import drawn

from hwq.schedule import kernel_for
from hwq.target import Target
from hwq.workload import Workload

TARGETS = ("x86-amx", "x86-avx512-bf16", "x86-avx512-vnni", "x86-avx-vnni", "x86-avx2", "x86-generic")
# How many layers each target is asked for, and how many are run on each tier of this machine.
DRAWN, RUN = 200, 20


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_every_layer_has_a_kernel(name: str) -> None:
    target = Target.load(name)
    for workload in drawn(DRAWN, seed=1):
        assert kernel_for(workload, target).func is not None, workload


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TARGETS if name != "x86-amx"])
def test_its_kernel_equals_the_reference(name: str, rng: np.random.Generator) -> None:
    target = tier(name)

    def chosen(workload: Workload, machine: Target, *, seed: int | None = None) -> Any:
        assert seed is None
        return kernel_for(workload, machine)

    for workload in drawn(RUN, seed=TARGETS.index(name)):
        check_anchor(chosen, workload, target, rng)
