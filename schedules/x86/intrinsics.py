"""Tensor intrinsics of the x86 kernels: one vector of output channels, one broadcast group of activations.

Each adds to ``lanes`` sums, held in registers (scope "local"), the products of ``r`` neighbouring activations,
the same for all lanes, with weights (lanes, r). The description beside each implementation is its meaning.

* ``vpdpbusd`` (AVX512-VNNI; AVX-VNNI up to 256 bits): uint8 x int8, r = 4, in 512, 256 and 128 bits. LLVM chooses the
  encoding by the target's features. The operands are byte vectors: since LLVM
  22 that is the intrinsic's type, and TVM's own registration still passes int32 vectors.
* ``vdpbf16ps`` (AVX512-BF16): bfloat16 x bfloat16, r = 2, float32 sums; in ``hwq.schedules.x86.bf16``.
* ``vpmaddwd`` (AVX2): int16 x int8 sign-extended, r = 2, exact: no sum of two products leaves int32.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from hwq.schedules.x86 import bf16
from hwq.schedules.x86.int4 import SCALE_BITS


def _description(lanes: int, r: int, act: str, scope: str) -> Any:
    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def description(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (r,), act, offset_factor=1)
        B = T.match_buffer(b, (lanes, r), "int8", offset_factor=1, scope=scope)
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


def _vpdpbusd(lanes: int, scope: str) -> Any:
    name = f"llvm.x86.avx512.vpdpbusd.{lanes * 32}"
    sums, bytes_ = f"int32x{lanes}", f"int8x{4 * lanes}"

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), "uint8", offset_factor=1)
        B = T.match_buffer(b, (lanes, 4), "int8", offset_factor=1, scope=scope)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(name),
                C.vload([0], dtype=sums),
                T.reinterpret(
                    T.broadcast(T.reinterpret(A.vload([0], dtype="uint8x4"), dtype="int32"), lanes), dtype=bytes_
                ),
                B.vload([0, 0], dtype=bytes_),
                dtype=sums,
            )

    return implementation


def _vpmaddwd(lanes: int, scope: str) -> Any:
    name = "llvm.x86.avx2.pmadd.wd" if lanes == 8 else "llvm.x86.sse2.pmadd.wd"
    sums, words, bytes_ = f"int32x{lanes}", f"int16x{2 * lanes}", f"int8x{2 * lanes}"

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (2,), "int16", offset_factor=1)
        B = T.match_buffer(b, (lanes, 2), "int8", offset_factor=1, scope=scope)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = C.vload([0], dtype=sums) + T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(name),
                T.reinterpret(
                    T.broadcast(T.reinterpret(A.vload([0], dtype="int16x2"), dtype="int32"), lanes), dtype=words
                ),
                T.Cast(words, B.vload([0, 0], dtype=bytes_)),
                dtype=sums,
            )

    return implementation


@functools.cache
def dot(instruction: str, lanes: int, *, in_registers: bool = False) -> str:
    """The name of the dot product of ``instruction`` with ``lanes`` sums; in_registers: its weights were just unpacked.

    Registered with TVM when it is first asked for: reading a TVMScript takes a good part of a second.
    """
    scope = "local" if in_registers else "global"
    name = f"hwq.{instruction}.{lanes}" + (".local" if in_registers else "")
    if instruction in ("avx512.vpdpbusd", "avx.vpdpbusd"):
        description, implementation = _description(lanes, 4, "uint8", scope), _vpdpbusd(lanes, scope)
    elif instruction == "avx512.vdpbf16ps":
        description, implementation = bf16.dot_description(lanes), bf16.dot_implementation(lanes)
    else:
        assert instruction == "avx2.vpmaddwd", instruction
        description, implementation = _description(lanes, 2, "int16", scope), _vpmaddwd(lanes, scope)
    TensorIntrin.register(name, description, implementation, override=True)
    return name


def _scaled_sum(lanes: int, *, fused: bool) -> Any:
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
                    C[vi] = C[vi] + T.cast(T.shift_right(A[vi], SCALE_BITS), "float32") * B[vi]

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
                    T.shift_right(A.vload([0], dtype=f"int32x{lanes}"), T.broadcast(SCALE_BITS, lanes)),
                ),
                B.vload([0], dtype=f"float32x{lanes}"),
                C.vload([0], dtype=f"float32x{lanes}"),
                dtype=f"float32x{lanes}",
            )

    return implementation if fused else description


@functools.cache
def scaled_sum(lanes: int) -> str:
    """The name of: float sums += float(int4's scaled sums) * factors, in one rounding; ``lanes`` of each."""
    name = f"hwq.scaled_sum.{lanes}"
    TensorIntrin.register(name, _scaled_sum(lanes, fused=False), _scaled_sum(lanes, fused=True), override=True)
    return name
