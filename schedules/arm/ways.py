"""The NEON instructions that the templates of ``schedules/cpu`` know: 32 registers of 128 bits.

* ``neon.sdot``: four neighbouring int8 products to each int32 sum. A register holds four groups of activations, and the
  instruction takes one of them by its place: no broadcast.
* ``neon.smlal``: CPUs without it multiply bytes to words. A word holds two products of weights in [-127, 127]
  (2 * 128 * 127 = 32,512), so ``smull`` and ``smlal`` make eight sums of two, and ``sadalp`` adds neighbouring ones to
  four int32 sums: 16 products in three instructions, of which the last runs beside the first two. Nothing saturates.
  (``smlal`` of words by element would take four instructions for as many, all in the multiplier.)
* ``neon.fmla``: floats, each of a register's four activations by its place.
"""

from __future__ import annotations

from hwq.schedules.cpu.ways import Way

WAYS: dict[str, Way] = {
    "neon.sdot": Way(r=4, lanes=4, mnemonic="sdot", stored="int8", reach=16, registers=32, signed_nibbles=True),
    "neon.smlal": Way(
        r=4, lanes=4, mnemonic="smlal", stored="int8", reach=16, parts=2, registers=32, signed_nibbles=True
    ),
    "neon.fmla": Way(r=1, lanes=4, mnemonic="fmla", reach=4, registers=32),
}
