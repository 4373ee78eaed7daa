"""The chunks cover the channels, tiles fit the registers, and weights stand where a group's rows are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anchor_runs import RELU, TABLED, anchor

from hwq.schedules.cpu.geometry import form
from hwq.schedules.x86.depthwise_plan import Plan, best_width, make_plan, pack
from hwq.target import Target

TIERS = ("x86-avx512-vnni", "x86-avx2")


def plan_of(name: str, channels: int, *, width: int = 15, size: int = 3, stride: int = 1, **more: Any) -> Plan | None:
    pad = (size // 2,) * 4
    shape = (1, width, width, channels)
    rest: dict[str, Any] = {"kernel": (size, size), "strides": (stride, stride), "padding": pad, "activation": RELU}
    workload, target = anchor("depthwise_conv2d", "w8a8", shape, channels, **(rest | more)), Target.load(name)
    found = form(workload, target)
    assert found is not None
    return make_plan(workload, found, target)


@pytest.mark.parametrize("name", TIERS)
@pytest.mark.parametrize("channels", [16, 17, 24, 31, 33, 96, 127, 144, 960])
def test_chunks_cover_every_channel_and_few_twice(name: str, channels: int) -> None:
    plan = plan_of(name, channels)
    assert plan is not None
    times, slot = np.zeros(channels, int), 0
    for chunk in plan.chunks:
        assert chunk.slot == slot
        slot += chunk.count * chunk.channels
        times[chunk.first : chunk.first + chunk.count * chunk.channels] += 1
    assert times.min() == 1
    assert plan.slots == slot < channels + 16


@pytest.mark.parametrize(
    ("name", "size", "stride", "rows", "groups"),
    [
        ("x86-avx512-vnni", 3, 1, 2, 1),
        ("x86-avx512-vnni", 3, 2, 1, 1),
        ("x86-avx512-vnni", 5, 1, 4, 2),
        ("x86-avx512-vnni", 5, 2, 2, 2),
        ("x86-avx512-vnni", 7, 1, 2, 2),
        ("x86-avx2", 3, 1, 2, 2),
        ("x86-avx2", 5, 1, 2, 3),
    ],
)
def test_output_rows_share_groups(name: str, size: int, stride: int, rows: int, groups: int) -> None:
    plan = plan_of(name, 64, size=size, stride=stride)
    assert plan is not None
    assert (plan.rows, plan.groups) == (rows, groups)


def test_weights_move_down_with_the_output_row() -> None:
    plan = plan_of("x86-avx512-vnni", 16)
    assert plan is not None
    weight = np.arange(16 * 9, dtype=np.int8).reshape(16, 3, 3, 1)
    packed = pack(plan, weight).reshape(2, 3, 16, 4)  # output row, column, channel, tap
    expected = weight[..., 0].transpose(2, 0, 1)  # column, channel, tap
    for row in (0, 1):
        np.testing.assert_array_equal(packed[row, :, :, row : row + 3], expected)
        assert not packed[row, :, :, 3 - 3 * row].any()


def test_tiles_waste_little() -> None:
    for width in range(1, 120):
        tile = best_width(width, 7)
        assert tile <= 7
        assert -(-width // tile) * tile <= width + max(2, width // 8)
    assert [best_width(width, 7) for width in (7, 14, 28, 56, 112)] == [7] * 5


def test_declines_what_is_not_for_dot_products() -> None:
    assert plan_of("x86-avx2", 15) is None
    assert plan_of("x86-generic", 64) is None
    assert plan_of("x86-avx2", 64, residual=True) is None
    assert plan_of("x86-avx2", 64, out="float32") is None


def test_tables_are_looked_up_by_the_targets_shuffle() -> None:
    plan = plan_of("x86-avx2", 64, activation=TABLED)
    assert plan is not None
    assert plan.lookup == "vpshufb"
    assert plan_of("x86-avx2", 16, width=1, activation=TABLED) is None  # a row is no vector
