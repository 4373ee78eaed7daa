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
from dataclasses import dataclass, replace
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from hwq import numerics
from hwq.schedules import epilogue as ep
from hwq.schedules.cpu.ends import (
    finished,
    from_bias,
    kernel_function,
    padded_rows,
    schedule_rows,
    schedule_tail,
    table_entries,
)
from hwq.schedules.cpu.geometry import Form, Geometry, compute_row, form, geometry, no_form
from hwq.schedules.cpu.int4 import SCALE_BITS, scaled_nibble, unpacking_registers, within_range
from hwq.schedules.cpu.packing import pack_blocks, pack_nibbles
from hwq.schedules.cpu.tiling import Core, Tile, best_tile, divisors
from hwq.schedules.generic import common
from hwq.schedules.x86 import bf16, table
from hwq.schedules.x86.intrinsics import dot
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "cpu/conv2d:9"
# Pixels behind whose products the unpacking of a vector of weights does not show.
HIDING_SPOTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One kernel: what it computes, in which form and tile. blocks: vectors of channels in a group, in whole tiles."""

    workload: Workload
    geometry: Geometry
    form: Form
    tile: Tile
    blocks: int
    ragged: bool
    copied: bool

    @property
    def staged(self) -> bool:
        """Whether the epilogue goes through a buffer: its first part by vectors, then a table."""
        return not (self.ragged or self.form.acc == "float32" or self.workload.activation.clamps)

    @property
    def packed(self) -> bool:
        """Whether the epilogue ends in ``narrow``: tiles hold only channels of the output, and bytes are written."""
        return not self.ragged and self.form.stored == "uint8" and self.workload.out_dtype == "int8"

    @property
    def shuffle(self) -> str | None:
        """The instruction that looks bytes up in a table, if there is a table, and tiles hold its vectors."""
        channels = self.tile.vectors * self.tile.lanes
        able = (name for name in self.form.shuffles if channels % table.LANES[name] == 0)
        return next(able, None) if self.packed and self.staged else None

    @property
    def apart(self) -> bool:
        """Whether groups have axes of their own, in the sums and in the output: their channels do not fill vectors."""
        return self.ragged and self.geometry.groups > 1

    @property
    def biased(self) -> bool:
        """Whether the sums start at the bias; where they are ``scaled`` they could not hold it."""
        return not (self.ragged or self.form.acc == "float32" or self.scaled)

    @property
    def out_h(self) -> int:
        return math.ceil(self.geometry.out_h / self.tile.rows) * self.tile.rows

    @property
    def out_w(self) -> int:
        return math.ceil(self.geometry.out_w / self.tile.pixels) * self.tile.pixels

    @property
    def steps(self) -> int:
        """Steps of the reduction: vectors of weights in a block."""
        return self.geometry.kernel_h * self.geometry.columns * self.run_steps

    @property
    def unpacked_in_registers(self) -> bool:
        """Whether int4 weights are unpacked where they are used, with no buffer between: if there are registers for it,
        and a tile has so many pixels that it hides behind their products, or there are too few tiles for a buffer.
        """
        spots = self.tile.rows * self.tile.pixels
        across = self.geometry.batch * self.out_h * self.out_w // spots
        room = spots * self.tile.vectors + unpacking_registers(self.form, self.tile.vectors) <= self.form.registers
        pays = spots >= HIDING_SPOTS or across <= 2
        return self.form.weight == "int4" and self.run_steps % 2 == 0 and room and pays

    @property
    def scaled(self) -> bool:
        """Whether the sums are 16 times too large, which int4 weights are unpacked the fastest to."""
        return self.unpacked_in_registers and within_range(self.steps * self.form.r)

    def unpacked(self, byte: Any, odd: Any) -> Any:
        """The int4 weight in a half of ``byte``, 16 times if ``scaled``."""
        found = scaled_nibble(byte, odd)
        return found if self.scaled else found >> tirx.const(SCALE_BITS, "int8")

    @property
    def run_steps(self) -> int:
        return math.ceil(self.geometry.run / self.form.r)


def core_of(workload: Workload, found: Form, target: Target) -> Core:
    """What the tile model wants to know of ``target``."""
    row = compute_row(workload, target)
    assert row is not None
    far = target.l3_bytes_per_s or target.memory_bytes_per_s
    return Core(
        multiplies=min(max(row.macs_per_cycle / (found.vectors[0] * found.r), 1.0), 2.0),
        l1_bytes=target.l1_bytes,
        l2_bytes=target.l2_bytes,
        l2_bytes_per_cycle=target.l2_bytes_per_s / target.clock_hz,
        far_bytes_per_cycle=far / target.clock_hz,
    )


def make_plan(workload: Workload, found: Form, core: Core) -> Plan:
    """The plan with the best tile by the model."""
    shape = geometry(workload)
    looked_up = [] if workload.activation.clamps else [table.LANES[name] for name in found.shuffles]
    tile = best_tile(
        shape, found, core, multiple=next((lanes for lanes in looked_up if shape.group_out % lanes == 0), 1)
    )
    vectors = math.ceil(shape.group_out / tile.lanes)
    blocks = math.ceil(vectors / tile.vectors) * tile.vectors
    rough = Plan(workload=workload, geometry=shape, form=found, tile=tile, blocks=blocks, ragged=False, copied=False)
    enough = (
        shape.rows(rough.out_h) <= shape.in_h and shape.row_elements(rough.out_w, found.r) <= shape.in_w * shape.in_c
    )
    return Plan(
        workload=workload,
        geometry=shape,
        form=found,
        tile=tile,
        blocks=blocks,
        ragged=blocks * tile.lanes != shape.group_out,
        copied=shape.padded or not enough or found.act != found.stored,
    )


def apply(workload: Workload, target: Target, *, seed: int | None = None) -> Kernel | None:
    """The kernel of a conv2d or dense workload, or None. seed: sample the decisions, instead of taking the defaults."""
    if workload.op not in ("conv2d", "dense"):
        return common.decline(workload, "neither conv2d nor dense")
    found = form(workload, target)
    if found is None:
        return common.decline(workload, no_form(workload, target))
    plan = make_plan(workload, found, core_of(workload, found, target))
    func, tail = computation(plan)
    sch = Schedule(func, seed=seed, debug_mask="none")
    schedule(sch, plan, target, sample=seed is not None)
    func = kernel_function(sch.mod["main"], workload, tail)
    # A sum of one product needs no addition, and so no fused multiply-add.
    mnemonic = found.mnemonic if found.intrinsic or plan.steps > 1 else None
    kernel = common.finish(workload, func, NAME, mnemonic)
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
    )
    if plan.form.bf16:
        return numerics.to_bf16(packed)
    return pack_nibbles(packed) if plan.form.weight == "int4" else packed


def computation(plan: Plan) -> tuple[Any, ep.Epilogue]:
    """The unscheduled function and its epilogue; blocks "rows", "weights", "acc", and those of ``ends.finished``."""
    shape, found, tile = plan.geometry, plan.form, plan.tile
    lanes, r = tile.lanes, found.r
    x = te.placeholder((shape.batch, shape.in_h, shape.in_w * shape.in_c), found.stored, "x")
    out_shape = (shape.batch, shape.out_h, shape.out_w, shape.out_c)
    tail = ep.make_epilogue(plan.workload, found.stored, out_shape)
    rows = padded_rows(shape, found, x, tail, plan.out_h, shape.row_elements(plan.out_w, r)) if plan.copied else x

    vectors = shape.groups * plan.blocks
    if found.weight == "int4":
        halves = math.ceil(plan.steps / 2)
        weight = te.placeholder((vectors, halves, lanes, r), "uint8", "weight")
        bytes_ = te.compute(
            (vectors, halves, 2, lanes, r),
            lambda b, k, odd, lane, i: plan.unpacked(weight[b, k, lane, i], odd),
            name="weights",
        )
    else:
        weight = te.placeholder((vectors, plan.steps, lanes, r), found.weight, "weight")

    def weight_at(b: Any, step: Any, lane: Any, i: Any) -> Any:
        return bytes_[b, step // 2, step % 2, lane, i] if found.weight == "int4" else weight[b, step, lane, i]

    kh = te.reduce_axis((0, shape.kernel_h), "kh")
    kw = te.reduce_axis((0, shape.columns), "kw")
    k = te.reduce_axis((0, plan.run_steps), "k")
    i = te.reduce_axis((0, r), "i")

    def product(n: Any, h: Any, w: Any, *channel: Any) -> Any:
        *axes, lane = channel
        b = axes[0] * plan.blocks + axes[1] if plan.apart else axes[0]
        group = b // plan.blocks * shape.group_in if shape.groups > 1 else 0
        at = (w * shape.stride_w + kw * shape.dilation_w) * shape.in_c + group + k * r + i
        value = rows[n, h * shape.stride_h + kh * shape.dilation_h, at]
        step = (kh * shape.columns + kw) * plan.run_steps + k
        value, factor = (bf16.as_summed(one, found) for one in (value, weight_at(b, step, lane, i)))
        return te.sum(value * factor, axis=[kh, kw, k, i])

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


def schedule(sch: Schedule, plan: Plan, target: Target, *, sample: bool = False) -> None:
    """Schedules ``computation(plan)``. Each tile size is a sampling instruction, with its default unless ``sample``."""
    shape, found, tile = plan.geometry, plan.form, plan.tile

    def split(loop: Any, inner: int, extent: int, most: int) -> Any:
        """``loop`` in two, the inner of default size ``inner``; both open to sampling."""
        decision = None if sample else [extent // inner, inner]
        return sch.split(loop, sch.sample_perfect_tile(loop, 2, max_innermost_factor=most, decision=decision))

    acc = sch.get_sblock("acc")
    n, h, w, *group, b, lane, kh, kw, k, i = sch.get_loops(acc)
    h_out, h_in = sch.split(h, [None, tile.rows])
    w_out, w_in = split(w, tile.pixels, plan.out_w, max(14 // tile.rows, tile.pixels))
    vectors = plan.blocks if group else shape.groups * plan.blocks
    b_out, b_in = split(b, tile.vectors, vectors, max(4, tile.vectors))
    if group:
        b_out = sch.fuse(*group, b_out)
    # The tiles' positions are cut into chunks: a chunk's input stays in the cache while the blocks of channels pass.
    if shape.batch * plan.out_h > tile.rows:
        spots, inner, extent = sch.fuse(n, h_out), [w_out], shape.batch * plan.out_h // tile.rows
    else:
        spots, inner, extent = w_out, [], plan.out_w // tile.pixels
    chunks = default_chunks(plan, target, extent)
    chunk, spot = split(spots, extent // chunks, extent, extent)
    sch.reorder(chunk, b_out, spot, *inner, kh, kw, k, h_in, w_in, b_in, lane, i)
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
    if found.weight == "int4":
        if plan.unpacked_in_registers:
            k, k_in = sch.split(k, [None, 2])
            sch.unroll(k_in)
            sch.reorder(k_in, h_in)
        _schedule_unpack(sch, k if plan.unpacked_in_registers else outer, plan.unpacked_in_registers)
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
    for loop in (h_in, w_in, b_in):
        sch.unroll(loop)
    if not found.intrinsic:
        sch.vectorize(lane)
    init = sch.decompose_reduction(acc, kh)
    *init_outer, init_lane = sch.get_loops(init)
    sch.vectorize(init_lane)
    for loop in init_outer[-3:]:
        sch.unroll(loop)
    if found.intrinsic:
        sch.tensorize(lane, dot(found.instruction, tile.lanes, in_registers=plan.unpacked_in_registers))
    if plan.copied:
        schedule_rows(sch, parallel and not own_rows)


def default_chunks(plan: Plan, target: Target, extent: int) -> int:
    """How many chunks ``extent`` positions make. One where the weights fill more than half of the L2: each block of
    them is then read but once; else so many that a chunk's input and output fit in half of it, while blocks of channels
    pass over them. With threads, more if the chunks' blocks do not share out evenly, or chunks that copy their input.
    """
    shape = plan.geometry
    pixels = shape.batch * shape.out_h * shape.out_w * (4 if plan.workload.out_dtype == "float32" else 1)
    touched = shape.batch * shape.in_h * shape.in_w * shape.in_c * plan.form.item_bytes + pixels * shape.out_c
    weight_bytes = shape.groups * plan.blocks * plan.tile.lanes * plan.steps * plan.form.r * plan.form.weight_item_bytes
    half = target.l2_bytes // 2
    least = math.ceil(touched / half) if weight_bytes <= half else 1
    blocks = shape.groups * plan.blocks // plan.tile.vectors
    threads = plan.workload.parallel if worth_parallel(plan, target) else 1
    picture = extent // shape.batch  # a chunk is whole pictures, or of one: else its tiles' places are no products
    whole = [count for count in divisors(extent, extent) if extent // count % picture == 0 or count % shape.batch == 0]
    good = [
        count for count in whole if count >= least and (count * blocks % threads == 0 or count * blocks >= 4 * threads)
    ]
    even = [count for count in good if plan.copied and count % threads == 0]
    return next(iter(even or good), extent)


def worth_parallel(plan: Plan, target: Target) -> bool:
    """Whether the work, at the target's rate, is worth threads."""
    row = compute_row(plan.workload, target)
    assert row is not None
    work_s = plan.geometry.macs / (row.macs_per_cycle * target.clock_hz)
    return common.worth_threads(plan.workload.parallel, work_s, target)


def _schedule_unpack(sch: Schedule, at: Any, in_registers: bool) -> None:
    weights = sch.get_sblock("weights")
    sch.compute_at(weights, at, preserve_unit_loops=True)
    *_, b, _k, odd, lane, i = sch.get_loops(weights)
    sch.unroll(odd)
    sch.vectorize(sch.fuse(lane, i))
    if in_registers:
        sch.set_scope(weights, 0, "local")
        sch.unroll(b)
