"""Default decisions of the convolution kernels, from a small model of lanes, registers, loads and caches.

A register tile holds ``rows`` x ``pixels`` outputs times ``vectors`` vectors of output channels. One step of the
reduction multiplies them all: it loads each weight vector and broadcasts each pixel once. The model counts cycles for
the whole layer, what is computed beyond its edges included: for a step the largest of multiplies, loads, the latency of
a sum's own chain, and the weights' way from the cache that holds them; and for a tile its epilogue. On Zen 4 it is
within 5% of what is measured for kernels of vpdpbusd: they and the epilogue's share two ports, so times add. The
constants are x86's; ``hwq.schedules.arm.model`` is NEON's.
"""

from __future__ import annotations

import math

from hwq.schedules.arm import model as arm
from hwq.schedules.cpu.geometry import Form, Geometry
from hwq.schedules.cpu.narrowing import pieces, sharing
from hwq.schedules.cpu.tiles import Core, Tile

# Cycles from one multiply-add to the next on the same sum (4 on Intel since Skylake and on AMD's Zen 2 to 5).
CHAIN_CYCLES = 4.0
# Vector loads, broadcasts included, in a cycle.
LOADS_PER_CYCLE = 2.0
# Of what loads take, the share that shows though they are not the bottleneck.
SHADOW = 0.1
# Per step, where a weight vector has to come from memory each time it is used, for want of registers.
TIGHT_CYCLES = 1.0
# Per step and per tile: counters, addresses and branches that do not overlap.
STEP_CYCLES, TILE_CYCLES = 0.25, 16.0
# Epilogue, for a full vector of outputs; and for a ragged one, that goes through memory.
VECTOR_CYCLES, RAGGED_CYCLES = 6.0, 14.0
# The epilogues of this many sums run beside the next tile's first steps; those of more show. A reduction of so few
# multiplies is unrolled whole by LLVM, which then spills sums beyond that number.
OVERLAPPED, EXPOSED_CYCLES = 16, 1.0
UNROLLED_MULTIPLIES, SPILLED_CYCLES = 128, 5.0
# The same for sums of a dot product instruction, whose epilogue ends in ``narrow``: cycles for as many vectors as share
# a store. Its multiplications wait for the same ports as the sums', so the sums' pace shows little else.
NARROW_CYCLES = {1: 5.0, 2: 6.0, 4: 9.0}
NARROW_OVERLAPPED, NARROW_EXPOSED_CYCLES = 8, 1.4
NARROW_TILE_CYCLES, NARROW_SHADOW = 1.0, 0.02
# Unpacking a vector of int4, in registers; a buffer between costs as much as this many tiles that each unpack.
UNPACK_CYCLES, SHARING_TILES = 0.75, 4
# The L1 of every x86 so far indexes its sets by 12 bits of the address, and has 8 ways or more.
SET_BYTES, WAYS, CROWDED = 4096, 8, 8.0
# Bytes that the copy of the input moves in a cycle, where one is needed only because tiles reach over the edge.
COPY_BYTES = 16.0


def fits(form: Form, tile: Tile) -> bool:
    """Whether a tile's sums and its weight vectors have registers, and what else needs one: a broadcast, unless AVX-512
    takes it from memory (the activations of vpdpbusd it does not), and products, where a second instruction adds them.
    """
    if form.neon:
        return arm.fits(form, tile)
    sums = tile.rows * tile.pixels * tile.vectors
    if form.registers == 32 and form.acc == "float32":
        spare = 0
    else:
        spare = 1 if form.r == 4 or form.acc == "float32" else 3
    return sums + tile.vectors + spare <= form.registers and sums <= form.registers - 3


def cycles(geometry: Geometry, form: Form, core: Core, tile: Tile) -> float:
    """What the model expects of the whole layer with ``tile``, in cycles of one core."""
    if form.neon:
        return arm.cycles(geometry, form, core, tile)
    share = max(tile.lanes / form.vectors[0], 0.5)
    spots = tile.rows * tile.pixels
    steps = geometry.kernel_h * geometry.columns * math.ceil(geometry.run / form.r)
    multiplies = spots * tile.vectors * share / core.multiplies
    loads = (spots * crowding(geometry, form, tile.pixels) + tile.vectors) * share / LOADS_PER_CYCLE
    sums = spots * tile.vectors
    dotted = form.r == 4
    if dotted:
        # A short reduction is unrolled, and its weights then stay in registers while pixels pass.
        held = steps * tile.vectors + sums < form.registers
        weights = 0 if held else tile.vectors * share
        loads = spots * crowding(geometry, form, tile.pixels) * share / LOADS_PER_CYCLE + weights
    step_bytes = tile.vectors * tile.lanes * form.r * form.weight_item_bytes
    arrival = step_bytes / _bytes_per_cycle(core, step_bytes * steps)
    step = max(multiplies, loads, CHAIN_CYCLES, arrival)
    if sums + tile.vectors + 1 > form.registers:
        step += TIGHT_CYCLES
    ragged = geometry.group_out % (tile.lanes * tile.vectors) != 0
    if dotted and not ragged:
        step += NARROW_SHADOW * loads
        alone = tile.vectors * tile.lanes == geometry.out_c and geometry.out_w % tile.pixels == 0
        together = sharing(tile.pixels, tile.vectors) if alone else 1
        stores = sum(NARROW_CYCLES[size] for _, size in pieces(together * tile.vectors))
        epilogue = spots / together * stores + NARROW_TILE_CYCLES
        epilogue += max(0, sums - NARROW_OVERLAPPED) * NARROW_EXPOSED_CYCLES
        epilogue *= (1 + share) / 2
    else:
        step += SHADOW * loads + STEP_CYCLES
        epilogue = sums * share * (RAGGED_CYCLES if ragged else VECTOR_CYCLES) + TILE_CYCLES
        unrolled = steps * sums <= UNROLLED_MULTIPLIES
        epilogue += max(0, sums - OVERLAPPED) * share * (SPILLED_CYCLES if unrolled else EXPOSED_CYCLES)
    across = math.ceil(geometry.out_h / tile.rows) * math.ceil(geometry.out_w / tile.pixels)
    if dotted and form.weight == "int4":
        step += UNPACK_CYCLES * tile.vectors * share * min(1.0, SHARING_TILES / across)
    blocks = geometry.groups * math.ceil(math.ceil(geometry.group_out / tile.lanes) / tile.vectors)
    total = geometry.batch * across * blocks * (steps * step + epilogue)
    if not geometry.padded and (geometry.out_w % tile.pixels or geometry.out_h % tile.rows):
        total += geometry.batch * geometry.in_h * geometry.in_w * geometry.in_c * form.item_bytes / COPY_BYTES
    return total


def _bytes_per_cycle(core: Core, block_bytes: int) -> float:
    """How fast weights arrive that are read again and again, ``block_bytes`` of them."""
    if block_bytes <= core.l1_bytes // 2:
        return 64.0 * LOADS_PER_CYCLE
    return core.l2_bytes_per_cycle if block_bytes <= core.l2_bytes // 2 else core.far_bytes_per_cycle


def crowding(geometry: Geometry, form: Form, pixels: int) -> float:
    """How much dearer a tile's loads are because its pixels lie a multiple of a power of two apart and share few sets
    of the L1, which holds WAYS lines for each address modulo SET_BYTES: 1 where they fit, else CROWDED.
    """
    apart = geometry.stride_w * geometry.in_c * form.item_bytes
    places = SET_BYTES // math.gcd(apart, SET_BYTES)
    return CROWDED if math.ceil(pixels / places) > WAYS else 1.0


def best_tile(geometry: Geometry, form: Form, core: Core, *, multiple: int = 1) -> Tile:
    """The tile with the fewest cycles by the model; the smallest of equals. Its channels are a ``multiple``."""
    return ranked_tiles(geometry, form, core, multiple=multiple)[0][1]


def ranked_tiles(geometry: Geometry, form: Form, core: Core, *, multiple: int = 1) -> list[tuple[float, Tile]]:
    """(cycles, tile) of every tile that fits, ``best_tile`` first."""
    tiles = (
        Tile(rows=rows, pixels=pixels, vectors=vectors, lanes=lanes)
        for lanes in form.vectors
        for vectors in range(1, min(8, math.ceil(geometry.group_out / lanes)) + 1)
        for rows in range(1, min(4, geometry.out_h) + 1)
        for pixels in range(1, min(28, geometry.out_w) + 1)
    )
    good = [tile for tile in tiles if fits(form, tile) and tile.vectors * tile.lanes % multiple == 0]
    priced = [(cycles(geometry, form, core, tile), tile) for tile in good]
    return sorted(priced, key=lambda one: (one[0], one[1].rows, one[1].pixels * one[1].vectors))


def divisors(extent: int, largest: int) -> list[int]:
    """Those of ``extent`` up to ``largest``, rising."""
    return [size for size in range(1, min(extent, largest) + 1) if extent % size == 0]


def crowd(rows: int, row_bytes: int) -> bool:
    """Whether so many rows lie so that they would drive each other, and the weights, out of few sets of the L1."""
    return math.ceil(rows / (SET_BYTES // math.gcd(row_bytes, SET_BYTES))) > WAYS // 2
