"""Dense kernels of CPUs for int4 weights with a scale for each group of inputs.

    rows     x, filled up to whole groups and, row by row, whole tiles; absent if it can be read in place
    weights  a step's vectors, unpacked in registers as in ``dense``
    part     int32 sums of a tile over one group, in registers
    total    the tile's float sums: fma of each group's part and scale, groups in their order
    out      bias, residual, rounding, activation; ragged edges are cut here

Takes dense of any number of rows in schemes with a group size; ``hwq.group_scales`` has the
numbers. The limit is bytes, as in ``dense``, with a float of scale for every group of 32 bytes; from a few rows on the
multiplier, which waits while parts become floats: three instructions beside the sixteen multiplies of a group of 64.
On one Zen 4 core 4096 x 4096 from memory and one row take 31.5 GB/s where a plain read has 31, 2.0 times as fast as
int8; four rows and more 195 to 198 of its 230 GMAC/s, where int4 without groups has 220.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from hwq import group_scales
from hwq.schedules import epilogue as ep
from hwq.schedules.arm import model as arm
from hwq.schedules.cpu import dense
from hwq.schedules.cpu.dense import (
    MOST_VECTORS,
    UNPACK_CYCLES,
    schedule_tail,
    set_apart,
    tile_cycles,
    worth_parallel,
)
from hwq.schedules.cpu.ends import finished, kernel_function
from hwq.schedules.cpu.geometry import Form, form, geometry
from hwq.schedules.cpu.holding import axes_of, reduction, run_axes, schedule_held
from hwq.schedules.cpu.int4 import SCALE_BITS, scaled_nibble, unpacking_registers
from hwq.schedules.cpu.native import dot
from hwq.schedules.cpu.packing import pack_nibbles, pack_stream
from hwq.schedules.cpu.tiling import crowd
from hwq.schedules.generic import common
from hwq.schedules.template import DEFAULT, Choice, Draft, Template, first
from hwq.schedules.x86.intrinsics import scaled_sum
from hwq.scheme import SCHEMES
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "cpu/grouped:3"
# Rows of a tile at most, and what a part takes to become a float and be added, beside its multiplies.
MOST_ROWS, PART_CYCLES = 8, 2.0
# Pairs of steps of a group that are written out in a row, at most.
MOST_STEPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(dense.Plan):
    """One kernel, as in ``dense``. group: inputs of a group."""

    group: int

    @property
    def groups(self) -> int:
        return group_scales.group_count(self.inputs, self.group)

    @property
    def pairs(self) -> int:
        """Byte vectors, each of two vectors of weights, that a vector of sums takes in a group."""
        return self.group // self.form.r // 2

    @property
    def hold(self) -> int:
        """Steps of a group whose activations are held together."""
        return math.gcd(self.form.reach, self.group) // self.form.r if self.form.reach else 1

    @property
    def steps(self) -> int:
        """Vectors of weights that a vector of sums takes, of whole groups."""
        return 2 * self.groups * self.pairs

    @property
    def crowded(self) -> bool:
        return crowd(self.rows, self.steps * self.form.r * self.form.item_bytes)


def ranked(workload: Workload, found: Form, group: int) -> list[tuple[float, Plan]]:
    """The plans of every tile that has registers, for its parts and for what unpacks, fewest cycles first, with those.
    The totals, which are touched but once a group, may lie in the L1.
    """
    shape = geometry(workload)
    lanes = next((n for n in found.vectors if n <= shape.out_c), found.vectors[-1])
    vectors = math.ceil(shape.out_c / lanes)
    tiles = [
        (rows, wide)
        for rows in range(1, min(MOST_ROWS, shape.in_w) + 1)
        for wide in range(1, min(arm.MOST_VECTORS if found.neon else MOST_VECTORS, vectors) + 1)
        if (1 if found.r == 4 else 3) * rows * wide + unpacking_registers(found, wide, rows) <= found.registers
    ]

    def cycles(tile: tuple[int, int]) -> float:
        rows, wide = tile
        step = (
            tile_cycles(found, rows, wide) + UNPACK_CYCLES * (rows + wide) + PART_CYCLES * rows * wide * found.r / group
        )
        return math.ceil(shape.in_w / rows) * math.ceil(vectors / wide) * step

    def plan(tile: tuple[int, int]) -> Plan:
        rows, wide = tile
        return Plan(
            workload=workload,
            form=found,
            group=group,
            count=shape.in_w,
            inputs=shape.in_c,
            channels=shape.out_c,
            rows=rows,
            vectors=wide,
            lanes=lanes,
        )

    return [(cycles(tile), plan(tile)) for tile in sorted(tiles, key=cycles)]


def apply(workload: Workload, target: Target, *, seed: int | None = None) -> Kernel | None:
    """The kernel of a dense workload with a group size, or None. seed: sample the decisions, not the default ones."""
    return first(templates(workload, target), seed)


def templates(workload: Workload, target: Target) -> Iterator[Template]:
    """The kernels of a dense workload with a group size: a tile each, the model's best first."""
    if workload.op != "dense":
        return
    group = SCHEMES[workload.scheme].group_size
    if group is None:
        common.decline(workload, "its weights have no groups")
        return
    found = form(workload, target, grouped=True)
    if found is None:
        common.decline(workload, f"no form for it on {target.name}")
        return
    plans = ranked(workload, found, group)
    for expected, plan in plans:
        yield template_of(plan, target, f"{plan.rows}x{plan.vectors}x{plan.lanes}", expected / plans[0][0])


def template_of(plan: Plan, target: Target, variant: str, cycles: float) -> Template:
    """The template of ``plan``."""

    def start() -> Draft:
        arguments, tail = computation(plan)
        return Draft(
            func=te.create_prim_func(arguments),
            schedule=lambda sch, choice: schedule(sch, plan, target, choice),
            finish=functools.partial(finish, plan, tail),
        )

    return Template(name=NAME, variant=variant, cycles=cycles, start=start)


def finish(plan: Plan, tail: ep.Epilogue, func: Any) -> Kernel:
    """The kernel of the scheduled function of ``plan``."""
    kernel = common.finish(plan.workload, kernel_function(func, plan.workload, tail), NAME, plan.form.mnemonic)
    return replace(kernel, pack=functools.partial(pack, plan))


def pack(plan: Plan, weight: Any) -> Any:
    """The integers of ``Layer.weight`` as the kernel of ``plan`` reads them: one stream, its groups whole."""
    inputs = plan.groups * plan.group
    r, parts = plan.form.r, plan.form.parts
    stream = pack_stream(weight, vectors=plan.vectors, lanes=plan.lanes, r=r, parts=parts, inputs=inputs)
    return pack_nibbles(stream, signed=plan.form.signed_nibbles)


def computation(plan: Plan) -> tuple[list[Any], ep.Epilogue]:
    """The arguments of the kernel and its epilogue; blocks "rows", "weights", "part", "total", ["staged"] and "out"."""
    found, vectors, lanes, r = plan.form, plan.vectors, plan.lanes, plan.form.r
    x = te.placeholder((plan.count, plan.inputs), found.stored, "x")
    out_shape = (plan.count, plan.channels)
    tail = ep.make_epilogue(plan.workload, found.stored, out_shape)
    rows = x
    if plan.copied:
        zero = tirx.const(0, found.act)

        def copy(m: Any, j: Any) -> Any:
            there = tirx.all(m < plan.count, j < plan.inputs)
            return tirx.if_then_else(there, x[m, j].astype(found.act), zero)

        rows = te.compute((plan.tiles * plan.rows, plan.groups * plan.group), copy, name="rows")
    pairs = plan.pairs
    width = found.parts * lanes, r // found.parts
    weight = te.placeholder((plan.blocks, plan.groups * pairs, vectors, *width), "uint8", "weight")

    def unpacked(b: Any, g: Any, k: Any, odd: Any, v: Any, lane: Any, i: Any) -> Any:
        value = scaled_nibble(weight[b, g * pairs + k, v, lane, i], odd, signed=found.signed_nibbles)
        return value if plan.scaled else value >> tirx.const(SCALE_BITS, "int8")

    bytes_ = te.compute((plan.blocks, plan.groups, pairs, 2, vectors, *width), unpacked, name="weights")
    run = reduction(found, 2 * pairs, plan.hold)
    if plan.hold > 1:
        reach, registers = plan.hold * r, 2 * pairs // plan.hold
        held = te.compute(
            (plan.tiles * plan.rows, plan.groups, registers, reach),
            lambda m, g, k, i: rows[m, (g * registers + k) * reach + i],
            "held",
        )

    def product(m: Any, b: Any, v: Any, g: Any, lane: Any) -> Any:
        if plan.hold > 1:
            value = held[m, g, run.outer, run.within].astype("int32")
        else:
            value = rows[m, (g * 2 * pairs + run.step) * r + run.within].astype("int32")
        factor = bytes_[b, g, run.step // 2, run.step % 2, v, run.lane(lane, lanes), run.i]
        return te.sum(value * factor.astype("int32"), axis=list(run.axes))

    whole = (plan.tiles * plan.rows, plan.blocks, vectors, lanes)
    multiplier = tail.multiplier
    assert multiplier is not None
    part = te.compute((*whole[:-1], plan.groups, lanes), product, name="part")
    g = te.reduce_axis((0, plan.groups), "g")
    wide = group_scales.LANES
    last = math.ceil(plan.channels / wide) - 1

    def scaled(m: Any, b: Any, v: Any, lane: Any) -> Any:
        vector = b * vectors + v  # beyond the channels any scale will do
        at = tirx.min(vector * lanes // wide, last), g, vector * lanes % wide + lane
        exact = part[m, b, v, g, lane]
        exact = exact >> SCALE_BITS if plan.scaled else exact
        return te.sum(exact.astype("float32") * multiplier[at], axis=g)

    total = te.compute(whole, scaled, name="total")

    def sums(m: Any, c: Any) -> Any:
        return total[m, c // (vectors * lanes), c // lanes % vectors, c % lanes]

    return tail.arguments(x, weight, finished(tail, sums, out_shape, staged=plan.staged)), tail


def schedule(sch: Schedule, plan: Plan, target: Target, choice: Choice = DEFAULT) -> None:
    """Schedules ``computation(plan)``. A sampling instruction: how many steps of a group are written out."""
    found = plan.form
    total, part, weights = (sch.get_sblock(name) for name in ("total", "part", "weights"))
    m, b, v, lane, g = sch.get_loops(total)
    m_out, m_in = sch.split(m, [None, plan.rows])
    sch.reorder(b, m_out, g, m_in, v, lane)
    if plan.blocks > 1 and worth_parallel(plan.workload, target):
        sch.parallel(b)
    for block in (total, part, weights):
        sch.set_scope(block, 0, "local")
    schedule_tail(sch, m_out, plan.lanes, plan.channels, staged=plan.staged)
    sch.compute_at(part, g, preserve_unit_loops=True)
    loops, axes = sch.get_loops(part), run_axes(found, plan.hold)
    p_m, _, p_v, _, p_lane = loops[-axes - 5 : -axes]
    k_out, steps, added = axes_of(loops[-axes:], plan.hold)
    halves = sch.split(steps[0] if steps else k_out, [None, 2])
    k_out, steps = (k_out, halves) if steps else (halves[0], [halves[1]])
    sch.reorder(k_out, *steps, p_m, p_v, p_lane, *added)
    if plan.hold > 1:
        schedule_held(sch, k_out)
    at_once = choice.sizes(sch, k_out, 1, MOST_STEPS)
    if int(sch.get(at_once[1])) > 1:
        k_out, within = sch.split(k_out, at_once)
        sch.unroll(within)
        unpacked_at = within
    else:
        unpacked_at = k_out
    unpacked_at = steps[-2] if len(steps) > 1 else unpacked_at
    sch.compute_at(weights, unpacked_at, preserve_unit_loops=True)
    *_, odd, w_v, w_lane, w_i = sch.get_loops(weights)
    sch.vectorize(sch.fuse(w_lane, w_i))
    for loop in (odd, w_v, *steps, p_m, p_v, m_in, v):
        sch.unroll(loop)
    if not found.intrinsic:
        sch.vectorize(p_lane)
    for block, loop, outer in ((part, k_out, 3), (total, g, 2)):
        *init_loops, init_lane = sch.get_loops(sch.decompose_reduction(block, loop))
        sch.vectorize(init_lane)
        for init_loop in init_loops[outer:]:
            sch.unroll(init_loop)
    if found.intrinsic:
        sch.tensorize(p_lane, dot(found, plan.lanes, held=plan.hold > 1, in_registers=True))
    sch.tensorize(lane, scaled_sum(plan.lanes, SCALE_BITS if plan.scaled else 0))
    if plan.copied:
        rows = sch.get_sblock("rows")
        sch.annotate(sch.get_loops(rows)[-1], "pragma_loop_partition_hint", 1)
        if plan.crowded:
            set_apart(sch, rows, found)
