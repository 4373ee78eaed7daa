"""The two ends of the anchor kernels of CPUs: the copy of the input in front of the sums, the epilogue behind them.

Rows are flat (pixel and channel one axis), so the copy is a run of moves with a fill before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.s_tir import SBlock, SBlockRealize, Schedule

from hwq.graph import Shape
from hwq.schedules import epilogue as ep
from hwq.schedules.cpu import lookup
from hwq.schedules.cpu.geometry import Form, Geometry
from hwq.schedules.cpu.narrowing import narrowed, sharing
from hwq.schedules.cpu.native import narrow
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.x86 import bf16
from hwq.workload import Workload


def padded_rows(shape: Geometry, found: Form, x: Any, tail: ep.Epilogue, out_h: int, row: int) -> Any:
    """Block "rows": x with its padding (the zero point, or 0.0) in the type that is multiplied: (batch, rows, ``row``).

    As high as ``out_h`` rows of output read; what lies beyond the input holds the fill too.
    """
    first, last = shape.pad_left * shape.in_c, (shape.pad_left + shape.in_w) * shape.in_c
    fill = tirx.const(0, found.act) if tail.numbers is None else tail.numbers.zp_x.astype(found.act)

    def copy(n: Any, h: Any, j: Any) -> Any:
        inside = tirx.all(h >= shape.pad_top, h < shape.pad_top + shape.in_h, j >= first, j < last)
        return tirx.if_then_else(inside, bf16.as_multiplied(x[n, h - shape.pad_top, j - first], found), fill)

    return te.compute((shape.batch, shape.rows(out_h), row), copy, name="rows")


def schedule_rows(sch: Schedule, parallel: bool = False) -> None:
    """The copy of a row in three loops, fill, move, fill, that LLVM turns into vector moves."""
    *_, n, h, j = sch.get_loops(sch.get_sblock("rows"))
    sch.annotate(j, "pragma_loop_partition_hint", 1)
    if parallel:
        sch.parallel(sch.fuse(n, h))


def finished(
    tail: ep.Epilogue,
    sums: Callable[..., Any],
    out_shape: Shape,
    *,
    staged: bool,
    packed: bool = False,
    biased: bool = False,
    apart: bool = False,
    entries: Any = None,
) -> Any:
    """Block "out" (batch, out_h, out_w, out_c): the epilogue of sums(n, h, w, c).

    staged: in two passes over a tile, block "staged" with the requantized bytes by vectors, then the table: byte by
    byte, or, where there are ``table_entries``, by vectors. packed: the bytes are made by
    ``narrow``, of a block "scaled" before. biased: the sums started at the bias (see ``from_bias``). apart: the last
    axes of ``out_shape`` are the groups and the channels of one, and so are the last places that sums takes.
    """

    def value(*at: Any) -> Any:
        place = (*at[:-2], at[-2] * out_shape[-1] + at[-1]) if apart else at
        return ep.finish(tail, sums(*at), place, biased=biased)

    last = "staged" if staged else "out"
    before = value
    if packed:
        assert tail.ints is not None
        scaled = te.compute(out_shape, lambda *at: ep.scaled(tail, sums(*at), at, biased=biased), name="scaled")
        zero, lo, hi = (tail.ints[at] for at in (ep.ZP_Y, ep.LO, ep.HI))
        before = te.compute(out_shape, lambda *at: narrowed(scaled(*at), zero, lo, hi, tail.dtype), name=last)
    elif staged or tail.table is None:
        before = te.compute(out_shape, value, name=last)
    if tail.table is None:
        return before
    if entries is None:
        return te.compute(out_shape, lambda *at: ep.lookup(tail.table, before(*at), tail.dtype), name="out")
    lanes = int(entries.shape[1])

    def looked_up(*at: Any) -> Any:
        if tail.dtype == "uint8":
            return lookup.lookup(entries, before(*at), at[-1] % lanes)
        byte = tirx.reinterpret("uint8", before(*at))
        return tirx.reinterpret(tail.dtype, lookup.lookup(entries, byte, at[-1] % lanes))

    return te.compute(out_shape, looked_up, name="out")


def table_entries(shuffle: str | None) -> Any:
    """The table as ``shuffle`` reads it: a last argument, until ``kernel_function`` fills it. None for None."""
    return None if shuffle is None else te.placeholder(lookup.entries_shape(shuffle), "uint8", "entries")


def from_bias(arguments: list[Any], channel: Callable[..., Any] | None = None) -> Any:
    """The unscheduled function of ``arguments``, whose block "acc" [..., block, lane] sums from the bias of its channel
    instead of 0: int32 wraps, so it does not matter when the bias is added. channel: of a place in a block of other
    axes.
    """
    func = te.create_prim_func(arguments)
    bias = next(param for param in func.params if param.name == "bias")

    def biased(stmt: Any) -> Any:
        """``stmt`` with the bias as the initial value in the block "acc"."""
        if isinstance(stmt, tirx.SeqStmt):
            return tirx.SeqStmt([biased(each) for each in stmt])
        if isinstance(stmt, tirx.For):
            return tirx.For(stmt.loop_var, stmt.min, stmt.extent, stmt.kind, biased(stmt.body))
        if isinstance(stmt, SBlockRealize):
            return SBlockRealize(stmt.iter_values, stmt.predicate, biased(stmt.block))
        if not isinstance(stmt, SBlock) or stmt.name_hint not in ("root", "acc"):
            return stmt
        body, init = stmt.body, stmt.init
        if stmt.name_hint == "root":
            body = biased(body)
        else:
            *_, lanes = init.buffer.shape
            *_, block, lane = init.indices
            place = block * lanes + lane if channel is None else channel(*init.indices)
            init = tirx.BufferStore(init.buffer, bias[place], init.indices)
        return SBlock(
            stmt.iter_vars, stmt.reads, stmt.writes, stmt.name_hint, body, init, stmt.alloc_buffers, stmt.match_buffers
        )

    return tirx.PrimFunc(func.params, biased(func.body), func.ret_type, func.attrs)


def schedule_tail(
    sch: Schedule,
    at: Any,
    shape: Geometry,
    *,
    lanes: int,
    whole: bool,
    staged: bool,
    packed: bool = False,
    apart: bool = False,
    shuffle: str | None = None,
) -> None:
    """The epilogue of a tile, after its sums, by vectors of channels. whole: tiles hold only channels of the output.

    Where they do not, by the widest vectors that the channels (``apart``: of a group) divide into, else in a loop left
    to LLVM.
    """
    out = sch.get_sblock("out")
    channels = shape.group_out if apart else shape.out_c
    width = lanes if whole else next((n for n in (16, 8, 4) if n <= lanes and channels % n == 0), 1)
    first = sch.get_sblock("staged") if staged else out
    blocks = [sch.get_sblock("scaled")] if packed else []
    # All are moved before any is cut up: of blocks of parts, TVM does not see that an edge's tile covers what is read.
    for block in (*blocks, first, *([out] if staged else [])):
        sch.reverse_compute_at(block, at, preserve_unit_loops=True)
    if packed:
        _schedule_packed(sch, first, shape, lanes)
        first = blocks[0]
    if width > 1:
        vectors, lane = sch.split(sch.get_loops(first)[-1], [None, width])
        if whole:
            sch.unroll(vectors)
        sch.vectorize(lane)
    if shuffle is not None:
        sch.vectorize(sch.split(sch.get_loops(out)[-1], [None, lookup.LANES[shuffle]])[1])


def _schedule_packed(sch: Schedule, narrowing: Any, shape: Geometry, lanes: int) -> None:
    """A tile's pixels, written out so that all sums are in registers: "scaled", then the block ``narrowing`` by the
    intrinsic; one by one, or some at a time where a pixel's channels do not fill a store and the next pixel's follow.
    """
    scaled = sch.get_sblock("scaled")
    *_, row, pixel, channel = sch.get_loops(narrowing)
    extent = int(sch.get(channel).extent)
    pixels = int(sch.get(pixel).extent)
    together = sharing(pixels, extent // lanes) if extent == shape.out_c and shape.out_w % pixels == 0 else 1
    if together > 1:
        vectors = extent // lanes
        pixel, part = sch.split(pixel, [None, together])
        written_out = [row, pixel]
    else:
        vectors = next(n for n in (8, 6, 4, 3, 2, 1) if extent % (n * lanes) == 0)
        part, _ = sch.split(channel, [None, vectors * lanes])
        written_out = [row, pixel, part]
    sch.compute_at(scaled, pixel, preserve_unit_loops=True)
    sch.set_scope(scaled, 0, "local")
    if together > 1:
        written_out.append(sch.get_loops(scaled)[-2])
    for loop in written_out:
        sch.unroll(loop)
    # What lies beyond the edge is skipped by a block of its own around the intrinsic, which takes no condition.
    sch.blockize(part)
    dtype = sch.get(narrowing).writes[0].source.dtype
    sch.tensorize(sch.get_loops(narrowing)[-2 if together > 1 else -1], narrow(str(dtype), lanes, vectors, together))


def kernel_function(func: Any, workload: Workload, tail: ep.Epilogue) -> Any:
    """The scheduled function as callers know it: the layer's own shapes, and no parameters but its arguments."""
    closed = ep.close(_with_entries(func), tail)
    shapes = {0: workload.input_shapes[0], len(closed.params) - 1: workload.output_shape}
    for place, shape in enumerate(workload.input_shapes[1:], 1):  # scales of rows, a residual
        shapes[place] = shape
    return with_shapes(closed, shapes)


def _with_entries(func: Any) -> Any:
    """``func`` without a last parameter "entries": a buffer that is filled from the table at the function's head."""
    *params, entries = func.params
    if entries.name != "entries":
        return func
    bytes_ = next(param for param in params if param.name == "table")
    count, lanes = (int(size) for size in entries.shape)
    width = lookup.TABLE // count
    stores = [
        tirx.BufferStore(entries, bytes_.vload([row * width], f"uint8x{width}"), [row, tirx.Ramp(at, 1, width)])
        for row in range(count)
        for at in range(0, lanes, width)
    ]
    root = func.body.block
    body = tirx.SeqStmt([*stores, root.body])
    block = SBlock([], [], [], "root", body, None, [*root.alloc_buffers, entries])
    return tirx.PrimFunc(params, SBlockRealize([], True, block), func.ret_type, func.attrs)
