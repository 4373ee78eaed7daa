"""Tensor intrinsics of the Winograd kernels: one vector of output channels, one broadcast pair of 16-bit inputs.

Each adds to ``lanes`` int32 sums, modulo 2^32, the products of two neighbouring int16 values, the same for all lanes,
with int16 weights (lanes, 2). ``vpdpwssd`` (AVX512-VNNI, AVX-VNNI) does it in one instruction, ``vpmaddwd`` (AVX2) and
an addition in two. No product of pairs saturates: that takes four factors of -32768.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

# Instruction of a target's compute row for 8-bit products -> the one for 16-bit products in an assembly.
INSTRUCTIONS = {"avx512.vpdpbusd": "vpdpwssd", "avx.vpdpbusd": "vpdpwssd", "avx2.vpmaddwd": "vpmaddwd"}


def _description(lanes: int) -> Any:
    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def description(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (2,), "int16", offset_factor=1)
        B = T.match_buffer(b, (lanes, 2), "int16", offset_factor=1)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, 2):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    return description


def _vpdpwssd(lanes: int) -> Any:
    name = f"llvm.x86.avx512.vpdpwssd.{lanes * 32}"
    sums, words = f"int32x{lanes}", f"int16x{2 * lanes}"

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (2,), "int16", offset_factor=1)
        B = T.match_buffer(b, (lanes, 2), "int16", offset_factor=1)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(name),
                C.vload([0], dtype=sums),
                T.reinterpret(
                    T.broadcast(T.reinterpret(A.vload([0], dtype="int16x2"), dtype="int32"), lanes), dtype=words
                ),
                B.vload([0, 0], dtype=words),
                dtype=sums,
            )

    return implementation


def _vpmaddwd(lanes: int) -> Any:
    name = "llvm.x86.avx2.pmadd.wd" if lanes == 8 else "llvm.x86.sse2.pmadd.wd"
    sums, words = f"int32x{lanes}", f"int16x{2 * lanes}"

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (2,), "int16", offset_factor=1)
        B = T.match_buffer(b, (lanes, 2), "int16", offset_factor=1)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = C.vload([0], dtype=sums) + T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(name),
                T.reinterpret(
                    T.broadcast(T.reinterpret(A.vload([0], dtype="int16x2"), dtype="int32"), lanes), dtype=words
                ),
                B.vload([0, 0], dtype=words),
                dtype=sums,
            )

    return implementation


@functools.cache
def dot(instruction: str, lanes: int) -> str:
    """The name of the dot product for a target whose 8-bit one is ``instruction``; registered when first asked for."""
    name = f"hwq.winograd.{instruction}.{lanes}"
    implementation = _vpmaddwd(lanes) if instruction == "avx2.vpmaddwd" else _vpdpwssd(lanes)
    TensorIntrin.register(name, _description(lanes), implementation, override=True)
    return name
