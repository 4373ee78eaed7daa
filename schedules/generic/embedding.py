"""gather: rows of a table by number, as floats, as int8 with a scale for each row, or as int4 with one for each group.

Ids below 0 count from the end, and what is still outside of the table is clamped, so nothing else is ever read. int4
lies by groups: byte i of a group of 2 n holds its elements i, low, and i + n, high, each plus 8, so that both halves
are written as runs. Element q is float32(q) * scale, one rounding. Limit: bytes, of which ids name few:
128 rows of 384 take a Zen 4 core 3.7 us as floats, 2.4 as int8 and 2.7 as int4.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.group_scales import group_count
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.scheme import SCHEMES
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/embedding:1"
# What a weight in [-8, 7] is stored with.
_ZERO = 8


def apply(workload: Workload, target: Target) -> Kernel | None:
    """ids, weight, out; with integer weights ids, weight int8 (V, C) or uint8 (V, bytes), scales (V,) or (V, G), out.

    ids are of the type in attribute "ids", V is attribute "rows".
    """
    if workload.op != "gather":
        return None
    scheme = SCHEMES[workload.scheme]
    if scheme.weight_type not in ("float32", "int8", "int4_g128") or scheme.domain == "int8":
        return common.decline(workload, f"no table of {scheme.weight_type}")
    kernel = common.finish(workload, _function(workload, target), NAME)
    return replace(kernel, pack=functools.partial(pack, workload.scheme))


def pack(scheme: str, table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The table (V, C), or its integers, as the kernel of ``scheme`` reads it: int4 as uint8 (V, ``row_bytes``)."""
    group = SCHEMES[scheme].group_size
    if group is None:
        return table
    pieces = []
    for start in range(0, table.shape[1], group):
        part = (table[:, start : start + group].astype(np.int16) + _ZERO).astype(np.uint8)
        part = np.pad(part, ((0, 0), (0, part.shape[1] % 2)))
        half = part.shape[1] // 2
        pieces.append(part[:, :half] | part[:, half:] << 4)
    return np.ascontiguousarray(np.concatenate(pieces, axis=1))


def row_bytes(columns: int, group: int) -> int:
    """Bytes of an int4 row: each group whole bytes."""
    return columns // group * math.ceil(group / 2) + math.ceil(columns % group / 2)


def _function(workload: Workload, target: Target) -> Any:
    kind, rows, columns = workload.attr("ids"), workload.attr("rows"), workload.output_shape[-1]
    count, scheme = math.prod(workload.output_shape[:-1]), SCHEMES[workload.scheme]
    int4 = scheme.group_size is not None
    group = min(scheme.group_size or columns, columns)
    groups, rest = group_count(columns, group), columns % group
    width = row_bytes(columns, group) if int4 else columns
    split = common.worth_parallel(workload.parallel, 8 * count * columns, target)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        ids = T.arg("ids", T.buffer((count,), kind))
        # Of 64 bits, since a table may have more than 2^31 elements.
        long = functools.partial(tirx.IntImm, "int64")
        table = T.arg("weight", T.buffer((long(rows), long(width)), "uint8" if int4 else scheme.weight_type))
        scales = None if scheme.weight is None else T.arg("scales", T.buffer((long(rows), long(groups)), "float32"))
        out = T.arg("out", T.buffer((count, columns), "float32"))

        def write(row: Any, place: Any, number: Any, size: int) -> None:
            """Elements of one group, ``size`` of them."""
            start, half = number * group, math.ceil(size / 2)
            scale = None if scales is None else T.bind(scales[row, number])
            for upper in (False, True) if int4 else (False,):
                with T.serial(0, size - half if upper else half if int4 else size) as i:
                    value = table[row, number * math.ceil(group / 2) + i if int4 else start + i]
                    if int4:
                        nibble = value >> tirx.const(4, "uint8") if upper else value & tirx.const(15, "uint8")
                        value = nibble.astype("int32") - _ZERO
                    value = value if scale is None else value.astype("float32") * scale
                    T.buffer_store(out, value, [place, start + i + (half if upper else 0)])

        with (T.parallel if split else T.serial)(0, count) as place:
            at = ids[place].astype("int64")
            wrapped = tirx.if_then_else(at < 0, at + long(rows), at)
            row = T.bind(tirx.max(tirx.min(wrapped, long(rows - 1)), long(0)))
            with T.serial(0, columns // group) as number:
                write(row, place, number, group)
            if rest:
                write(row, place, columns // group, rest)
    shapes = {0: workload.output_shape[:-1], (2 if scales is None else 3): workload.output_shape}
    if scales is not None and not int4:
        shapes[2] = (rows,)
    return with_shapes(builder.get(), shapes)
