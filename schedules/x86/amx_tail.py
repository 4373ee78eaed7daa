"""The epilogue of an AMX kernel: rows of sums, which a block has left in a scratch, to outputs.

A row is one pixel's channels of the block, in vectors of 16. Bytes are written by ``narrow``, a whole register of 64
at a time where a row has as many channels, or where neighbouring rows with fewer are finished together
(``Plan.together``). Other types go by vectors, and so do the channels behind the last whole vector, by those that
their number divides into.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwq.schedules import epilogue as ep
from hwq.schedules.cpu.narrowing import pieces
from hwq.schedules.x86 import narrow, table
from hwq.schedules.x86.amx_plan import LANES, TILE_BYTES, Plan

Expr = Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """A block of sums: of which pixels (over all runs) and of which channels."""

    pixels: Expr
    channels: Expr


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ends:
    """What the epilogue writes and reads. out: flat; tail: over buffers, the residual flat too. bounds: (zero point,
    least, most) of bytes, None of other types. entries: the table as ``table.lookup`` takes it, None without.
    """

    out: Any
    tail: ep.Epilogue
    bounds: tuple[Expr, ...] | None
    entries: Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rows:
    """Rows of a block in a ``scratch``, from ``row`` on: their outputs begin at element ``first`` of the output, of
    pixel ``pixel`` and channel ``channel``. The epilogue's places are (pixel, element of the output, channel)."""

    scratch: Any
    row: Expr
    pixel: Expr
    first: Expr
    channel: Expr


def run_and_first(plan: Plan, block: Block) -> tuple[Expr, Expr, Expr]:
    """The run of a block, its first output in the run, and the first that no block before it has computed."""
    if plan.blocks == 1:
        return block.pixels, tirx.const(0, "int32"), tirx.const(0, "int32")
    run, index = block.pixels // plan.blocks, block.pixels % plan.blocks
    fresh = index * plan.block_rows
    if plan.blocks * plan.block_rows == plan.length:
        return run, fresh, fresh
    return run, tirx.min(fresh, plan.length - plan.block_rows), fresh


def finish_rows(plan: Plan, ends: Ends, block: Block, row: Expr, scratch: Any) -> None:
    """The epilogue of ``Plan.together`` rows of a block, where they are outputs and no earlier block has done them."""
    shape = plan.geometry
    run, first, fresh = run_and_first(plan, block)
    at = T.Bind(first + row)
    wanted = []
    if plan.blocks * plan.block_rows != plan.length:
        wanted.append(at >= fresh)
    if plan.pitch == shape.out_w:
        pixel = run * plan.length + at
    else:
        wanted.append(at % plan.pitch < shape.out_w)
        pixel = (run * shape.out_h + at // plan.pitch) * shape.out_w + at % plan.pitch

    def finish() -> None:
        channel = T.Bind(block.channels * plan.block_lanes)
        place = T.Bind(pixel * shape.out_c + channel)
        _finish_channels(plan, ends, block, _Rows(scratch=scratch, row=row, pixel=pixel, first=place, channel=channel))

    if wanted:
        with T.If(tirx.all(*wanted)), T.Then():
            finish()
    else:
        finish()


def _finish_channels(plan: Plan, ends: Ends, block: Block, rows: _Rows) -> None:
    """All channels of the block, or in the last one those that there are."""
    left = plan.geometry.out_c - (plan.channel_blocks - 1) * plan.block_lanes

    def some(count: int) -> None:
        whole = count // LANES
        if ends.bounds is None:
            _plain(plan, ends, rows, 0, count)
            return
        for at, vectors in pieces(whole * plan.together):
            _packed(plan, ends, rows, at, vectors)
        _plain(plan, ends, rows, whole * LANES, count)

    if left == plan.block_lanes:
        some(plan.block_lanes)
    elif plan.channel_blocks == 1:
        some(left)
    else:
        with T.If(block.channels < plan.channel_blocks - 1):
            with T.Then():
                some(plan.block_lanes)
            with T.Else():
                some(left)


def _packed(plan: Plan, ends: Ends, rows: _Rows, first: int, vectors: int) -> None:
    """``vectors`` vectors of bytes, from vector ``first`` on, counted through the rows that are finished together."""
    assert ends.bounds is not None
    tail, out_c, lanes = ends.tail, plan.geometry.out_c, vectors * LANES

    def place(vector: int) -> tuple[int, int]:
        """The row of a vector, and its first channel there."""
        return vector // plan.nt, vector % plan.nt * LANES

    scaled = T.alloc_buffer((lanes,), "float32", scope="local")
    for vector in range(vectors):
        row, at = place(first + vector)
        with T.vectorized(0, LANES) as lane:
            total = rows.scratch[rows.row + row, at + lane]
            spot = (rows.pixel + row, rows.first + (row * out_c + at) + lane, rows.channel + at + lane)
            T.buffer_store(scaled, ep.scaled(tail, total, spot, biased=plan.biased), [vector * LANES + lane])
    floats = [scaled.vload([vector * LANES], f"float32x{LANES}") for vector in range(vectors)]
    value = T.Bind(narrow.in_order(floats, LANES, ends.bounds))
    if tail.table is not None:
        value = T.Bind(_looked_up(ends, value, lanes))
    # Neighbours in memory are stored as one.
    run = lanes if plan.nt * LANES == out_c else min(lanes, plan.block_lanes)
    for begin in range(0, lanes, run):
        row, at = place(first + begin // LANES)
        part = value if run == lanes else tirx.Shuffle([value], list(range(begin, begin + run)))
        T.buffer_store(ends.out, part, [tirx.Ramp(rows.first + (row * out_c + at), 1, run)])


def _looked_up(ends: Ends, value: Expr, lanes: int) -> Expr:
    """The table's entries for a vector of bytes: by shuffles of a whole register, else one by one."""
    bytes_ = T.alloc_buffer((lanes,), "uint8", scope="local")
    found = T.alloc_buffer((lanes,), "uint8", scope="local")
    whole = tirx.Ramp(0, 1, lanes)
    T.buffer_store(bytes_, value, [whole])
    if ends.entries is not None and lanes == TILE_BYTES:
        with T.vectorized(0, lanes) as lane:
            T.buffer_store(found, table.lookup(ends.entries, bytes_[lane], lane), [lane])
    else:
        assert ends.tail.table is not None
        with T.serial(0, lanes) as lane:
            T.buffer_store(found, ends.tail.table[bytes_[lane].astype("int32")], [lane])
    return found[whole]


def _plain(plan: Plan, ends: Ends, rows: _Rows, first: int, end: int) -> None:
    """Channels ``first`` to ``end`` of each row, by vectors; a table is looked up one by one."""
    for row in range(plan.together):
        at = first
        for lanes in (64, 32, 16, 8, 4, 2, 1):
            while at + lanes <= end:
                _vector(plan, ends, rows, row, at, lanes)
                at += lanes


def _vector(plan: Plan, ends: Ends, rows: _Rows, row: int, at: int, lanes: int) -> None:
    tail = ends.tail
    place = rows.first + (row * plan.geometry.out_c + at)

    def value(lane: Expr) -> Expr:
        spot = (rows.pixel + row, place + lane, rows.channel + at + lane)
        return ep.finish(tail, rows.scratch[rows.row + row, at + lane], spot, biased=plan.biased)

    if tail.table is None:
        _each(lanes, lambda lane: T.buffer_store(ends.out, value(lane), [place + lane]))
        return
    staged = T.alloc_buffer((lanes,), tail.dtype)
    _each(lanes, lambda lane: T.buffer_store(staged, value(lane), [lane]))
    with T.serial(0, lanes) as lane:
        T.buffer_store(ends.out, ep.lookup(tail.table, staged[lane], tail.dtype), [place + lane])


def _each(lanes: int, store: Callable[[Expr], None]) -> None:
    """``store`` for every lane, at once."""
    if lanes == 1:
        store(tirx.const(0, "int32"))
        return
    with T.vectorized(0, lanes) as lane:
        store(lane)
