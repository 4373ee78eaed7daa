"""Floats to bytes on NEON, many at once: the last step of the integer epilogue, as a tensor intrinsic.

A pixel's channels stand in ``vectors`` registers of four float32, scaled. Each is rounded to int32 (``fcvtns``, to
nearest even), two registers of int32 become one of int16, two of those one of bytes (``sqxtn``); the zero point is
added between. All steps saturate, and that never changes the answer, clamp(rint(v) + zero point): a zero point is a
byte, so what int16 or int32 cannot hold lies beyond the clamp on its own side. Per 16 channels that is 4 conversions,
6 that narrow, 2 additions, a maximum and a minimum.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from hwq.schedules.cpu.narrowing import register

LANES = 4


@functools.cache
def narrow(vectors: int, pixels: int = 1) -> str:
    """The name of the intrinsic: float32 (vectors * 4,), int32 (3,) = (zero point, least, most) to int8. With several
    pixels (pixels, vectors * 4): they are neighbours in memory, and share stores.
    """
    return register(f"hwq.narrow.neon.{vectors}.{pixels}", "int8", in_order, LANES, vectors, pixels)


def in_order(floats: Sequence[Any], lanes: int, ints: Any) -> Any:
    """The int8 of one, two or four vectors of four floats, in order, by ints = (zero point, least, most)."""
    assert lanes == LANES, lanes
    rounded = [_call("int32x4", "fcvtns.v4i32.v4f32", value) for value in floats]
    words = _joined([_call("int16x4", "sqxtn.v4i16", value) for value in rounded], 4, "int16")
    moved = []
    for word in words:
        origin = tirx.Broadcast(ints[0].astype("int16"), 8)
        moved.append(tirx.call_llvm_pure_intrin("int16x8", "llvm.sadd.sat", word, origin))
    halves = [_call("int8x8", "sqxtn.v8i8", value) for value in moved]
    found = _joined(halves, 8, "int8")[0] if len(halves) > 1 else halves[0]
    count = 16 if len(halves) > 1 else 8
    least, most = (tirx.Broadcast(ints[at].astype("int8"), count) for at in (1, 2))
    clamped = tirx.max(tirx.min(found, most), least)
    if len(floats) > 1:
        return clamped
    return tirx.reinterpret("int8x4", tirx.Shuffle([tirx.reinterpret("int32x2", clamped)], [0]))


def _joined(values: Sequence[Any], lanes: int, kind: str) -> list[Any]:
    """Pairs of vectors of ``lanes`` in one each; a vector alone twice in one."""
    pairs = zip(values[::2], values[1::2], strict=True) if len(values) > 1 else [(values[0], values[0])]
    return [tirx.Shuffle([low, high], list(range(2 * lanes))) for low, high in pairs]


def _call(kind: str, name: str, *arguments: Any) -> Any:
    return tirx.call_llvm_pure_intrin(kind, f"llvm.aarch64.neon.{name}", *arguments)
