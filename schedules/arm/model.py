"""What a register tile takes on NEON, in cycles: the part of ``cpu.tiling`` that is of Arm's cores.

No board has timed it. Numbers are from Arm's Software Optimization Guides of the Cortex-A76 and the Cortex-A72: their
pipelines, and the latency and throughput of ASIMD integer, floating-point and load instructions. A core that multiplies
twice a cycle (A76: two 128-bit pipes) loads twice a cycle and decodes four instructions, else (A72) it loads once and
decodes three.
"""

from __future__ import annotations

import math

from hwq.schedules.cpu.geometry import Form, Geometry
from hwq.schedules.cpu.holding import hold_of
from hwq.schedules.cpu.int4 import PART_REGISTERS
from hwq.schedules.cpu.narrowing import pieces, sharing
from hwq.schedules.cpu.tiles import Core, Tile

# Cycles from one multiply-add to the next on the same sum: FMLA 2 (A76) and 3 (A72) by forwarding, SDOT 1 to 2, SADALP
# 1; four sums a pipe hide any of them.
CHAIN_SUMS = 4.0
# Instructions of a product of one vector: SDOT or FMLA; where it has two parts SMULL, SMLAL, SADALP.
INSTRUCTIONS = {1: 1.0, 2: 3.0}
# Of what is not the bottleneck, the share that shows: reordering reaches over 128 instructions (A76; A72 the same).
SHADOW = 0.1
# Epilogue in vector instructions: of as many vectors of sums as share a store, counted in ``narrow``; of one vector of
# floats; and of one whose tile is ragged, which goes through memory.
NARROW_INSTRUCTIONS = {1: 10.0, 2: 14.0, 4: 25.0}
FLOAT_INSTRUCTIONS, RAGGED_INSTRUCTIONS = 4.0, 30.0
# What it costs a pixel of a tile that it may lie beyond the edge: a branch, across which nothing is reordered.
EDGE_CYCLES = 2.0
# How many of them a core finishes in a cycle: two pipes, of which the A72 converts on one.
PIPES, OLD_PIPES = 2.0, 1.4
# Per step of a register of activations, and per tile: counters, addresses, a branch.
LOOP_INSTRUCTIONS, TILE_CYCLES = 4.0, 12.0
# Vectors of channels in a tile of a product at most: a core that reads weights but once has eight sums to add to.
MOST_VECTORS = 8
# What a load takes beside products, in products, where it is not the bottleneck.
LOAD_PRODUCTS = 0.3
# Bytes that the copy of the input moves in a cycle, where one is needed only because tiles reach over the edge.
COPY_BYTES = 8.0


def fits(form: Form, tile: Tile) -> bool:
    """``has_registers`` of a convolution's tile."""
    return has_registers(form, tile.rows * tile.pixels, tile.vectors)


def has_registers(form: Form, spots: int, vectors: int) -> bool:
    """Whether sums, a spot's activations each, a step's weights and what ``parts`` want have registers, and one more:
    with none to spare LLVM keeps sums on the stack.
    """
    return spots * vectors + spots + vectors + 1 + PART_REGISTERS * (form.parts - 1) <= form.registers


def step_cycles(form: Form, rows: int, vectors: int) -> float:
    """What a step of a product's tile takes, in products of one vector: those, at least as many as hide a sum's own
    latency, and a share of its loads and of what goes before them.
    """
    reach = form.reach // form.r
    return max(rows * vectors, 2 * CHAIN_SUMS) + LOAD_PRODUCTS * (rows / reach + vectors + rows * (form.parts - 1))


def cycles(geometry: Geometry, form: Form, core: Core, tile: Tile) -> float:
    """What the model expects of the whole layer with ``tile``, in cycles of one core."""
    hold = hold_of(form, geometry.run)
    run_steps = math.ceil(geometry.run / (form.r * hold)) * hold
    steps = geometry.kernel_h * geometry.columns * run_steps
    spots = tile.rows * tile.pixels
    sums = spots * tile.vectors
    wide = core.multiplies >= 2.0
    width, loads_per_cycle = (4.0, 2.0) if wide else (3.0, 1.0)
    loads = spots / hold + tile.vectors
    multiplies = max(sums, CHAIN_SUMS * core.multiplies) / core.multiplies
    # A broadcast (LD1R) takes a vector pipe as well; so does the DUP of each part.
    broadcasts = spots * form.parts if form.parts > 1 else (spots if hold == 1 else 0.0)
    multiplies += broadcasts / 2.0 if form.parts == 1 else 0.0
    # The A72's other pipe adds up pairs (SADALP) and broadcasts.
    beside = sums + broadcasts if form.parts > 1 else 0.0
    instructions = sums * INSTRUCTIONS[form.parts] + broadcasts + loads + LOOP_INSTRUCTIONS / hold
    step_bytes = tile.vectors * tile.lanes * form.r * form.weight_item_bytes
    arrival = step_bytes / _bytes_per_cycle(core, step_bytes * steps, loads_per_cycle)
    parts = (multiplies, beside, loads / loads_per_cycle, instructions / width, arrival)
    step = max(parts) + SHADOW * (sum(parts) - max(parts))
    ragged = geometry.group_out % (tile.lanes * tile.vectors) != 0
    if ragged:
        finish = sums * RAGGED_INSTRUCTIONS
    elif form.acc == "float32":
        finish = sums * FLOAT_INSTRUCTIONS
    else:
        alone = tile.vectors * tile.lanes == geometry.out_c and geometry.out_w % tile.pixels == 0
        together = sharing(tile.pixels, tile.vectors) if alone else 1
        stores = sum(NARROW_INSTRUCTIONS[size] for _, size in pieces(together * tile.vectors))
        finish = spots / together * stores
    epilogue = finish / (PIPES if wide else OLD_PIPES) + TILE_CYCLES
    if geometry.out_w % tile.pixels:
        epilogue += spots * EDGE_CYCLES
    across = math.ceil(geometry.out_h / tile.rows) * math.ceil(geometry.out_w / tile.pixels)
    blocks = geometry.groups * math.ceil(math.ceil(geometry.group_out / tile.lanes) / tile.vectors)
    total = geometry.batch * across * blocks * (steps * step + epilogue)
    if not geometry.padded and (geometry.out_w % tile.pixels or geometry.out_h % tile.rows):
        total += geometry.batch * geometry.in_h * geometry.in_w * geometry.in_c * form.item_bytes / COPY_BYTES
    return total


def _bytes_per_cycle(core: Core, block_bytes: int, loads_per_cycle: float) -> float:
    """How fast weights arrive that are read again and again, ``block_bytes`` of them."""
    if block_bytes <= core.l1_bytes // 2:
        return 16.0 * loads_per_cycle
    return core.l2_bytes_per_cycle if block_bytes <= core.l2_bytes // 2 else core.far_bytes_per_cycle
