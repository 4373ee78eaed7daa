"""What prices are learned from: the base counts threads where the schedules do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from random_layers import drawn

from hwq.price_features import FEATURES, describe
from hwq.schedule import kernel_for
from hwq.target import Target

PARALLEL = FEATURES.index("parallel")


@pytest.mark.slow
def test_threads_are_counted_where_the_kernel_has_a_parallel_loop() -> None:
    """Near the threshold each schedule has its own word for what its work is; so not all, but almost."""
    target = replace(Target.load("x86-avx512-vnni"), cores=2)
    agree = []
    for workload in (one for one in drawn(150, seed=7) if one.parallel == 2):
        kernel = kernel_for(workload, target)
        split = "T.parallel" in kernel.func.script()
        found = describe(workload, f"{kernel.schedule}#0@l2", "l2", target)
        agree.append((found.features[PARALLEL] > 1) == split)
    assert len(agree) > 50
    assert sum(agree) >= 0.9 * len(agree)
