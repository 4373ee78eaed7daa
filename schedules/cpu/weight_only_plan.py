"""Which tile a weight-only dense kernel takes, and how its weights lie (see ``weight_only``)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.group_scales import group_count
from hwq.workload import Workload

# Weights of a word, and what each is stored plus.
NIBBLES, ZERO = 4, 8
# Rows of a tile at most, vectors of channels at most, and sums that hide the time of a multiply.
MOST_ROWS, MOST_VECTORS, HIDING = 16, 4, 8
# How far ahead of their use weights are asked for: one row of 4096 x 4096 from memory takes 325 us on Zen 4 with 1 KB,
# 435 without, and with 4 KB, a page, as much (what w4a8_g64 takes at the same time: 345).
AHEAD_BYTES = 1024
# Elements of int16 in a cache line.
_LINE = 32
# Cycles of what unpacks, loads and broadcasts, of a multiply's; and of a part that becomes a float.
LOAD_CYCLES, PART_CYCLES = 0.3, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One kernel: ``rows`` x ``vectors`` of ``lanes`` channels are a tile. r: inputs of a multiply. accumulates: it has
    an instruction that adds too. chains: sums of each output, added up at a group's end.

    parallel: blocks of channels are shared out over threads; parallel_rows: so is what is made of rows first.
    """

    workload: Workload
    group: int
    count: int
    inputs: int
    channels: int
    rows: int
    vectors: int
    lanes: int
    r: int
    accumulates: bool
    chains: int
    parallel: bool = False
    parallel_rows: bool = False

    @property
    def chunk(self) -> int:
        """Inputs of a vector of words."""
        return NIBBLES * self.r

    @property
    def groups(self) -> int:
        return group_count(self.inputs, self.group)

    @property
    def whole_groups(self) -> int:
        return self.inputs // self.group

    @property
    def rest(self) -> int:
        """Inputs of a group that is cut short."""
        return self.inputs % self.group

    def padded(self, size: int) -> int:
        """Inputs of whole chunks."""
        return math.ceil(size / self.chunk) * self.chunk

    @property
    def chunks(self) -> int:
        """Of all inputs."""
        return math.ceil(self.inputs / self.chunk)

    @property
    def pitch(self) -> int:
        """From one row of 16-bit numbers to the next: an odd number of lines, so that rows use different sets."""
        lines = math.ceil(self.chunks * self.chunk / _LINE)
        return (lines + 1 - lines % 2) * _LINE

    @property
    def tiles(self) -> int:
        return math.ceil(self.count / self.rows)

    @property
    def blocks(self) -> int:
        return math.ceil(self.channels / (self.vectors * self.lanes))

    @property
    def ahead(self) -> int:
        """Chunks by which weights are asked for before they are read."""
        return AHEAD_BYTES // (2 * self.vectors * self.lanes * self.r)

    @property
    def words(self) -> int:
        return self.blocks * self.chunks * self.vectors * self.lanes * self.r


def tile_of(count: int, channels: int, lanes: int, registers: int, *, accumulates: bool) -> tuple[int, int, int]:
    """(rows, vectors, chains) of fewest cycles that have registers: sums, words, what is unpacked, a mask, a row."""
    wide = math.ceil(channels / lanes)
    spare = 3 if accumulates else 4
    best: tuple[float, tuple[int, int, int]] | None = None
    for vectors in range(1, min(MOST_VECTORS, wide) + 1):
        for rows in range(1, min(MOST_ROWS, count) + 1):
            if rows * vectors + 2 * vectors + spare > registers:
                continue
            room = (registers - 2 * vectors - spare) // (rows * vectors)
            chains = next(n for n in (4, 2, 1) if n <= room and (n == 1 or n // 2 * rows * vectors < HIDING))
            products = NIBBLES * max(rows * vectors, HIDING / 2 / chains) * (1 if accumulates else 2)
            others = LOAD_CYCLES * ((2 * NIBBLES - 1) * vectors + NIBBLES * rows) + PART_CYCLES * rows * vectors / 16
            cycles = math.ceil(count / rows) * math.ceil(wide / vectors) * (products + others)
            if best is None or cycles < best[0]:
                best = cycles, (rows, vectors, chains)
    assert best is not None
    return best[1]


def pack(plan: Plan, weight: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """int8 (O, I) as the kernel of ``plan`` reads it: (blocks, chunks, vectors, lanes, r) words of four weights, of
    inputs r apart, the first lowest."""
    lanes, vectors, r = plan.lanes, plan.vectors, plan.r
    padded = np.zeros((plan.blocks * vectors * lanes, plan.chunks * plan.chunk), np.int8)
    padded[: plan.channels, : plan.inputs] = weight.reshape(plan.channels, plan.inputs)
    cut = padded.reshape(plan.blocks, vectors, lanes, plan.chunks, NIBBLES, r).transpose(0, 3, 1, 2, 5, 4)
    nibbles = (cut + np.int8(ZERO)).astype(np.uint16)
    words = np.zeros(nibbles.shape[:-1], np.uint16)
    for j in range(NIBBLES):
        words |= nibbles[..., j] << np.uint16(4 * j)
    return np.ascontiguousarray(words)
