"""add and multiply of bytes, requantized: four registers of numbers at a time, packed to bytes in one store.

A byte becomes its distance from the zero point in float32 without a conversion: as the low bits of 2^23 it is 2^23 plus
the byte, and a subtraction leaves the rest, exactly. With VNNI a product with (1, 0, 0, 0), (0, 1, 0, 0), ... takes
every fourth byte out of a register and adds the bits of 2^23, in one instruction. The second input has the first one's
shape, or is (N, 1, 1, C) (squeeze and excitation): then its numbers are made once a picture, repeated to whole groups
of registers.

Limit: arithmetic, 8 instructions for 16 sums that the numerics ask for and 2 to pack them (10 and 2 without VNNI). On a
Zen 4 core that is 28 to 30 GB/s of reads and writes, 22 to 24 with (N, 1, 1, C), where its L2 gives 115.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.graph import Shape
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.schedules.generic.common import wide
from hwq.schedules.x86 import narrow
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "x86/binary:1"
# 2^23 as a float32, and its bits: the numbers from it to 2^24 are whole, and their low bits count them.
WHOLE, WHOLE_BITS = 8388608.0, 0x4B000000


def apply(workload: Workload, target: Target) -> Kernel | None:
    """a, b, ints (zp_a, zp_b, zp_y, lo, hi), floats (m_a, m_b) to add, (m,) to multiply, out; all stored as uint8."""
    if workload.op not in ("add", "multiply") or not common.is_integer(workload):
        return None
    if workload.out_dtype == "float32" or not workload.activation.clamps or target.activation_storage != "uint8":
        return common.decline(workload, "a float output, a table, or activations that are not uint8")
    if target.architecture != "x86_64":
        return common.decline(workload, f"{target.name} is no x86")
    shape, lanes = workload.output_shape, target.lanes()
    a, b = workload.input_shapes
    size = math.prod(shape)
    if math.prod(a) == math.prod(b) == size:
        pictures, period = 1, 0
    elif a == shape and len(shape) == 4 and b == (shape[0], 1, 1, shape[3]):
        pictures, period = shape[0], shape[3]
    else:
        return common.decline(workload, f"{b} against {a}")
    repeated = math.lcm(period, 4 * lanes) if period else 4 * lanes
    if size // pictures < repeated or 4 * repeated > target.l1_bytes:
        return common.decline(workload, f"{size // pictures} elements in vectors of {lanes}, {period} repeated")
    form = _Form(lanes=lanes, vnni=bool({"avx512_vnni", "avx_vnni"} & set(target.cpu_flags)))
    sch = Schedule(_function(workload.op, (pictures, size // pictures), period, form), debug_mask="none")
    if common.worth_parallel(workload.parallel, 4 * common.moved_bytes(workload, 1) // 3, target):
        outer = sch.get_loops(sch.get_sblock("out"))[:2]
        common.split_outer(sch, outer, [int(sch.get(loop).extent) for loop in outer], workload.parallel)
    func = with_shapes(sch.mod["main"], {0: a, 1: b, 4: shape})
    return common.finish(workload, func, NAME, "packuswb")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """How a group of four registers of bytes becomes four of numbers: ``lanes`` each, neighbours or every fourth."""

    lanes: int
    vnni: bool

    @property
    def group(self) -> int:
        return 4 * self.lanes

    def element(self, place: Any) -> Any:
        """Which of a group's elements stands at ``place`` of its registers, one behind the other."""
        return place % self.lanes * 4 + place // self.lanes if self.vnni else place

    def spread(self, buffer: Any, at: tuple[Any, ...]) -> list[Any]:
        """The bits of 2^23 plus each byte of the group that begins at ``at`` of ``buffer``, in four registers."""
        *outer, first = at
        sums = f"int32x{self.lanes}"
        whole = tirx.Broadcast(tirx.const(WHOLE_BITS, "int32"), self.lanes)
        if not self.vnni:
            places = range(0, self.group, self.lanes)
            return [buffer.vload([*outer, first + i], f"uint8x{self.lanes}").astype(sums) | whole for i in places]
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
        ones = [tirx.Broadcast(tirx.const(1 << 8 * byte, "int32"), self.lanes) for byte in range(4)]
        kind = f"int8x{self.group}"
        given = tirx.reinterpret(kind, buffer.vload([*outer, first], f"uint8x{self.group}"))
        return [tirx.call_llvm_pure_intrin(sums, name, whole, given, tirx.reinterpret(kind, one)) for one in ones]

    def joined(self, values: list[Any], zero_point: Any, lo: Any, hi: Any) -> Any:
        """The bytes of a group from the four registers of values, none above 2^30, that ``spread`` led to."""
        if not self.vnni:
            return narrow.in_order(values, self.lanes, (zero_point, lo, hi))
        packed = narrow.packed(values, self.lanes, zero_point).value
        lowest, highest = (tirx.Broadcast(bound.astype("uint8"), self.group) for bound in (lo, hi))
        # Each 16 bytes are four of each register: the transpose of what they should be.
        order = [part + at % 4 * 4 + at // 4 for part in range(0, self.group, 16) for at in range(16)]
        return tirx.Shuffle([tirx.max(tirx.min(packed, highest), lowest)], order)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Numbers:
    """The arithmetic on ``many`` elements at once, from a byte's ``spread`` bits to the value that is rounded."""

    op: str
    ints: Any
    floats: Any

    def left(self, bits: Any, many: int) -> Any:
        return _centred(bits, self.ints[0], many)

    def right(self, bits: Any, many: int) -> Any:
        value = _centred(bits, self.ints[1], many)
        return value * wide(self.floats[1], many) if self.op == "add" else value

    def value(self, left: Any, right: Any, many: int) -> Any:
        factor = wide(self.floats[0], many)
        if self.op == "multiply":
            return left * right * factor  # the first product is exact
        return tirx.call_llvm_pure_intrin(_kind("float32", many), "llvm.fma", left, factor, right)


def _kind(name: str, many: int) -> str:
    return f"{name}x{many}" if many > 1 else name


def _centred(bits: Any, zero_point: Any, many: int) -> Any:
    """float32(byte - zero_point), exactly, of the bits of 2^23 plus the byte."""
    origin = zero_point.astype("float32") + tirx.const(WHOLE, "float32")
    return tirx.reinterpret(_kind("float32", many), bits) - wide(origin, many)


def _bits(byte: Any) -> Any:
    return byte.astype("int32") | tirx.const(WHOLE_BITS, "int32")


def _function(op: str, shape: Shape, period: int, form: _Form) -> Any:
    """Over a, out (pictures, size) and b, the same or (pictures, ``period``): block "out" is whole groups of four
    vectors, "rest" the elements that are left.
    """
    pictures, size = shape
    lanes, group = form.lanes, form.group
    steps = math.lcm(period, group) // group if period else 1  # groups until b begins anew
    turns = size // (steps * group)
    whole = turns * steps * group
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        a = T.arg("a", T.buffer(shape, "uint8"))
        b = T.arg("b", T.buffer((pictures, period or size), "uint8"))
        ints = T.arg("ints", T.buffer((5,), "int32"))
        floats = T.arg("floats", T.buffer((2 if op == "add" else 1,), "float32"))
        out = T.arg("out", T.buffer(shape, "uint8"))
        numbers = _Numbers(op=op, ints=ints, floats=floats)
        if period:
            factor = T.sblock_alloc_buffer((pictures, steps * group), "float32")
            with T.grid(pictures, steps, group) as (picture, step, place), T.sblock("factor"):
                n, s, i = (T.axis.spatial(pictures, picture), T.axis.spatial(steps, step), T.axis.spatial(group, place))
                source = (s * group + form.element(i)) % period
                T.reads(b[n, source], ints[1], floats[0])
                T.writes(factor[n, s * group + i])
                T.buffer_store(factor, numbers.right(_bits(b[n, source]), 1), [n, s * group + i])
        with T.grid(pictures, turns, steps) as (picture, turn, step), T.sblock("out"):
            n, t, s = T.axis.spatial(pictures, picture), T.axis.spatial(turns, turn), T.axis.spatial(steps, step)
            first = (t * steps + s) * group
            given = factor[n, s * group : (s + 1) * group] if period else b[n, first : first + group]
            T.reads(a[n, first : first + group], given, ints[0:5], floats[0])
            T.writes(out[n, first : first + group])
            lefts = [numbers.left(bits, lanes) for bits in form.spread(a, (n, first))]
            if period:
                rights = [factor.vload([n, s * group + at], f"float32x{lanes}") for at in range(0, group, lanes)]
            else:
                rights = [numbers.right(bits, lanes) for bits in form.spread(b, (n, first))]
            values = [
                narrow.near(numbers.value(left, right, lanes), lanes) for left, right in zip(lefts, rights, strict=True)
            ]
            T.buffer_store(out, form.joined(values, ints[2], ints[3], ints[4]), [n, tirx.Ramp(first, 1, group)])
        if whole < size:
            with T.grid(pictures, size - whole) as (picture, element), T.sblock("rest"):
                n, at = T.axis.spatial(pictures, picture), T.axis.spatial(size - whole, element) + whole
                other = at % period if period else at
                T.reads(a[n, at], b[n, other], ints[0:5], floats[0])
                T.writes(out[n, at])
                result = numbers.value(numbers.left(_bits(a[n, at]), 1), numbers.right(_bits(b[n, other]), 1), 1)
                T.buffer_store(out, common.round_clamp(result, ints[3], ints[4], ints[2], "uint8"), [n, at])
    return builder.get()
