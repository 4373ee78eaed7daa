"""Convolution and dense kernels on ``smmla``: two pixels by two channels by eight inputs an instruction.

    rows     the input with its padding; only where the kernel's columns are one run, see ``smmla_plan``
    paired   the input in pairs of pixels: moves of eight bytes, one pass
    weights  int4 only: a step's pairs of channels, unpacked in registers
    acc      sums of a tile in registers, [row, pair of pixels, pair of channels, pixel, channel]
    sums     the same by pixels and channels
    out      bias, requantize, residual, activation; ragged edges are cut here

Takes conv2d without groups and dense of at least two rows, in w8a8 and w4a8, on targets that store int8. Declines a
single row, where a dot product of bytes multiplies as fast as memory gives weights, inputs of fewer than eight bytes in
a run, and dilated kernels over such pixels.

The limit is the multiplier: a tile of six pixels by sixteen channels loads 11 registers for 24 instructions. What lies
beyond the edge of a row is multiplied in vain: 8 pixels for 7.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import te, tirx
from tvm.s_tir import Schedule

from hwq.schedules import epilogue as ep
from hwq.schedules.arm.smmla_intrinsics import DEPTH, LANES, product, unpair
from hwq.schedules.arm.smmla_plan import (
    Plan,
    chunk_counts,
    default_chunks,
    plans_of,
    ranked,
    row_of,
    shapes_of,
    worth_parallel,
)
from hwq.schedules.cpu.ends import finished, from_bias, kernel_function, schedule_rows, schedule_tail, table_entries
from hwq.schedules.cpu.int4 import SCALE_BITS, within_range
from hwq.schedules.generic import common
from hwq.schedules.template import DEFAULT, Choice, Draft, Template, first
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "arm/smmla:2"
STORED = "int8"
# Steps of the reduction that are written out at most.
MOST_STEPS = 4


def apply(workload: Workload, target: Target, *, seed: int | None = None) -> Kernel | None:
    """The kernel of a conv2d or dense workload, or None. seed: sample the decisions, not the default ones."""
    return first(templates(workload, target), seed)


def templates(workload: Workload, target: Target) -> Iterator[Template]:
    """The kernels of a conv2d or dense workload, a register tile each, the model's best first."""
    why = declined(workload, target)
    if why is not None:
        common.decline(workload, why)
        return
    plans = ranked(plans_of(workload), target)
    for expected, plan in plans:
        tile = plan.tile
        yield template_of(plan, target, f"{tile.rows}x{tile.pairs}x{tile.vectors}", expected / plans[0][0])


def declined(workload: Workload, target: Target) -> str | None:
    """Why this family does not take ``workload``; None if it does."""
    if workload.op not in ("conv2d", "dense"):
        return "neither conv2d nor dense"
    if row_of(workload, target) is None or target.activation_storage != STORED:
        return f"no smmla for it on {target.name}"
    shape, _ = shapes_of(workload)
    if shape.groups > 1:
        return "groups"
    if shape.batch * shape.out_h * shape.out_w == 1:
        return "one row"
    plan = plans_of(workload)[0]
    if plan.run < DEPTH or (plan.runs and shape.dilation_w > 1):
        return f"fewer than {DEPTH} inputs in a run"
    if plan.int4 and not within_range(plan.steps * DEPTH):
        return "too many products for scaled int4 sums"
    return None


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
    kernel = common.finish(plan.workload, kernel_function(func, plan.workload, tail), NAME, "smmla")
    return replace(kernel, pack=functools.partial(pack, plan))


def pack(plan: Plan, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``Layer.weight``, or its integers, in the order in which the tiles read it: (blocks, steps, vectors, 2, 8).

    The last step of a run is moved back to end with it; what it has in common with the step before is zero there.
    int4: two pairs of channels in one, the second in the upper half of the bytes: (blocks, steps, vectors / 2, 2, 8).
    """
    shape, vectors = plan.geometry, plan.tile.vectors
    taps = weight.reshape(shape.out_c, shape.kernel_h * plan.columns, plan.run)
    steps = np.zeros((plan.blocks * vectors * 2, taps.shape[1], plan.run_steps, DEPTH), np.int8)
    for k in range(plan.run_steps):
        begin, end = k * DEPTH, min((k + 1) * DEPTH, plan.run)
        steps[: shape.out_c, :, k, begin + DEPTH - end :] = taps[:, :, begin:end]
    tiled = steps.reshape(plan.blocks, vectors, 2, plan.steps, DEPTH).transpose(0, 3, 1, 2, 4)
    if not plan.int4:
        return np.ascontiguousarray(tiled)
    low, high = tiled[:, :, ::2].astype(np.uint8), tiled[:, :, 1::2].astype(np.uint8)
    return np.ascontiguousarray(low & 15 | high << SCALE_BITS)


def filled_rows(plan: Plan, x: Any, tail: ep.Epilogue) -> Any:
    """Block "rows": x with its padding, the zero point; there is enough for all tiles."""
    assert tail.numbers is not None
    shape, fill = plan.geometry, tail.numbers.zp_x.astype(STORED)
    left, right = shape.pad_left * shape.in_c, (shape.pad_left + shape.in_w) * shape.in_c

    def copy(n: Any, h: Any, j: Any) -> Any:
        inside = tirx.all(h >= shape.pad_top, h < shape.pad_top + shape.in_h, j >= left, j < right)
        return tirx.if_then_else(inside, x[n, h - shape.pad_top, j - left], fill)

    size = (shape.batch, shape.rows(plan.out_h), shape.row_elements(2 * plan.pairs, 1))
    return te.compute(size, copy, name="rows")


def paired_pixels(plan: Plan, x: Any, tail: ep.Epilogue) -> Any:
    """Block "paired": x, flat, in pairs of pixels: (batch, rows, pairs, run_steps, 2, 8)."""
    shape, source = plan.geometry, plan.source
    size = (shape.batch, plan.copied_rows, plan.copied_columns, plan.run_steps, 2, DEPTH)

    def start(k: Any) -> Any:
        return k * DEPTH if plan.run % DEPTH == 0 else tirx.min(k * DEPTH, plan.run - DEPTH)

    if plan.runs:
        flat = filled_rows(plan, x, tail)
        stride = shape.stride_h if shape.kernel_h == 1 else 1

        def run(n: Any, y: Any, q: Any, k: Any, p: Any, i: Any) -> Any:
            return flat[n, y * stride, (2 * q + p) * shape.stride_w * shape.in_c + start(k) + i]

        return te.compute(size, run, name="paired")

    def column(q: Any, p: Any) -> Any:
        return q + p * shape.stride_w if plan.spread else (2 * q + p) * shape.stride_w

    def pixel(n: Any, y: Any, q: Any, k: Any, p: Any, i: Any) -> Any:
        if plan.is_product:
            at = tirx.min(column(q, p), shape.out_w - 1)
            if source is not None:
                n, y, at = (
                    at // (source.out_h * source.out_w),
                    at // source.out_w % source.out_h * source.stride_h,
                    at % source.out_w * source.stride_w,
                )
                return x[n, y, at * shape.in_c + start(k) + i]
            return x[0, 0, at * shape.in_c + start(k) + i]
        row = (y * shape.stride_h if shape.kernel_h == 1 else y) - shape.pad_top
        at = column(q, p) - shape.pad_left
        if not shape.padded:
            place = (tirx.min(row, shape.in_h - 1), tirx.min(at, shape.in_w - 1))
            return x[n, place[0], place[1] * shape.in_c + start(k) + i]
        assert tail.numbers is not None
        inside = tirx.all(row >= 0, row < shape.in_h, at >= 0, at < shape.in_w)
        return tirx.if_then_else(inside, x[n, row, at * shape.in_c + start(k) + i], tail.numbers.zp_x.astype(STORED))

    return te.compute(size, pixel, name="paired")


def computation(plan: Plan) -> tuple[Any, ep.Epilogue]:
    """The unscheduled function and its epilogue; the blocks above, "weights" and "staged" where there are such."""
    shape, source, vectors = plan.geometry, plan.source or plan.geometry, plan.tile.vectors
    x = te.placeholder((source.batch, source.in_h, source.in_w * source.in_c), STORED, "x")
    out_shape = (shape.batch, shape.out_h, shape.out_w, shape.out_c)
    tail = ep.make_epilogue(plan.workload, STORED, out_shape)
    pixels = paired_pixels(plan, x, tail)
    if plan.int4:
        weight = te.placeholder((plan.blocks, plan.steps, vectors // 2, 2, DEPTH), "uint8", "weight")
        upper = tirx.const(0xF0, "uint8")
        bytes_ = te.compute(
            (plan.blocks, plan.steps, vectors // 2, 2, 2, DEPTH),
            lambda b, k, v, odd, c, i: tirx.reinterpret(
                STORED, (weight[b, k, v, c, i] << ((1 - odd) * SCALE_BITS).astype("uint8")) & upper
            ),
            name="weights",
        )
    else:
        weight = te.placeholder((plan.blocks, plan.steps, vectors, 2, DEPTH), STORED, "weight")

    def weight_at(b: Any, step: Any, c: Any, i: Any) -> Any:
        block, v = b // vectors, b % vectors
        return bytes_[block, step, v // 2, v % 2, c, i] if plan.int4 else weight[block, step, v, c, i]

    kh = te.reduce_axis((0, shape.kernel_h), "kh")
    kw = te.reduce_axis((0, plan.columns), "kw")
    k = te.reduce_axis((0, plan.run_steps), "k")
    i = te.reduce_axis((0, DEPTH), "i")

    def summed(n: Any, h: Any, w: Any, b: Any, p: Any, c: Any) -> Any:
        row = h if shape.kernel_h == 1 else h * shape.stride_h + kh * shape.dilation_h
        column = 2 * w * shape.stride_w + kw * shape.dilation_w if plan.spread else w
        step = (kh * plan.columns + kw) * plan.run_steps + k
        value = pixels[n, row, column, k, p, i]
        return te.sum(value.astype("int32") * weight_at(b, step, c, i).astype("int32"), axis=[kh, kw, k, i])

    wide = 2 * vectors
    acc = te.compute((shape.batch, plan.out_h, plan.pairs, plan.blocks * vectors, 2, 2), summed, name="acc")
    sums = te.compute(
        (shape.batch, plan.out_h, plan.pairs, plan.blocks, 2, wide),
        lambda n, h, w, b, p, c: acc[n, h, w, b * vectors + c // 2, p, c % 2],
        name="sums",
    )

    def total(n: Any, h: Any, w: Any, c: Any) -> Any:
        found = sums[n, h, w // 2, c // wide, w % 2, c % wide]
        return found >> SCALE_BITS if plan.int4 else found

    entries = table_entries(plan.shuffle)
    out = finished(tail, total, out_shape, staged=plan.staged, packed=plan.packed, biased=plan.biased, entries=entries)
    arguments = [*tail.arguments(x, weight, out), *([] if entries is None else [entries])]
    if plan.biased:
        return from_bias(arguments, lambda *at: at[3] * 2 + at[5]), tail
    return te.create_prim_func(arguments), tail


def schedule(sch: Schedule, plan: Plan, target: Target, choice: Choice = DEFAULT) -> None:
    """Schedules ``computation(plan)``. Sampling instructions: the chunks, and how far the reduction is written out."""
    shape, tile = plan.geometry, plan.tile
    acc = sch.get_sblock("acc")
    n, h, w, b, p, c, kh, kw, k, i = sch.get_loops(acc)
    h_out, h_in = sch.split(h, [None, tile.rows])
    w_out, w_in = sch.split(w, [None, tile.pairs])
    b_out, b_in = sch.split(b, [None, tile.vectors])
    # A chunk's input stays in the cache while the blocks of channels pass.
    if shape.batch * plan.out_h > tile.rows:
        spots, inner = sch.fuse(n, h_out), [w_out]
    else:
        spots, inner = w_out, []
    chunks = choice.pick(sch, chunk_counts(plan), default_chunks(plan, target))
    chunk, spot = sch.split(spots, [chunks, None])
    sch.reorder(chunk, b_out, spot, *inner, kh, kw, k, h_in, w_in, b_in, p, c, i)
    parallel = worth_parallel(plan, target)
    own_rows = not parallel or chunks % plan.workload.parallel == 0
    outer = chunk if own_rows else sch.fuse(chunk, b_out)
    copies = [sch.get_sblock(name) for name in ("paired", *(["rows"] if plan.runs else []))]
    if own_rows:
        for block in copies:
            sch.compute_at(block, chunk, preserve_unit_loops=True)
    if parallel:
        sch.parallel(outer)
    at_once = choice.sizes(sch, k, 1, MOST_STEPS)
    if int(sch.get(at_once[1])) > 1:
        _, k = sch.split(k, at_once)
        sch.unroll(k)
    if plan.int4:
        _schedule_unpack(sch, k)
    sch.set_scope(acc, 0, "local")
    _schedule_sums(sch, plan, inner[-1] if inner else spot)
    if tile.rows * tile.pairs < tile.vectors:  # the fewer are kept in registers while the others pass
        sch.reorder(b_in, h_in, w_in)
    for loop in (h_in, w_in, b_in):
        sch.unroll(loop)
    init = sch.decompose_reduction(acc, kh)
    *init_outer, init_p, init_c = sch.get_loops(init)
    sch.unroll(init_p)  # LLVM makes one register of the two pairs
    sch.vectorize(init_c)
    for loop in init_outer[-3:]:
        sch.unroll(loop)
    sch.tensorize(p, product(in_registers=plan.int4))
    _schedule_paired(sch, plan, copies[0], parallel and not own_rows)
    if plan.runs:
        schedule_rows(sch, parallel and not own_rows)


def _schedule_unpack(sch: Schedule, at: Any) -> None:
    weights = sch.get_sblock("weights")
    sch.compute_at(weights, at, preserve_unit_loops=True)
    *_, v, odd, c, i = sch.get_loops(weights)
    sch.unroll(v)
    sch.unroll(odd)
    sch.vectorize(sch.fuse(c, i))
    sch.set_scope(weights, 0, "local")


def _schedule_sums(sch: Schedule, plan: Plan, at: Any) -> None:
    """What follows a tile's products, after the loop of them: its sums by pixels and channels, and the epilogue."""
    sums = sch.get_sblock("sums")
    sch.reverse_compute_at(sums, at, preserve_unit_loops=True)
    sch.set_scope(sums, 0, "local")
    whole = not plan.ragged
    schedule_tail(
        sch,
        at,
        plan.geometry,
        lanes=LANES,
        whole=whole,
        staged=plan.staged,
        packed=plan.packed,
        shuffle=plan.shuffle,
    )
    *_, row, pair, _, p, _ = sch.get_loops(sums)
    sch.unroll(row)
    sch.unroll(pair)
    sch.tensorize(p, unpair(plan.tile.vectors))


def _schedule_paired(sch: Schedule, plan: Plan, paired: Any, parallel: bool) -> None:
    """A pixel's inputs one after the other, eight at a time, so that what is asked of a pixel is asked once."""
    *_, n, y, q, k, p, i = sch.get_loops(paired)
    sch.reorder(p, k, i)
    sch.vectorize(i)
    if parallel:
        sch.parallel(sch.fuse(n, y) if not plan.is_product else q)
