"""The front of a real network: enough plans to choose from, better by measurement where they are by prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_data import case

import hwq

pytestmark = [pytest.mark.data, pytest.mark.slow]


def test_resnet32_has_eight_plans_and_more(data_dir: Path) -> None:
    """On 200 pictures one is half a point; plans predicted without noise have to agree with float on all of them."""
    assert data_dir.exists()  # skipped where it does not
    given = case("resnet32", 200, 64)
    model = hwq.load(given.model)
    front = hwq.explore(model, calibration=given.calibration, evaluate=(given.inputs, given.labels), threads=1)
    print(
        *(f"{one.latency_s * 1e6:.0f} us {one.weight_bytes} B {one.loss:.1e} {one.drop:.2%}" for one in front), sep="\n"
    )
    assert len({tuple(one.plan.schemes.values()) for one in front}) >= 8
    assert sum(bool(one.alternatives) for one in front) >= 4
    assert max(one.latency_s for one in front) > 2 * min(one.latency_s for one in front)
    assert max(one.weight_bytes for one in front) > 3 * min(one.weight_bytes for one in front)
    for one in front:
        assert one.accuracy is not None
        assert one.accuracy.agreement is not None
        if one.loss < 1e-5:
            assert one.accuracy.agreement >= 0.995
    worst, best = max(front, key=lambda one: one.loss), min(front, key=lambda one: one.loss)
    assert best.accuracy is not None
    assert worst.accuracy is not None
    assert worst.accuracy.sqnr_db[0] < best.accuracy.sqnr_db[0] - 20
