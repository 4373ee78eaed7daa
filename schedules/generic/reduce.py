"""Sums, means and maxima of rows, of all there are: over the tokens of a sequence, or the elements of one vector.

Row after row where columns stand beside each other, a vector of these at a time; a single column in the lanes of one
register, which then meet in halves. So the order depends on the columns alone, and the bits are the same in a longer
buffer of which not all rows are there.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.cut import COUNT
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/reduce:1"
KINDS = ("sum", "mean", "max")
# Columns whose results are found together, and the lanes of a single column.
WIDTHS = (64, 32, 16, 8, 4, 2, 1)
LANES = 16


def apply(workload: Workload, target: Target) -> Kernel | None:
    """x, out, both float32; where it is cut, between them how many tokens of x there are: 1 to all of them."""
    if workload.op != "reduce":
        return None
    if common.is_integer(workload) or workload.activation.kind != "none":
        return common.decline(workload, "only float32 without an activation")
    columns = math.prod(workload.output_shape)
    rows = math.prod(workload.input_shapes[0]) // columns
    width = next(size for size in WIDTHS if columns % size == 0)
    threads = common.worth_parallel(workload.parallel, 4 * rows * columns, target)
    func = _function(workload, rows, columns, width, parallel=threads and columns > width)
    return common.named(f"reduce_f32_{workload.digest}", func, NAME)


def _function(workload: Workload, rows: int, columns: int, width: int, *, parallel: bool) -> Any:
    kind = workload.attr("kind")

    def joined(a: Any, b: Any) -> Any:
        return tirx.max(a, b) if kind == "max" else a + b

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer((rows * columns,), "float32"))
        given = T.arg(COUNT, T.buffer((1,), "int32")) if workload.cut else None
        out = T.arg("out", T.buffer((columns,), "float32"))
        count: Any = tirx.const(rows, "int32")
        if given is not None:
            tokens = tirx.max(tirx.min(given[0], workload.cut), 1)
            count = T.Bind(tokens * (rows // workload.cut))
        first = tirx.const(-math.inf if kind == "max" else 0.0, "float32")

        def finished(total: Any) -> Any:
            return total / _wide(count.astype("float32"), total) if kind == "mean" else total

        if columns == 1:
            lanes = T.alloc_buffer((LANES,), "float32", scope="local")
            T.buffer_store(lanes, tirx.Broadcast(first, LANES), [tirx.Ramp(0, 1, LANES)])
            with T.serial(0, count // LANES) as step:
                there = joined(lanes.vload([0], f"float32x{LANES}"), x.vload([step * LANES], f"float32x{LANES}"))
                T.buffer_store(lanes, there, [tirx.Ramp(0, 1, LANES)])
            with T.serial(0, count % LANES) as left:
                T.buffer_store(lanes, joined(lanes[left], x[count // LANES * LANES + left]), [left])
            half = LANES // 2
            while half > 1:
                low, high = (lanes.vload([at], f"float32x{half}") for at in (0, half))
                T.buffer_store(lanes, joined(low, high), [tirx.Ramp(0, 1, half)])
                half //= 2
            T.buffer_store(out, finished(joined(lanes[0], lanes[1])), [0])
        else:
            with (T.parallel if parallel else T.serial)(0, columns // width) as block:
                place = block * width if width == 1 else tirx.Ramp(block * width, 1, width)
                total = T.alloc_buffer((width,), "float32", scope="local")
                every = 0 if width == 1 else tirx.Ramp(0, 1, width)
                T.buffer_store(total, first if width == 1 else tirx.Broadcast(first, width), [every])
                with T.serial(0, count) as row:
                    at = row * columns + block * width
                    value = x[at if width == 1 else tirx.Ramp(at, 1, width)]
                    T.buffer_store(total, joined(total[every], value), [every])
                T.buffer_store(out, finished(total[every]), [place])
    func = builder.get()
    return with_shapes(func, {0: workload.input_shapes[0], len(func.params) - 1: workload.output_shape})


def _wide(value: Any, like: Any) -> Any:
    """``value`` in as many lanes as ``like`` has."""
    kind = str(like.ty)
    return tirx.Broadcast(value, int(kind.split("x")[1])) if "x" in kind else value
