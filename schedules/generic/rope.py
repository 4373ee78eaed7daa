"""Rotary positions in float32: in each head, pairs of elements turned by their row's angle; one pass over memory.

y = x * cos + rotate(x) * sin, by a fused multiply-add where the machine has one, so that a row's bits are the same
whatever stands around it: of a sum of two products LLVM would fuse the one or the other.

Limit: bytes. On a Zen 4 core 64 rows of 12 heads of 32, and 128 of 64, are read and written at 83 to 96 GB/s, pairs
side by side at 59 to 70 (at 9 where a head has but 16).
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx

from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/rope:1"


def apply(workload: Workload, target: Target) -> Kernel | None:
    """x (B, S, H * D), cos (S, D), sin (S, D), out, all float32."""
    if workload.op != "rope":
        return None
    if common.is_integer(workload) or workload.activation.kind != "none":
        return common.decline(workload, "only float32 without an activation")
    style, heads = workload.attr("style"), workload.attr("heads")
    batch, length, width = workload.output_shape
    half = width // heads // 2
    assert style in ("half", "interleaved"), style
    assert 2 * half * heads == width, workload
    pairs, part = ((2, half), 0) if style == "half" else ((half, 2), 1)
    x = te.placeholder((batch, length, heads, *pairs), "float32", "x")
    cos, sin = (te.placeholder((length, *pairs), "float32", name) for name in ("cos", "sin"))

    def rule(b: Any, s: Any, h: Any, *at: Any) -> Any:
        other = x[(b, s, h, *(1 - i if place == part else i for place, i in enumerate(at)))]
        across = other * tirx.Select(at[part] == 0, tirx.const(-1.0, "float32"), tirx.const(1.0, "float32"))
        return fma(across, sin[(s, *at)], x[(b, s, h, *at)] * cos[(s, *at)], target)

    sch = common.schedule_of([x, cos, sin, common.compute((batch, length, heads, *pairs), rule)])
    loops = sch.get_loops(sch.get_sblock("out"))
    sch.unroll(loops[3 + part])
    lanes = math.gcd(half, target.lanes())
    if style == "half" and lanes > 1:  # LLVM writes a loop of 16 out, one by one, and finds no vectors in it
        sch.vectorize(sch.split(loops[4], [None, lanes])[1])
    if common.worth_parallel(workload.parallel, common.moved_bytes(workload, 4), target):
        common.split_outer(sch, loops[:2], (batch, length), workload.parallel)
    flat = (batch, length, width)
    shapes = {0: flat, 1: (length, 2 * half), 2: (length, 2 * half), 3: flat}
    return common.finish(workload, with_shapes(sch.mod["main"], shapes), NAME)


def fma(a: Any, b: Any, c: Any, target: Target) -> Any:
    """a * b + c, in one rounding where the machine has an instruction for it."""
    return common.fma(a, b, c) if target.architecture != "x86_64" or "fma" in target.cpu_flags else a * b + c
