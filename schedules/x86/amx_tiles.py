"""AMX instructions as statements of TVM's IRBuilder, the tile configuration, and the process's permission.

Tile numbers are immediates. Sums are tiles 0 to mt * nt - 1; after them those of the side that is held through a step,
then one or more through which the other side streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwq.schedules.x86.amx_plan import LANES, TILE_BYTES, TILES, Plan

# Linux on x86-64: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18
# (activations are unsigned, weights are unsigned) -> instruction; and that for bfloat16.
DOTS = {
    (False, False): "tdpbssd",
    (False, True): "tdpbsud",
    (True, False): "tdpbusd",
    (True, True): "tdpbuud",
}
BF16_DOT = "tdpbf16ps"


def dot_instruction(act: str, weight: str) -> str:
    """The product of activations and weights of these types: "uint8", "int8", or both "bfloat16"."""
    if "bfloat16" in (act, weight):
        assert act == weight, (act, weight)
        return BF16_DOT
    return DOTS[act == "uint8", weight == "uint8"]


def ask_permission() -> None:
    """Asks Linux once a process for the use of tiles, which holds for all its threads, those there already included.

    Two threads that come first together both ask, which does no harm; nor does it on a CPU without AMX.
    """
    asked = T.decl_buffer((1,), "int32", data=T.Bind(T.call_intrin("handle", "tirx.tvm_static_handle")))
    with T.If(asked[0] == 0), T.Then():
        numbers = (_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA)
        T.evaluate(T.call_extern("int64", "syscall", *(tirx.const(number, "int64") for number in numbers)))
        T.buffer_store(asked, tirx.const(1, "int32"), [0])


def configure(plan: Plan) -> None:
    """Loads the tile configuration of ``plan``; for the thread that runs it."""
    rows, colsb = [0] * 16, [0] * 16
    depth_bytes = plan.width * plan.item_bytes
    pixels, channels = operand_tiles(plan)
    for i, high in enumerate(plan.tile_rows):
        for j in range(plan.nt):
            rows[i * plan.nt + j], colsb[i * plan.nt + j] = high, TILE_BYTES
        rows[pixels[i]], colsb[pixels[i]] = high, depth_bytes
    for tile in channels:
        rows[tile], colsb[tile] = depth_bytes // 4, LANES * 4
    config = [1, 0, *[0] * 14, *(byte for wide in colsb for byte in (wide % 256, wide // 256)), *rows]
    memory = T.alloc_buffer((64,), "uint8")
    for at, byte in enumerate(config):
        T.buffer_store(memory, tirx.const(byte, "uint8"), [at])
    _call("ldtilecfg", T.address_of(memory[0]))


def operand_tiles(plan: Plan) -> tuple[Sequence[int], Sequence[int]]:
    """The registers of the ``mt`` tiles of pixels and of the ``nt`` tiles of channels.

    The smaller side is held through a step, the other streams through what is left: if that is one too few, two
    neighbours share one, of pixels two of as many rows.
    """
    held_count, count = min(plan.mt, plan.nt), max(plan.mt, plan.nt)
    first = plan.mt * plan.nt
    held = range(first, first + held_count)
    stream = [first + held_count + i for i in range(count)]
    if stream[-1] >= TILES:
        rows = plan.tile_rows if plan.nt <= plan.mt else (0,) * count
        alike = next(i for i in range(count - 1) if rows[i] == rows[i + 1])
        stream = [tile - (i > alike) for i, tile in enumerate(stream)]
    assert stream[-1] < TILES, (plan.mt, plan.nt)
    return (stream, held) if plan.nt <= plan.mt else (held, stream)


def load(tile: int, address: Any, stride_bytes: int) -> None:
    """tileloadd: the rows of ``tile`` from ``address`` on, ``stride_bytes`` apart."""
    _call("tileloadd64", tirx.const(tile, "uint8"), address, tirx.const(stride_bytes, "int64"))


def store(tile: int, address: Any, stride_bytes: int) -> None:
    """tilestored: the rows of ``tile`` to ``address`` on, ``stride_bytes`` apart."""
    _call("tilestored64", tirx.const(tile, "uint8"), address, tirx.const(stride_bytes, "int64"))


def zero(tile: int) -> None:
    """tilezero."""
    _call("tilezero", tirx.const(tile, "uint8"))


def multiply(instruction: str, sums: int, pixels: int, channels: int) -> None:
    """Adds to tile ``sums`` the products of tile ``pixels`` (rows, K) with tile ``channels`` (K, lanes)."""
    _call(instruction, *(tirx.const(tile, "uint8") for tile in (sums, pixels, channels)))


def release() -> None:
    """tilerelease: a thread without tiles switches faster."""
    _call("tilerelease")


def _call(name: str, *arguments: Any) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))
