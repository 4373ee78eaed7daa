"""The code of an AMX kernel, as TVM's IRBuilder makes it from a plan.

    permission; the padded copy of the input, if any
    for each section (parallel where it pays):
        tile configuration; scratch for one block of sums
        for each block of channels, for each block of pixels (or the other way round):
            sums in tiles; beside the products of each step a slice of the epilogue of the block before
            sums to the scratch
        the epilogue of the last block

The epilogue works by vectors of channels from the scratch, which the L1 holds: ``amx_tail``. A tensor intrinsic for
``tensorize`` would have to match rows that are moved back at a run's end; written out, one template serves every shape.

Tiles address buffers of the kernel's own by the buffer's pointer, not by an element: TVM shrinks a buffer to the
elements that it sees used.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.schedules import epilogue as ep
from hwq.schedules.cut import COUNT
from hwq.schedules.x86 import amx_tiles as tiles
from hwq.schedules.x86 import bf16, table
from hwq.schedules.x86.amx_input import padded_copy
from hwq.schedules.x86.amx_panel import Panels, make_panels, tile_address, unpack_beside
from hwq.schedules.x86.amx_plan import LANES, TILE_BYTES, Plan
from hwq.schedules.x86.amx_tail import Block, Ends, finish_rows, run_and_first

Expr = Any
_NAMES = ("bias", "multiplier", "shift", "ints", "floats", "table")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Buffers:
    """What the sections read and write. rows: the elements that A tiles are loaded from. pixel_blocks: how many blocks
    of pixels there are to compute.
    """

    rows: Any
    weight: Any
    ends: Ends
    instruction: str
    pixel_blocks: Expr


def packed_shape(plan: Plan) -> tuple[int, ...]:
    """The weights as the kernel reads them: a tile of a step is (width / group, lanes, group), 4 bytes a group.

    int4: two such rows of 64 bytes in one, see ``packing.pack_nibbles``.
    """
    group = 4 // plan.item_bytes
    tile = (plan.width // group, LANES, group)
    if plan.weight == "int4":
        return (plan.channel_blocks, math.ceil(plan.steps * plan.nt * tile[0] / 2), TILE_BYTES)
    return (plan.channel_blocks, plan.steps, plan.nt, *tile)


def kernel_code(plan: Plan, tail: ep.Epilogue, stored: str, instruction: str, *, shuffles: bool) -> Any:
    """The kernel as a PrimFunc: x and the outputs flat, and behind them the scalars that ``ep.close`` defines.

    stored: the type of activations in memory. instruction: the product of tiles. shuffles: whether there is an
    instruction that looks up 64 bytes of a table.
    """
    shape = plan.geometry
    x = tirx.decl_buffer((shape.batch * shape.in_h * shape.in_w * shape.in_c,), stored, "x")
    packed = {"int8": "int8", "int4": "uint8", "bfloat16": "uint16"}[plan.weight]
    weight = tirx.decl_buffer(packed_shape(plan), packed, "weight")
    size = shape.batch * shape.out_h * shape.out_w * shape.out_c
    out = tirx.decl_buffer((size,), tail.dtype, "out")
    others = {name: getattr(tail, name) for name in _NAMES}
    own = {
        name: tirx.decl_buffer(tuple(tensor.shape), tensor.dtype, name)
        for name, tensor in others.items()
        if tensor is not None
    }
    residual = None if tail.residual is None else tirx.decl_buffer((size,), tail.residual.dtype, "residual")
    scales = None if tail.scales is None else tirx.decl_buffer((size // shape.out_c,), "float32", "scales")
    tokens = tirx.decl_buffer((1,), "int32", COUNT) if plan.workload.cut and plan.runs == 1 else None
    with IRBuilder() as builder:
        with (
            T.seq_scope(),
            T.attr(0, bf16.IMPORT, bf16.ROUND_LLVM) if plan.bf16 else contextlib.nullcontext(),
        ):
            tiles.ask_permission()
            rows = padded_copy(plan, x, tail.numbers) if plan.source.copied else x
            over = replace(
                tail,
                residual=None if residual is None else lambda _, at, __: residual[at],
                scales=None if scales is None else lambda pixel, _: scales[pixel],
                **own,
            )
            buffers = Buffers(
                rows=rows,
                weight=weight,
                ends=_ends(plan, out, over, shuffles),
                instruction=instruction,
                pixel_blocks=_pixel_blocks(plan, tokens),
            )
            with (T.parallel if plan.parallel else T.serial)(0, plan.chunks[0] * plan.chunks[1]) as section:
                _section(plan, buffers, section)
        body = builder.get().body
    params = [x, scales, residual, tokens, weight, *(own.get(name) for name in _NAMES), out]
    scalars = [] if tail.numbers is None else tail.numbers.all()
    return tirx.PrimFunc([*(param for param in params if param is not None), *scalars], body)


def _ends(plan: Plan, out: Any, tail: ep.Epilogue, shuffles: bool) -> Ends:
    """What the epilogue works with, its numbers read once."""
    bounds, entries = None, None
    if tail.dtype == "uint8":
        assert tail.ints is not None
        bounds = tuple(T.Bind(tail.ints[at]) for at in (ep.ZP_Y, ep.LO, ep.HI))
        if tail.table is not None and shuffles:
            entries = T.decl_buffer(table.entries_shape("vpermi2b"), "uint8", data=tail.table.data)
    return Ends(out=out, tail=tail, bounds=bounds, entries=entries)


def _pixel_blocks(plan: Plan, tokens: Any) -> Expr:
    """All blocks of pixels; where tokens are counted, those that hold some."""
    every = tirx.const(plan.runs * plan.blocks, "int32")
    if tokens is None:
        return every
    pixels = tokens[0] * (plan.length // plan.workload.cut)
    return T.Bind(tirx.min(tirx.floordiv(pixels + (plan.block_rows - 1), plan.block_rows), every))


def _section(plan: Plan, buffers: Buffers, section: Expr) -> None:
    """One part of the pixels with one part of the channels, on tiles of its own."""
    first_pixels, end_pixels = _part(buffers.pixel_blocks, section // plan.chunks[1], plan.chunks[0])
    if isinstance(buffers.pixel_blocks, tirx.IntImm):
        _blocks(plan, buffers, section, first_pixels, end_pixels)
        return
    first_pixels, end_pixels = T.Bind(first_pixels), T.Bind(end_pixels)
    with T.If(first_pixels < end_pixels), T.Then():
        _blocks(plan, buffers, section, first_pixels, end_pixels)


def _blocks(plan: Plan, buffers: Buffers, section: Expr, first_pixels: Expr, end_pixels: Expr) -> None:
    """Those of a section, of which there is at least one."""
    tiles.configure(plan)
    scratch = T.alloc_buffer((plan.block_rows, plan.block_lanes), _sum_type(plan))
    first_channels, end_channels = _part(
        tirx.const(plan.channel_blocks, "int32"), section % plan.chunks[1], plan.chunks[1]
    )
    panels = None
    if plan.weight == "int4":
        panels = make_panels(buffers.weight, first_pixels, first_channels, end_channels)

    def block(pixels: Expr, channels: Expr, before: Block) -> None:
        some_before = T.Bind(tirx.any(pixels > first_pixels, channels > first_channels))
        _block(plan, buffers, Block(pixels=pixels, channels=channels), before, some_before, scratch, panels)

    if plan.pixels_inner:
        with T.serial(first_channels, end_channels) as channels, T.serial(first_pixels, end_pixels) as pixels:
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
    with T.serial(0, plan.block_rows // plan.together) as group:
        finish_rows(plan, buffers.ends, last, group * plan.together, scratch)
    tiles.release()


def _part(count: Expr, index: Expr, parts: int) -> tuple[Expr, Expr]:
    """Where part ``index`` of ``parts`` of ``count`` begins and ends, none larger than another by more than one."""
    if parts == 1:
        return tirx.const(0, "int32"), count
    return index * count // parts, (index + 1) * count // parts


def _block(
    plan: Plan,
    buffers: Buffers,
    block: Block,
    before: Block,
    some_before: Expr,
    scratch: Any,
    panels: Panels | None,
) -> None:
    """One block's sums into the scratch, whose content, of the block ``before``, is finished meanwhile."""
    shape, source = plan.geometry, plan.source
    row_elements = source.step[1] * shape.in_c
    base = T.Bind(_first_element(plan, block))
    for tile in range(plan.mt * plan.nt):
        _begin(plan, buffers, block, tile)
    pixel_tiles, channel_tiles = tiles.operand_tiles(plan)
    with T.grid(shape.kernel_h, plan.columns, plan.run_steps) as (kh, kw, k):
        step = T.Bind((kh * plan.columns + kw) * plan.run_steps + k)
        start = T.Bind(base + _tap_element(plan, kh, kw) + step_start(plan, k))

        def load_pixels(i: int) -> None:
            at = start + sum(plan.tile_rows[:i]) * row_elements
            address = T.handle_add_byte_offset(buffers.rows.data, at * plan.item_bytes)
            tiles.load(pixel_tiles[i], address, row_elements * plan.item_bytes)

        def load_channels(j: int) -> None:
            if panels is None:
                address = T.address_of(buffers.weight[block.channels, step, j, 0, 0, 0])
            else:
                address = tile_address(panels, plan, block.channels, step * plan.nt + j)
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
        if panels is not None:
            unpack_beside(panels, plan, block.pixels, block.channels, step)
        slices = math.ceil(plan.block_rows / plan.slice_rows)
        with T.If(tirx.all(some_before, step >= plan.lead, step < plan.lead + slices)), T.Then():
            with T.serial(0, plan.slice_rows // plan.together) as j:
                row = (step - plan.lead) * plan.slice_rows + j * plan.together
                if slices * plan.slice_rows == plan.block_rows:
                    finish_rows(plan, buffers.ends, before, row, scratch)
                else:
                    with T.If(row < plan.block_rows), T.Then():
                        finish_rows(plan, buffers.ends, before, row, scratch)
    for i in range(plan.mt):
        for j in range(plan.nt):
            at = sum(plan.tile_rows[:i]) * plan.block_lanes + j * LANES
            address = T.handle_add_byte_offset(scratch.data, at * 4)
            tiles.store(i * plan.nt + j, address, plan.block_lanes * 4)


def _begin(plan: Plan, buffers: Buffers, block: Block, tile: int) -> None:
    """A tile of sums at zero, or at the bias of its channels, the same in every row."""
    if not plan.biased:
        tiles.zero(tile)
        return
    bias = buffers.ends.tail.bias
    assert bias is not None
    channel = block.channels * plan.block_lanes + tile % plan.nt * LANES
    if plan.geometry.out_c % plan.block_lanes:  # a tile of channels that are not there is never read
        channel = tirx.min(channel, plan.geometry.out_c - LANES)
    tiles.load(tile, T.address_of(bias[channel]), 0)


def _first_element(plan: Plan, block: Block) -> Expr:
    """Where the first row of the block's first tile of pixels begins, at the first tap."""
    shape, source = plan.geometry, plan.source
    run, first, _ = run_and_first(plan, block)
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


def _sum_type(plan: Plan) -> str:
    return "float32" if plan.bf16 else "int32"
