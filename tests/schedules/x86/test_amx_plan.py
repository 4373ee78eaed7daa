"""The plans of AMX kernels, by arithmetic alone: tiles are full where layers allow it, and cycles follow from them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from anchor_runs import anchor

from hwq.schedules.x86.amx import make_plan, plans_of
from hwq.schedules.x86.amx_input import SLACK_BYTES
from hwq.schedules.x86.amx_model import PRODUCT_CYCLES, estimate, row_operations
from hwq.schedules.x86.amx_plan import LANES, TILES, Plan, step_width
from hwq.schedules.x86.amx_tiles import operand_tiles
from hwq.target import Target

AMX = Target.load("x86-amx")
SQUARE: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
# (picture, input channels, output channels, the rest): the layers of ResNet-50 but its first.
WIDE = [
    *((56, 64, 64, SQUARE), (28, 128, 128, SQUARE), (14, 256, 256, SQUARE)),
    *((56, 128, 128, {**SQUARE, "strides": (2, 2)}), (28, 256, 256, {**SQUARE, "strides": (2, 2)})),
    *((56, 64, 64, {}), (56, 64, 256, {}), (56, 256, 64, {}), (56, 256, 128, {}), (28, 128, 512, {})),
    *((28, 512, 128, {}), (28, 512, 256, {}), (14, 256, 1024, {}), (14, 1024, 256, {}), (14, 1024, 512, {})),
    *((56, 256, 512, {"strides": (2, 2)}), (28, 512, 1024, {"strides": (2, 2)})),
]
# 49 outputs need four tiles of 16 rows, whichever way they are walked: 49 / 64 is the most there is.
SMALL = [
    *((7, 512, 512, SQUARE), (14, 512, 512, {**SQUARE, "strides": (2, 2)})),
    *((7, 512, 2048, {}), (7, 2048, 512, {}), (14, 1024, 2048, {"strides": (2, 2)})),
]


def plan_of(size: int, in_c: int, out_c: int, more: dict[str, Any], scheme: str = "w8a8") -> Plan:
    return make_plan(anchor("conv2d", scheme, (1, size, size, in_c), out_c, **more), AMX)


@pytest.mark.parametrize(("size", "in_c", "out_c", "more"), WIDE)
def test_tiles_are_full(size: int, in_c: int, out_c: int, more: dict[str, Any]) -> None:
    """Useful products over those that the tiles could have done."""
    plan = plan_of(size, in_c, out_c, more)
    assert plan.utilization >= 0.85
    assert plan.utilization == plan.geometry.macs / (1024 * PRODUCT_CYCLES * plan.products)


@pytest.mark.parametrize(("size", "in_c", "out_c", "more"), SMALL)
def test_the_smallest_pictures_fill_as_many_tiles_as_need_be(
    size: int, in_c: int, out_c: int, more: dict[str, Any]
) -> None:
    assert plan_of(size, in_c, out_c, more).utilization == 49 / 64


@pytest.mark.parametrize("size", [7, 14])
def test_small_pictures_are_one_run(size: int) -> None:
    """Tiles of one row of the picture would be half empty."""
    plan = plan_of(size, 256, 256, SQUARE)
    assert plan.source.joined
    assert plan.length == (size - 1) * (size + 2) + size


@pytest.mark.parametrize("case", range(18))
def test_every_output_is_in_a_block_and_tiles_are_legal(case: int) -> None:
    """For every plan of some awkward layer: rows and registers within bounds, no row lost, the reduction covered."""
    size, in_c, out_c, more = [
        *((5, 3, 7, {}), (7, 33, 17, SQUARE), (13, 64, 40, {**SQUARE, "strides": (2, 2)}), (1, 1, 1, {})),
        *((9, 20, 127, {**SQUARE, "dilation": (2, 2)}), (17, 129, 16, {"strides": (3, 2)})),
    ][case % 6]
    workload = anchor("conv2d", ("w8a8", "w4a8", "bf16")[case // 6], (2, size, size, in_c), out_c, **more)
    plans = plans_of(workload)
    assert len(plans) >= 4
    for plan in plans:
        assert all(1 <= rows <= 16 for rows in plan.tile_rows)
        assert sum(plan.tile_rows) == plan.block_rows
        assert (plan.blocks - 1) * plan.block_rows < plan.length <= plan.blocks * plan.block_rows
        assert plan.runs * math.ceil(plan.length / plan.pitch) == plan.geometry.batch * plan.geometry.out_h
        assert plan.run_steps * plan.width >= plan.stretch
        assert plan.stretch % plan.width == 0 or plan.stretch > plan.width or plan.source.copied
        assert (plan.width - plan.stretch) * plan.item_bytes <= SLACK_BYTES
        assert 0 < plan.width * plan.item_bytes <= 64
        assert plan.channel_blocks * plan.nt * LANES >= out_c
        pixels, channels = operand_tiles(plan)
        assert plan.mt * plan.nt <= min(*pixels, *channels)
        assert max(*pixels, *channels) < TILES
        assert not {*pixels} & {*channels}
        rows = dict(zip(pixels, plan.tile_rows, strict=True))
        assert all(rows[tile] == high for tile, high in zip(pixels, plan.tile_rows, strict=True))
        assert plan.utilization <= 1.0
        assert (plan.steps - plan.lead) * plan.slice_rows >= plan.block_rows


@pytest.mark.parametrize(("stretch", "width"), [(1, 4), (21, 24), (64, 64), (80, 40), (100, 52), (129, 44), (512, 64)])
def test_steps_are_of_one_width_in_whole_groups(stretch: int, width: int) -> None:
    assert step_width(stretch, 1) == width


def test_the_estimate_is_of_the_work_there_is() -> None:
    """More of anything is never cheaper, and no layer is faster than its products."""
    base = plan_of(28, 128, 128, SQUARE)
    now = estimate(base, AMX)
    assert now.total >= now.products == base.products * PRODUCT_CYCLES
    assert now.total >= base.geometry.macs / 1024
    assert estimate(plan_of(28, 128, 256, SQUARE), AMX).total > now.total
    assert estimate(plan_of(28, 256, 128, SQUARE), AMX).total > now.total
    assert estimate(plan_of(56, 128, 128, SQUARE), AMX).total > now.total
    assert estimate(replace(base, mt=1, nt=1), AMX).products > 3 * now.products  # bound by latency


def test_a_vector_of_bytes_takes_six_operations() -> None:
    """Convert, scale, bound, convert, and its share of packing four; a residual takes four more, a ragged bias one."""
    plans = [plan for plan in plans_of(anchor("conv2d", "w8a8", (1, 56, 56, 64), 256)) if plan.nt < 3]
    assert {plan.together for plan in plans if plan.nt == 2} == {2}
    assert {row_operations(plan) / plan.nt for plan in plans if plan.together * plan.nt == 4} == {6.0}
    wide = [plan for plan in plans_of(anchor("conv2d", "w8a8", (1, 56, 56, 64), 256, residual=True)) if plan.nt == 4]
    assert {row_operations(plan) for plan in wide} == {40.0}
    ragged = plans_of(anchor("conv2d", "w8a8", (1, 56, 56, 64), 250))
    assert {row_operations(plan) for plan in ragged if plan.nt == 4} == {28.0}


def test_wide_layers_are_bound_by_their_epilogue() -> None:
    """56x56x64 -> 256: one step of products, and a sum for every output."""
    now = estimate(plan_of(56, 64, 256, {}), AMX)
    assert max(now.products, now.loads, now.stores) < now.epilogue == 3.0 * 56 * 56 * 16
    assert 56 * 56 * 64 * 256 / now.total * AMX.clock_hz >= 650e9


def test_bfloat16_takes_twice_the_steps_and_a_copy() -> None:
    int8, floats = (estimate(plan_of(28, 128, 128, {}, scheme), AMX) for scheme in ("w8a8", "bf16"))
    assert floats.products == 2 * int8.products
    assert floats.copy > int8.copy == 0


def test_unpacking_shows_little_where_there_are_several_blocks_of_channels() -> None:
    int8, int4 = (estimate(plan_of(14, 256, 256, SQUARE, scheme), AMX) for scheme in ("w8a8", "w4a8"))
    assert int4.unpack > 0
    assert int4.total < 1.05 * int8.total


def test_streamed_weights_cost_half_in_int4() -> None:
    """7x7x512 3x3: 2.3 MB do not stay in the L2, so they come from beyond it each call."""
    int8, int4 = (estimate(plan_of(7, 512, 512, SQUARE, scheme), AMX) for scheme in ("w8a8", "w4a8"))
    assert int4.weights == 0.5 * int8.weights > 0
    assert int4.total < int8.total


@pytest.mark.parametrize(("parallel", "size", "wanted"), [(1, 28, 1), (2, 28, 2), (2, 5, 1), (3, 56, 3)])
def test_sections_share_out_the_work(parallel: int, size: int, wanted: int) -> None:
    workload = anchor("conv2d", "w8a8", (1, size, size, 128), 192, **SQUARE, parallel=parallel)
    plan = make_plan(workload, AMX)
    sections = plan.chunks[0] * plan.chunks[1]
    assert plan.parallel == (wanted > 1)
    assert sections % wanted == 0
    blocks = plan.runs * plan.blocks * plan.channel_blocks
    busiest = math.ceil(plan.runs * plan.blocks / plan.chunks[0]) * math.ceil(plan.channel_blocks / plan.chunks[1])
    assert busiest * sections / wanted <= 1.15 * blocks / wanted


def test_an_input_beyond_the_second_cache_passes_in_parts() -> None:
    """A picture of 3 MB under 32 KB of weights."""
    plan = plan_of(112, 256, 128, {})
    assert plan.chunks[0] > 1 or not plan.pixels_inner
