"""What the attention kernels are made of: vectors, their maxima and sums, a power of two, keys with lanes for columns.

Everything works within TVM's IRBuilder, on flat buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwq.integer_attention import LEAST_POWER, POWER
from hwq.schedules.generic.float_math import ROUNDER, ROUNDER_BITS

Expr = Any


def pieces(size: int, lanes: int) -> list[tuple[int, int]]:
    """(start, lanes) of the vectors that cover ``size`` elements and no more: whole ones, then halves of them."""
    found, at = [], 0
    while at < size:
        while at + lanes > size:
            lanes //= 2
        found.append((at, lanes))
        at += lanes
    return found


def at(start: Expr, lanes: int) -> Expr:
    """The index of ``lanes`` neighbours from ``start`` on."""
    return tirx.Ramp(start, 1, lanes) if lanes > 1 else start


def loaded(buffer: Any, start: Expr, lanes: int) -> Expr:
    """``lanes`` neighbours of a flat buffer from ``start`` on."""
    return buffer[at(start, lanes)]


def put(buffer: Any, value: Expr, start: Expr, lanes: int) -> None:
    """Stores ``value`` to ``lanes`` neighbours of a flat buffer from ``start`` on."""
    T.buffer_store(buffer, value, [at(start, lanes)])


def wide(value: Expr, lanes: int, dtype: str = "float32") -> Expr:
    """A number, or a Python one, in every lane."""
    value = tirx.const(value, dtype) if isinstance(value, int | float) else value
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def multiply_add(a: Expr, b: Expr, c: Expr, lanes: int, *, fused: bool) -> Expr:
    """a * b + c; fused: with one rounding, for machines that have it."""
    if not fused:
        return a * b + c
    return tirx.call_llvm_pure_intrin("float32" if lanes == 1 else f"float32x{lanes}", "llvm.fma", a, b, c)


def fold(vector: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """One number of all lanes: the upper half with the lower, again and again."""
    while lanes > 1:
        lanes //= 2
        low = tirx.Shuffle([vector], list(range(lanes)))
        high = tirx.Shuffle([vector], list(range(lanes, 2 * lanes)))
        vector = T.Bind(combine(low, high))
    return vector


def power(distance: Expr, factor: Expr, lanes: int, *, fused: bool) -> Expr:
    """2^(distance * factor) for a product of at most about 0; below LEAST_POWER, and for -inf, exactly 0."""
    ints, floats = (kind if lanes == 1 else f"{kind}x{lanes}" for kind in ("int32", "float32"))
    number = wide(ROUNDER, lanes)
    whole = T.Bind(multiply_add(distance, factor, number, lanes, fused=fused))
    if fused:
        rest = T.Bind(multiply_add(distance, factor, number - whole, lanes, fused=True))
    else:  # TVM would find that number - (number + x) is -x
        count = tirx.reinterpret(ints, whole) - wide(ROUNDER_BITS, lanes, "int32")
        rest = T.Bind(distance * factor - tirx.Cast(floats, count))
    value = wide(POWER[0], lanes)
    for coefficient in POWER[1:]:
        value = multiply_add(value, rest, wide(coefficient, lanes), lanes, fused=fused)
    # The rounder's own bits leave at the top.
    moved = tirx.reinterpret(ints, whole) << wide(23, lanes, "int32")
    result = tirx.reinterpret(floats, tirx.reinterpret(ints, value) + moved)
    there = distance * factor >= wide(float(LEAST_POWER), lanes)
    return T.Bind(tirx.Select(there, result, wide(0.0, lanes)))


def turned(rows: Sequence[Expr]) -> list[Expr]:
    """Columns of a square of rows: pairs are exchanged, then pairs of those, then quarters of registers."""
    lanes = len(rows)

    def mixed(a: Expr, b: Expr, places: list[int]) -> Expr:
        return T.Bind(tirx.Shuffle([a, b], places))

    quarters = range(0, lanes, 4)
    pairs = []
    for a, b in zip(rows[0::2], rows[1::2], strict=True):
        pairs.append(mixed(a, b, [x for q in quarters for x in (q, q + lanes, q + 1, q + 1 + lanes)]))
        pairs.append(mixed(a, b, [x for q in quarters for x in (q + 2, q + 2 + lanes, q + 3, q + 3 + lanes)]))
    found = []
    low = [x for q in quarters for x in (q, q + 1, q + lanes, q + 1 + lanes)]
    high = [x for q in quarters for x in (q + 2, q + 3, q + 2 + lanes, q + 3 + lanes)]
    for first in range(0, lanes, 4):
        for half in (0, 1):
            a, b = pairs[first + half], pairs[first + 2 + half]
            found.extend([mixed(a, b, low), mixed(a, b, high)])
    # Now quarter q of vector 4 * i + k holds column 4 * q + k of rows 4 * i to 4 * i + 3.
    step = lanes // 2
    while step >= 4:
        low = [(lane - step + lanes) if lane & step else lane for lane in range(lanes)]
        high = [lane + lanes if lane & step else lane + step for lane in range(lanes)]
        swapped = list(found)
        for one in range(lanes):
            if not one & step:
                a, b = found[one], found[one + step]
                swapped[one], swapped[one + step] = mixed(a, b, low), mixed(a, b, high)
        found = swapped
        step //= 2
    return found


def turned_quads(rows: Sequence[Expr]) -> list[Expr]:
    """Columns of rows, which are vectors of four: four vectors of as many lanes as there are rows.

    Rows a quarter of those apart share a register, so that all that is exchanged lies within quarters of one.
    """
    lanes = len(rows)
    share = lanes // 4
    both = [T.Bind(tirx.Shuffle([rows[first + 4 * q] for q in range(share)], list(range(lanes)))) for first in range(4)]

    def mixed(a: Expr, b: Expr, four: tuple[int, ...]) -> Expr:
        """In each quarter the places ``four`` of its lanes in a (0 to 3) and b (4 to 7)."""
        places = [4 * q + place % 4 + (lanes if place > 3 else 0) for q in range(share) for place in four]
        return T.Bind(tirx.Shuffle([a, b], places))

    pairs = [mixed(both[at], both[at + 1], four) for at in (0, 2) for four in ((0, 4, 1, 5), (2, 6, 3, 7))]
    return [mixed(pairs[at], pairs[at + 2], four) for at in (0, 1) for four in ((0, 1, 4, 5), (2, 3, 6, 7))]
