"""quantize of a picture from planes (N, C, H, W) to pixels (N, H, W, C): the network's input, in one pass over memory.

Of each of the C planes (2 to 4) a vector of pixels is scaled, rounded and packed to bytes. Packing leaves in each 16
bytes four pixels' bytes of the first plane, then of the second, and so on; one shuffle within the 16 bytes makes pixels
of them, and another one drops what stands for the missing planes.

Limit: memory. On a Zen 4 core 224 x 224 x 3 take 8.7 us, 87 GB/s of reads and writes, where L2 gives 115 and L3 98.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.graph import Shape
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.schedules.x86 import narrow
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "x86/picture:1"
PLANES = (2, 3, 4)
# Bytes whose order one shuffle can change: the pixels that share them.
PART = 16


def apply(workload: Workload, target: Target) -> Kernel | None:
    """x float32, ints (zp_y,), floats (1 / s,), out; with the attribute "axes" of a move from planes to pixels."""
    if workload.op != "quantize" or "axes" not in dict(workload.attrs):
        return None
    shape, axes = workload.input_shapes[0], tuple(workload.attr("axes"))
    if axes != (0, *range(2, len(shape)), 1) or shape[1] not in PLANES:
        return common.decline(workload, f"axes {axes} of {shape} are no move of {PLANES} planes")
    if not {"avx2", "ssse3"} <= set(target.cpu_flags) or target.activation_storage != "uint8":
        return common.decline(workload, f"{target.name} has no avx2, or activations are not uint8")
    lanes, planes, pixels = target.lanes(), shape[1], math.prod(shape[2:])
    if pixels < lanes:
        return common.decline(workload, f"{pixels} pixels are no vector of {lanes}")
    sch = Schedule(_function((shape[0], planes, pixels), lanes), debug_mask="none")
    loops = sch.get_loops(sch.get_sblock("out"))
    if common.worth_parallel(workload.parallel, 2 * math.prod(shape), target):
        common.split_outer(sch, loops, (shape[0], pixels // lanes), workload.parallel)
    func = with_shapes(sch.mod["main"], {0: shape, 3: workload.output_shape})
    return common.finish(workload, func, NAME, "vpackuswb")


def _function(shape: Shape, lanes: int) -> Any:
    """x (N, C, P) to out (N, P * C): block "out" is whole vectors, "rest" the pixels that are left."""
    count, planes, pixels = shape
    whole = pixels // lanes * lanes
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer(shape, "float32"))
        ints = T.arg("ints", T.buffer((1,), "int32"))
        floats = T.arg("floats", T.buffer((1,), "float32"))
        out = T.arg("out", T.buffer((count, pixels * planes), "uint8"))
        with T.grid(count, whole // lanes) as (picture, over), T.sblock("out"):
            n, o = T.axis.spatial(count, picture), T.axis.spatial(whole // lanes, over)
            T.reads(x[n, 0:planes, o * lanes : o * lanes + lanes], ints[0], floats[0])
            T.writes(out[n, o * lanes * planes : (o + 1) * lanes * planes])
            scaled = [
                narrow.near(
                    x.vload([n, plane, o * lanes], dtype=f"float32x{lanes}") * tirx.Broadcast(floats[0], lanes), lanes
                )
                for plane in range(planes)
            ]
            T.buffer_store(out, _pixels(scaled, lanes, ints[0]), [n, tirx.Ramp(o * lanes * planes, 1, lanes * planes)])
        if whole < pixels:
            lo, hi = tirx.const(0, "int32"), tirx.const(255, "int32")
            with T.grid(count, pixels - whole, planes) as (picture, left, plane), T.sblock("rest"):
                n, c = T.axis.spatial(count, picture), T.axis.spatial(planes, plane)
                at = T.axis.spatial(pixels - whole, left) + whole
                T.reads(x[n, c, at], ints[0], floats[0])
                T.writes(out[n, at * planes + c])
                value = common.round_clamp(x[n, c, at] * floats[0], lo, hi, ints[0], "uint8")
                T.buffer_store(out, value, [n, at * planes + c])
    return builder.get()


def _pixels(scaled: list[Any], lanes: int, zero_point: Any) -> Any:
    """The bytes of ``lanes`` pixels, plane innermost, from a vector of each plane, clamped from above."""
    planes, size = len(scaled), 4 * lanes
    packed = narrow.packed([*scaled, *scaled[-1:] * (4 - planes)], lanes, zero_point).value
    inside = [(at % planes) * 4 + at // planes if at < 4 * planes else PART - 1 for at in range(PART)]
    order = [part + at for part in range(0, size, PART) for at in inside]
    mixed = tirx.reinterpret(f"int32x{lanes}", tirx.Shuffle([packed], order))
    kept = [4 * part + word for part in range(size // PART) for word in range(planes)]
    return tirx.reinterpret(f"uint8x{lanes * planes}", tirx.Shuffle([mixed], kept))
