"""int4 weights in registers: two to a byte, unpacked to bytes of 16 times the weight.

A byte holds w + 8 in each half (``packing.pack_nibbles``). Shifting by whole bytes is not an instruction of x86, but a
half in the upper place is a signed byte of value 16 * w once its sign bit is turned over: a mask and an exclusive or,
one instruction on AVX-512, the lower half shifted up first. So sums come out 16 times too large, exactly, and one shift
of each sum replaces a subtraction for each weight.

NEON shifts bytes, so there each half holds w itself, in four bits: a shift, or a mask, makes 16 * w of it.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from hwq.schedules.cpu.geometry import Form

SCALE_BITS = 4
# What products in parts want for themselves: broadcasts, and sums of two of them; with less LLVM spills.
PART_REGISTERS = 5
# The largest product of a stored byte and a scaled weight, and what a sum of them may reach.
_LARGEST, _MOST = 255 * (8 << SCALE_BITS), (1 << 31) - 1


def within_range(products: int) -> bool:
    """Whether no sum of so many scaled products leaves int32: up to 65,793 of them."""
    return products * _LARGEST <= _MOST


def unpacking_registers(form: Form, vectors: int, spots: int = 0) -> int:
    """Registers that a tile of ``vectors`` vectors of channels wants beside its sums, where it unpacks as it goes: both
    halves of each vector (and what is widened), two masks, and a broadcast; or, where activations are held, those of
    its ``spots``, one mask, and what ``parts`` want.
    """
    if form.reach:
        return 2 * vectors + spots + 1 + (PART_REGISTERS + 1) * (form.parts - 1)
    return (3 if form.act == "int16" else 2) * vectors + 3


def scaled_nibble(byte: Any, odd: Any, *, signed: bool = False) -> Any:
    """16 times the int4 weight in the low (odd 0) or high (odd 1) half of a byte that holds it plus 8 (``signed``: that
    holds it), as int8.
    """
    upper = (byte << ((1 - odd) * SCALE_BITS).astype("uint8")) & tirx.const(0xF0, "uint8")
    return tirx.reinterpret("int8", upper if signed else upper ^ tirx.const(0x80, "uint8"))
