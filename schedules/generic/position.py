"""append and rows_at: rows of a cache that are written, and rows of a constant that are read, where a sequence stands.

span (2,) int32 is (n, t): of a sequence of t tokens the last n are at hand. "append" writes their rows into a cache at
t - n, ..., t - 1 and leaves its other rows alone: its output lives across calls (``Program.state``). "rows_at" reads
the rows at these positions of a constant with a row for each position: position embeddings, the turns of RoPE. What the
cache or the constant lacks is never touched: nothing is written there, and the nearest row is read.

Limit: a call; a token's rows are a few cache lines.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/position:1"


def apply(workload: Workload, target: Target) -> Kernel | None:
    """append: x (1, S, C), span, cache (1, length, C). rows_at: span, constant (T, C), out (S, C) in any shape."""
    if workload.op == "append":
        return common.finish(workload, _append(workload, common.element_type(workload, target)), NAME)
    if workload.op == "rows_at":
        return common.finish(workload, _rows_at(workload), NAME)
    return None


def _append(workload: Workload, dtype: str) -> Any:
    (_, count, width), (_, length, _) = workload.input_shapes[0], workload.output_shape
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer((count, width), dtype))
        span = T.arg("span", T.buffer((2,), "int32"))
        cache = T.arg("cache", T.buffer((length, width), dtype))
        with T.serial(0, count) as row:
            at = span[1] - span[0] + row
            with T.If(tirx.all(row < span[0], at >= 0, at < length)), T.Then(), T.serial(0, width) as column:
                T.buffer_store(cache, x[row, column], [at, column])
    return with_shapes(builder.get(), {0: workload.input_shapes[0], 2: workload.output_shape})


def _rows_at(workload: Workload) -> Any:
    rows, width = workload.attr("rows"), workload.attr("width")
    count = math.prod(workload.output_shape) // width
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        span = T.arg("span", T.buffer((2,), "int32"))
        table = T.arg("table", T.buffer((rows, width), "float32"))
        out = T.arg("out", T.buffer((count, width), "float32"))
        with T.serial(0, count) as row:
            at = tirx.min(tirx.max(span[1] - span[0] + row, 0), rows - 1)
            with T.serial(0, width) as column:
                T.buffer_store(out, table[at, column], [row, column])
    return with_shapes(builder.get(), {2: workload.output_shape})
