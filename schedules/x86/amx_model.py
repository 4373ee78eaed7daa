"""What a plan of an AMX kernel costs, and the choice among plans by it.

``estimate`` counts by the figures of Sapphire Rapids (Intel 64 and IA-32 Architectures Optimization Reference Manual,
AMX instruction throughput and latency): a product starts every 16 cycles whatever its rows, a load takes 8 from the L1,
a store 16, and a product's sums are ready after 52. So 2 x 2 tiles, with 4 loads beside 4 products, are bound by
products; fewer than 4 tiles of sums, by latency; and wide layers with few inputs, by their epilogue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hwq.schedules.cpu.narrowing import pieces
from hwq.schedules.x86.amx_plan import LANES, TILE_BYTES, TILE_ROWS, Plan
from hwq.target import Target

PRODUCT_CYCLES, LATENCY_CYCLES, LOAD_CYCLES, STORE_CYCLES = 16.0, 52.0, 8.0, 16.0
# Bytes that tile loads get from the L2 in a cycle, of the 64 that the L2 can give; and that outputs take.
L2_BYTES = 32.0
# Vector operations of 512 bits that start in a cycle.
PORTS = 2
# Operations that make bytes of 1, 2 or 4 vectors which share a store: see ``narrow``.
NARROWING = {1: 9, 2: 9, 4: 12}
# Operations of 64 table lookups by shuffles; and of a vector of 16, one by one.
SHUFFLED, ONE_BY_ONE = 6, 32
# Operations of a float activation that is no clamp: a polynomial.
POLYNOMIAL = 12
# Of the products and the epilogue that run beside them, what shows of the shorter one; and starting a block.
SHADOW, BLOCK_CYCLES = 0.1, 24.0
# Bytes that a copy of the input reads and writes in a cycle.
COPY_BYTES = 48.0
# Bytes to which int4 weights are unpacked in a cycle: a store.
UNPACK_BYTES = 64.0
# Work below this is not split over threads: starting them would cost a tenth of it.
PARALLEL_LEAST_S = 30e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Cycles of one call on one core by part, and in all; bytes that tile loads read, and that come from the L2."""

    products: float
    loads: float
    stores: float
    epilogue: float
    copy: float
    unpack: float
    weights: float
    loaded_bytes: int
    l2_bytes: float
    total: float


def row_operations(plan: Plan) -> float:
    """Vector operations in the epilogue of a block's row, all its channels there."""
    work = plan.workload
    clamps = work.activation.clamps
    if plan.bf16:
        activation = 0 if work.activation.kind == "none" else 2 if clamps else POLYNOMIAL
        moves = 2  # a store at least, which is as long as two operations
        return plan.nt * max(moves, (work.has_bias and not plan.biased) + work.residual + activation)
    each = 2 + (not plan.biased) + 4 * work.residual
    if work.out_dtype == "float32":
        return plan.nt * (each + 2)
    stores = [vectors for _, vectors in pieces(plan.nt * plan.together)]
    narrowing = sum(NARROWING[vectors] for vectors in stores)
    if not clamps:
        narrowing += sum(SHUFFLED if vectors * LANES == TILE_BYTES else vectors * ONE_BY_ONE for vectors in stores)
    return plan.nt * (each + 1) + narrowing / plan.together


def _written_bytes(plan: Plan, target: Target) -> float:
    """Bytes of output that pass between the first two caches, to be written and on their way out. A row's channels that
    are no whole line cost one, if the rest of it is written much later.
    """
    shape = plan.geometry
    item = 4 if plan.workload.out_dtype == "float32" else 1
    pixels = shape.batch * shape.out_h * shape.out_w
    if pixels * shape.out_c * item <= target.l1_bytes // 2:
        return 0.0
    part = min(plan.block_lanes, shape.out_c) * item
    apart = plan.pixels_inner and plan.channel_blocks > 1
    return 2.0 * pixels * plan.channel_blocks * (max(part, TILE_BYTES) if apart else part)


def best_plan(plans: list[Plan], target: Target) -> Plan:
    """The plan of ``plans`` with the fewest cycles by the model; of equals the first."""
    return min(plans, key=lambda plan: estimate(plan, target).total)


def estimate(plan: Plan, target: Target) -> Estimate:
    """What one call of ``plan`` takes on one core of ``target``, when it is called again and again."""
    shape = plan.geometry
    pixel_blocks = plan.runs * plan.blocks
    tiles, step_loads = plan.mt * plan.nt, plan.mt + plan.nt
    many = pixel_blocks * plan.channel_blocks
    tile_bytes = TILE_ROWS * plan.width * plan.item_bytes
    # Bytes of a block that are new to it, and those that pass before it comes back to the same weights.
    rows = plan.block_rows * plan.source.step[1] * shape.in_c * plan.item_bytes
    fresh = rows * (shape.kernel_h if plan.pixels_inner else 1)
    weights = plan.channel_blocks * plan.panel_bytes
    half = target.l1_bytes // 2
    if plan.pixels_inner:
        input_l2 = rows * plan.channel_blocks * pixel_blocks if plan.channel_blocks > 1 else fresh * pixel_blocks
        weights_l2 = weights * (1 if plan.panel_bytes <= half else pixel_blocks)
    else:
        block_bytes = plan.block_rows * plan.steps * plan.width * plan.item_bytes
        input_l2 = fresh * pixel_blocks * (1 if block_bytes <= half else plan.channel_blocks)
        weights_l2 = weights * (1 if weights <= half else pixel_blocks)
    l2_bytes = float(input_l2 + weights_l2)
    products = many * plan.steps * max(tiles * PRODUCT_CYCLES, LATENCY_CYCLES)
    loads = max(many * (plan.steps * step_loads + plan.biased * tiles) * LOAD_CYCLES, l2_bytes / L2_BYTES)
    stores = many * tiles * STORE_CYCLES + _written_bytes(plan, target) / L2_BYTES
    epilogue = many * plan.block_rows * row_operations(plan) / PORTS
    packed = weights // 2 if plan.weight == "int4" else weights
    far = 0.0
    if packed > target.l2_bytes // 2:
        far = packed / (target.l3_bytes_per_s or target.memory_bytes_per_s) * target.clock_hz
    copied_bytes = shape.batch * plan.image * (6 if plan.bf16 else 2) if plan.source.copied else 0
    unpack = weights / UNPACK_BYTES if plan.weight == "int4" else 0.0
    alone = unpack / plan.channel_blocks
    parts = (products, loads, stores, epilogue + unpack - alone, far)
    copy = copied_bytes / COPY_BYTES
    total = max(parts) + SHADOW * (sum(parts) - max(parts)) + many * BLOCK_CYCLES + copy + alone
    return Estimate(
        products=products,
        loads=loads,
        stores=stores,
        epilogue=epilogue,
        copy=copy,
        unpack=unpack,
        weights=far,
        loaded_bytes=many * plan.steps * step_loads * tile_bytes,
        l2_bytes=l2_bytes,
        total=total,
    )


def sectioned(plan: Plan, target: Target) -> Plan:
    """``plan`` cut into sections. One, unless its threads pay, or its input with the output does not fit in half of the
    L2 while the weights do: then blocks of channels pass over parts of the pixels that fit.

    With threads: the cut whose busiest thread has the least to do; of equals the one that reads least twice.
    """
    shape = plan.geometry
    half = target.l2_bytes // 2
    item = 4 if plan.workload.out_dtype == "float32" else 1
    read = shape.batch * plan.image * plan.item_bytes
    touched = read + shape.batch * shape.out_h * shape.out_w * shape.out_c * item
    weights = plan.channel_blocks * plan.panel_bytes
    pixel_blocks, channel_blocks = plan.runs * plan.blocks, plan.channel_blocks
    least = min(pixel_blocks, math.ceil(touched / half)) if plan.pixels_inner and weights <= half else 1
    threads = plan.workload.parallel
    if threads == 1 or estimate(plan, target).total < PARALLEL_LEAST_S * target.clock_hz:
        return replace(plan, chunks=(least, 1))

    def busiest(chunks: tuple[int, int]) -> tuple[int, int]:
        rounds = math.ceil(chunks[0] * chunks[1] / threads)
        each = math.ceil(pixel_blocks / chunks[0]) * math.ceil(channel_blocks / chunks[1])
        return rounds * each, read * chunks[1] + weights * chunks[0]

    cuts = [
        (pixels, channels)
        for pixels in range(least, min(pixel_blocks, max(least, 4) * threads) + 1)
        for channels in range(1, min(channel_blocks, 4 * threads) + 1)
        if pixels == least or channels == 1
    ]
    return replace(plan, chunks=min(cuts, key=busiest), parallel=True)
