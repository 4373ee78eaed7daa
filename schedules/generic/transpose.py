"""transpose: the border between NCHW and NHWC, and any other order of axes.

Axes that stay neighbours are one axis. If the innermost axis stays, rows are copied. Otherwise a tile of the axis that
was innermost and the axis that becomes it is read in vectors and written in vectors: LLVM makes shuffles of an unrolled
vector tile (8 x 8: 60 GB/s, against 11 to 22 for plain loops). Axes of up to four elements, such as a picture's
colours, are left to LLVM's interleaved accesses. The limit is bytes: of 115 GB/s that a Zen 4 core's L2 gives, 64x28x28
gets 85, and a picture of three planes, which is larger than it, 97.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import te
from tvm.s_tir import Schedule

from hwq.graph import Shape
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/transpose:1"
# An innermost axis of at most this many elements needs no tile.
SMALL = 4
TILES = (1, 2, 3, 4, 5, 6, 7, 8, 16)


def apply(workload: Workload, target: Target, *, seed: int | None = None) -> Kernel | None:
    """x, out; out's axis i is x's axis axes[i]."""
    if workload.op != "transpose":
        return None
    axes = tuple(int(axis) for axis in workload.attr("axes"))
    if workload.activation.kind != "none" or sorted(axes) != list(range(len(axes))):
        return common.decline(workload, f"axes {axes} with activation {workload.activation.kind}")
    dtype = common.element_type(workload, target)
    x = te.placeholder(workload.input_shapes[0], dtype, "x")
    out = common.compute(workload.output_shape, lambda *at: x[source(at, axes)])
    sch = common.schedule_of([x, out], seed)
    work = 2 * math.prod(workload.output_shape) * common.ITEM_BYTES[dtype]
    threads = workload.parallel if common.worth_parallel(workload.parallel, work, target) else 1
    schedule_moved(sch, workload.output_shape, axes, threads, seed)
    return common.finish(workload, sch.mod["main"], NAME)


def source(at: Sequence[Any], axes: Sequence[int]) -> tuple[Any, ...]:
    """The input's position of the output's position ``at``."""
    return tuple(at[axes.index(axis)] for axis in range(len(axes)))


def runs(axes: tuple[int, ...]) -> list[list[int]]:
    """Output axes in groups that are neighbours in the input too, in order."""
    groups: list[list[int]] = []
    for place, axis in enumerate(axes):
        if groups and axes[place - 1] + 1 == axis:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def schedule_moved(
    sch: Schedule, shape: Shape, axes: tuple[int, ...], threads: int = 1, seed: int | None = None
) -> None:
    """For a block "out" of ``shape`` whose axis i is the input's axis axes[i], whatever it computes of each element."""
    groups = runs(axes)
    loops = sch.get_loops(sch.get_sblock("out"))
    merged = [sch.fuse(*(loops[at] for at in group)) if len(group) > 1 else loops[group[0]] for group in groups]
    extents = [math.prod(shape[at] for at in group) for group in groups]
    across = next(at for at, group in enumerate(groups) if axes[group[-1]] == len(axes) - 1)
    last = len(groups) - 1
    if across == last or min(extents[across], extents[last]) <= SMALL:
        longest = max(range(len(groups)), key=lambda at: extents[at])
        parts = common.even_split(extents[longest], threads)
        if threads > 1 and parts > 1:
            chunk, merged[longest] = sch.split(merged[longest], [parts, None])
            sch.reorder(chunk, *merged)
            sch.parallel(chunk)
        return
    read, written = (_tile(sch, extents[at], seed) for at in (across, last))
    across_outer, across_inner = sch.split(merged[across], [None, read])
    last_outer, last_inner = sch.split(merged[last], [None, written])
    others = [at for at in range(len(groups)) if at not in (across, last)]
    outer: list[Any] = [*(merged[at] for at in others), across_outer, last_outer]
    sch.reorder(*outer, last_inner, across_inner)
    sch.unroll(last_inner)
    sch.vectorize(across_inner)
    if threads > 1:
        tiles = [extents[across] // int(sch.get(read)), extents[last] // int(sch.get(written))]
        common.split_outer(sch, outer, [*(extents[at] for at in others), *tiles], threads)


def _tile(sch: Schedule, extent: int, seed: int | None) -> Any:
    """What is unrolled or read as a vector of an axis: a divisor of ``extent``, by default the largest up to 8."""
    divisors = [size for size in TILES if extent % size == 0]
    return common.choose(sch, divisors, max(size for size in divisors if size <= 8), seed)
