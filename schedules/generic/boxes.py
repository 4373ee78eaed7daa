"""concat and pad: the output as boxes, each a copy of an input or a constant: no element asks where it comes from."""

from __future__ import annotations

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

NAME = "generic/boxes:1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """``extent`` elements of the output from ``begin`` on: all of input ``source``, or the fill value if it is None."""

    begin: Shape
    extent: Shape
    source: int | None


def apply(workload: Workload, target: Target) -> Kernel | None:
    """concat: inputs..., out. pad: x, ints (fill,), out; in f32 x, out with the fill from the attribute "value"."""
    if workload.op not in ("concat", "pad"):
        return None
    if workload.activation.kind != "none":
        return common.decline(workload, f"activation {workload.activation.kind}")
    if workload.op == "pad" and any(size < 0 for pair in workload.attr("pads") for size in pair):
        return common.decline(workload, "negative pads")
    boxes = concat_boxes(workload) if workload.op == "concat" else pad_boxes(workload)
    dtype = common.element_type(workload, target)
    sch = Schedule(_function(workload, boxes, dtype))
    for number, box in enumerate(boxes):
        _schedule_box(sch, f"box{number}", box, workload, target, common.ITEM_BYTES[dtype])
    return common.finish(workload, sch.mod["main"], NAME)


def concat_boxes(workload: Workload) -> list[Box]:
    """Each input behind the one before it."""
    axis = workload.attr("axis") % len(workload.output_shape)
    boxes, place = [], 0
    for number, shape in enumerate(workload.input_shapes):
        begin = tuple(place if at == axis else 0 for at in range(len(shape)))
        boxes.append(Box(begin=begin, extent=shape, source=number))
        place += shape[axis]
    assert place == workload.output_shape[axis], workload
    return boxes


def pad_boxes(workload: Workload) -> list[Box]:
    """The input's box, then what is before and after it along each axis, full width along the axes to come."""
    shape, pads = workload.input_shapes[0], workload.attr("pads")
    boxes = [Box(begin=tuple(int(before) for before, _ in pads), extent=shape, source=0)]
    for axis, (before, after) in enumerate(pads):
        inner_begin = boxes[0].begin[:axis]
        rest = workload.output_shape[axis + 1 :]
        for place, size in ((0, int(before)), (int(before) + shape[axis], int(after))):
            begin = (*inner_begin, place, *(0 for _ in rest))
            boxes.append(Box(begin=begin, extent=(*shape[:axis], size, *rest), source=None))
    return [box for box in boxes if math.prod(box.extent) > 0]


def _function(workload: Workload, boxes: Sequence[Box], dtype: str) -> Any:
    integer_pad = workload.op == "pad" and common.is_integer(workload)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        inputs = [T.arg(f"x{i}", T.buffer(shape, dtype)) for i, shape in enumerate(workload.input_shapes)]
        ints = T.arg("ints", T.buffer((1,), "int32")) if integer_pad else None
        out = T.arg("out", T.buffer(workload.output_shape, dtype))
        for number, box in enumerate(boxes):
            with T.grid(*box.extent) as grid, T.sblock(f"box{number}"):
                loops = [grid] if len(box.extent) == 1 else list(grid)
                at = [T.axis.spatial(size, loop) for size, loop in zip(box.extent, loops, strict=True)]
                place = [index + begin for index, begin in zip(at, box.begin, strict=True)]
                if box.source is not None:
                    T.reads(inputs[box.source][tuple(at)])
                    value = inputs[box.source][tuple(at)]
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
