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
from hwq.schedules.x86 import bf16
from hwq.schedules.x86.geometry import Form, Geometry
from hwq.schedules.x86.views import with_shapes
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


def finished(tail: ep.Epilogue, sums: Callable[..., Any], out_shape: Shape, *, staged: bool) -> Any:
    """Block "out" (batch, out_h, out_w, out_c): the epilogue of sums(n, h, w, c).

    staged: in two passes over a tile, block "staged" with the requantized values by vectors, then the table, which has
    no vector form, one by one.
    """

    def value(*at: Any) -> Any:
        return ep.finish(tail, sums(*at), at)

    if tail.table is None:
        return te.compute(out_shape, value, name="out")
    before = te.compute(out_shape, value, name="staged") if staged else value
    return te.compute(out_shape, lambda *at: ep.lookup(tail.table, before(*at), tail.dtype), name="out")


def schedule_tail(sch: Schedule, at: Any, shape: Geometry, *, lanes: int, whole: bool, staged: bool) -> None:
    """The epilogue of a tile, after its sums, by vectors of channels. whole: tiles hold only channels of the output.

    Where they do not, by the widest vectors that the channels of a group divide into, else in a loop left to LLVM.
    """
    out = sch.get_sblock("out")
    channels = shape.out_c if shape.group_out == 1 else shape.group_out
    width = lanes if whole else next((n for n in (16, 8, 4) if n <= lanes and channels % n == 0), 1)
    first = sch.get_sblock("staged") if staged else out
    if whole or shape.groups == 1 or shape.group_out == 1:
        sch.reverse_compute_at(first, at, preserve_unit_loops=True)
    if width > 1:
        vectors, lane = sch.split(sch.get_loops(first)[-1], [None, width])
        if whole:
            sch.unroll(vectors)
        sch.vectorize(lane)
    if staged:
        sch.reverse_compute_at(out, at, preserve_unit_loops=True)


def kernel_function(func: Any, workload: Workload, tail: ep.Epilogue) -> Any:
    """The scheduled function as callers know it: the layer's own shapes, and no parameters but its arguments."""
    closed = ep.close(func, tail)
    shapes = {0: workload.input_shapes[0], len(closed.params) - 1: workload.output_shape}
    if workload.residual:
        shapes[1] = workload.output_shape
    return with_shapes(closed, shapes)
