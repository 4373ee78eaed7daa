"""Default decisions of the convolution kernels, from a small model of lanes, registers and loads.

A register tile holds ``rows`` x ``pixels`` outputs times ``vectors`` vectors of output channels. One step of the
reduction multiplies them all: it loads each weight vector and broadcasts each pixel once. The model counts, for the
whole layer and padding included, the larger of multiplies, loads and the latency of a sum's own chain; and adds the
epilogue of each tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwq.schedules.x86.geometry import Form, Geometry

# Cycles from one multiply-add to the next on the same sum (4 on Intel and on AMD's Zen 4), and full-width vector
# instructions, multiplies or loads, in a cycle, on the narrowest of them.
CHAIN_CYCLES = 4.0
# Per tile: its loop's branches and addresses, and the pipeline's drain.
TILE_CYCLES = 16.0
# The L1 of every x86 so far indexes its sets by 12 bits of the address, and has 8 ways or more.
SET_BYTES, WAYS, CROWDED = 4096, 8, 8.0
# Epilogue, per full vector of outputs.
VECTOR_CYCLES = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A register tile: output rows x pixels x vectors of ``lanes`` channels each."""

    rows: int
    pixels: int
    vectors: int
    lanes: int


def fits(form: Form, tile: Tile) -> bool:
    """Whether a tile's sums, its weight vectors and one broadcast have registers; one weight may come from memory."""
    sums = tile.rows * tile.pixels * tile.vectors
    return sums + tile.vectors <= form.registers and sums <= form.registers - 3


def cycles(geometry: Geometry, form: Form, tile: Tile) -> float:
    """What the model expects of the whole layer with ``tile``, in cycles of one core."""
    share = tile.lanes / form.vectors[0]
    spots = tile.rows * tile.pixels
    steps = geometry.kernel_h * geometry.columns * math.ceil(geometry.run / form.r)
    multiplies = spots * tile.vectors * share
    loads = (spots * crowding(geometry, form, tile.pixels) + tile.vectors) * max(share, 0.5)
    step = max(multiplies, loads, CHAIN_CYCLES)
    per_tile = steps * step + multiplies * VECTOR_CYCLES + TILE_CYCLES
    blocks = geometry.groups * math.ceil(math.ceil(geometry.group_out / tile.lanes) / tile.vectors)
    across = math.ceil(geometry.out_w / tile.pixels)
    tiles = geometry.batch * math.ceil(geometry.out_h / tile.rows) * across * blocks
    total = tiles * per_tile
    if geometry.group_out % tile.lanes:  # staged through memory, channel by channel at the edge
        total += geometry.batch * geometry.out_h * geometry.out_w * blocks * 8.0
    if not geometry.padded and (geometry.out_w % tile.pixels or geometry.out_h % tile.rows):  # needs a wider copy
        total += geometry.batch * geometry.in_h * geometry.in_w * geometry.in_c / 32.0
    return total


def crowding(geometry: Geometry, form: Form, pixels: int) -> float:
    """How much dearer a tile's loads are because its pixels lie a multiple of some power of two apart and share few sets of
    the L1, which holds WAYS lines for each address modulo SET_BYTES: 1 where they fit, else CROWDED."""
    apart = geometry.stride_w * geometry.in_c * form.item_bytes
    places = SET_BYTES // math.gcd(apart, SET_BYTES)
    return CROWDED if math.ceil(pixels / places) > WAYS else 1.0


def best_tile(geometry: Geometry, form: Form) -> Tile:
    """The tile with the fewest cycles by the model; the smallest of equals."""
    tiles = (
        Tile(rows=rows, pixels=pixels, vectors=vectors, lanes=lanes)
        for lanes in form.vectors
        for vectors in range(1, min(8, math.ceil(geometry.group_out / lanes)) + 1)
        for rows in range(1, min(4, geometry.out_h) + 1)
        for pixels in range(1, min(28, geometry.out_w) + 1)
    )
    good = [tile for tile in tiles if fits(form, tile)]
    return min(good, key=lambda tile: (cycles(geometry, form, tile), tile.rows, tile.pixels * tile.vectors, tile.vectors))


def divisors(extent: int, largest: int) -> list[int]:
    return [size for size in range(1, min(extent, largest) + 1) if extent % size == 0]
