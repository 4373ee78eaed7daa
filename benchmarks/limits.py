"""What one core of this machine can do at most: multiply-accumulates by instruction, bytes read by level.

An instruction's limit is a loop of it and nothing else, on registers: as many chains of sums as hide its latency, and
operands that stay where they are; vpmaddwd, which adds to nothing, has the vpaddd that a sum of its products takes
beside it. A level's is the summing of a buffer that it holds (``hwq.probe``).
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tvm.script import tirx as T

from hwq.cpu import cpu_flags
from hwq.probe import buffer_bytes, fastest_s, read_bytes_per_s
from hwq.target import Target

STEPS = 4096
ROUNDS = 2
# A core gets more from memory where it reads at several places, and more from the nearest cache where it reads at one.
STREAMS = (1, 4)
# Chains of sums: more than latency times ports of any instruction here, and with the operands within 16 registers.
CHAINS = 12
# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): Linux wants to be asked before tiles are used.
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA = 158, 0x1023, 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """A way to multiply, by its name behind the dot in target files.

    llvm: the intrinsic, with {bits} for the width of its vectors. sums and operand: types of a lane of the sum and of
    the operands; products: how many a lane of the sum takes. flag, feature: what a CPU that has it says, and what LLVM
    calls that; None where every target that names the instruction has it.
    """

    name: str
    llvm: str
    sums: str
    operand: str
    products: int
    flag: str | None = None
    feature: str | None = None


VECTOR = (
    Instruction(name="fma", llvm="llvm.fma", sums="float32", operand="float32", products=1),
    Instruction(name="vpmaddwd", llvm="llvm.x86.avx2.pmadd.wd", sums="int32", operand="int16", products=2),
    Instruction(name="vpdpbusd", llvm="llvm.x86.avx512.vpdpbusd.{bits}", sums="int32", operand="int8", products=4),
    Instruction(
        name="vdpbf16ps",
        llvm="llvm.x86.avx512bf16.dpbf16ps.{bits}",
        sums="float32",
        operand="uint16",
        products=2,
        flag="avx512_bf16",
        feature="+avx512bf16",
    ),
)
TILE = (
    Instruction(
        name="tdpbusd",
        llvm="llvm.x86.tdpbusd",
        sums="int32",
        operand="uint8",
        products=64,
        flag="amx_int8",
        feature="+amx-int8",
    ),
    Instruction(
        name="tdpbf16ps",
        llvm="llvm.x86.tdpbf16ps",
        sums="float32",
        operand="uint16",
        products=32,
        flag="amx_bf16",
        feature="+amx-bf16",
    ),
)
# TVM turns bfloat16 into other types before LLVM sees it: this function takes its bits.
_BF16 = """
declare <{n} x float> @{llvm}(<{n} x float>, <{m} x bfloat>, <{m} x bfloat>)
define <{n} x float> @hwq_limit_bf16(<{n} x float> %c, <{m} x i16> %a, <{m} x i16> %b) alwaysinline {{
  %x = bitcast <{m} x i16> %a to <{m} x bfloat>
  %y = bitcast <{m} x i16> %b to <{m} x bfloat>
  %r = tail call <{n} x float> @{llvm}(<{n} x float> %c, <{m} x bfloat> %x, <{m} x bfloat> %y)
  ret <{n} x float> %r
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """One core's: macs_per_s by instruction, bytes_per_s by level ("L1", "L2", "L3", "memory"), in that order."""

    macs_per_s: Mapping[str, float]
    bytes_per_s: Mapping[str, float]


def measure(target: Target) -> Limits:
    """The limits of this machine, of which ``target`` gives vectors, cache sizes and the instructions in use."""
    levels = {"L1": target.l1_bytes // 2}
    levels |= {_level(field): size for field, size in buffer_bytes(target).items()}
    macs: dict[str, float] = {}
    reads: dict[str, float] = {}
    for _ in range(ROUNDS):  # whatever else runs here only takes away
        for it in measurable(target):
            macs[it.name] = max(macs.get(it.name, 0.0), macs_per_s(it, target))
        for level, size in levels.items():
            found = (read_bytes_per_s(size, target, streams) for streams in STREAMS)
            reads[level] = max(reads.get(level, 0.0), *found)
    return Limits(macs_per_s=macs, bytes_per_s=reads)


def measurable(target: Target) -> list[Instruction]:
    """What ``target``'s rows name, and what this CPU has besides, in code for 512-bit machines."""
    used = [row.instruction.split(".") for row in target.compute]
    names = {name for family, *_, name in used if family != "generic"}
    flags = cpu_flags() if target.vector_bits == 512 else frozenset()
    return [it for it in (*VECTOR, *TILE) if it.name in names or (it.flag is not None and it.flag in flags)]


def _level(field: str) -> str:
    name = field.removesuffix("_bytes_per_s")
    return name.upper() if name.startswith("l") else name


def macs_per_s(instruction: Instruction, target: Target) -> float:
    """Multiply-accumulates one core does with ``instruction`` on ``target``'s vectors, or on full tiles."""
    tiles = instruction in TILE
    if tiles and platform.system() == "Linux":
        ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA)
    lanes = 16 * 16 if tiles else target.lanes(instruction.sums)
    func = tile_loop(instruction) if tiles else vector_loop(instruction, lanes)
    chains = 4 if tiles else CHAINS
    return STEPS * chains * lanes * instruction.products / fastest_s(func, with_feature(target, instruction))


def with_feature(target: Target, instruction: Instruction) -> Target:
    """``target`` for code that has ``instruction`` in it."""
    if instruction.feature is None or instruction.feature in target.mattr:
        return target
    tile = ("+amx-tile",) if instruction in TILE else ()
    return replace(target, mattr=(*target.mattr, *tile, instruction.feature))


def vector_loop(instruction: Instruction, lanes: int) -> Any:
    """func(x, y, out): STEPS times one instruction on each of CHAINS vectors of ``lanes`` sums."""
    count = lanes * instruction.products
    sums, operands, total = f"{instruction.sums}x{lanes}", f"{instruction.operand}x{count}", CHAINS * lanes
    name = instruction.llvm.format(bits=32 * lanes)
    ctype, dtype = instruction.operand, instruction.sums

    beside = _BF16.format(n=lanes, m=count, llvm=name) if instruction.name == "vdpbf16ps" else ""

    def step(acc: Any, x: Any, y: Any) -> Any:
        call = T.call_llvm_pure_intrin
        if beside:
            return T.call_pure_extern(sums, "hwq_limit_bf16", acc, x, y)
        number = T.llvm_lookup_intrinsic_id(name)
        if instruction.name == "fma":
            return call(number, x, y, acc, dtype=sums)
        if instruction.name == "vpmaddwd":  # of the sums: the same product again would be taken out of the loop
            return acc + call(number, T.reinterpret(acc, dtype=operands), y, dtype=sums)
        return call(number, acc, x, y, dtype=sums)

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def loop(x: T.handle, y: T.handle, out: T.handle) -> None:
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        X = T.match_buffer(x, (count,), ctype)
        Y = T.match_buffer(y, (count,), ctype)
        OUT = T.match_buffer(out, (total,), dtype)
        acc = T.alloc_buffer((total,), dtype, scope="local")
        for j in T.unroll(CHAINS):
            acc[T.ramp(j * lanes, 1, lanes)] = T.broadcast(T.cast(0, dtype), lanes)
        with T.attr(0, "pragma_import_llvm", beside):
            for _ in T.serial(STEPS):
                for j in T.unroll(CHAINS):
                    acc[T.ramp(j * lanes, 1, lanes)] = step(
                        acc[T.ramp(j * lanes, 1, lanes)], X.vload([0], dtype=operands), Y.vload([0], dtype=operands)
                    )
        for j in T.unroll(CHAINS):
            OUT[T.ramp(j * lanes, 1, lanes)] = acc[T.ramp(j * lanes, 1, lanes)]

    return loop


def tile_loop(instruction: Instruction) -> Any:
    """func(config, out): STEPS times four products, of two tiles with two; fills config, which is 64 bytes."""
    name = instruction.llvm

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def loop(config: T.handle, out: T.handle) -> None:
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        C = T.match_buffer(config, (64,), "uint8")
        OUT = T.match_buffer(out, (256,), "int32")
        # Palette 1; of each of 8 tiles 64 bytes a row (16 bits each, from byte 16) and 16 rows (from byte 48).
        for i in T.serial(64):
            C[i] = T.uint8(0)
        C[0] = T.uint8(1)
        for i in T.serial(8):
            C[16 + 2 * i] = T.uint8(64)
            C[48 + i] = T.uint8(16)
        T.evaluate(T.call_llvm_intrin("void", "llvm.x86.ldtilecfg", C.access_ptr("r")))
        for i in T.unroll(8):
            T.evaluate(T.call_llvm_intrin("void", "llvm.x86.tilezero", T.Cast("uint8", i)))
        for _ in T.serial(STEPS):
            for i in T.unroll(2):
                for j in T.unroll(2):
                    T.evaluate(
                        T.call_llvm_intrin(
                            "void", name, T.Cast("uint8", 2 * i + j), T.Cast("uint8", 4 + i), T.Cast("uint8", 6 + j)
                        )
                    )
        T.evaluate(T.call_llvm_intrin("void", "llvm.x86.tilestored64", T.uint8(0), OUT.access_ptr("w"), T.int64(64)))
        T.evaluate(T.call_llvm_intrin("void", "llvm.x86.tilerelease"))

    return loop


def shown(limits: Limits) -> str:
    """The limits in one line each."""
    rates = ", ".join(f"{name} {rate / 1e9:.1f} GMAC/s" for name, rate in limits.macs_per_s.items())
    reads = ", ".join(f"{level} {rate / 1e9:.1f} GB/s" for level, rate in limits.bytes_per_s.items())
    return f"One core, measured now: {rates}; reads {reads}"
