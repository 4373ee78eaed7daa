"""What a template of ``schedules/cpu`` wants to know of an instruction: a ``Way`` for each that a CPU's file names.

``hwq.schedules.x86.ways`` and ``hwq.schedules.arm.ways`` hold them, by the instruction's name in compute rows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """r: activations added up at a time. lanes: sums of a vector, at most. mnemonic: what the assembly must hold.

    widened: the type activations are widened to first, None if not. stored: the type of integer activations in memory,
    None if any will do. reach: activations that are loaded at once and then taken one group at a time by their place in
    the register; 0 where each group is a broadcast from memory. parts: pieces a group falls into, whose weights lie one
    behind the other for all lanes. registers: how many there are; 0: 32 of 512 bits, else 16. signed_nibbles: int4
    weights are packed as they are, else plus 8.
    """

    r: int
    lanes: int
    mnemonic: str | None = None
    widened: str | None = None
    stored: str | None = None
    reach: int = 0
    parts: int = 1
    registers: int = 0
    signed_nibbles: bool = False
