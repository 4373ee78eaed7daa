"""Tensor intrinsics of the smmla kernels: sums of two pixels by two channels, and their way back into rows of channels.

``smmla`` (Arm v8.6, "i8mm") adds to four int32 sums [pixel, channel] the products of two pixels x 8 inputs with two
channels x 8 inputs, 32 of them. Sums are in registers (scope "local").
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T_builder

# Inputs of a pixel, or of a channel, that one instruction multiplies.
DEPTH = 8
# Sums of a register.
LANES = 4
_NAME = "llvm.aarch64.neon.smmla.v4i32.v16i8"


@functools.cache
def product(*, in_registers: bool) -> str:
    """The name of sums (2, 2) += pixels (2, 8) x channels (2, 8); in_registers: the weights were just unpacked."""
    scope = "local" if in_registers else "global"

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def description(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (2, DEPTH), "int8", offset_factor=1)
        B = T.match_buffer(b, (2, DEPTH), "int8", offset_factor=1, scope=scope)
        C = T.match_buffer(c, (2, 2), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:2, 0:2], A[0:2, 0:DEPTH], B[0:2, 0:DEPTH])
            T.writes(C[0:2, 0:2])
            for p, c0, i in T.grid(2, 2, DEPTH):
                with T.sblock("update"):
                    vp, vc, vi = T.axis.remap("SSR", [p, c0, i])
                    C[vp, vc] = C[vp, vc] + T.cast(A[vp, vi], "int32") * T.cast(B[vc, vi], "int32")

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (2, DEPTH), "int8", offset_factor=1)
        B = T.match_buffer(b, (2, DEPTH), "int8", offset_factor=1, scope=scope)
        C = T.match_buffer(c, (2, 2), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:2, 0:2], A[0:2, 0:DEPTH], B[0:2, 0:DEPTH])
            T.writes(C[0:2, 0:2])
            C.vstore(
                [0, 0],
                T.call_llvm_pure_intrin(
                    T.llvm_lookup_intrinsic_id(_NAME),
                    C.vload([0, 0], dtype="int32x4"),
                    A.vload([0, 0], dtype="int8x16"),
                    B.vload([0, 0], dtype="int8x16"),
                    dtype="int32x4",
                ),
            )

    name = "hwq.neon.smmla" + (".local" if in_registers else "")
    TensorIntrin.register(name, description, implementation, override=True)
    return name


@functools.cache
def unpair(vectors: int) -> str:
    """The name of rows (2 pixels, 2 * vectors channels) from sums (vectors, 2 pixels, 2 channels); vectors: even."""
    channels = 2 * vectors

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def description(a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (vectors, 2, 2), "int32", offset_factor=1, scope="local")
        C = T.match_buffer(c, (2, channels), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(A[0:vectors, 0:2, 0:2])
            T.writes(C[0:2, 0:channels])
            for p, lane in T.grid(2, channels):
                with T.sblock("move"):
                    vp, vl = T.axis.remap("SS", [p, lane])
                    C[vp, vl] = A[vl // 2, vp, vl % 2]

    name = f"hwq.neon.unpair.{vectors}"
    TensorIntrin.register(name, description, _unpairing(vectors), override=True)
    return name


def _unpairing(vectors: int) -> Any:
    """Four channels of a pixel are the halves of two registers of sums."""
    with IRBuilder() as builder, T_builder.prim_func(s_tir=True):
        T_builder.func_name("main")
        handles = [T_builder.arg(name, T_builder.handle()) for name in ("a", "c")]
        sums = T_builder.match_buffer(handles[0], (vectors, 2, 2), "int32", offset_factor=1, scope="local")
        rows = T_builder.match_buffer(handles[1], (2, 2 * vectors), "int32", offset_factor=1, scope="local")
        with T_builder.sblock("root"):
            T_builder.reads(sums[0:vectors, 0:2, 0:2])
            T_builder.writes(rows[0:2, 0 : 2 * vectors])
            for v in range(0, vectors, 2):
                pairs = [tirx.reinterpret("int64x2", sums.vload([at, 0, 0], dtype="int32x4")) for at in (v, v + 1)]
                for p in (0, 1):
                    four = tirx.reinterpret("int32x4", tirx.Shuffle(pairs, [p, p + 2]))
                    T_builder.buffer_store(rows, four, [p, tirx.Ramp(2 * v, 1, 4)])
    return builder.get()
