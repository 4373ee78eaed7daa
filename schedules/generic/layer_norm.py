"""Layer norm over the last axis in float32: (x - mean) / sqrt(variance + epsilon) * scale + bias; no library call.

A row is swept three times and comes from memory once: for its mean, for the squared distances from it (their sum is not
found as a difference of large numbers), and to be written. Sums are taken in vector lanes by construction, as LLVM may
not reorder them; a row that does not fill them ends one by one.

Limit: bytes. On a Zen 4 core, whose L2 gives 115 GB/s, 64 rows of 384 are read and written at 52 GB/s (3.8 us; operator
by operator 13.2), 128 rows of 768, which L2 holds just so, at 56 (14.1; 57).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from hwq.graph import Shape
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/layer_norm:2"
# Registers that sums are taken in at once, at most: enough additions under way to hide much of what each takes.
REGISTERS = 4
# Rows that are swept together, where the nearest cache holds them: LLVM then writes each sweep as a loop of its own.
ROWS = 8
# Cycles of an addition.
ADD_CYCLES = 4


def apply(workload: Workload, target: Target) -> Kernel | None:
    """x, scale (C,), bias (C,), out, all float32."""
    if workload.op != "layer_norm":
        return None
    if common.is_integer(workload) or workload.activation.kind != "none":
        return common.decline(workload, "only float32 without an activation")
    return common.finish(workload, _function(workload, target), NAME)


def sum_lanes(size: int, lanes: int) -> int:
    """Partial sums of a row of ``size`` on registers of ``lanes``, 0 for none: by the cycles of their steps and of the
    elements left over.
    """
    options = [count for count in (lanes << step for step in range(REGISTERS.bit_length())) if 2 * count <= size]
    return min(options, key=lambda count: size // count * ADD_CYCLES + size % count, default=0)


def halves(lanes: int) -> list[int]:
    """lanes / 2, lanes / 4, ... 1, lanes being a power of two; nothing for 0."""
    return [lanes >> step for step in range(1, lanes.bit_length())]


def rows_together(rows: int, size: int, target: Target) -> int:
    """How many rows each sweep takes, ROWS at most: as many as L1 holds, less if rows then divide evenly."""
    most = max(1, min(ROWS, rows, target.l1_bytes // (4 * size)))
    return next((count for count in range(most, most // 2, -1) if rows % count == 0), most)


def _function(workload: Workload, target: Target) -> Any:
    shape = flat(workload.output_shape)
    rows, size = shape
    lanes = sum_lanes(size, target.lanes())
    x = te.placeholder(shape, "float32", "x")
    scale, bias = (te.placeholder((size,), "float32", name) for name in ("scale", "bias"))
    share, epsilon, one = (tirx.const(number, "float32") for number in (1.0 / size, workload.attr("epsilon"), 1.0))
    total = row_sum(lambda row, at: x[row, at], rows, size, lanes, "total")
    mean = te.compute((rows,), lambda r: total(r) * share, "mean")
    spread = row_sum(lambda row, at: (x[row, at] - mean[row]) * (x[row, at] - mean[row]), rows, size, lanes, "spread")
    factor = te.compute((rows,), lambda r: one / tirx.sqrt(spread(r) * share + epsilon), "factor")
    out = common.compute(shape, lambda row, at: (x[row, at] - mean[row]) * factor[row] * scale[at] + bias[at])
    sch = common.schedule_of([x, scale, bias, out])
    schedule_sweeps(sch, workload, target, (("factor", "spread"), ("mean", "total")))
    return with_shapes(sch.mod["main"], {0: workload.output_shape, 3: workload.output_shape})


def flat(shape: Shape) -> Shape:
    """(rows, size of a row)."""
    return (math.prod(shape[:-1]), shape[-1])


def row_sum(term: Any, rows: int, size: int, lanes: int, name: str) -> Any:
    """The sum of term(row, column) along each row, as a function of the row: ``lanes`` partial sums, which meet in
    halves, then what is left over.

    A row's bits do not depend on the others: what is left over is added one by one, since of the sum of two products
    LLVM fuses the one or the other.
    """
    steps = size // lanes if lanes else 0
    rest = [partial(term, at=at) for at in range(steps * lanes, size)]
    if not lanes:
        return lambda row: functools.reduce(_plus, [each(row) for each in rest])
    k = te.reduce_axis((0, steps), "k")
    part = te.compute((rows, lanes), lambda r, v: te.sum(term(r, k * lanes + v), axis=k), f"{name}_part")
    for half in halves(lanes):
        part = _folded(part, half, f"{name}_{half}")
    return lambda row: functools.reduce(_plus, [part[row, 0], *(each(row) for each in rest)])


def schedule_sweeps(sch: Schedule, workload: Workload, target: Target, ends: Sequence[tuple[str, str]]) -> None:
    """A few rows together go through all sweeps. ends: (block, the ``row_sum`` it is made of), the last sweep first."""
    rows, size = flat(workload.output_shape)
    lanes = sum_lanes(size, target.lanes())
    row, _ = sch.get_loops(sch.get_sblock("out"))
    block, _ = sch.split(row, [None, rows_together(rows, size, target)])
    for end, name in ends:
        sch.compute_at(sch.get_sblock(end), block, preserve_unit_loops=True)
        row = sch.get_loops(sch.get_sblock(end))[-1]
        for half in reversed(halves(lanes)):
            found = sch.get_sblock(f"{name}_{half}")
            sch.compute_at(found, row, preserve_unit_loops=True)
            sch.vectorize(sch.get_loops(found)[-1])
        if lanes:
            sch.compute_at(sch.get_sblock(f"{name}_part"), block, preserve_unit_loops=True)
    if common.worth_parallel(workload.parallel, common.moved_bytes(workload, 4), target):
        common.split_outer(sch, [block], [int(sch.get(block).extent)], workload.parallel)
    for _, name in ends if lanes else ():
        part = sch.get_sblock(f"{name}_part")
        lane, step = sch.get_loops(part)[-2:]
        sch.reorder(step, lane)
        sch.vectorize(lane)
        sch.vectorize(sch.get_loops(sch.decompose_reduction(part, step))[-1])


def _folded(wide: te.Tensor, half: int, name: str) -> te.Tensor:
    """The upper half of each row's sums added to the lower."""
    return te.compute((wide.shape[0], half), lambda r, v: wide[r, v] + wide[r, v + half], name)


def _plus(a: Any, b: Any) -> Any:
    return a + b
