"""Floats to bytes, many at once: the last step of the integer epilogue, as a tensor intrinsic.

A pixel's channels stand in ``vectors`` registers of ``lanes`` float32, scaled and clamped from above. Each is rounded
to int32 (to nearest even), two registers of int32 become one of int16, two of those one of bytes; the zero point is
added between, to twice as many numbers at a time as before. All steps saturate, and that never changes the answer,
max(rint(v) + zero point, least): what int16 cannot hold is far below 0, and below 0 is what ``least`` replaces. From
above v is at most ``most`` - zero point, at most 255, so nothing overflows the conversion there; what is below -2^31
converts to -2^31. Packing works in 16-byte parts of a register, so a last permutation puts groups of four in order.

Per 64 channels on AVX-512 that is 4 conversions, 3 packs, 2 additions, 1 maximum, 1 permutation and 1 store.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from hwq.schedules.cpu.narrowing import register
from hwq.schedules.epilogue import FAR_BITS

# Per bits of a register: rounding conversion, int32 to int16, int16 to uint8. The conversion of 512 bits has a mask.
_ROUND = {128: "llvm.x86.sse2.cvtps2dq", 256: "llvm.x86.avx.cvt.ps2dq.256", 512: "llvm.x86.avx512.mask.cvtps2dq.512"}
_WORDS = {128: "llvm.x86.sse2.packssdw.128", 256: "llvm.x86.avx2.packssdw", 512: "llvm.x86.avx512.packssdw.512"}
_BYTES = {128: "llvm.x86.sse2.packuswb.128", 256: "llvm.x86.avx2.packuswb", 512: "llvm.x86.avx512.packuswb.512"}
# Four neighbouring channels, the unit that packing moves, and how many of them 16 bytes hold as int32, int16 and bytes.
UNIT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Register:
    """A vector value of type ``kind`` ("int32", ...), and which units of four channels it holds, in order."""

    value: Any
    kind: str
    units: tuple[int, ...]

    @property
    def lanes(self) -> int:
        return UNIT * len(self.units)

    @property
    def bits(self) -> int:
        return self.lanes * int(self.kind.lstrip("uint"))


@functools.cache
def narrow(lanes: int, vectors: int, pixels: int = 1) -> str:
    """The name of the intrinsic: float32 (vectors * lanes,), int32 (3,) = (zero point, least, most) to uint8. With
    several pixels (pixels, vectors * lanes): they are neighbours in memory, and share stores.
    """
    return register(f"hwq.narrow.{lanes}.{vectors}.{pixels}", "uint8", in_order, lanes, vectors, pixels)


def packed(floats: Sequence[Any], lanes: int, zero_point: Any) -> _Register:
    """The bytes of one, two or four vectors of ``lanes`` in one register, its units as packing leaves them."""
    units = [tuple(range(at, at + lanes // UNIT)) for at in range(0, lanes // UNIT * len(floats), lanes // UNIT)]
    rounded = [
        _Register(value=_round(value, lanes), kind="int32", units=held)
        for value, held in zip(floats, units, strict=True)
    ]
    words = [_plus(each, zero_point) for each in _pack(rounded, _WORDS, "int16")]
    (found,) = _pack(words, _BYTES, "uint8")
    return found


def near(value: Any, lanes: int) -> Any:
    """min(value, 2^30) of a vector, for ``packed``: by the bits, which order positive floats as integers."""
    far = tirx.Broadcast(tirx.const(FAR_BITS, "int32"), lanes)
    return tirx.reinterpret(f"float32x{lanes}", tirx.min(tirx.reinterpret(f"int32x{lanes}", value), far))


def in_order(floats: Sequence[Any], lanes: int, ints: Any) -> Any:
    """The bytes of one, two or four vectors of ``lanes``, in order, by ints = (zero point, least, most)."""
    found = packed(floats, lanes, ints[0])
    least, most = (tirx.Broadcast(ints[at].astype("uint8"), found.lanes) for at in (1, 2))
    clamped = tirx.max(tirx.min(found.value, most), least)
    order = [found.units.index(unit) for unit in range(lanes * len(floats) // UNIT)]
    whole = tirx.reinterpret(f"int32x{len(found.units)}", clamped)
    return tirx.reinterpret(f"uint8x{UNIT * len(order)}", tirx.Shuffle([whole], order))


def _round(value: Any, lanes: int) -> Any:
    bits = 32 * lanes
    masked = [tirx.Broadcast(tirx.const(0, "int32"), lanes), tirx.const(-1, "int16"), tirx.const(4, "int32")]
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", _ROUND[bits], value, *(masked if bits == 512 else []))


def _plus(register: _Register, zero_point: Any) -> _Register:
    addend = tirx.Broadcast(zero_point.astype("int16"), register.lanes)
    total = tirx.call_llvm_pure_intrin(f"int16x{register.lanes}", "llvm.sadd.sat", register.value, addend)
    return _Register(value=total, kind="int16", units=register.units)


def _pack(registers: Sequence[_Register], names: dict[int, str], kind: str) -> list[_Register]:
    """Pairs of registers in one each, of numbers half as wide; a register alone is first cut in two, or is used twice
    where it is one of 16 bytes.
    """
    if len(registers) == 1:
        (only,) = registers
        registers = [only, only] if only.bits == 128 else [_half(only, 0), _half(only, 1)]
    pairs = zip(registers[::2], registers[1::2], strict=True)
    return [_pack_two(low, high, names[low.bits], kind) for low, high in pairs]


def _pack_two(low: _Register, high: _Register, name: str, kind: str) -> _Register:
    share = len(low.units) * 128 // low.bits
    parts = [slice(at, at + share) for at in range(0, len(low.units), share)]
    units = tuple(unit for part in parts for unit in (*low.units[part], *high.units[part]))
    value = tirx.call_llvm_pure_intrin(f"{kind}x{UNIT * len(units)}", name, low.value, high.value)
    return _Register(value=value, kind=kind, units=units)


def _half(register: _Register, which: int) -> _Register:
    lanes, units = register.lanes // 2, len(register.units) // 2
    value = tirx.Shuffle([register.value], list(range(which * lanes, (which + 1) * lanes)))
    return _Register(value=value, kind=register.kind, units=register.units[which * units : (which + 1) * units])
