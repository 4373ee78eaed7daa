"""concat and pad: copies of whole runs; no element asks where it comes from.

A concat is one loop over what lies before its axis, in which each input's run is copied behind the one before. A padded
output is made of boxes, each the input or the fill. Limit: memory; both come at its rate (100 to 115 GB/s read and
written in the L2 of a Zen 4 core).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.graph import Shape
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/boxes:2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """``extent`` elements of the output from ``begin`` on: all of the input, or the fill value."""

    begin: Shape
    extent: Shape
    filled: bool


def apply(workload: Workload, target: Target) -> Kernel | None:
    """concat: inputs..., out. pad: x, ints (fill,), out; in f32 x, out with the fill from the attribute "value"."""
    if workload.op not in ("concat", "pad"):
        return None
    if workload.activation.kind != "none":
        return common.decline(workload, f"activation {workload.activation.kind}")
    if workload.op == "pad" and any(size < 0 for pair in workload.attr("pads") for size in pair):
        return common.decline(workload, "negative pads")
    dtype = common.element_type(workload, target)
    if workload.op == "concat":
        return common.finish(workload, _concat(workload, target, dtype), NAME)
    boxes = pad_boxes(workload)
    sch = Schedule(_pad_function(workload, boxes, dtype))
    for number, box in enumerate(boxes):
        _schedule_box(sch, f"box{number}", box, workload, target, common.ITEM_BYTES[dtype])
    return common.finish(workload, sch.mod["main"], NAME)


def _concat(workload: Workload, target: Target, dtype: str) -> Any:
    """A row of each input in turn, so that the output is written from its beginning to its end, in one loop."""
    axis, shape = workload.attr("axis") % len(workload.output_shape), workload.output_shape
    assert sum(each[axis] for each in workload.input_shapes) == shape[axis], workload
    with IRBuilder() as builder, T.prim_func(s_tir=True), contextlib.ExitStack() as loops:
        T.func_name("main")
        inputs = [T.arg(f"x{i}", T.buffer(each, dtype)) for i, each in enumerate(workload.input_shapes)]
        out = T.arg("out", T.buffer(shape, dtype))
        outer = [loops.enter_context(T.serial(0, size)) for size in shape[:axis]]
        place = 0
        for number, given in enumerate(workload.input_shapes):
            with T.grid(*given[axis:]) as grid, T.sblock(f"box{number}"):
                inner = [grid] if len(given) - axis == 1 else list(grid)
                at = [T.axis.spatial(size, loop) for size, loop in zip(given, [*outer, *inner], strict=True)]
                target_at = [*at[:axis], at[axis] + place, *at[axis + 1 :]]
                T.reads(inputs[number][tuple(at)])
                T.writes(out[tuple(target_at)])
                T.buffer_store(out, inputs[number][tuple(at)], target_at)
            place += given[axis]
    sch = Schedule(builder.get())
    for number in range(len(inputs)):
        inner = sch.get_loops(sch.get_sblock(f"box{number}"))[axis:]
        if len(inner) > 1:
            sch.fuse(*inner)
    work = math.prod(shape) * common.ITEM_BYTES[dtype]  # read and written at 100 GB/s, see ``common.CORE_BYTES_PER_S``
    if axis > 0 and common.worth_parallel(workload.parallel, work, target):
        common.split_outer(sch, sch.get_loops(sch.get_sblock("box0"))[:axis], shape[:axis], workload.parallel)
    return sch.mod["main"]


def pad_boxes(workload: Workload) -> list[Box]:
    """The input's box, then what is before and after it along each axis, full width along the axes to come."""
    shape, pads = workload.input_shapes[0], workload.attr("pads")
    boxes = [Box(begin=tuple(int(before) for before, _ in pads), extent=shape, filled=False)]
    for axis, (before, after) in enumerate(pads):
        inner_begin = boxes[0].begin[:axis]
        rest = workload.output_shape[axis + 1 :]
        for place, size in ((0, int(before)), (int(before) + shape[axis], int(after))):
            begin = (*inner_begin, place, *(0 for _ in rest))
            boxes.append(Box(begin=begin, extent=(*shape[:axis], size, *rest), filled=True))
    return [box for box in boxes if math.prod(box.extent) > 0]


def _pad_function(workload: Workload, boxes: Sequence[Box], dtype: str) -> Any:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer(workload.input_shapes[0], dtype))
        ints = T.arg("ints", T.buffer((1,), "int32")) if common.is_integer(workload) else None
        out = T.arg("out", T.buffer(workload.output_shape, dtype))
        for number, box in enumerate(boxes):
            with T.grid(*box.extent) as grid, T.sblock(f"box{number}"):
                loops = [grid] if len(box.extent) == 1 else list(grid)
                at = [T.axis.spatial(size, loop) for size, loop in zip(box.extent, loops, strict=True)]
                place = [index + begin for index, begin in zip(at, box.begin, strict=True)]
                if not box.filled:
                    T.reads(x[tuple(at)])
                    value = x[tuple(at)]
                elif ints is not None:
                    T.reads(ints[0])
                    value = ints[0].astype(dtype)
                else:
                    T.reads()
                    value = tirx.const(workload.attr("value"), dtype)
                T.writes(out[tuple(place)])
                T.buffer_store(out, value, place)
    return builder.get()


def _schedule_box(sch: Schedule, name: str, box: Box, workload: Workload, target: Target, item_bytes: int) -> None:
    """Fuses the innermost axes that are whole (one contiguous run in the output), and the others as the outer loop."""
    whole = len(box.extent) - 1
    while whole > 0 and box.extent[whole] == workload.output_shape[whole]:
        whole -= 1
    loops = sch.get_loops(sch.get_sblock(name))
    if len(loops) - whole > 1:
        sch.fuse(*loops[whole:])
    work = math.prod(box.extent) * item_bytes  # read and written at 100 GB/s, see ``common.CORE_BYTES_PER_S``
    if whole > 0 and common.worth_parallel(workload.parallel, work, target):
        common.split_outer(sch, loops[:whole], box.extent[:whole], workload.parallel)
