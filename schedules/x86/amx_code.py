"""The code of an AMX kernel, as TVM's IRBuilder makes it from a plan.

    permission; the padded copy of the input, if any
    for each section (parallel where it pays):
        tile configuration; scratch for one block of sums
        for each block of channels, for each block of pixels (or the other way round):
            sums in tiles; beside the products of each step a slice of the epilogue of the block before
            sums to the scratch
        the epilogue of the last block

The epilogue works by vectors of channels from the scratch, which the L1 holds. A tensor intrinsic for ``tensorize``
would have to match rows that are moved back at a run's end; written out, one template serves every shape.

Tiles address buffers of the kernel's own by the buffer's pointer, not by an element: TVM shrinks a buffer to the
elements that it sees used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.schedules import epilogue as ep
from hwq.schedules.x86 import amx_tiles as tiles
from hwq.schedules.x86.amx_input import padded_copy
from hwq.schedules.x86.amx_plan import LANES, TILE_BYTES, Plan

Expr = Any
_NAMES = ("bias", "multiplier", "ints", "floats", "table")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Buffers:
    """What the sections read and write. rows: the elements that A tiles are loaded from; tail: over buffers."""

    rows: Any
    weight: Any
    out: Any
    tail: ep.Epilogue
    instruction: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """A block of sums: of which pixels (over all runs) and of which channels."""

    pixels: Expr
    channels: Expr


def packed_shape(plan: Plan) -> tuple[int, ...]:
    """The weights as the kernel reads them: a tile of a step is (width / group, lanes, group), 4 bytes a group.

    int4: two such rows of 64 bytes in one, see ``packing.pack_nibbles``.
    """
    group = 4 // plan.item_bytes
    tile = (plan.width // group, LANES, group)
    if plan.weight == "int4":
        return (plan.channel_blocks, math.ceil(plan.steps * plan.nt * tile[0] / 2), TILE_BYTES)
    return (plan.channel_blocks, plan.steps, plan.nt, *tile)


def kernel_code(plan: Plan, tail: ep.Epilogue, stored: str) -> Any:
    """The kernel as a PrimFunc: x and the outputs flat, and behind them the scalars that ``ep.close`` defines.

    stored: the type of activations in memory.
    """
    shape = plan.geometry
    pixels = shape.batch * shape.out_h * shape.out_w
    x = tirx.decl_buffer((shape.batch * shape.in_h * shape.in_w * shape.in_c,), stored, "x")
    weight = tirx.decl_buffer(packed_shape(plan), "uint8" if plan.weight == "int4" else plan.weight, "weight")
    out = tirx.decl_buffer((pixels, shape.out_c), tail.dtype, "out")
    others = {name: getattr(tail, name) for name in _NAMES}
    own = {
        name: tirx.decl_buffer(tuple(tensor.shape), tensor.dtype, name)
        for name, tensor in others.items()
        if tensor is not None
    }
    residual = None if tail.residual is None else tirx.decl_buffer((pixels, shape.out_c), stored, "residual")
    act = "bfloat16" if plan.weight == "bfloat16" else stored
    with IRBuilder() as builder:
        with T.seq_scope():
            tiles.ask_permission()
            rows = padded_copy(plan, x, act, tail.numbers) if plan.source.copied else x
            buffers = Buffers(
                rows=rows,
                weight=weight,
                out=out,
                tail=replace(tail, residual=None if residual is None else lambda *at: residual[at], **own),
                instruction=tiles.dot_instruction(act, plan.weight_type),
            )
            with (T.parallel if plan.parallel else T.serial)(0, plan.chunks[0] * plan.chunks[1]) as section:
                _section(plan, buffers, section)
        body = builder.get().body
    params = [x, residual, weight, *(own.get(name) for name in _NAMES), out]
    scalars = [] if tail.numbers is None else tail.numbers.all()
    return tirx.PrimFunc([*(param for param in params if param is not None), *scalars], body)


def _section(plan: Plan, buffers: Buffers, section: Expr) -> None:
    """One part of the pixels with one part of the channels, on tiles of its own."""
    tiles.configure(plan)
    scratch = T.alloc_buffer((plan.block_rows, plan.block_lanes), _sum_type(plan))
    panel = T.alloc_buffer((2 * packed_shape(plan)[1] * TILE_BYTES,), "int8") if plan.weight == "int4" else None
    first_pixels, end_pixels = _part(plan.runs * plan.blocks, section // plan.chunks[1], plan.chunks[0])
    first_channels, end_channels = _part(plan.channel_blocks, section % plan.chunks[1], plan.chunks[1])

    def block(pixels: Expr, channels: Expr, before: Block) -> None:
        some_before = T.Bind(tirx.any(pixels > first_pixels, channels > first_channels))
        _block(plan, buffers, Block(pixels=pixels, channels=channels), before, some_before, scratch, panel)

    if plan.pixels_inner:
        with T.serial(first_channels, end_channels) as channels:
            if panel is not None:
                _unpack(plan, buffers.weight, panel, channels)
            with T.serial(first_pixels, end_pixels) as pixels:
                within = pixels > first_pixels
                before = Block(
                    pixels=T.Bind(tirx.Select(within, pixels, end_pixels) - 1),
                    channels=T.Bind(tirx.Select(within, channels, channels - 1)),
                )
                block(pixels, channels, before)
    else:
        with T.serial(first_pixels, end_pixels) as pixels, T.serial(first_channels, end_channels) as channels:
            within = channels > first_channels
            before = Block(
                pixels=T.Bind(tirx.Select(within, pixels, pixels - 1)),
                channels=T.Bind(tirx.Select(within, channels, end_channels) - 1),
            )
            block(pixels, channels, before)
    last = Block(pixels=end_pixels - 1, channels=end_channels - 1)
    with T.serial(0, plan.block_rows) as row:
        _finish_row(plan, buffers, last, row, scratch)
    tiles.release()


def _part(count: int, index: Expr, parts: int) -> tuple[Expr, Expr]:
    """Where part ``index`` of ``parts`` of ``count`` begins and ends, none larger than another by more than one."""
    if parts == 1:
        return tirx.const(0, "int32"), tirx.const(count, "int32")
    return index * count // parts, (index + 1) * count // parts


def _block(
    plan: Plan, buffers: Buffers, block: Block, before: Block, some_before: Expr, scratch: Any, panel: Any
) -> None:
    """One block's sums into the scratch, whose content, of the block ``before``, is finished meanwhile."""
    shape, source = plan.geometry, plan.source
    row_elements = source.step[1] * shape.in_c
    base = T.Bind(_first_element(plan, block))
    for tile in range(plan.mt * plan.nt):
        tiles.zero(tile)
    pixel_tiles, channel_tiles = tiles.operand_tiles(plan)
    tile_elements = plan.width * LANES
    with T.grid(shape.kernel_h, plan.columns, plan.run_steps) as (kh, kw, k):
        step = T.Bind((kh * plan.columns + kw) * plan.run_steps + k)
        start = T.Bind(base + _tap_element(plan, kh, kw) + step_start(plan, k))

        def load_pixels(i: int) -> None:
            at = start + sum(plan.tile_rows[:i]) * row_elements
            address = T.handle_add_byte_offset(buffers.rows.data, at * plan.item_bytes)
            tiles.load(pixel_tiles[i], address, row_elements * plan.item_bytes)

        def load_channels(j: int) -> None:
            if panel is None:
                address = T.address_of(buffers.weight[block.channels, step, j, 0, 0, 0])
            else:
                address = T.handle_add_byte_offset(panel.data, (step * plan.nt + j) * tile_elements)
            tiles.load(channel_tiles[j], address, TILE_BYTES)

        def multiply(i: int, j: int) -> None:
            tiles.multiply(buffers.instruction, i * plan.nt + j, pixel_tiles[i], channel_tiles[j])

        held, stream = (plan.mt, plan.nt) if plan.mt < plan.nt else (plan.nt, plan.mt)
        load_held, load_stream = (load_pixels, load_channels) if plan.mt < plan.nt else (load_channels, load_pixels)
        for one in range(held):
            load_held(one)
        for other in range(stream):
            load_stream(other)
            for one in range(held):
                multiply(*((one, other) if plan.mt < plan.nt else (other, one)))
        slices = math.ceil(plan.block_rows / plan.slice_rows)
        with T.If(tirx.all(some_before, step >= plan.lead, step < plan.lead + slices)), T.Then():
            with T.serial(0, plan.slice_rows) as j:
                row = (step - plan.lead) * plan.slice_rows + j
                if slices * plan.slice_rows == plan.block_rows:
                    _finish_row(plan, buffers, before, row, scratch)
                else:
                    with T.If(row < plan.block_rows), T.Then():
                        _finish_row(plan, buffers, before, row, scratch)
    for i in range(plan.mt):
        for j in range(plan.nt):
            at = sum(plan.tile_rows[:i]) * plan.block_lanes + j * LANES
            address = T.handle_add_byte_offset(scratch.data, at * 4)
            tiles.store(i * plan.nt + j, address, plan.block_lanes * 4)


def _run_and_first(plan: Plan, block: Block) -> tuple[Expr, Expr, Expr]:
    """The run of a block, its first output in the run, and the first that no block before it has computed."""
    if plan.blocks == 1:
        return block.pixels, tirx.const(0, "int32"), tirx.const(0, "int32")
    run, index = block.pixels // plan.blocks, block.pixels % plan.blocks
    fresh = index * plan.block_rows
    if plan.blocks * plan.block_rows == plan.length:
        return run, fresh, fresh
    return run, tirx.min(fresh, plan.length - plan.block_rows), fresh


def _first_element(plan: Plan, block: Block) -> Expr:
    """Where the first row of the block's first tile of pixels begins, at the first tap."""
    shape, source = plan.geometry, plan.source
    run, first, _ = _run_and_first(plan, block)
    within = first * (source.step[1] * shape.in_c)
    if source.joined:
        return run * plan.image + within
    row = run % shape.out_h * (source.step[0] * source.wide * shape.in_c)
    return run // shape.out_h * plan.image + row + within


def _tap_element(plan: Plan, kh: Expr, kw: Expr) -> Expr:
    """How far a tap lies behind the first."""
    shape, source = plan.geometry, plan.source
    down, right = kh * shape.dilation_h, kw * shape.dilation_w
    phase = down % source.phase[0] * source.phases[1] + right % source.phase[1]
    row = phase * source.high + down // source.phase[0]
    return (row * source.wide + right // source.phase[1]) * shape.in_c


def step_start(plan: Plan, k: Any) -> Any:
    """Where step ``k`` of a stretch begins; the last is moved back to end with it, if it is as long as a step."""
    if plan.stretch < plan.width or plan.stretch % plan.width == 0:
        return k * plan.width
    return tirx.min(k * plan.width, plan.stretch - plan.width)


def _unpack(plan: Plan, weight: Any, panel: Any, channels: Expr) -> None:
    """A block of channels' int4 weights to bytes."""
    with T.serial(0, packed_shape(plan)[1]) as pair:
        for odd in range(2):
            with T.vectorized(0, TILE_BYTES) as lane:
                value = ep.nibble(weight[channels, pair, lane], tirx.const(odd, "int32"))
                T.buffer_store(panel, value, [(2 * pair + odd) * TILE_BYTES + lane])


def _finish_row(plan: Plan, buffers: Buffers, block: Block, row: Expr, scratch: Any) -> None:
    """The epilogue of one row of a block, where it is an output and no earlier block has done it."""
    shape = plan.geometry
    run, first, fresh = _run_and_first(plan, block)
    at = T.Bind(first + row)
    wanted = []
    if plan.blocks * plan.block_rows != plan.length:
        wanted.append(at >= fresh)
    if plan.pitch == shape.out_w:
        pixel = run * plan.length + at
    else:
        wanted.append(at % plan.pitch < shape.out_w)
        pixel = (run * shape.out_h + at // plan.pitch) * shape.out_w + at % plan.pitch
    if wanted:
        with T.If(tirx.all(*wanted)), T.Then():
            _finish_channels(plan, buffers, block, row, T.Bind(pixel), scratch)
    else:
        _finish_channels(plan, buffers, block, row, T.Bind(pixel), scratch)


def _finish_channels(plan: Plan, buffers: Buffers, block: Block, row: Expr, pixel: Expr, scratch: Any) -> None:
    """The channels of one row: whole vectors, and in the last block those that its ragged end divides into."""
    left = plan.geometry.out_c - (plan.channel_blocks - 1) * plan.block_lanes
    channel = block.channels * plan.block_lanes

    def whole() -> None:
        _finish_vector(buffers, row, pixel, channel, 0, plan.block_lanes, scratch)

    def ragged() -> None:
        at = 0
        for lanes in (64, 32, 16, 8, 4, 2, 1):
            while at + lanes <= left:
                _finish_vector(buffers, row, pixel, channel, at, lanes, scratch)
                at += lanes

    if left == plan.block_lanes:
        whole()
    elif plan.channel_blocks == 1:
        ragged()
    else:
        with T.If(block.channels < plan.channel_blocks - 1):
            with T.Then():
                whole()
            with T.Else():
                ragged()


def _finish_vector(buffers: Buffers, row: Expr, pixel: Expr, channel: Expr, at: int, lanes: int, scratch: Any) -> None:
    """``lanes`` channels from ``channel`` + ``at`` on; a table has no vector form, and takes them one by one."""
    tail = buffers.tail

    def value(lane: Expr) -> Expr:
        return ep.finish(tail, scratch[row, at + lane], (pixel, channel + at + lane))

    if tail.table is None:
        _each(lanes, lambda lane: T.buffer_store(buffers.out, value(lane), [pixel, channel + at + lane]))
        return
    staged = T.alloc_buffer((lanes,), tail.dtype)
    _each(lanes, lambda lane: T.buffer_store(staged, value(lane), [lane]))
    with T.serial(0, lanes) as lane:
        found = ep.lookup(tail.table, staged[lane], tail.dtype)
        T.buffer_store(buffers.out, found, [pixel, channel + at + lane])


def _each(lanes: int, store: Callable[[Expr], None]) -> None:
    """``store`` for every lane, at once."""
    if lanes == 1:
        store(tirx.const(0, "int32"))
        return
    with T.vectorized(0, lanes) as lane:
        store(lane)


def _sum_type(plan: Plan) -> str:
    return "float32" if plan.weight == "bfloat16" else "int32"
