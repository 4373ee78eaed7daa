"""Tensor intrinsics of the NEON kernels: one vector of four output channels, one group of four activations.

Each adds to four int32 sums, held in registers (scope "local"), the products of four neighbouring activations, the same
for all lanes, with int8 weights. The description beside each implementation is its meaning. Activations in scope
"local" are part of a register that was loaded whole: LLVM then makes a product by element of ``sdot``, and a ``dup`` of
what ``smull`` wants. See ``hwq.schedules.arm.ways`` for the instructions.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

LANES, GROUP = 4, 4


def _sdot(act_scope: str, weight_scope: str, *, described: bool) -> Any:
    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def description(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), "int8", offset_factor=1, scope=act_scope)
        B = T.match_buffer(b, (4, 4), "int8", offset_factor=1, scope=weight_scope)
        C = T.match_buffer(c, (4,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:4], A[0:4], B[0:4, 0:4])
            T.writes(C[0:4])
            for i in T.serial(0, 4):
                for k in T.serial(0, 4):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), "int8", offset_factor=1, scope=act_scope)
        B = T.match_buffer(b, (4, 4), "int8", offset_factor=1, scope=weight_scope)
        C = T.match_buffer(c, (4,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:4], A[0:4], B[0:4, 0:4])
            T.writes(C[0:4])
            C[T.ramp(T.int32(0), 1, 4)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id("llvm.aarch64.neon.sdot.v4i32.v16i8"),
                C.vload([0], dtype="int32x4"),
                B.vload([0, 0], dtype="int8x16"),
                T.reinterpret(
                    T.broadcast(T.reinterpret(A.vload([0], dtype="int8x4"), dtype="int32"), 4), dtype="int8x16"
                ),
                dtype="int32x4",
            )

    return description if described else implementation


def _smlal(act_scope: str, weight_scope: str, *, described: bool) -> Any:
    """Weights (2 * 4, 2): those of the first two activations for all lanes, then those of the others."""

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def description(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), "int8", offset_factor=1, scope=act_scope)
        B = T.match_buffer(b, (8, 2), "int8", offset_factor=1, scope=weight_scope)
        C = T.match_buffer(c, (4,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:4], A[0:4], B[0:8, 0:2])
            T.writes(C[0:4])
            for i in T.serial(0, 4):
                for j in T.serial(0, 2):
                    for k in T.serial(0, 2):
                        with T.sblock("update"):
                            vi, vj, vk = T.axis.remap("SRR", [i, j, k])
                            C[vi] = C[vi] + T.cast(A[vj * 2 + vk], "int32") * T.cast(B[vj * 4 + vi, vk], "int32")

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), "int8", offset_factor=1, scope=act_scope)
        B = T.match_buffer(b, (8, 2), "int8", offset_factor=1, scope=weight_scope)
        C = T.match_buffer(c, (4,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:4], A[0:4], B[0:8, 0:2])
            T.writes(C[0:4])
            C[T.ramp(T.int32(0), 1, 4)] = C.vload([0], dtype="int32x4") + T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id("llvm.aarch64.neon.saddlp.v4i32.v8i16"),
                T.call_llvm_pure_intrin(
                    T.llvm_lookup_intrinsic_id("llvm.aarch64.neon.smull.v8i16"),
                    B.vload([0, 0], dtype="int8x8"),
                    T.reinterpret(
                        T.broadcast(T.reinterpret(A.vload([0], dtype="int8x2"), dtype="int16"), 4), dtype="int8x8"
                    ),
                    dtype="int16x8",
                )
                + T.call_llvm_pure_intrin(
                    T.llvm_lookup_intrinsic_id("llvm.aarch64.neon.smull.v8i16"),
                    B.vload([4, 0], dtype="int8x8"),
                    T.reinterpret(
                        T.broadcast(T.reinterpret(A.vload([2], dtype="int8x2"), dtype="int16"), 4), dtype="int8x8"
                    ),
                    dtype="int16x8",
                ),
                dtype="int32x4",
            )

    return description if described else implementation


@functools.cache
def dot(instruction: str, *, held: bool, in_registers: bool) -> str:
    """The name of the intrinsic of ``instruction``. held: its activations lie in a register; in_registers: its weights
    were just unpacked. Registered with TVM when it is first asked for.
    """
    scopes = ["local" if there else "global" for there in (held, in_registers)]
    name = ".".join(["hwq", instruction, *scopes])
    function = {"neon.sdot": _sdot, "neon.smlal": _smlal}[instruction]
    TensorIntrin.register(name, function(*scopes, described=True), function(*scopes, described=False), override=True)
    return name
