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

from hwq import row_scales
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/position:1"


def apply(workload: Workload, target: Target) -> Kernel | None:
    """append: x (1, S, C), span, cache (1, length, C). append_int8: x float32, scales (S * G,) of its rows' G heads,
    span, cache int8. rows_at: span, constant (T, C), out (S, C) in any shape."""
    if workload.op == "append":
        return common.finish(workload, _append(workload, common.element_type(workload, target)), NAME)
    if workload.op == "append_int8":
        return common.finish(workload, _append_int8(workload), NAME)
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


def _append_int8(workload: Workload) -> Any:
    """Quantized as ``hwq.row_scales`` has it, to signed bytes whatever the target's storage."""
    (_, count, width), (_, length, _) = workload.input_shapes[0], workload.output_shape
    heads = workload.input_shapes[1][0] // count
    zero, one, least = (tirx.const(value, "float32") for value in (0.0, 1.0, float(row_scales.LEAST)))
    none = tirx.const(0, "int32")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer((count, width), "float32"))
        scales = T.arg("scales", T.buffer((count * heads,), "float32"))
        span = T.arg("span", T.buffer((2,), "int32"))
        cache = T.arg("cache", T.buffer((length, width), "int8"))
        with T.serial(0, count) as row:
            at = span[1] - span[0] + row
            there = tirx.all(row < span[0], at >= 0, at < length)
            with T.If(there), T.Then(), T.serial(0, heads) as head:
                scale = T.Bind(scales[row * heads + head])
                factor = T.Bind(tirx.Select(scale < least, zero, one / tirx.max(scale, least)))
                with T.serial(0, width // heads) as column:
                    place = head * (width // heads) + column
                    value = common.round_clamp(x[row, place] * factor, none - 127, none + 127, none, "int8")
                    T.buffer_store(cache, value, [at, place])
    return with_shapes(builder.get(), {0: workload.input_shapes[0], 3: workload.output_shape})


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
