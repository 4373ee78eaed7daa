"""bfloat16 on x86: rounding to it, and its dot product, in the two places where TVM has no words for them.

On CPUs TVM's passes turn every bfloat16 value into a float32 one, so that no vector of them would reach LLVM's
intrinsic. Here bfloat16 numbers are therefore uint16, their bits, and what needs the type itself is a small function
in LLVM's own language, which the kernel imports and LLVM inlines.

``vdpbf16ps`` adds two products to each float32 sum, one after the other, each sum rounded to nearest even and exact
before that; numbers below float32's least normal one count as 0, in ``vcvtneps2bf16`` too. The limit is one such
instruction a cycle on Zen 4, twice float32's rate, 118 GMAC/s on one core: ResNet-50's 3x3 layers measured 113 to 117,
its 1x1 layers 95 to 114, of which the copy that rounds the input and the stores of float32 take the rest.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from hwq.schedules.cpu.geometry import Form

IMPORT = "pragma_import_llvm"
_ROUND = "hwq_to_bf16"
LANES = 16
# What ``rounded`` and ``rounded_vector`` call, for a kernel to import.
ROUND_LLVM = f"""
define i16 @{_ROUND}(float %x) {{
  %short = fptrunc float %x to bfloat
  %bits = bitcast bfloat %short to i16
  ret i16 %bits
}}
define <{LANES} x i16> @{_ROUND}_{LANES}(<{LANES} x float> %x) {{
  %short = fptrunc <{LANES} x float> %x to <{LANES} x bfloat>
  %bits = bitcast <{LANES} x bfloat> %short to <{LANES} x i16>
  ret <{LANES} x i16> %bits
}}
"""


def _dot_name(lanes: int) -> str:
    return f"hwq_vdpbf16ps_{lanes}"


def _dot_llvm(lanes: int) -> str:
    """sums (lanes,) + the products of weights (lanes, 2) with one pair of activations, the same for all lanes.

    The pair comes last: the instruction's last operand may be a broadcast from memory.
    """
    sums, pairs, words = f"<{lanes} x float>", f"<{2 * lanes} x bfloat>", f"<{lanes} x i32>"
    intrinsic = f"@llvm.x86.avx512bf16.dpbf16ps.{lanes * 32}"
    return f"""
declare {sums} {intrinsic}({sums}, {pairs}, {pairs})
define {sums} @{_dot_name(lanes)}({sums} %sum, <{2 * lanes} x i16> %weights, i32 %pair) {{
  %first = insertelement {words} poison, i32 %pair, i64 0
  %all = shufflevector {words} %first, {words} poison, {words} zeroinitializer
  %x = bitcast {words} %all to {pairs}
  %w = bitcast <{2 * lanes} x i16> %weights to {pairs}
  %result = tail call {sums} {intrinsic}({sums} %sum, {pairs} %w, {pairs} %x)
  ret {sums} %result
}}
"""


def as_multiplied(value: Any, found: Form) -> Any:
    """An activation as it lies in memory, in the type that is multiplied."""
    return rounded(value) if found.bf16 else value.astype(found.act)


def as_summed(value: Any, found: Form) -> Any:
    """An activation or a weight, in the type that is multiplied, in that of the sums."""
    return widened(value) if found.bf16 else value.astype(found.acc)


def rounded(value: Any) -> Any:
    """The bits (uint16) of a float32 expression rounded to bfloat16, in a kernel that imports ``ROUND_LLVM``."""
    return tirx.call_pure_extern("uint16", _ROUND, value)


def rounded_vector(values: Any) -> Any:
    """``rounded`` of LANES at once: LLVM, left to itself, rounds four."""
    return tirx.call_pure_extern(f"uint16x{LANES}", f"{_ROUND}_{LANES}", values)


def widened(bits: Any) -> Any:
    """The float32 value of bfloat16 bits (a uint16 expression), exact."""
    return tirx.reinterpret("float32", bits.astype("uint32") << tirx.const(16, "uint32"))


def import_functions(sch: Schedule, loop: Any) -> None:
    """Gives the kernel of ``loop``, any one of its loops, what ``rounded`` and the dot products call."""
    sch.annotate(loop, IMPORT, ROUND_LLVM + "".join(map(_dot_llvm, (16, 8, 4))))


def dot_description(lanes: int) -> Any:
    """What ``dot_implementation`` means, as the schedule has it."""

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def description(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (2,), "uint16", offset_factor=1)
        B = T.match_buffer(b, (lanes, 2), "uint16", offset_factor=1)
        C = T.match_buffer(c, (lanes,), "float32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, 2):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.reinterpret(
                            T.shift_left(T.cast(A[vk], "uint32"), T.uint32(16)), dtype="float32"
                        ) * T.reinterpret(T.shift_left(T.cast(B[vi, vk], "uint32"), T.uint32(16)), dtype="float32")

    return description


def dot_implementation(lanes: int) -> Any:
    """One ``vdpbf16ps`` of ``lanes`` sums, held in registers."""
    name = _dot_name(lanes)
    sums, words = f"float32x{lanes}", f"uint16x{2 * lanes}"

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (2,), "uint16", offset_factor=1)
        B = T.match_buffer(b, (lanes, 2), "uint16", offset_factor=1)
        C = T.match_buffer(c, (lanes,), "float32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_pure_extern(
                sums,
                name,
                C.vload([0], dtype=sums),
                B.vload([0, 0], dtype=words),
                T.reinterpret(A.vload([0], dtype="uint16x2"), dtype="int32"),
            )

    return implementation
