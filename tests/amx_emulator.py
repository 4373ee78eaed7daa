"""AMX in NumPy, for the real machine code: a CPU without AMX traps on its instructions, and the trap does them here.

``emulated()`` installs a SIGILL handler that decodes the instruction at the trap, carries it out on eight tile
registers, checks what hardware would, and moves the instruction pointer past it. Encodings, operations and the reasons
for a fault are those of the Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2. What is wrong is
noted, the instruction skipped, and an ``AmxFault`` raised at the end: no exception may leave a signal handler.

Everything has to happen in one thread, and kernels should be small: an instruction takes tens of microseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
TILES, ROWS, ROW_BYTES = 8, 16, 64
# A row of ``gregs`` in Linux's ucontext_t on x86-64, and where in it the registers are by their encoded number.
_GREGS_AT, _RIP = 40, 16
_GREG_OF = (13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7)
_SA_SIGINFO = 4
# (mandatory prefix, opcode) in VEX map 0F38 -> mnemonic; 0x49 is told apart by its ModRM byte.
_NONE, _66, _F3, _F2 = range(4)
_TILE_OPS = {
    (_F2, 0x4B): "tileloadd",
    (_66, 0x4B): "tileloaddt1",
    (_F3, 0x4B): "tilestored",
    (_F2, 0x5E): "tdpbssd",
    (_F3, 0x5E): "tdpbsud",
    (_66, 0x5E): "tdpbusd",
    (_NONE, 0x5E): "tdpbuud",
    (_F3, 0x5C): "tdpbf16ps",
}
_OPERANDS = {
    "tdpbssd": (np.int8, np.int8),
    "tdpbsud": (np.int8, np.uint8),
    "tdpbusd": (np.uint8, np.int8),
    "tdpbuud": (np.uint8, np.uint8),
}


class AmxFault(AssertionError):
    """Code that hardware would have refused, or that hwq's kernels have no reason for."""


@dataclass(slots=True)
class Amx:
    """The state of the tiles. rows, colsb: configured rows and bytes a row of each; all 0 without a configuration."""

    tiles: Array = field(default_factory=lambda: np.zeros((TILES, ROWS, ROW_BYTES), np.uint8))
    rows: list[int] = field(default_factory=lambda: [0] * TILES)
    colsb: list[int] = field(default_factory=lambda: [0] * TILES)
    configured: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One decoded instruction. tile: the destination, or what is stored; address and stride_bytes of its memory."""

    name: str
    length: int
    tile: int = 0
    first: int = 0
    second: int = 0
    address: int = 0
    stride_bytes: int = 0


def decode(code: bytes, registers: Any, rip: int) -> Instruction | None:
    """The AMX instruction that ``code`` begins with, or None. registers(n): general register number n."""
    if code[0] != 0xC4 or code[1] & 0x1F != 2 or code[2] & 0x84:
        return None
    (extend_reg, extend_index, extend_base) = ((~code[1] >> bit & 1) * 8 for bit in (7, 6, 5))
    prefix, second, opcode, modrm = code[2] & 3, ~(code[2] >> 3) & 15, code[3], code[4]
    mod, reg, rm = modrm >> 6, (modrm >> 3 & 7) + extend_reg, modrm & 7
    if opcode == 0x49 and mod == 3:
        if prefix == _F2:
            return Instruction(name="tilezero", length=5, tile=reg)
        return Instruction(name="tilerelease", length=5) if (prefix, modrm) == (_NONE, 0xC0) else None
    if opcode == 0x49:
        name = {_NONE: "ldtilecfg", _66: "sttilecfg"}.get(prefix)
    else:
        name = _TILE_OPS.get((prefix, opcode))
    if name is None:
        return None
    if mod == 3:
        return Instruction(name=name, length=5, tile=reg, first=rm + extend_base, second=second)
    length, base, index, scale = 5, rm + extend_base, 4, 0
    if rm == 4:
        sib, length = code[5], 6
        scale, index, base = sib >> 6, (sib >> 3 & 7) + extend_index, (sib & 7) + extend_base
    size = {0: 0, 1: 1, 2: 4}[mod]
    bare = mod == 0 and base & 7 == 5  # no base register: a displacement alone, from RIP without a SIB byte
    size = 4 if bare else size
    displacement = int.from_bytes(code[length : length + size], "little", signed=True)
    length += size
    start = (0 if rm == 4 else rip + length) if bare else registers(base)
    stride = 0 if index == 4 else registers(index) << scale
    return Instruction(name=name, length=length, tile=reg, address=start + displacement, stride_bytes=stride)


def execute(amx: Amx, it: Instruction) -> None:
    """Carries out one instruction. Raises AmxFault where hardware would."""
    amx.counts[it.name] += 1
    if it.name == "ldtilecfg":
        _configure(amx, ctypes.string_at(it.address, 64))
        return
    if it.name == "tilerelease":
        _configure(amx, bytes(64))
        return
    if not amx.configured:
        raise AmxFault(f"{it.name} without a tile configuration")
    used = (it.tile, it.first, it.second) if it.name.startswith("tdp") else (it.tile,)
    for tile in used:
        if tile >= TILES or not amx.rows[tile] or not amx.colsb[tile]:
            raise AmxFault(f"{it.name} of tile {tile}, which is not configured")
    if it.name == "tilezero":
        amx.tiles[it.tile] = 0
    elif it.name.startswith("tdp"):
        _multiply(amx, it)
    elif it.name == "tilestored":
        _memory(amx, it)[:] = amx.tiles[it.tile, : amx.rows[it.tile], : amx.colsb[it.tile]]
    elif it.name in ("tileloadd", "tileloaddt1"):
        amx.tiles[it.tile] = 0
        amx.tiles[it.tile, : amx.rows[it.tile], : amx.colsb[it.tile]] = _memory(amx, it)
    else:
        raise AmxFault(f"{it.name} is not emulated")


def _configure(amx: Amx, config: bytes) -> None:
    colsb, rows = np.frombuffer(config[16:48], "<u2"), np.frombuffer(config[48:64], np.uint8)
    amx.tiles[:] = 0
    amx.configured = config[0] == 1
    amx.rows, amx.colsb = [int(n) for n in rows[:TILES]], [int(n) for n in colsb[:TILES]]
    if config[0] == 0:
        return
    if config[0] != 1 or config[1] != 0 or any(config[2:16]) or any(colsb[TILES:]) or any(rows[TILES:]):
        raise AmxFault(f"ldtilecfg of palette {config[0]}, start row {config[1]}, or with reserved bytes set")
    for tile, (high, wide) in enumerate(zip(amx.rows, amx.colsb, strict=True)):
        if high > ROWS or wide > ROW_BYTES or (high == 0) != (wide == 0):
            raise AmxFault(f"ldtilecfg of {high} rows of {wide} bytes for tile {tile}")


def _memory(amx: Amx, it: Instruction) -> Array:
    """The rows of memory that belong to the tile."""
    stride = it.stride_bytes - (1 << 64) if it.stride_bytes >> 63 else it.stride_bytes
    if stride < 0:
        raise AmxFault(f"{it.name} with the negative stride {stride}")
    rows, wide = amx.rows[it.tile], amx.colsb[it.tile]
    raw = (ctypes.c_uint8 * (stride * (rows - 1) + wide)).from_address(it.address)
    return np.lib.stride_tricks.as_strided(np.frombuffer(raw, np.uint8), (rows, wide), (stride, 1))


def _multiply(amx: Amx, it: Instruction) -> None:
    c, a, b = it.tile, it.first, it.second
    m, k, n = amx.rows[c], amx.colsb[a], amx.colsb[c]
    if len({a, b, c}) < 3:
        raise AmxFault(f"{it.name} of tiles {c}, {a}, {b}, which are not three")
    if amx.rows[a] != m or amx.colsb[b] != n or k % 4 or n % 4 or amx.rows[b] != k // 4:
        shapes = ", ".join(f"{amx.rows[tile]} x {amx.colsb[tile]}" for tile in (c, a, b))
        raise AmxFault(f"{it.name} of tiles that do not match: {shapes} bytes")
    left, right = amx.tiles[a, :m, :k], amx.tiles[b, : k // 4, :n]
    if it.name == "tdpbf16ps":
        sums = amx.tiles[c, :m, :n].view(np.float32)
        x, y = (_bf16_values(part) for part in (left, right))
        y = y.reshape(k // 4, n // 4, 2)
        with np.errstate(invalid="ignore"):  # 0 times infinity
            sums += x[:, 0::2] @ y[:, :, 0] + x[:, 1::2] @ y[:, :, 1]
        return
    sums = amx.tiles[c, :m, :n].view(np.int32)
    x = left.view(_OPERANDS[it.name][0]).astype(np.float64)
    y = right.view(_OPERANDS[it.name][1]).reshape(k // 4, n // 4, 4).transpose(0, 2, 1).reshape(k, n // 4)
    # Exact: 64 products of at most 2^16. The sum wraps, as hardware's does.
    sums += (x @ y.astype(np.float64)).astype(np.int32)


def _bf16_values(part: Array) -> Array:
    """The float32 values of rows of bfloat16; those below the least normal number count as 0."""
    values = np.ascontiguousarray(part).view(ml_dtypes.bfloat16).astype(np.float32)
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)


class _SigAction(ctypes.Structure):
    """struct sigaction of glibc on x86-64."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


@contextlib.contextmanager
def emulated() -> Iterator[Amx]:
    """AMX instructions of this thread are done by the state that is given. Raises AmxFault at the end for any fault."""
    libc = ctypes.CDLL(None, use_errno=True)
    amx, default = Amx(), _SigAction()

    def on_trap(_signal: int, _info: int, context: int) -> None:
        registers = (ctypes.c_uint64 * 23).from_address(context + _GREGS_AT)
        rip = int(registers[_RIP])
        it = decode(ctypes.string_at(rip, 15), lambda number: int(registers[_GREG_OF[number]]), rip)
        if it is None:  # another illegal instruction: it traps again, and ends the process
            libc.sigaction(signal.SIGILL, ctypes.byref(default), None)
            return
        try:
            execute(amx, it)
        except Exception as error:
            amx.faults.append(f"at instruction {sum(amx.counts.values())}: {error}")
        registers[_RIP] = rip + it.length

    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(on_trap)
    action, before = _SigAction(), _SigAction()
    action.handler, action.flags = ctypes.cast(callback, ctypes.c_void_p), _SA_SIGINFO
    if libc.sigaction(signal.SIGILL, ctypes.byref(action), ctypes.byref(before)) != 0:
        raise OSError(ctypes.get_errno(), "sigaction failed")
    try:
        yield amx
    finally:
        libc.sigaction(signal.SIGILL, ctypes.byref(before), None)
    if amx.faults:
        raise AmxFault(f"{len(amx.faults)} faults, the first {amx.faults[0]}")
