"""The two ends of the x86 anchor kernels: the copy of the input in front of the sums, the epilogue behind them.

Rows are flat (pixel and channel one axis), so the copy is a run of moves with a fill before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from hwq.graph import Shape
from hwq.schedules import epilogue as ep
from hwq.schedules.x86.geometry import Form, Geometry


def padded_rows(shape: Geometry, found: Form, x: Any, ints: Any, out_h: int, row: int) -> Any:
    """Block "rows": x with its padding (the zero point, or 0.0), in the type that is multiplied, (batch, rows, ``row``).

    As high as ``out_h`` rows of output read; what lies beyond the input holds the fill too.
    """
    first, last = shape.pad_left * shape.in_c, (shape.pad_left + shape.in_w) * shape.in_c
    fill = tirx.const(0.0, "float32") if ints is None else ints[ep.ZP_X].astype(found.act)

    def copy(n: Any, h: Any, j: Any) -> Any:
        inside = tirx.all(h >= shape.pad_top, h < shape.pad_top + shape.in_h, j >= first, j < last)
        return tirx.if_then_else(inside, x[n, h - shape.pad_top, j - first].astype(found.act), fill)

    return te.compute((shape.batch, shape.rows(out_h), row), copy, name="rows")


def schedule_rows(sch: Schedule, parallel: bool) -> None:
    n, h, j = sch.get_loops(sch.get_sblock("rows"))
    sch.annotate(j, "pragma_loop_partition_hint", 1)
    if parallel:
        sch.parallel(sch.fuse(n, h))


def finished(tail: ep.Epilogue, sums: Callable[..., Any], out_shape: Shape, *, staged: bool) -> Any:
    """Block "out" (batch, out_h, out_w, out_c): the epilogue of sums(n, h, w, c).

    staged: in two passes over a tile, block "staged" with the requantized values by vectors, then the table, which has no
    vector form, one by one.
    """

    def value(n: Any, h: Any, w: Any, c: Any) -> Any:
        bias = None if tail.bias is None else tail.bias[c]
        multiplier = None if tail.multiplier is None else tail.multiplier[c]
        residual = None if tail.residual is None else tail.residual[n, h, w, c]
        return ep.finish(tail, sums(n, h, w, c), bias, multiplier, residual)

    if tail.table is None:
        return te.compute(out_shape, value, name="out")
    if staged:
        first = te.compute(out_shape, value, name="staged")
        return te.compute(out_shape, lambda *at: ep.lookup(tail.table, first(*at), tail.dtype), name="out")
    return te.compute(out_shape, lambda *at: ep.lookup(tail.table, value(*at), tail.dtype), name="out")


def schedule_tail(sch: Schedule, at: Any, *, lanes: int, ragged: bool, staged: bool, groups: int) -> None:
    """The epilogue of a tile, after its sums: by vectors of channels, or, at ragged edges, in a loop left to LLVM."""
    out = sch.get_sblock("out")
    if ragged:
        if groups == 1:
            sch.reverse_compute_at(out, at, preserve_unit_loops=True)
        return
    vectorized = sch.get_sblock("staged") if staged else out
    sch.reverse_compute_at(vectorized, at, preserve_unit_loops=True)
    vectors, lane = sch.split(sch.get_loops(vectorized)[-1], [None, lanes])
    sch.unroll(vectors)
    sch.vectorize(lane)
    if staged:
        sch.reverse_compute_at(out, at, preserve_unit_loops=True)
