"""A register tile, and what a model of its time wants to know of a core."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A register tile: output rows x pixels x vectors of ``lanes`` channels each."""

    rows: int
    pixels: int
    vectors: int
    lanes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """What the model wants to know of a core: multiply-adds of full vectors in a cycle, cache sizes, and bytes that
    arrive in a cycle from the L2 and from beyond.
    """

    multiplies: float
    l1_bytes: int
    l2_bytes: int
    l2_bytes_per_cycle: float
    far_bytes_per_cycle: float
