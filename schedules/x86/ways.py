"""The x86 instructions that the templates of ``schedules/cpu`` know."""

from __future__ import annotations

from hwq.schedules.cpu.ways import Way

WAYS: dict[str, Way] = {
    "avx512.vpdpbusd": Way(r=4, lanes=16, mnemonic="vpdpbusd", stored="uint8"),
    "avx512.vdpbf16ps": Way(r=2, lanes=16, mnemonic="vdpbf16ps", widened="uint16"),
    "avx.vpdpbusd": Way(r=4, lanes=8, mnemonic="vpdpbusd", stored="uint8"),
    "avx2.vpmaddwd": Way(r=2, lanes=8, mnemonic="vpmaddwd", widened="int16"),
    "generic.mul": Way(r=1, lanes=16, widened="int16"),
    "avx512.fma": Way(r=1, lanes=16, mnemonic="vfmadd"),
    "avx2.fma": Way(r=1, lanes=8, mnemonic="vfmadd"),
    "generic.fma": Way(r=1, lanes=16),
}
