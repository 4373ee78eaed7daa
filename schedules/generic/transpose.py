"""transpose: the border between NCHW and NHWC, and any other order of axes.

Axes that stay neighbours are one axis. If the innermost axis stays, rows are copied. Otherwise a tile of the axis that
was innermost and the axis that becomes it is read in vectors and written in vectors: LLVM makes shuffles of an unrolled
vector tile (8 x 8: 60 GB/s, against 11 to 22 for plain loops). Axes of up to four elements, such as a picture's
colours, are left to LLVM's interleaved accesses (90 GB/s).
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te
from tvm.s_tir import Schedule

from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/transpose:1"
# An innermost axis of at most this many elements needs no tile.
SMALL = 4
TILES = (2, 4, 8, 16)


def apply(workload: Workload, target: Target) -> Kernel | None:
    """x, out; out's axis i is x's axis axes[i]."""
    if workload.op != "transpose":
        return None
    axes = tuple(int(axis) for axis in workload.attr("axes"))
    if workload.activation.kind != "none" or sorted(axes) != list(range(len(axes))):
        return common.decline(workload, f"axes {axes} with activation {workload.activation.kind}")
    dtype = common.element_type(workload, target)
    x = te.placeholder(workload.input_shapes[0], dtype, "x")
    out = common.compute(workload.output_shape, lambda *at: x[tuple(at[axes.index(axis)] for axis in range(len(axes)))])
    sch = common.schedule_of([x, out])
    _schedule(sch, workload, axes, target, 2 * math.prod(workload.output_shape) * common.ITEM_BYTES[dtype])
    return common.finish(workload, sch.mod["main"], NAME)


def runs(axes: tuple[int, ...]) -> list[list[int]]:
    """Output axes in groups that are neighbours in the input too, in order."""
    groups: list[list[int]] = []
    for place, axis in enumerate(axes):
        if groups and axes[place - 1] + 1 == axis:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _schedule(sch: Schedule, workload: Workload, axes: tuple[int, ...], target: Target, work: int) -> None:
    groups = runs(axes)
    loops = sch.get_loops(sch.get_sblock("out"))
    merged = [sch.fuse(*(loops[at] for at in group)) if len(group) > 1 else loops[group[0]] for group in groups]
    extents = [math.prod(workload.output_shape[at] for at in group) for group in groups]
    across = next(i for i, group in enumerate(groups) if axes[group[-1]] == len(axes) - 1)
    last = len(groups) - 1
    parallel = workload.parallel if common.worth_parallel(workload.parallel, work, target) else 1
    if across == last or min(extents[across], extents[last]) <= SMALL:
        if last > 0 and parallel > 1:
            keep = min(across, last) if across != last and min(extents[across], extents[last]) <= SMALL else last
            common.split_outer(sch, merged[: max(keep, 1)], extents[: max(keep, 1)], parallel)
        return
    read, written = (_tile(sch, extents[at]) for at in (across, last))
    across_outer, across_inner = sch.split(merged[across], [None, read])
    last_outer, last_inner = sch.split(merged[last], [None, written])
    others = [(loop, size) for at, (loop, size) in enumerate(zip(merged, extents, strict=True)) if at not in (across, last)]
    outer: list[Any] = [*(loop for loop, _ in others), across_outer, last_outer]
    sch.reorder(*outer, last_inner, across_inner)
    sch.unroll(last_inner)
    sch.vectorize(across_inner)
    if parallel > 1:
        sizes = [*(size for _, size in others), extents[across] // int(sch.get(read)), extents[last] // int(sch.get(written))]
        common.split_outer(sch, outer, sizes, parallel)


def _tile(sch: Schedule, extent: int) -> Any:
    """A divisor of ``extent`` to unroll or to read as a vector: sampled, 8 or the largest below it by default."""
    divisors = [size for size in (*TILES, 3, 5, 6, 7) if extent % size == 0] or [1]
    best = max((size for size in divisors if size <= 8), default=divisors[0])
    return sch.sample_categorical(divisors, [1.0 / len(divisors)] * len(divisors), decision=divisors.index(best))
