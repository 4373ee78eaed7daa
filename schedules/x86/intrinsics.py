"""Tensor intrinsics of the x86 kernels: one vector of output channels, one broadcast group of activations.

Each adds to ``lanes`` sums, held in registers (scope "local"), the products of ``r`` neighbouring activations,
the same for all lanes, with weights (lanes, r). The description beside each implementation is its meaning.

* ``vpdpbusd`` (AVX512-VNNI; AVX-VNNI up to 256 bits): uint8 x int8, r = 4, in 512, 256 and 128 bits. LLVM chooses the
  encoding by the target's features. The operands are byte vectors: since LLVM 22 that is the intrinsic's type, and
  TVM's own registration still passes int32 vectors.
* ``vdpbf16ps`` (AVX512-BF16): bfloat16 x bfloat16, r = 2, float32 sums; in ``hwq.schedules.x86.bf16``.
* ``vpdpwssd`` (AVX512-VNNI, AVX-VNNI): int16 x int16, r = 2, sums modulo 2^32.
* ``vpmaddwd`` (AVX2): int16 x int16, r = 2, weights that are int8 sign-extended; exact: a sum of two products leaves
  int32 only where all four factors are -32768.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from hwq.schedules.cpu.int4 import SCALE_BITS
from hwq.schedules.x86 import bf16


def _description(lanes: int, r: int, act: str, weight: str, scope: str) -> Any:
    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def description(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (r,), act, offset_factor=1)
        B = T.match_buffer(b, (lanes, r), weight, offset_factor=1, scope=scope)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:r], B[0:lanes, 0:r])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, r):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    return description


def _accumulating(lanes: int, r: int, act: str, weight: str, scope: str) -> Any:
    """One ``vpdpbusd`` (r = 4) or ``vpdpwssd`` (r = 2), which add to the sums themselves."""
    name = f"llvm.x86.avx512.{'vpdpbusd' if r == 4 else 'vpdpwssd'}.{lanes * 32}"
    sums, group, operand = f"int32x{lanes}", f"{act}x{r}", f"{weight}x{r * lanes}"

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (r,), act, offset_factor=1)
        B = T.match_buffer(b, (lanes, r), weight, offset_factor=1, scope=scope)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:r], B[0:lanes, 0:r])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(name),
                C.vload([0], dtype=sums),
                T.reinterpret(
                    T.broadcast(T.reinterpret(A.vload([0], dtype=group), dtype="int32"), lanes), dtype=operand
                ),
                B.vload([0, 0], dtype=operand),
                dtype=sums,
            )

    return implementation


def _vpmaddwd(lanes: int, weight: str, scope: str) -> Any:
    """One ``vpmaddwd`` and an addition, the weights widened to int16 where they are bytes."""
    name = "llvm.x86.avx2.pmadd.wd" if lanes == 8 else "llvm.x86.sse2.pmadd.wd"
    sums, words, operand = f"int32x{lanes}", f"int16x{2 * lanes}", f"{weight}x{2 * lanes}"

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (2,), "int16", offset_factor=1)
        B = T.match_buffer(b, (lanes, 2), weight, offset_factor=1, scope=scope)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = C.vload([0], dtype=sums) + T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(name),
                T.reinterpret(
                    T.broadcast(T.reinterpret(A.vload([0], dtype="int16x2"), dtype="int32"), lanes), dtype=words
                ),
                T.Cast(words, B.vload([0, 0], dtype=operand)),
                dtype=sums,
            )

    return implementation


@functools.cache
def dot(instruction: str, lanes: int, *, weight: str = "int8", in_registers: bool = False) -> str:
    """The name of the dot product of ``instruction`` with ``lanes`` sums; in_registers: its weights were just unpacked.

    weight: "int16" for ``vpdpwssd`` and, where it is asked for, ``vpmaddwd``; bfloat16 has a type of its own.
    Registered with TVM when it is first asked for: reading a TVMScript takes a good part of a second.
    """
    scope = "local" if in_registers else "global"
    name = f"hwq.{instruction}.{weight}.{lanes}" + (".local" if in_registers else "")
    mnemonic = instruction.rpartition(".")[2]
    if mnemonic in ("vpdpbusd", "vpdpwssd"):
        r, act = (4, "uint8") if mnemonic == "vpdpbusd" else (2, "int16")
        description = _description(lanes, r, act, weight, scope)
        implementation = _accumulating(lanes, r, act, weight, scope)
    elif mnemonic == "vdpbf16ps":
        description, implementation = bf16.dot_description(lanes), bf16.dot_implementation(lanes)
    else:
        assert mnemonic == "vpmaddwd", instruction
        description, implementation = (
            _description(lanes, 2, "int16", weight, scope),
            _vpmaddwd(lanes, weight, scope),
        )
    TensorIntrin.register(name, description, implementation, override=True)
    return name


def _scaled_sum(lanes: int, bits: int, *, fused: bool) -> Any:
    """float sums += float(whole numbers) * factors; fused: as one fused multiply-add, what the other one describes."""

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def description(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (lanes,), "int32", offset_factor=1, scope="local")
        B = T.match_buffer(b, (lanes,), "float32", offset_factor=1)
        C = T.match_buffer(c, (lanes,), "float32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes], B[0:lanes])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                with T.sblock("update"):
                    vi = T.axis.spatial(lanes, i)
                    C[vi] = C[vi] + T.cast(T.shift_right(A[vi], bits), "float32") * B[vi]

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (lanes,), "int32", offset_factor=1, scope="local")
        B = T.match_buffer(b, (lanes,), "float32", offset_factor=1)
        C = T.match_buffer(c, (lanes,), "float32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes], B[0:lanes])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id("llvm.fma"),
                T.Cast(
                    f"float32x{lanes}",
                    T.shift_right(A.vload([0], dtype=f"int32x{lanes}"), T.broadcast(bits, lanes)),
                ),
                B.vload([0], dtype=f"float32x{lanes}"),
                C.vload([0], dtype=f"float32x{lanes}"),
                dtype=f"float32x{lanes}",
            )

    return implementation if fused else description


@functools.cache
def scaled_sum(lanes: int, bits: int = SCALE_BITS) -> str:
    """The name of: float sums += float(sums >> ``bits``) * factors, in one rounding; ``lanes`` of each."""
    name = f"hwq.scaled_sum.{lanes}" + ("" if bits == SCALE_BITS else f".{bits}")
    meaning, code = (_scaled_sum(lanes, bits, fused=fused) for fused in (False, True))
    TensorIntrin.register(name, meaning, code, override=True)
    return name
