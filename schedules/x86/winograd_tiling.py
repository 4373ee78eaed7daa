"""Default decisions of the Winograd kernels, and when they beat the direct convolution, from a small model in cycles.

The model counts what ``tiling`` counts for the direct kernel, in the same unit, so that the two can be compared: the
products by register tiles, as there, and the transforms by a constant for each vector of channels of a tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwq.schedules.cpu.geometry import Form, Geometry
from hwq.schedules.cpu.tiles import Core
from hwq.schedules.cpu.tiling import CHAIN_CYCLES, COPY_BYTES, LOADS_PER_CYCLE, STEP_CYCLES, divisors
from hwq.schedules.x86.winograd_maths import KERNEL, STEPS, TILE, WINDOW

# The transforms of one tile and vector: of the input, of the sums of a chunk.
INPUT_CYCLES, OUTPUT_CYCLES = 55.0, 50.0
# The epilogue of a tile and vector; where its pixels share stores; where vectors are not whole; a table, byte by byte.
EPILOGUE_CYCLES, SHARED_CYCLES, RAGGED_CYCLES, TABLE_CYCLES = 60.0, 35.0, 500.0, 300.0
# A call: its workspace.
CALL_CYCLES = 500.0
# Sums of a register tile: they hide the latency of one another, and more only make the bursts to memory longer.
SUMS = 14
# Per register tile: its zeroing and its way to memory, for each sum; and what its loop costs.
STORE_CYCLES, TILE_CYCLES = 0.5, 4.0
# Of the time that weights and sums take to and from the L2, the share that does not overlap; from beyond, all shows.
EXPOSED = 0.3
# Expanded weights are the larger part of a network's: those that leave the L2 are likely to leave the L3 as well. With
# more than this many times the L2 they are counted as coming from memory at every call.
FAR_L2S = 2
# The share of the L2 that a block may fill.
L2_SHARE = 0.6
# What the model does not know is worth this share of the time before a kernel is preferred to the direct one.
MARGIN = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocking:
    """A kernel's decisions: ``rows`` rows of tiles in a block, register tiles of ``tiles`` x ``vectors``."""

    rows: int
    tiles: int
    vectors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What follows from a shape and a blocking: tiles ``across`` the picture and in a ``block``; ``bands`` of rows and
    ``blocks`` of vectors; ``chunks`` x ``steps`` pairs of channels; ``wide`` channels at a time through the input's
    transform, ``channels`` in all."""

    across: int
    block: int
    bands: int
    blocks: int
    lanes: int
    chunks: int
    steps: int
    wide: int
    channels: int


def sizes(geometry: Geometry, form: Form, blocking: Blocking) -> Sizes:
    """The sizes of a kernel."""
    lanes = form.vectors[0]
    across = math.ceil(geometry.out_w / TILE)
    pairs = math.ceil(geometry.in_c / 2)
    chunks = math.ceil(pairs / STEPS[form.weight])
    steps = math.ceil(pairs / chunks)
    wide = lanes * 2 if geometry.in_c > lanes else lanes
    return Sizes(
        across=across,
        block=blocking.rows * across,
        bands=math.ceil(math.ceil(geometry.out_h / TILE) / blocking.rows),
        blocks=math.ceil(geometry.out_c / (lanes * blocking.vectors)),
        lanes=lanes,
        chunks=chunks,
        steps=steps,
        wide=wide,
        channels=math.ceil(chunks * steps * 2 / wide) * wide,
    )


def fits(form: Form, tiles: int, vectors: int) -> bool:
    """Whether a register tile has at most SUMS sums, and these, its weights, a broadcast and (AVX2) a product fit."""
    spare = 1 if form.registers == 32 else 2
    return tiles * vectors <= SUMS and tiles * vectors + vectors + spare <= form.registers


def weights_bytes(geometry: Geometry) -> int:
    """Bytes of the expanded weights."""
    return WINDOW**2 * geometry.in_c * geometry.out_c * 2


def shares(geometry: Geometry, blocking: Blocking, size: Sizes) -> bool:
    """Whether the four pixels of a tile's row can share a store: one vector each, and no tile reaches over an edge."""
    whole = geometry.out_h == size.bands * blocking.rows * TILE and geometry.out_w % TILE == 0
    return whole and geometry.out_c == size.lanes


def cycles(
    geometry: Geometry, form: Form, core: Core, blocking: Blocking, threads: int, *, table: bool = False
) -> float:
    """What the model expects of the whole layer, in cycles of one core; more if ``threads`` cannot share it evenly."""
    size = sizes(geometry, form, blocking)
    spots, vectors, repeats = blocking.tiles, blocking.vectors, size.block // blocking.tiles
    step_bytes = vectors * size.lanes * 4
    near = weights_bytes(geometry) <= core.l2_bytes // 2
    arrival = step_bytes / (core.l2_bytes_per_cycle if near else core.far_bytes_per_cycle) / repeats
    multiplies, loads = spots * vectors / core.multiplies, (spots + vectors) / LOADS_PER_CYCLE
    step = max(multiplies, loads, CHAIN_CYCLES) + STEP_CYCLES + (EXPOSED if near else 1.0) * arrival
    product = repeats * (size.steps * step + spots * vectors * STORE_CYCLES + TILE_CYCLES)
    sums_bytes = WINDOW**2 * size.chunks * size.block * vectors * size.lanes * 4
    moved = sums_bytes / core.l2_bytes_per_cycle * EXPOSED if sums_bytes > core.l1_bytes else 0.0
    ragged = geometry.out_c % (size.lanes * vectors) != 0
    epilogue = SHARED_CYCLES if shares(geometry, blocking, size) else EPILOGUE_CYCLES
    ends = size.chunks * OUTPUT_CYCLES + (RAGGED_CYCLES if ragged else epilogue) + (TABLE_CYCLES if table else 0.0)
    block = size.blocks * (WINDOW**2 * size.chunks * product + moved + size.block * vectors * ends)
    block += size.block * size.channels / size.wide * INPUT_CYCLES
    block += (TILE * blocking.rows + 2) * (TILE * size.across + 2) * geometry.in_c / COPY_BYTES
    count = geometry.batch * size.bands
    return block * math.ceil(count / threads) * threads + CALL_CYCLES


def best_blocking(geometry: Geometry, form: Form, core: Core, threads: int) -> Blocking:
    """The decisions with the fewest cycles by the model."""
    return ranked_blockings(geometry, form, core, threads)[0]


def ranked_blockings(geometry: Geometry, form: Form, core: Core, threads: int) -> list[Blocking]:
    """The decisions that may be, ``best_blocking`` first."""
    across, high = math.ceil(geometry.out_w / TILE), math.ceil(geometry.out_h / TILE)
    lanes = form.vectors[0]
    most = math.ceil(geometry.out_c / lanes)
    good = [
        Blocking(rows=rows, tiles=tiles, vectors=vectors)
        for rows in range(1, high + 1)
        for vectors in (1, 2)
        if vectors <= most
        if rows == 1 or block_bytes(geometry, core, rows * across, vectors * lanes) <= core.l2_bytes * L2_SHARE
        for tiles in divisors(rows * across, 28)
        if fits(form, tiles, vectors)
    ]
    return sorted(good, key=lambda one: (cycles(geometry, form, core, one, threads), one.rows, one.tiles * one.vectors))


def block_bytes(geometry: Geometry, core: Core, tiles: int, channels: int) -> int:
    """Bytes that pass through the L2 for a block of tiles: its transformed input, the sums of ``channels``, and the
    weights, if they stay."""
    held = weights_bytes(geometry) if weights_bytes(geometry) <= core.l2_bytes // 2 else 0
    return held + WINDOW**2 * tiles * (geometry.in_c * 2 + channels * 4)


def suits(geometry: Geometry) -> bool:
    """Whether it is a 3x3 convolution of stride 1, without dilation or groups."""
    return (
        geometry.kernel_h == geometry.kernel_w == KERNEL
        and geometry.stride_h == geometry.stride_w == 1
        and geometry.dilation_h == geometry.dilation_w == 1
        and geometry.groups == 1
    )
