"""The scales of rows, found as the network runs, and the rows in bytes: see ``hwq.row_scales``. Two kernels.

row_scale takes the largest size of each row in vector lanes by construction, as LLVM may not reorder it to do so; what
does not fill them ends one by one. quantize_rows is one pass, and takes the scales. They are two so that each writes
one value; the row is in the nearest cache when it is read again. NaN is undefined: such a row is in any bytes.

Limit: bytes. On a busy Zen 4 core, whose L2 gives 115 GB/s, 64 rows of 384 take 1.6 us to be read for their scales (61
GB/s) and 2.3 to be quantized (53), 64 of 1536 4.3 (91) and 6.8 (72): together 2 to 7% of a dense layer behind them.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from hwq import row_scales
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.schedules.generic.layer_norm import halves, sum_lanes
from hwq.schedules.generic.pool import tree
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/rows:1"


def apply(workload: Workload, target: Target) -> Kernel | None:
    """row_scale: x (..., K), out (rows,), both float32. quantize_rows: x, scales (rows,), out in storage, as x."""
    if workload.op not in ("row_scale", "quantize_rows"):
        return None
    shape = workload.input_shapes[0]
    flat = math.prod(shape[:-1]), shape[-1]
    threads = workload.parallel
    if not common.worth_parallel(threads, common.moved_bytes(workload, 2), target):
        threads = 1
    if workload.op == "row_scale":
        sch, shapes = _scales(flat, target, threads), {0: shape}
    else:
        sch, shapes = _bytes(flat, target.activation_storage, threads), {0: shape, 2: shape}
    return common.finish(workload, with_shapes(sch.mod["main"], shapes), NAME)


def _row(sch: Schedule, rows: int, threads: int) -> Any:
    """The loop of rows, shared out if there are threads."""
    out = sch.get_sblock("out")
    if threads > 1:
        common.split_outer(sch, sch.get_loops(out)[:1], [rows], threads)
    return sch.get_loops(out)[1 if threads > 1 and common.even_split(rows, threads) > 1 else 0]


def _scales(flat: tuple[int, int], target: Target, threads: int) -> Schedule:
    rows, size = flat
    lanes = sum_lanes(size, target.lanes())
    x = te.placeholder(flat, "float32", "x")
    steps = size // lanes if lanes else 0
    part = None
    if lanes:
        k = te.reduce_axis((0, steps), "k")
        part = te.compute((rows, lanes), lambda r, v: te.max(tirx.abs(x[r, k * lanes + v]), axis=k), "part")
        for half in halves(lanes):
            part = _folded(part, half)

    def scale(row: Any) -> Any:
        rest = [tirx.abs(x[row, at]) for at in range(steps * lanes, size)]
        largest = tree([*([] if part is None else [part[row, 0]]), *rest], tirx.max)
        value = largest * tirx.const(row_scales.SHARE, "float32")
        return tirx.Select(value < _least(), tirx.const(0.0, "float32"), value)

    sch = common.schedule_of([x, common.compute((rows,), scale)])
    row = _row(sch, rows, threads)
    for half in reversed(halves(lanes)):
        found = sch.get_sblock(f"part_{half}")
        sch.compute_at(found, row, preserve_unit_loops=True)
        sch.vectorize(sch.get_loops(found)[-1])
        sch.set_scope(found, 0, "local")
    if lanes:
        found = sch.get_sblock("part")
        sch.compute_at(found, row, preserve_unit_loops=True)
        sch.set_scope(found, 0, "local")
        lane, step = sch.get_loops(found)[-2:]
        sch.reorder(step, lane)
        sch.vectorize(lane)
        sch.vectorize(sch.get_loops(sch.decompose_reduction(found, step))[-1])
    return sch


def _folded(wide: te.Tensor, half: int) -> te.Tensor:
    """The larger of each row's upper and lower half."""
    rule = lambda r, v: tirx.max(wide[r, v], wide[r, v + half])  # noqa: E731
    return te.compute((wide.shape[0], half), rule, f"part_{half}")


def _bytes(flat: tuple[int, int], storage: str, threads: int) -> Schedule:
    x, scales = te.placeholder(flat, "float32", "x"), te.placeholder(flat[:1], "float32", "scales")
    zero, one = tirx.const(0.0, "float32"), tirx.const(1.0, "float32")
    origin = tirx.const(128 if storage == "uint8" else 0, "int32")
    factor = te.compute(
        flat[:1], lambda r: tirx.Select(scales[r] < _least(), zero, one / tirx.max(scales[r], _least())), "factor"
    )

    def rule(row: Any, column: Any) -> Any:
        # Nothing is beyond 127 but infinities; and the clamp keeps LLVM from fusing the product with what rounds it.
        return common.round_clamp(x[row, column] * factor[row], origin - 127, origin + 127, origin, storage)

    sch = common.schedule_of([x, scales, common.compute(flat, rule)])
    found = sch.get_sblock("factor")
    sch.compute_at(found, _row(sch, flat[0], threads), preserve_unit_loops=True)
    sch.set_scope(found, 0, "local")
    return sch


def _least() -> Any:
    return tirx.const(row_scales.LEAST, "float32")
