"""softmax in float32 along any axis: exp(x - max) / sum, a row at a time, without a library call.

LLVM may not reorder float sums, so rows are summed in vector lanes by construction. Along an inner axis the lanes are
the elements beside it, and where an innermost axis has few elements they are its rows.

Limit: arithmetic, the exponential, of which one Zen 4 core computes 4.5 a nanosecond where nothing else is asked. Here
it has 2.2 to 2.9 elements a nanosecond, in all three forms: each is read twice more, for the maximum and the quotient.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from hwq.schedules.generic import common, float_math
from hwq.schedules.generic.gather import ravel, unravel
from hwq.schedules.generic.pool import tree
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/softmax:2"
# An innermost axis of at most this many elements is written out, and rows are the vector.
SMALL = 8


def apply(workload: Workload, target: Target) -> Kernel | None:
    """x, out, both float32."""
    if workload.op != "softmax":
        return None
    if common.is_integer(workload) or workload.activation.kind != "none":
        return common.decline(workload, "only float32 without an activation")
    shape = workload.output_shape
    axis = workload.attr("axis") % len(shape)
    inner = math.prod(shape[axis + 1 :])
    if inner > 1:
        sch = _beside(workload, target, axis, inner)
    elif shape[axis] <= SMALL:
        sch = _rows_as_lanes(workload, target, axis)
    else:
        sch = _lanes_in_row(workload, target, axis)
    return common.finish(workload, sch.mod["main"], NAME)


def folded(lanes: list[Any], rest: list[Any], combine: Any) -> Any:
    """All values combined: the lanes' upper half with their lower half, again and again: vectors, as LLVM sees it."""
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [combine(low, high) for low, high in zip(lanes[:half], lanes[half:], strict=True)]
    return tree([lanes[0], *rest], combine)


def _work(workload: Workload) -> int:
    """Bytes that take as long to move as the exponentials take to compute."""
    return 16 * math.prod(workload.output_shape)


def collapsed(x: te.Tensor, size: int, inner: int) -> Any:
    """x as if its shape were (outer, size, inner)."""
    return lambda outer, k, i: x[unravel((outer * size + k) * inner + i, x.shape)]


def _rows_as_lanes(workload: Workload, target: Target, axis: int) -> Schedule:
    shape = workload.output_shape
    size = shape[axis]
    x = te.placeholder(shape, "float32", "x")
    rows = math.prod(shape[:axis])
    value = collapsed(x, size, 1)

    def share(row: Any, k: Any) -> Any:
        values = [value(row, tap, 0) for tap in range(size)]
        largest = tree(values, tirx.max)
        powers = [float_math.exp(each - largest) for each in values]
        return float_math.exp(value(row, k, 0) - largest) / tree(powers, lambda a, b: a + b)

    out = common.compute(shape, lambda *at: share(ravel(at[:axis], shape[:axis]), at[axis]))
    sch = common.schedule_of([x, out])
    loops = sch.get_loops(sch.get_sblock("out"))
    for loop in loops[axis:]:
        sch.unroll(loop)
    if axis > 0:
        flat = sch.fuse(*loops[:axis]) if axis > 1 else loops[0]
        if common.worth_parallel(workload.parallel, _work(workload), target):
            common.split_outer(sch, [flat], [rows], workload.parallel)
    return sch


def _beside(workload: Workload, target: Target, axis: int, inner: int) -> Schedule:
    """Along an axis with ``inner`` elements beside it: every step is a vector of those."""
    shape = workload.output_shape
    size, outer = shape[axis], math.prod(shape[:axis])
    x = te.placeholder(shape, "float32", "x")
    value = collapsed(x, size, inner)
    k, j = te.reduce_axis((0, size), "k"), te.reduce_axis((0, size), "j")
    largest = te.compute((outer, inner), lambda o, i: te.max(value(o, k, i), axis=k), "largest")
    power = te.compute((outer, size, inner), lambda o, t, i: float_math.exp(value(o, t, i) - largest[o, i]), "power")
    total = te.compute((outer, inner), lambda o, i: te.sum(power[o, j, i], axis=j), "total")

    def rule(*at: Any) -> Any:
        o, i = ravel(at[:axis], shape[:axis]), ravel(at[axis + 1 :], shape[axis + 1 :])
        return power[o, at[axis], i] / total[o, i]

    sch = common.schedule_of([x, common.compute(shape, rule)])
    threads = workload.parallel if common.worth_parallel(workload.parallel, _work(workload), target) else 1
    if threads > 1:
        common.split_outer(sch, sch.get_loops(sch.get_sblock("power"))[:2], [outer, size], threads)
        common.split_outer(sch, sch.get_loops(sch.get_sblock("out"))[: axis + 1], shape[: axis + 1], threads)
    for name in ("largest", "total"):
        block = sch.get_sblock(name)
        o, i, tap = sch.get_loops(block)
        sch.reorder(o, tap, i)
        if threads > 1:
            common.split_outer(sch, [o], [outer], threads)
        sch.decompose_reduction(block, tap)
    return sch


def _lanes_in_row(workload: Workload, target: Target, axis: int) -> Schedule:
    """Along the innermost axis: ``lanes`` partial maxima and sums over the whole vectors of a row, then the rest."""
    shape = workload.output_shape
    size, rows = shape[axis], math.prod(shape[:axis])
    lanes = min(2 * target.lanes(), 1 << int(math.log2(size // 2)))  # at least two steps
    steps = size // lanes
    rest = range(steps * lanes, size)
    x = te.placeholder(shape, "float32", "x")
    value = collapsed(x, size, 1)
    k, j = te.reduce_axis((0, steps), "k"), te.reduce_axis((0, steps), "j")
    part = te.compute((rows, lanes), lambda r, v: te.max(value(r, k * lanes + v, 0), axis=k), "part_largest")
    largest = te.compute(
        (rows,),
        lambda r: folded([part[r, v] for v in range(lanes)], [value(r, at, 0) for at in rest], tirx.max),
        "largest",
    )
    power = te.compute((rows, size), lambda r, at: float_math.exp(value(r, at, 0) - largest[r]), "power")
    part_sum = te.compute((rows, lanes), lambda r, v: te.sum(power[r, j * lanes + v], axis=j), "part_total")
    scale = te.compute(
        (rows,),
        lambda r: (
            tirx.const(1.0, "float32")
            / folded([part_sum[r, v] for v in range(lanes)], [power[r, at] for at in rest], lambda a, b: a + b)
        ),
        "scale",
    )

    def rule(*at: Any) -> Any:
        row = ravel(at[:axis], shape[:axis])
        return power[row, at[axis]] * scale[row]

    sch = common.schedule_of([x, common.compute(shape, rule)])
    loops = sch.get_loops(sch.get_sblock("out"))
    if axis > 0:
        row = sch.fuse(*loops[:axis]) if axis > 1 else loops[0]
        for name in ("scale", "part_total", "power", "largest", "part_largest"):
            sch.compute_at(sch.get_sblock(name), row)
        if common.worth_parallel(workload.parallel, _work(workload), target):
            common.split_outer(sch, [row], [rows], workload.parallel)
    for name in ("part_total", "part_largest"):
        block = sch.get_sblock(name)
        lane, step = sch.get_loops(block)[-2:]
        sch.reorder(step, lane)
        sch.vectorize(lane)
        sch.vectorize(sch.get_loops(sch.decompose_reduction(block, step))[-1])
    return sch
