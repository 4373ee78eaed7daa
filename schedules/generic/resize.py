"""resize_linear: each output pixel lies between two rows and two columns, in fixed point for integers.

For every output row the two rows meet first, over the whole width, and what remains of an output element is one
product; where at most every second column is read, they meet at those alone. The channels of a pixel are the vector,
and which pixels meet is a number loaded for each, so nothing is gathered. Where channels do not fill vectors, each
pixel's last vector runs into the next pixel, which is written after it.

Limit: arithmetic on 32 bits, 9 instructions for a vector of outputs and as many for one of the rows that meet. A Zen 4
core takes 5.5 cycles for 16 outputs: 28x28x64 to 56x56 in 20 us (in float with conversions around it 45), 56x56x19 to
224x224, whose pixels fill two vectors by 60%, in 152 us (1,700).
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.graph import Shape
from hwq.numerics import RESIZE_BITS
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.schedules.generic.common import wide
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/resize:1"
# Bytes that a core moves in the time that an output element takes.
ELEMENT_BYTES = 12


def apply(workload: Workload, target: Target) -> Kernel | None:
    """x (N, H, W, C), rows int32 (OH,), weights (OH,), columns int32 (OW,), weights (OW,), out (N, OH, OW, C).

    Weights are those of the row or column behind the one named: int32 to integers, else float32.
    """
    if workload.op != "resize_linear":
        return None
    if workload.activation.kind != "none":
        return common.decline(workload, f"activation {workload.activation.kind}")
    source, shape = workload.input_shapes[0], workload.output_shape
    dtype = common.element_type(workload, target)
    sch = Schedule(_function(source, shape, dtype, target.lanes()), debug_mask="none")
    if common.worth_parallel(workload.parallel, ELEMENT_BYTES * math.prod(shape), target):
        common.split_outer(sch, sch.get_loops(sch.get_sblock("out"))[:2], shape[:2], workload.parallel)
    return common.finish(workload, with_shapes(sch.mod["main"], {0: source, 5: shape}), NAME)


def _between(first: Any, second: Any, weight: Any, many: int) -> Any:
    """first + (second - first) * weight of ``many`` elements; integers times 2^RESIZE_BITS."""
    if weight.ty.dtype == "float32":
        return first + (second - first) * wide(weight, many)
    return first * wide(tirx.const(1 << RESIZE_BITS, "int32"), many) + (second - first) * wide(weight, many)


def _function(source: Shape, shape: Shape, dtype: str, lanes: int) -> Any:
    """Over x (N, H, W * C) and out (N, OH, OW * C); block "out" is a row of it."""
    count, height, width, channels = source
    line, result = width * channels, shape[2] * channels
    number = "float32" if dtype == "float32" else "int32"
    vectors = -(-channels // lanes)
    direct = width >= 2 * shape[2] and channels % lanes == 0
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer((count, height, line), dtype))
        rows, down = (T.arg(name, T.buffer((shape[1],), kind)) for name, kind in (("rows", "int32"), ("down", number)))
        columns, right = (
            T.arg(name, T.buffer((shape[2],), kind)) for name, kind in (("columns", "int32"), ("right", number))
        )
        out = T.arg("out", T.buffer((count, shape[1], result), dtype))
        with T.grid(count, shape[1]) as (picture, row), T.sblock("out"):
            n, h = T.axis.spatial(count, picture), T.axis.spatial(shape[1], row)
            T.reads(x[n, 0:height, 0:line], rows[h], down[h], columns[0 : shape[2]], right[0 : shape[2]])
            T.writes(out[n, h, 0:result])
            pair = (rows[h], _next(rows[h], height))
            met = None if direct else T.sblock_alloc_buffer((line + lanes,), number)
            made = T.sblock_alloc_buffer((result + lanes,), dtype) if channels % lanes else None
            if met is not None:
                with T.serial(line) as at:
                    first, second = (x[n, where, at].astype(number) for where in pair)
                    T.buffer_store(met, _between(first, second, down[h], 1), [at])
            with T.serial(shape[2]) as column, T.serial(vectors) as vector:
                ends = []
                for place in (columns[column], _next(columns[column], width)):
                    at = place * channels + vector * lanes
                    if met is None:
                        first, second = (
                            x.vload([n, where, at], f"{dtype}x{lanes}").astype(f"{number}x{lanes}") for where in pair
                        )
                        ends.append(_between(first, second, down[h], lanes))
                    else:
                        ends.append(met.vload([at], f"{number}x{lanes}"))
                first, second = ends
                value = _between(first, second, right[column], lanes)
                if number == "int32":
                    half, shift = 1 << 2 * RESIZE_BITS - 1, 2 * RESIZE_BITS
                    value = value + wide(tirx.const(half, number), lanes) >> wide(tirx.const(shift, number), lanes)
                    value = value.astype(f"{dtype}x{lanes}")
                start = column * channels + vector * lanes
                if made is not None:
                    T.buffer_store(made, value, [tirx.Ramp(start, 1, lanes)])
                else:
                    T.buffer_store(out, value, [n, h, tirx.Ramp(start, 1, lanes)])
            if made is not None:
                with T.serial(result) as at:
                    T.buffer_store(out, made[at], [n, h, at])
    return builder.get()


def _next(place: Any, size: int) -> Any:
    return tirx.min(place + 1, size - 1)
