"""Depthwise convolution of integers by dot products: groups of taps side by side, as vpdpbusd or vpmaddwd want them.

    order    bias and multiplier in the order in which the unpacks leave channels
    weights  int4 only: unpacked to bytes, all of them at once (they are few)
    quads    input rows interleaved, padding included: for each channel and pixel the bytes of ``r`` rows side by side
    out      for a few pixels of an output row all sums of a chunk of channels, requantized, activated, stored

A group of ``r`` rows serves as many output rows as lie in it: of a 3x3 kernel two share each group of four, their
weights (k0, k1, k2, 0) and (0, k0, k1, k2). A row of a kernel beyond ``r`` taps takes more groups. The interleaved
rows of one chunk of channels are kept for part of an output row, which fits the L1, and each of their vectors is used
by every kernel column, so that a vector of sums costs a dot product a column and group, a shuffle or two, and its
epilogue. The limit is vector instructions: two of 512 bits a cycle on Zen 4.

Takes w8a8 and w4a8 with activations as uint8, on targets with vpdpbusd or AVX2, from 16 channels on, in any stride,
padding, dilation; declines residuals and float outputs (rare behind a depthwise layer), which ``depthwise`` takes.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.schedules import epilogue as ep
from hwq.schedules.generic import common
from hwq.schedules.x86.depthwise_plan import Chunk, Plan, default_part, make_plan, pack, worth_parallel
from hwq.schedules.x86.depthwise_vectors import GROUP_BYTES, UNIT, dot, interleaved, to_bytes, to_words
from hwq.schedules.x86.ends import kernel_function
from hwq.schedules.x86.geometry import Form
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "x86/depthwise_dot:1"


def make(workload: Workload, found: Form, target: Target, *, seed: int | None = None) -> Kernel | None:
    """The kernel, or None. seed: sample the decisions instead of taking the default ones."""
    plan = make_plan(workload, found, target)
    if plan is None:
        return common.decline(workload, "not for dot products")
    func, tail = function(plan)
    sch = Schedule(func, seed=seed, debug_mask="none")
    schedule(sch, plan, target, sample=seed is not None)
    scheduled = kernel_function(sch.mod["main"], workload, tail)
    mnemonic = plan.instruction.split(".")[-1]
    return replace(common.finish(workload, scheduled, NAME, mnemonic), pack=functools.partial(pack, plan))


def function(plan: Plan) -> tuple[Any, ep.Epilogue]:
    """The unscheduled function and its epilogue; blocks "order*", "weights", and a "quads" and "out" for each chunk."""
    shape = plan.geometry
    in_shape = (shape.batch, shape.in_h, shape.in_w * shape.in_c)
    tail = ep.make_epilogue(plan.workload, "uint8", (shape.batch, shape.out_h, shape.out_w, shape.out_c))
    dtype = "int8" if plan.r == 4 else "int16"
    size = plan.weight_elements
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer(in_shape, "uint8"))
        if plan.weight == "int4":
            nibbles = T.arg("weight", T.buffer((size // (16 * plan.r), 1, 8 * plan.r), "uint8"))
            weight = T.sblock_alloc_buffer((size,), dtype)
        else:
            weight = T.arg("weight", T.buffer((size,), dtype))
        bias = T.arg("bias", T.buffer((shape.out_c,), "int32"))
        multiplier = T.arg("multiplier", T.buffer((shape.out_c,), "float32"))
        ints = T.arg("ints", T.buffer((5,), "int32"))
        T.arg("floats", T.buffer((3,), "float32"))
        out = T.arg("out", T.buffer((shape.batch, shape.out_h, shape.out_w * shape.out_c), "uint8"))
        ordered = [T.sblock_alloc_buffer((plan.slots,), kind) for kind in ("int32", "float32")]
        quads = [
            T.sblock_alloc_buffer(
                (
                    shape.batch,
                    plan.blocks,
                    chunk.count,
                    plan.span(plan.tiles(chunk) * chunk.pixels),
                    plan.column(chunk),
                ),
                "uint8",
            )
            for chunk in plan.chunks
        ]
        for chunk in plan.chunks:
            for source, copy in zip((bias, multiplier), ordered, strict=True):
                _order(chunk, source, copy)
        if plan.weight == "int4":
            _unpack(plan, nibbles, weight)
        with T.serial(0, shape.batch) as n, T.serial(0, plan.blocks) as block:
            for chunk, groups in zip(plan.chunks, quads, strict=True):
                # The last axis, of one, spans the bytes of a column: compute_at looks for an axis in each dimension.
                columns = groups.shape[3]
                with T.grid(chunk.count, columns, 1) as (number, column, whole), T.sblock(f"quads{chunk.slot}"):
                    extents = (shape.batch, plan.blocks, chunk.count, columns, 1)
                    _quads(plan, chunk, x, groups, tail, _axes(extents, (n, block, number, column, whole)))
                with (
                    T.grid(chunk.count, plan.tiles(chunk), plan.rows) as (number, tile, row),
                    T.sblock(f"out{chunk.slot}"),
                ):
                    extents = (shape.batch, plan.blocks, chunk.count, plan.tiles(chunk), plan.rows)
                    at = _axes(extents, (n, block, number, tile, row))
                    _tile(plan, chunk, (groups, weight, *ordered, ints), out, tail, at)
    func = builder.get()
    assert tail.numbers is not None
    params = [*func.params, *tail.numbers.all()]
    return tirx.PrimFunc(params, func.body, func.ret_type, func.attrs), tail


def _axes(extents: tuple[Any, ...], loops: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(T.axis.spatial(extent, loop) for extent, loop in zip(extents, loops, strict=True))


def _order(chunk: Chunk, source: Any, copy: Any) -> None:
    """Block "order": numbers of channels in the order of slots."""
    parts = chunk.channels // 16
    with (
        T.grid(chunk.count, UNIT, parts, UNIT) as (number, quarter, part, lane),
        T.sblock(f"order_{source.name}{chunk.slot}"),
    ):
        c, q, p, i = _axes((chunk.count, UNIT, parts, UNIT), (number, quarter, part, lane))
        channel = chunk.first + c * chunk.channels + 16 * p + UNIT * q + i
        place = chunk.slot + c * chunk.channels + UNIT * (q * parts + p) + i
        T.reads(source[channel])
        T.writes(copy[place])
        T.buffer_store(copy, source[channel], [place])


def _unpack(plan: Plan, nibbles: Any, weight: Any) -> None:
    half = 8 * plan.r
    with T.grid(nibbles.shape[0], 2, half) as (over, odd, lane), T.sblock("weights"):
        o, k, i = _axes((nibbles.shape[0], 2, half), (over, odd, lane))
        place = (o * 2 + k) * half + i
        T.reads(nibbles[o, 0, i])
        T.writes(weight[place])
        T.buffer_store(weight, ep.nibble(nibbles[o, 0, i], k).astype(weight.dtype), [place])


def _quads(plan: Plan, chunk: Chunk, x: Any, quads: Any, tail: ep.Epilogue, at: tuple[Any, ...]) -> None:
    """Block "quads": the groups of one chunk at one column."""
    shape, size = plan.geometry, chunk.channels
    n, block, number, column, whole = at
    assert tail.numbers is not None
    fill = tirx.Broadcast(tail.numbers.zp_x.astype("uint8"), size)
    column_in, top = column - shape.pad_left, block * (plan.rows * shape.stride_h) - shape.pad_top
    used = (plan.rows - 1) * shape.stride_h + shape.kernel_h if shape.dilation_h == 1 else shape.kernel_h
    first = column_in * shape.in_c + chunk.first + number * size

    def row(index: int) -> Any:
        """The bytes of row ``index`` of the block's rows; those that no output uses may be anything."""
        if index >= used:
            return fill
        high = top + index * shape.dilation_h
        inside = tirx.all(high >= 0, high < shape.in_h)
        value = x[n, high, tirx.Ramp(first, 1, size)]
        return tirx.if_then_else(inside, value, fill)

    T.reads(x[n, 0 : shape.in_h, 0 : shape.in_w * shape.in_c])
    bytes_ = plan.column(chunk)
    T.writes(quads[n, block, number, column, whole * bytes_ : whole * bytes_ + bytes_])

    def store(group: int, rows: list[Any]) -> None:
        for part, value in enumerate(interleaved(rows, size)):
            start = whole * bytes_ + (group * GROUP_BYTES + part) * size
            T.buffer_store(quads, value, [n, block, number, column, tirx.Ramp(start, 1, size)])

    with T.If(tirx.all(column_in >= 0, column_in < shape.in_w)):
        with T.Then():
            for group in range(plan.groups):
                store(group, [row(group * plan.r + i) for i in range(plan.r)])
        with T.Else():
            for group in range(plan.groups):
                store(group, [fill] * plan.r)


def _tile(plan: Plan, chunk: Chunk, sources: tuple[Any, ...], out: Any, tail: ep.Epilogue, at: tuple[Any, ...]) -> None:
    """Block "out": a tile of one output row and one chunk, from its sums to its bytes."""
    quads, weight, bias, multiplier, ints = sources
    shape, size, lanes, numbers = plan.geometry, chunk.channels, min(plan.lanes, chunk.channels), tail.numbers
    assert numbers is not None
    n, block, number, tile, row = at
    slot = chunk.slot + number * size
    wide = lanes * GROUP_BYTES
    first_column = tile * (chunk.pixels * shape.stride_w)
    first_weight = slot * (plan.rows * plan.dots * plan.r) + row * (plan.dots * size * plan.r)
    high = block * plan.rows + row
    T.reads(
        quads[n, block, number, first_column : first_column + plan.span(chunk.pixels), 0 : plan.column(chunk)],
        weight[0 : plan.weight_elements],
        bias[slot : slot + size],
        multiplier[slot : slot + size],
        ints[0:5],
    )
    T.writes(out[n, high, 0 : shape.out_w * shape.out_c])

    def quad(vector: int, group: int, column: int) -> Any:
        start = group * size * GROUP_BYTES + vector * wide
        return quads[n, block, number, first_column + column, tirx.Ramp(start, 1, wide)]

    def weights(vector: int, group: int, column: int) -> Any:
        step = first_weight + ((group * shape.kernel_w + column) * size + vector * lanes) * plan.r
        return weight[tirx.Ramp(step, 1, lanes * plan.r)]

    def compute() -> None:
        words: list[list[Any]] = [[] for _ in range(chunk.pixels)]
        for vector in range(0, size // lanes, 2):
            pair = [scaled(each) for each in range(vector, min(vector + 2, size // lanes))]
            for pixel, found in enumerate(words):
                found.append(bind(to_words([floats[pixel] for floats in pair], lanes, ints[ep.ZP_Y])))
        for pixel, found in enumerate(words):
            at_pixel = tile * chunk.pixels + pixel
            store(to_bytes(found, size, lanes, ints[ep.LO]), at_pixel)

    def scaled(vector: int) -> list[Any]:
        """Of each pixel the sums of one vector of channels, as floats and clamped from above."""
        start = tirx.Ramp(slot + vector * lanes, 1, lanes)
        sums = [bias[start]] * chunk.pixels
        for group in range(plan.groups):
            columns = [bind(weights(vector, group, column)) for column in range(shape.kernel_w)]
            for column in range(plan.span(chunk.pixels)):
                uses = [
                    (pixel, kw)
                    for pixel in range(chunk.pixels)
                    for kw in range(shape.kernel_w)
                    if pixel * shape.stride_w + kw * shape.dilation_w == column
                ]
                if uses:
                    value = bind(quad(vector, group, column))
                    for pixel, kw in uses:
                        sums[pixel] = bind(dot(sums[pixel], value, columns[kw], lanes, plan.r))
        most = tirx.Broadcast(numbers.most, lanes)
        return [bind(tirx.min(total.astype(f"float32x{lanes}") * multiplier[start], most)) for total in sums]

    def bind(value: Any) -> Any:
        return T.Bind(value)

    def store(value: Any, pixel: Any) -> None:
        start = pixel * shape.out_c + chunk.first + number * size
        place = [n, high, tirx.Ramp(start, 1, size)]
        if shape.out_w % chunk.pixels == 0:
            T.buffer_store(out, value, place)
        else:
            with T.If(pixel < shape.out_w), T.Then():
                T.buffer_store(out, value, place)

    if shape.out_h % plan.rows == 0:
        compute()
    else:
        with T.If(high < shape.out_h), T.Then():
            compute()


def schedule(sch: Schedule, plan: Plan, target: Target, *, sample: bool = False) -> None:
    """Schedules ``function(plan)``. Sizes are sampling instructions, with their defaults unless ``sample``."""
    for chunk in plan.chunks:
        quads, out = sch.get_sblock(f"quads{chunk.slot}"), sch.get_sblock(f"out{chunk.slot}")
        *_, tile, row = sch.get_loops(out)
        tiles = plan.tiles(chunk)
        part = default_part(plan, chunk, target)
        decision = None if sample else [tiles // part, part]
        tile_out, tile_in = sch.split(
            tile, sch.sample_perfect_tile(tile, 2, max_innermost_factor=tiles, decision=decision)
        )
        sch.reorder(tile_out, row, tile_in)
        sch.compute_at(quads, tile_out, preserve_unit_loops=True)
        for source in ("bias", "multiplier"):
            sch.vectorize(sch.get_loops(sch.get_sblock(f"order_{source}{chunk.slot}"))[-1])
    if plan.weight == "int4":
        _, odd, lane = sch.get_loops(sch.get_sblock("weights"))
        sch.unroll(odd)
        sch.vectorize(lane)
    n, block, *_ = sch.get_loops(sch.get_sblock(f"out{plan.chunks[0].slot}"))
    outer = sch.fuse(n, block)
    if worth_parallel(plan, target):
        sch.parallel(outer)
