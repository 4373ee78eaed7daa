"""Convolution and dense kernels for CPUs: one template over instruction, weight type, tile and loop order.

    rows     the input with its padding, widened or rounded where the instruction wants it; absent if read in place
    weights  int4 only: the current block of output channels unpacked to bytes
    sums     acc[n, oh, ow, block, lane], a register tile at a time, whole tiles only
    out      bias, requantize, residual, activation; ragged edges are cut here

Takes conv2d (any stride, dilation, padding, groups) and dense, on the instructions of ``geometry.form``. Declines
depthwise (see ``depthwise``), schemes with a scale for each group of inputs (``grouped``), and instructions it has no
form for.

The limit is compute: the multiplies, and on the same ports half of the epilogue. Of a Zen 4 core's 230 GMAC/s in int8,
ResNet-50's layers get 82 to 102% (the least 56x56x64->256 with a residual; its first layer 85%, since seven columns of
three channels are 21 of 24 bytes), resnet20's 87 to 99%. Reductions of 16 to 24 inputs get 60 to 64%, a first layer of
3x3x3 58%: there a vector of outputs takes 4 to 9 multiplies, and 2 to 3 cycles on those ports for its epilogue.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tvm import te
from tvm.s_tir import Schedule

from hwq import numerics
from hwq.schedules import epilogue as ep
from hwq.schedules.cpu.conv2d_plan import Plan, core_of, default_chunks, plan_of, ranked, worth_parallel
from hwq.schedules.cpu.ends import (
    finished,
    from_bias,
    kernel_function,
    padded_rows,
    schedule_rows,
    schedule_tail,
    table_entries,
)
from hwq.schedules.cpu.geometry import form, no_form
from hwq.schedules.cpu.holding import axes_of, reduction, run_axes, schedule_held
from hwq.schedules.cpu.int4 import SCALE_BITS
from hwq.schedules.cpu.native import dot
from hwq.schedules.cpu.packing import pack_blocks, pack_nibbles
from hwq.schedules.cpu.prefetch import mark, prefetched
from hwq.schedules.generic import common
from hwq.schedules.template import DEFAULT, Choice, Draft, Template, first
from hwq.schedules.x86 import bf16
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "cpu/conv2d:9"
# Steps of the reduction that are written out in a row, at most.
MOST_STEPS = 4


def apply(workload: Workload, target: Target, *, seed: int | None = None) -> Kernel | None:
    """The kernel of a conv2d or dense workload, or None. seed: sample the decisions, instead of taking the defaults."""
    return first(templates(workload, target), seed)


def templates(workload: Workload, target: Target) -> Iterator[Template]:
    """The kernels of a conv2d or dense workload: a register tile each, the model's best first; of int4 also those that
    unpack in registers where a buffer is the default, and the other way round.
    """
    if workload.op not in ("conv2d", "dense"):
        common.decline(workload, "neither conv2d nor dense")
        return
    found = form(workload, target)
    if found is None:
        common.decline(workload, no_form(workload, target))
        return
    tiles = ranked(workload, found, core_of(workload, found, target))
    for cycles, tile in tiles:
        plan = plan_of(workload, found, tile)
        size = f"{tile.rows}x{tile.pixels}x{tile.vectors}x{tile.lanes}"
        yield template_of(plan, target, size, cycles / tiles[0][0])
        other = replace(plan, in_registers=not plan.unpacked_in_registers)
        if other.unpacked_in_registers != plan.unpacked_in_registers:
            how = "registers" if other.unpacked_in_registers else "buffer"
            yield template_of(other, target, f"{size} {how}", cycles / tiles[0][0])


def template_of(plan: Plan, target: Target, variant: str, cycles: float) -> Template:
    """The template of ``plan``."""

    def start() -> Draft:
        func, tail = computation(plan)
        return Draft(
            func=func,
            schedule=lambda sch, choice: schedule(sch, plan, target, choice),
            finish=functools.partial(finish, plan, tail),
        )

    return Template(name=NAME, variant=variant, cycles=cycles, start=start)


def finish(plan: Plan, tail: ep.Epilogue, func: Any) -> Kernel:
    """The kernel of the scheduled function of ``plan``."""
    found = plan.form
    # A sum of one product needs no addition, and so no fused multiply-add.
    mnemonic = found.mnemonic if found.intrinsic or plan.steps > 1 else None
    kernel = common.finish(plan.workload, kernel_function(prefetched(func), plan.workload, tail), NAME, mnemonic)
    return replace(kernel, pack=functools.partial(pack, plan))


def pack(plan: Plan, weight: Any) -> Any:
    """``Layer.weight``, or its integers, as the kernel of ``plan`` reads it."""
    packed = pack_blocks(
        weight,
        groups=plan.geometry.groups,
        columns=plan.geometry.columns,
        blocks=plan.blocks,
        lanes=plan.tile.lanes,
        r=plan.form.r,
        parts=plan.form.parts,
        hold=plan.hold,
    )
    if plan.form.bf16:
        return numerics.to_bf16(packed)
    return pack_nibbles(packed, signed=plan.form.signed_nibbles) if plan.form.weight == "int4" else packed


def computation(plan: Plan) -> tuple[Any, ep.Epilogue]:
    """The unscheduled function and its epilogue; blocks "rows", "weights", "acc", and those of ``ends.finished``."""
    shape, found, tile = plan.geometry, plan.form, plan.tile
    lanes, r = tile.lanes, found.r
    width = found.parts * lanes, r // found.parts
    x = te.placeholder((shape.batch, shape.in_h, shape.in_w * shape.in_c), found.stored, "x")
    out_shape = (shape.batch, shape.out_h, shape.out_w, shape.out_c)
    tail = ep.make_epilogue(plan.workload, found.stored, out_shape)
    row = shape.row_elements(plan.out_w, r * plan.hold)
    rows = padded_rows(shape, found, x, tail, plan.out_h, row) if plan.copied else x

    vectors = shape.groups * plan.blocks
    if found.weight == "int4":
        halves = math.ceil(plan.steps / 2)
        weight = te.placeholder((vectors, halves, *width), "uint8", "weight")
        bytes_ = te.compute(
            (vectors, halves, 2, *width),
            lambda b, k, odd, lane, i: plan.unpacked(weight[b, k, lane, i], odd),
            name="weights",
        )
    else:
        weight = te.placeholder((vectors, plan.steps, *width), found.weight, "weight")

    def weight_at(b: Any, step: Any, lane: Any, i: Any) -> Any:
        return bytes_[b, step // 2, step % 2, lane, i] if found.weight == "int4" else weight[b, step, lane, i]

    kh = te.reduce_axis((0, shape.kernel_h), "kh")
    kw = te.reduce_axis((0, shape.columns), "kw")
    run = reduction(found, plan.run_steps, plan.hold)

    def activation(n: Any, h: Any, w: Any, g: Any, kh: Any, kw: Any, *terms: Any) -> Any:
        at = (w * shape.stride_w + kw * shape.dilation_w) * shape.in_c
        for term in (g * shape.group_in, *terms) if shape.groups > 1 else terms:
            at = at + term
        return rows[n, h * shape.stride_h + kh * shape.dilation_h, at]

    if plan.hold > 1:
        extents = (shape.batch, plan.out_h, plan.out_w, shape.groups, shape.kernel_h, shape.columns)
        held = te.compute(
            (*extents, plan.run_steps // plan.hold, plan.hold * r),
            lambda *at: activation(*at[:-2], at[-2] * (plan.hold * r), at[-1]),
            name="held",
        )

    def product(n: Any, h: Any, w: Any, *channel: Any) -> Any:
        *axes, lane = channel
        b = axes[0] * plan.blocks + axes[1] if plan.apart else axes[0]
        group = b // plan.blocks if shape.groups > 1 else 0
        if plan.hold > 1:
            value = held[n, h, w, group, kh, kw, run.outer, run.within]
        else:
            value = activation(n, h, w, group, kh, kw, run.step * r, run.within)
        step = (kh * shape.columns + kw) * plan.run_steps + run.step
        factor = weight_at(b, step, run.lane(lane, lanes), run.i)
        value, factor = (bf16.as_summed(one, found) for one in (value, factor))
        return te.sum(value * factor, axis=[kh, kw, *run.axes])

    axes = (shape.groups, plan.blocks) if plan.apart else (vectors,)
    acc = te.compute((shape.batch, plan.out_h, plan.out_w, *axes, lanes), product, name="acc")

    def sums(*at: Any) -> Any:
        *place, c = at
        total = acc[(*place, c // lanes, c % lanes)]
        return total >> SCALE_BITS if plan.scaled else total

    entries = table_entries(plan.shuffle)
    out = finished(
        tail,
        sums,
        (*out_shape[:-1], shape.groups, shape.group_out) if plan.apart else out_shape,
        staged=plan.staged,
        packed=plan.packed,
        biased=plan.biased,
        apart=plan.apart,
        entries=entries,
    )
    arguments = [*tail.arguments(x, weight, out), *([] if entries is None else [entries])]
    return from_bias(arguments) if plan.biased else te.create_prim_func(arguments), tail


def schedule(sch: Schedule, plan: Plan, target: Target, choice: Choice = DEFAULT) -> None:
    """Schedules ``computation(plan)``. Sampling instructions: the chunks, how far the reduction is written out, and
    whether weights are asked for ahead of time.
    """
    shape, found, tile = plan.geometry, plan.form, plan.tile
    acc = sch.get_sblock("acc")
    loops = sch.get_loops(acc)
    n, h, w, *group, b, lane, kh, kw = loops[: -run_axes(found, plan.hold)]
    k, steps, added = axes_of(loops[-run_axes(found, plan.hold) :], plan.hold)
    h_out, h_in = sch.split(h, [None, tile.rows])
    w_out, w_in = sch.split(w, [None, tile.pixels])
    b_out, b_in = sch.split(b, [None, tile.vectors])
    if group:
        b_out = sch.fuse(*group, b_out)
    # The tiles' positions are cut into chunks: a chunk's input stays in the cache while the blocks of channels pass.
    if shape.batch * plan.out_h > tile.rows:
        spots, inner, extent = sch.fuse(n, h_out), [w_out], shape.batch * plan.out_h // tile.rows
    else:
        spots, inner, extent = w_out, [], plan.out_w // tile.pixels
    chunk, spot = choice.cut(sch, spots, extent // default_chunks(plan, target, extent), extent)
    chunks = int(sch.get(chunk).extent)
    sch.reorder(chunk, b_out, spot, *inner, kh, kw, k, *steps, h_in, w_in, b_in, lane, *added)
    if plan.hold > 1:
        schedule_held(sch, k)
    parallel = worth_parallel(plan, target)
    # Where chunks share out evenly each copies its own rows, halo included: one parallel loop instead of two. A second
    # one costs 2.7 us on Zen 4, with two threads 1% of the time of those four of ResNet-50's 24 shapes that have it.
    own_rows = plan.copied and (not parallel or chunks % plan.workload.parallel == 0)
    outer = b_out if own_rows else sch.fuse(chunk, b_out)
    if found.bf16:
        bf16.import_functions(sch, chunk if own_rows else outer)
    if own_rows:
        sch.compute_at(sch.get_sblock("rows"), chunk, preserve_unit_loops=True)
    if parallel:
        sch.parallel(chunk if own_rows else outer)
    if plan.unpacked_in_registers:
        pairs, k_in = sch.split(steps[0] if steps else k, [None, 2])
        sch.unroll(k_in)
        if steps:
            steps = [pairs]
        else:
            sch.reorder(k_in, h_in)
            k = pairs
    # Few steps of parts and broadcasts are written out: LLVM else moves sums about between them.
    few = found.parts > 1 and plan.hold == 1 and int(sch.get(k).extent) <= MOST_STEPS
    at_once = choice.sizes(sch, k, int(sch.get(k).extent) if few else 1, MOST_STEPS)
    if int(sch.get(at_once[1])) > 1:
        _, k = sch.split(k, at_once)
        sch.unroll(k)
    # A block of int4 that goes through a buffer is read once, before its tiles.
    if (found.weight != "int4" or plan.unpacked_in_registers) and choice.pick(sch, (0, 1), 0):
        mark(sch, k, axis=0, ahead=tile.vectors, count=tile.vectors)
    if found.weight == "int4":
        unpack_at = steps[0] if steps else k
        _schedule_unpack(sch, unpack_at if plan.unpacked_in_registers else outer, plan.unpacked_in_registers)
    sch.set_scope(acc, 0, "local")
    tail_at = inner[-1] if inner else spot
    schedule_tail(
        sch,
        tail_at,
        shape,
        lanes=tile.lanes,
        whole=not plan.ragged,
        staged=plan.staged,
        packed=plan.packed,
        apart=plan.apart,
        shuffle=plan.shuffle,
    )
    for loop in (*steps, h_in, w_in, b_in):
        sch.unroll(loop)
    if not found.intrinsic:
        sch.vectorize(lane)
    init = sch.decompose_reduction(acc, kh)
    *init_outer, init_lane = sch.get_loops(init)
    sch.vectorize(init_lane)
    for loop in init_outer[-3:]:
        sch.unroll(loop)
    if found.intrinsic:
        sch.tensorize(lane, dot(found, tile.lanes, held=plan.hold > 1, in_registers=plan.unpacked_in_registers))
    if plan.copied:
        schedule_rows(sch, parallel and not own_rows)


def _schedule_unpack(sch: Schedule, at: Any, in_registers: bool) -> None:
    weights = sch.get_sblock("weights")
    sch.compute_at(weights, at, preserve_unit_loops=True)
    *_, b, _k, odd, lane, i = sch.get_loops(weights)
    sch.unroll(odd)
    sch.vectorize(sch.fuse(lane, i))
    if in_registers:
        sch.set_scope(weights, 0, "local")
        sch.unroll(b)
