"""Depthwise convolution of integers by dot products: groups of taps side by side, as vpdpbusd or vpmaddwd want them.

    order    bias and multiplier in the order in which the unpacks leave channels
    weights  int4 only: unpacked to bytes, all of them at once (they are few)
    quads    input rows interleaved, padding included: for each channel and pixel the bytes of ``r`` rows side by side
    words    for a few pixels of an output row the sums of two vectors of channels, requantized, as int16
    out      the bytes of a pixel and a chunk of channels, in order
    table    those looked up, where the activation is one, an output row after the other

A group of ``r`` rows serves as many output rows as lie in it: of a 3x3 kernel two share each group of four, their
weights (k0, k1, k2, 0) and (0, k0, k1, k2). A row of a kernel beyond ``r`` taps takes more groups. The interleaved
rows of one chunk of channels are kept for part of an output row, which fits the L1, and each of their vectors is used
by every kernel column, so that a vector of sums costs a dot product a column and group, a shuffle or two, and its
epilogue. The limit is vector instructions, two of 512 bits a cycle on Zen 4: some 10 for 16 outputs of a 3x3, 5 cycles,
of which 7 are reached. With a stride groups are shared less: 13 instructions, 12 to 14 cycles, since the interleaving
(shuffles, stores) and the sums (products) come one after the other and do not overlap.

Takes w8a8 and w4a8 with activations as uint8, on targets with vpdpbusd or AVX2, from 16 channels on, in any stride,
padding, dilation; declines residuals and float outputs (rare behind a depthwise layer), which ``depthwise`` takes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.schedules import epilogue as ep
from hwq.schedules.cpu.ends import kernel_function
from hwq.schedules.cpu.geometry import Form
from hwq.schedules.generic import common
from hwq.schedules.template import DEFAULT, Choice, Draft, Template
from hwq.schedules.x86.depthwise_plan import Chunk, Plan, default_part, pack, plans, worth_parallel
from hwq.schedules.x86.depthwise_vectors import GROUP_BYTES, dot, interleaved, to_bytes, to_words
from hwq.schedules.x86.narrow import UNIT
from hwq.schedules.x86.table import LANES, TABLE, lookup, repeated_rows
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "x86/depthwise_dot:2"
# How much longer each further plan is expected to take, as a share: there is no model.
NEXT = 0.05


def templates(workload: Workload, found: Form, target: Target) -> Iterator[Template]:
    """The kernels, the default first: tiles of other widths, and fewer output rows that share groups."""
    known = list(plans(workload, found, target))
    if not known:
        common.decline(workload, "not for dot products")
    for number, plan in enumerate(known):
        variant = f"{plan.rows}x{plan.chunks[0].pixels}x{plan.chunks[0].channels}"
        yield template_of(plan, target, variant, 1.0 + NEXT * number)


def template_of(plan: Plan, target: Target, variant: str, cycles: float) -> Template:
    """The template of ``plan``."""

    def start() -> Draft:
        func, tail = function(plan)
        return Draft(
            func=func,
            schedule=lambda sch, choice: schedule(sch, plan, target, choice),
            finish=functools.partial(finish, plan, tail),
        )

    return Template(name=NAME, variant=variant, cycles=cycles, start=start)


def finish(plan: Plan, tail: ep.Epilogue, func: Any) -> Kernel:
    """The kernel of the scheduled function of ``plan``."""
    scheduled = kernel_function(func, plan.workload, tail)
    kernel = common.finish(plan.workload, scheduled, NAME, plan.instruction.split(".")[-1])
    return replace(kernel, pack=functools.partial(pack, plan))


def function(plan: Plan) -> tuple[Any, ep.Epilogue]:
    """The unscheduled function and its epilogue; blocks "order*", "weights"; for each chunk "quads", "words", "out"."""
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
        table = T.arg("table", T.buffer((TABLE,), "uint8")) if plan.lookup else None
        out = T.arg("out", T.buffer((shape.batch, shape.out_h, shape.out_w * shape.out_c), "uint8"))
        ordered = [T.sblock_alloc_buffer((plan.slots,), kind) for kind in ("int32", "float32")]
        stages = [_buffers(plan, chunk) for chunk in plan.chunks]
        for chunk in plan.chunks:
            for source, copy in zip((bias, multiplier), ordered, strict=True):
                _order(chunk, source, copy)
        if plan.weight == "int4":
            _unpack(plan, nibbles, weight)
        found = out
        if plan.lookup is not None:
            rows = repeated_rows(table, plan.lookup)
            found = T.sblock_alloc_buffer((shape.batch, plan.blocks, plan.rows, shape.out_w * shape.out_c), "uint8")
        with T.serial(0, shape.batch) as n, T.serial(0, plan.blocks) as block:
            for chunk, (quads, words) in zip(plan.chunks, stages, strict=True):
                # An axis of one spans what a block writes at once: compute_at looks for an axis in each dimension.
                outer = (shape.batch, plan.blocks, chunk.count)
                extents: tuple[Any, ...] = (chunk.count, quads.shape[3], 1)
                with T.grid(*extents) as (number, *loops), T.sblock(f"quads{chunk.slot}"):
                    _quads(plan, chunk, x, quads, tail, _axes((*outer, *extents[1:]), (n, block, number, *loops)))
                extents = (chunk.count, plan.rows, plan.pairs(chunk), plan.tiles(chunk), 1)
                with T.grid(*extents) as (number, *loops), T.sblock(f"words{chunk.slot}"):
                    at = _axes((*outer, *extents[1:]), (n, block, number, *loops))
                    _words(plan, chunk, (quads, weight, *ordered, ints), words, tail, at)
                extents = (chunk.count, plan.rows, shape.out_w)
                with T.grid(*extents) as (number, *loops), T.sblock(f"out{chunk.slot}"):
                    _out(plan, chunk, words, ints, found, _axes((*outer, *extents[1:]), (n, block, number, *loops)))
            if plan.lookup is not None:
                _table(plan, found, (table, rows), out, (n, block))
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


def _buffers(plan: Plan, chunk: Chunk) -> tuple[Any, Any]:
    """The interleaved rows of a chunk and its requantized sums, at all columns and pixels."""
    outer, pixels = (plan.geometry.batch, plan.blocks, chunk.count), plan.tiles(chunk) * chunk.pixels
    quads = T.sblock_alloc_buffer((*outer, plan.span(pixels), plan.column(chunk)), "uint8")
    pairs = plan.pairs(chunk)
    return quads, T.sblock_alloc_buffer((*outer, plan.rows, pairs, pixels, chunk.channels // pairs), "int16")


def _quads(plan: Plan, chunk: Chunk, x: Any, quads: Any, tail: ep.Epilogue, at: tuple[Any, ...]) -> None:
    """Block "quads": the groups of one chunk at one column."""
    shape, size = plan.geometry, chunk.channels
    n, block, number, column, whole = at
    assert tail.numbers is not None
    fill = tirx.Broadcast(tail.numbers.zp_x.astype("uint8"), size)
    column_in, top = column - shape.pad_left, block * (plan.rows * shape.stride_h) - shape.pad_top
    first = column_in * shape.in_c + chunk.first + number * size
    bytes_, count = plan.column(chunk), plan.groups * plan.r
    # Rows below the last that an output uses meet weights of 0: that last row serves.
    high = [top + min(index, plan.used_rows - 1) * shape.dilation_h for index in range(count)]

    def store(rows: list[Any]) -> None:
        for group in range(plan.groups):
            for part, value in enumerate(interleaved(rows[group * plan.r :][: plan.r], size)):
                start = whole * bytes_ + (group * GROUP_BYTES + part) * size
                T.buffer_store(quads, value, [n, block, number, column, tirx.Ramp(start, 1, size)])

    def row(at_row: Any) -> Any:
        return x[n, at_row, tirx.Ramp(first, 1, size)]

    def row_or_fill(at_row: Any) -> Any:
        """By masks, since LLVM makes long shuffles of a constant that is interleaved."""
        inside = tirx.all(at_row >= 0, at_row < shape.in_h)
        kept = tirx.Broadcast(tirx.Select(inside, tirx.const(255, "uint8"), tirx.const(0, "uint8")), size)
        clamped = tirx.max(tirx.min(at_row, shape.in_h - 1), 0)
        return (row(clamped) & kept) | (fill & ~kept)

    T.reads(x[n, 0 : shape.in_h, 0 : shape.in_w * shape.in_c])
    T.writes(quads[n, block, number, column, whole * bytes_ : whole * bytes_ + bytes_])
    with T.If(tirx.all(column_in >= 0, column_in < shape.in_w)):
        with T.Then():
            with T.If(tirx.all(high[0] >= 0, high[-1] < shape.in_h)):
                with T.Then():
                    store([row(each) for each in high])
                with T.Else():
                    store([row_or_fill(each) for each in high])
        with T.Else():
            store([fill] * count)


def _words(
    plan: Plan, chunk: Chunk, sources: tuple[Any, ...], words: Any, tail: ep.Epilogue, at: tuple[Any, ...]
) -> None:
    """Block "words": a tile's sums over a pair of vectors of channels, requantized, as int16."""
    quads, weight, bias, multiplier, ints = sources
    shape, numbers = plan.geometry, tail.numbers
    size, pair_size = chunk.channels, chunk.channels // plan.pairs(chunk)
    lanes = min(plan.lanes, size)
    assert numbers is not None
    n, block, number, row, pair, tile, whole = at
    slot = chunk.slot + number * size
    wide = lanes * GROUP_BYTES
    first_column = tile * (chunk.pixels * shape.stride_w)
    first_weight = slot * (plan.rows * plan.dots * plan.r) + row * (plan.dots * size * plan.r)
    first_pixel = tile * chunk.pixels
    T.reads(
        quads[n, block, number, first_column : first_column + plan.span(chunk.pixels), 0 : plan.column(chunk)],
        weight[0 : plan.weight_elements],
        bias[slot : slot + size],
        multiplier[slot : slot + size],
        ints[0:5],
    )
    channels = slice(whole * pair_size, whole * pair_size + pair_size)
    T.writes(words[n, block, number, row, pair, first_pixel : first_pixel + chunk.pixels, channels])

    def scaled(vector: Any) -> list[Any]:
        """Of each pixel the sums of one vector of channels, as floats and clamped from above."""
        start = tirx.Ramp(slot + vector * lanes, 1, lanes)
        sums = [T.Bind(bias[start])] * chunk.pixels
        for group in range(plan.groups):
            steps = [
                first_weight + ((group * shape.kernel_w + kw) * size + vector * lanes) * plan.r
                for kw in range(shape.kernel_w)
            ]
            taps = [T.Bind(weight[tirx.Ramp(step, 1, lanes * plan.r)]) for step in steps]
            for column in range(plan.span(chunk.pixels)):
                uses = [
                    (pixel, kw)
                    for pixel in range(chunk.pixels)
                    for kw in range(shape.kernel_w)
                    if pixel * shape.stride_w + kw * shape.dilation_w == column
                ]
                if uses:
                    place = tirx.Ramp(group * size * GROUP_BYTES + vector * wide, 1, wide)
                    value = T.Bind(quads[n, block, number, first_column + column, place])
                    for pixel, kw in uses:
                        sums[pixel] = T.Bind(dot(sums[pixel], value, taps[kw], lanes, plan.r))
        factor, most = T.Bind(multiplier[start]), tirx.Broadcast(numbers.most, lanes)
        return [T.Bind(tirx.min(total.astype(f"float32x{lanes}") * factor, most)) for total in sums]

    with T.If(block * plan.rows + row < shape.out_h), T.Then():
        vectors = [scaled(pair * (pair_size // lanes) + vector) for vector in range(pair_size // lanes)]
        for pixel in range(chunk.pixels):
            value = to_words([floats[pixel] for floats in vectors], lanes, ints[ep.ZP_Y])
            place = [n, block, number, row, pair, first_pixel + pixel]
            T.buffer_store(words, value, [*place, tirx.Ramp(whole * pair_size, 1, pair_size)])


def _out(plan: Plan, chunk: Chunk, words: Any, ints: Any, out: Any, at: tuple[Any, ...]) -> None:
    """Block "out": the bytes of one pixel and chunk."""
    shape, pairs = plan.geometry, plan.pairs(chunk)
    n, block, number, row, pixel = at
    size, high = chunk.channels // pairs, block * plan.rows + row
    T.reads(words[n, block, number, row, 0:pairs, pixel, 0:size], ints[0:5])
    place = (n, high) if plan.lookup is None else (n, block, row)
    T.writes(out[(*place, slice(0, shape.out_w * shape.out_c))])
    with T.If(high < shape.out_h), T.Then():
        found = [words[n, block, number, row, pair, pixel, tirx.Ramp(0, 1, size)] for pair in range(pairs)]
        start = pixel * shape.out_c + chunk.first + number * chunk.channels
        lanes = min(plan.lanes, chunk.channels)
        value = to_bytes(found, chunk.channels, lanes, ints[ep.LO])
        T.buffer_store(out, value, [*place, tirx.Ramp(start, 1, chunk.channels)])


def _table(plan: Plan, found: Any, tables: tuple[Any, Any], out: Any, outer: tuple[Any, Any]) -> None:
    """Block "table": whole vectors of output rows, looked up; "rest": what is left of a row."""
    table, rows = tables
    assert plan.lookup is not None
    shape, lanes = plan.geometry, LANES[plan.lookup]
    size = shape.out_w * shape.out_c
    for name, first, count, width in (
        ("table", 0, size // lanes, lanes),
        ("rest", size // lanes * lanes, size % lanes, 1),
    ):
        if count:
            with T.grid(plan.rows, count, width) as loops, T.sblock(name):
                at = _axes((shape.batch, plan.blocks, plan.rows, count, width), (*outer, *loops))
                n, block, row, over, lane = at
                high, place = block * plan.rows + row, first + over * width + lane
                byte = found[n, block, row, place]
                T.reads(byte, rows[0 : rows.shape[0], 0:lanes], table[0:TABLE])
                T.writes(out[n, high, place])
                with T.If(high < shape.out_h), T.Then():
                    value = lookup(rows, byte, lane) if width > 1 else table[byte.astype("int32")]
                    T.buffer_store(out, value, [n, high, place])


def schedule(sch: Schedule, plan: Plan, target: Target, choice: Choice = DEFAULT) -> None:
    """Schedules ``function(plan)``. A sampling instruction for each chunk: the pixels of a part of an output row."""
    for chunk in plan.chunks:
        quads, words, out = (sch.get_sblock(f"{name}{chunk.slot}") for name in ("quads", "words", "out"))
        *_, row, pixel = sch.get_loops(out)
        part, most = default_part(plan, chunk, target), plan.geometry.out_w
        pixel_out, pixel_in = choice.cut(sch, pixel, part, most)
        sch.reorder(pixel_out, row, pixel_in)
        sch.compute_at(words, row, preserve_unit_loops=True)
        sch.compute_at(quads, pixel_out, preserve_unit_loops=True)
        for source in ("bias", "multiplier"):
            sch.vectorize(sch.get_loops(sch.get_sblock(f"order_{source}{chunk.slot}"))[-1])
    if plan.weight == "int4":
        _, odd, lane = sch.get_loops(sch.get_sblock("weights"))
        sch.unroll(odd)
        sch.vectorize(lane)
    if plan.lookup is not None:
        for name in ("rows", "table"):
            sch.vectorize(sch.get_loops(sch.get_sblock(name))[-1])
    n, block, *_ = sch.get_loops(sch.get_sblock(f"out{plan.chunks[0].slot}"))
    outer = sch.fuse(n, block)
    if worth_parallel(plan, target):
        sch.parallel(outer)
