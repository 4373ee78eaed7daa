"""Vector expressions of the x86 dot product depthwise kernel: rows to groups of taps, sums to bytes.

Bytes are moved by unpacks, which work in each 16-byte part of a register on its own. From rows of ``channels`` bytes
they make groups of ``UNIT`` channels in another order (``unit_order``); sums, their biases and multipliers stay in that
order, and the packs at the end, which work in 16-byte parts too, undo it: no vector crosses a register for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from hwq.schedules.x86.narrow import _BYTES, _ROUND, _WORDS, UNIT

# A channel's group of taps in bytes: 4 uint8, or 2 int16.
GROUP_BYTES = 4
# Per bits of a register.
_PAIRS = {128: "llvm.x86.sse2.pmadd.wd", 256: "llvm.x86.avx2.pmadd.wd", 512: "llvm.x86.avx512.pmaddw.d.512"}


def unit_order(channels: int) -> list[int]:
    """The units of a chunk of 16, 32 or 64 channels in the order in which ``interleaved`` leaves them."""
    parts = channels // 16
    return [UNIT * part + quarter for quarter in range(UNIT) for part in range(parts)]


def interleaved(rows: Sequence[Any], channels: int) -> list[Any]:
    """Four vectors of ``channels`` bytes: each channel's bytes of all ``rows`` side by side, in ``unit_order``.

    Four rows give four bytes a channel; two rows give two words, the bytes zero-extended.
    """
    pairs = [_unpack(rows[0], rows[1], channels, 1, high) for high in (0, 1)]
    if len(rows) == 2:
        zero = tirx.Broadcast(tirx.const(0, "uint8"), channels)
        return [_unpack(pair, zero, channels, 1, high) for pair in pairs for high in (0, 1)]
    others = [_unpack(rows[2], rows[3], channels, 1, high) for high in (0, 1)]
    return [_unpack(a, b, channels, 2, high) for a, b in zip(pairs, others, strict=True) for high in (0, 1)]


def dot(total: Any, group: Any, weight: Any, lanes: int, r: int) -> Any:
    """total (lanes,) int32 plus, in each lane, the products of its ``r`` activations and weights; both as bytes."""
    bits = 32 * lanes
    if r == 4:
        name = f"llvm.x86.avx512.vpdpbusd.{bits}"
        group, weight = (tirx.reinterpret(f"int8x{4 * lanes}", each) for each in (group, weight))
        return tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, total, group, weight)
    words = [tirx.reinterpret(f"int16x{2 * lanes}", each) for each in (group, weight)]
    return total + tirx.call_llvm_pure_intrin(f"int32x{lanes}", _PAIRS[bits], *words)


def to_words(values: Sequence[Any], lanes: int, zero_point: Any) -> Any:
    """rint(value) + zero point as one vector of int16, of one or two neighbouring vectors of a chunk.

    Both steps saturate, which changes nothing: values are clamped from above by the most that the output may be, less
    the zero point; what int16 cannot hold is far below 0, and what is below -2^31 converts to -2^31.
    """
    bits = 32 * lanes
    masked = [tirx.Broadcast(tirx.const(0, "int32"), lanes), tirx.const(-1, "int16"), tirx.const(4, "int32")]
    extra = masked if bits == 512 else []
    whole = [tirx.call_llvm_pure_intrin(f"int32x{lanes}", _ROUND[bits], value, *extra) for value in values]
    if len(whole) == 1:
        whole = _halves(whole[0], lanes)
    count = max(2 * UNIT, lanes * len(values))
    words = tirx.call_llvm_pure_intrin(f"int16x{count}", _WORDS[16 * count], *whole)
    return tirx.call_llvm_pure_intrin(
        f"int16x{count}", "llvm.sadd.sat", words, tirx.Broadcast(zero_point.astype("int16"), count)
    )


def to_bytes(words: Sequence[Any], channels: int, lanes: int, least: Any) -> Any:
    """The bytes of a chunk, channels in order, from its vectors of ``to_words``; none below ``least``."""
    parts = list(words) if len(words) == 2 else _halves(words[0], channels)
    packed = tirx.call_llvm_pure_intrin(f"uint8x{channels}", _BYTES[8 * channels], *parts)
    found = tirx.max(packed, tirx.Broadcast(least.astype("uint8"), channels))
    held = _packed_order(channels, lanes)
    if held == sorted(held):
        return found
    units = tirx.Shuffle([tirx.reinterpret(f"int32x{len(held)}", found)], [held.index(unit) for unit in sorted(held)])
    return tirx.reinterpret(f"uint8x{channels}", units)


def _halves(value: Any, lanes: int) -> list[Any]:
    return [tirx.Shuffle([value], list(range(at, at + lanes // 2))) for at in (0, lanes // 2)]


def _packed_order(channels: int, lanes: int) -> list[int]:
    """The units of a chunk as they stand after both packs."""

    def pack(vectors: list[list[int]], share: int) -> list[list[int]]:
        """Pairs of vectors in one each, ``share`` units of each in turn; a vector alone is cut in two."""
        if len(vectors) == 1:
            half = len(vectors[0]) // 2
            vectors = [vectors[0][:half], vectors[0][half:]]
        return [
            [unit for at in range(0, len(low), share) for side in (low, high) for unit in side[at : at + share]]
            for low, high in zip(vectors[::2], vectors[1::2], strict=True)
        ]

    order, per = unit_order(channels), lanes // UNIT
    (packed,) = pack(pack([order[at : at + per] for at in range(0, len(order), per)], 1), 2)
    return packed


def _unpack(a: Any, b: Any, size: int, width: int, high: int) -> Any:
    """Elements of ``width`` bytes of a and b in turn, from the low or high half of each 16 bytes."""
    picks = [
        source * size + part + 8 * high + at + byte
        for part in range(0, size, 16)
        for at in range(0, 8, width)
        for source in (0, 1)
        for byte in range(width)
    ]
    return tirx.Shuffle([a, b], picks)
