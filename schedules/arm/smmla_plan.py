"""Which smmla kernel to make: how the input is laid out in pairs, the register tile, and what it is expected to cost.

A tile is ``rows`` x ``pairs`` of neighbouring output pixels x ``vectors`` pairs of output channels; each of its sums is
one register of two pixels by two channels. A step of the reduction is eight inputs: it loads a register for each pair
of pixels and for each pair of channels, and multiplies all with all.

The copy of the input holds pairs: eight inputs of an output pixel, then those at the same place of its right neighbour.
In one of three layouts: a product (1x1, dense) has each pixel once. A kernel over columns has each column of the input
as the left one of a pair, so twice in all. Where a pixel has fewer than eight channels ("runs"), the columns of the
kernel are one run, and each output pixel has its own copy of it. That the copy takes less than it saves: with pairs put
together from two rows as they lie, a quarter as many operations as products would compete for the multiplier's ports.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hwq.schedules.arm import table
from hwq.schedules.arm.smmla_intrinsics import DEPTH
from hwq.schedules.cpu import lookup
from hwq.schedules.cpu.geometry import Geometry, geometry
from hwq.schedules.cpu.tiling import divisors
from hwq.schedules.generic import common
from hwq.scheme import SCHEMES
from hwq.target import Compute, Target
from hwq.workload import Workload

# Registers of 16 bytes; a tile keeps the smaller of its two sides in registers while the other passes, and two more.
REGISTERS, SPARE = 32, 2
# Multiply-adds of one instruction.
MACS = 32
# 16-byte loads in a cycle, beside the multiplies.
LOADS_PER_CYCLE = 2.0
# A sum waits so long for its own last product; counters and branches of a step that do not overlap, and of a tile.
CHAIN_CYCLES, STEP_CYCLES, TILE_CYCLES = 3.0, 0.25, 12.0
# Operations on the multiplier's ports per register of sums in the epilogue; more where few channels share a store, and
# where the epilogue is not of whole tiles. For a table also what looks up four bytes: by vectors, or one by one.
EPILOGUE, NARROW, RAGGED = 9.0, 8.0, 10.0
LOOKED_UP, ONE_BY_ONE = 7.0, 14.0
WIDEST, MOST_PAIRS, MOST_ROWS = 8, 14, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A register tile: output rows x pairs of pixels x pairs of channels."""

    rows: int
    pairs: int
    vectors: int

    @property
    def sums(self) -> int:
        """Registers of sums."""
        return self.rows * self.pairs * self.vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One kernel: what it computes, and in which tile.

    geometry: a 1x1 convolution without padding is one row of pixels, also where it strides. source: the columns and the
    strides of the input that such a row is taken from; None where ``geometry`` says it all.
    """

    workload: Workload
    geometry: Geometry
    source: Geometry | None
    int4: bool
    tile: Tile

    @property
    def is_product(self) -> bool:
        return self.geometry.is_product

    @property
    def runs(self) -> bool:
        """Whether the kernel's columns are one run of the input."""
        return self.geometry.in_c < DEPTH

    @property
    def spread(self) -> bool:
        """Whether each column of the input begins a pair."""
        return not self.runs and self.geometry.kernel_w > 1

    @property
    def columns(self) -> int:
        """Kernel columns that are walked one by one."""
        return self.geometry.kernel_w if self.spread else 1

    @property
    def run(self) -> int:
        """Contiguous inputs of one such column."""
        return self.geometry.kernel_w * self.geometry.in_c if self.runs else self.geometry.in_c

    @property
    def run_steps(self) -> int:
        return math.ceil(self.run / DEPTH)

    @property
    def steps(self) -> int:
        """Steps of the reduction."""
        return self.geometry.kernel_h * self.columns * self.run_steps

    @property
    def out_h(self) -> int:
        return math.ceil(self.geometry.out_h / self.tile.rows) * self.tile.rows

    @property
    def pairs(self) -> int:
        """Pairs in a row of output, in whole tiles."""
        return math.ceil(self.geometry.out_w / (2 * self.tile.pairs)) * self.tile.pairs

    @property
    def blocks(self) -> int:
        """Tiles beside each other in channels, the last perhaps beyond the real ones."""
        return math.ceil(self.geometry.out_c / (2 * self.tile.vectors))

    @property
    def copied_rows(self) -> int:
        """Rows of the copy, per picture."""
        return self.out_h if self.geometry.kernel_h == 1 else self.geometry.rows(self.out_h)

    @property
    def copied_columns(self) -> int:
        """Pairs in a row of the copy."""
        shape = self.geometry
        if not self.spread:
            return self.pairs
        return 2 * (self.pairs - 1) * shape.stride_w + (shape.kernel_w - 1) * shape.dilation_w + 1

    @property
    def copied_bytes(self) -> int:
        """Bytes of the whole copy."""
        return self.geometry.batch * self.copied_rows * self.copied_columns * self.run_steps * 2 * DEPTH

    @property
    def positions(self) -> int:
        """What is cut into chunks: rows of tiles, of all pictures; of one such row its tiles."""
        rows = self.geometry.batch * self.out_h // self.tile.rows
        return rows if rows > 1 else self.spots

    @property
    def spots(self) -> int:
        """Tiles of one block of channels."""
        return self.geometry.batch * (self.out_h // self.tile.rows) * (self.pairs // self.tile.pairs)

    @property
    def ragged(self) -> bool:
        """Whether tiles reach beyond the channels."""
        return self.blocks * self.tile.vectors * 2 != self.geometry.out_c

    @property
    def biased(self) -> bool:
        """Whether the sums start at the bias; those of int4, 16 times too large, could not hold it."""
        return not (self.ragged or self.int4)

    @property
    def packed(self) -> bool:
        """Whether the epilogue ends in ``narrow``: tiles hold only channels of the output, and bytes are written."""
        return not self.ragged and self.workload.out_dtype == "int8"

    @property
    def shuffle(self) -> str | None:
        """The instruction that looks bytes up in a table, if there is a table, and tiles hold its vectors."""
        fits_in = 2 * self.tile.vectors % lookup.LANES[table.INSTRUCTION] == 0
        return table.INSTRUCTION if self.packed and self.staged and fits_in else None

    @property
    def staged(self) -> bool:
        """Whether the epilogue goes through a buffer: its first part by vectors, then a table."""
        return common.is_tabled(self.workload)


def row_of(workload: Workload, target: Target) -> Compute | None:
    """The target's first row for ``workload``, if that is on smmla."""
    scheme = SCHEMES[workload.scheme]
    if not scheme.integer or scheme.group_size is not None:
        return None
    row = target.instruction(workload.op, scheme.weight_type, scheme.act_type)
    return row if row is not None and row.instruction == "neon.smmla" else None


def shapes_of(workload: Workload) -> tuple[Geometry, Geometry | None]:
    """``Plan.geometry`` and ``Plan.source``."""
    shape = geometry(workload)
    if workload.op == "dense" or shape.is_product:
        return shape, None
    single = shape.kernel_h == shape.kernel_w == shape.groups == 1 and not shape.padded
    if not single:
        return shape, None
    pixels = shape.batch * shape.out_h * shape.out_w
    flat = replace(
        shape, batch=1, in_h=1, in_w=pixels, out_h=1, out_w=pixels, stride_h=1, stride_w=1, dilation_h=1, dilation_w=1
    )
    return flat, shape


def plans_of(workload: Workload) -> list[Plan]:
    """Every plan of a conv2d or dense workload, those of a tile that has registers."""
    shape, source = shapes_of(workload)
    most_pairs = min(MOST_PAIRS, math.ceil(shape.out_w / 2))
    widest = min(WIDEST, 2 * math.ceil(shape.out_c / 4))
    return [
        Plan(workload=workload, geometry=shape, source=source, int4=workload.scheme == "w4a8", tile=tile)
        for rows in range(1, min(MOST_ROWS, shape.out_h) + 1)
        for pairs in range(1, most_pairs + 1)
        for vectors in range(2, widest + 1, 2)
        if fits(tile := Tile(rows=rows, pairs=pairs, vectors=vectors))
    ]


def fits(tile: Tile) -> bool:
    """Whether the sums have registers, and beside them what is multiplied."""
    return tile.sums + min(tile.rows * tile.pairs, tile.vectors) + SPARE <= REGISTERS


def ranked(plans: list[Plan], target: Target) -> list[tuple[float, Plan]]:
    """The plans with their ``cycles``, the fewest first; of equals the smallest tile."""
    return sorted(
        ((cycles(plan, target), plan) for plan in plans),
        key=lambda found: (found[0], found[1].tile.rows, found[1].tile.sums, found[1].tile.vectors),
    )


def cycles(plan: Plan, target: Target) -> float:
    """What the model expects of the whole layer's tiles, in cycles of one core; the copy is the same for all."""
    tile = plan.tile
    row = row_of(plan.workload, target)
    assert row is not None
    # Of int4 the row's rate is less its unpacking, which is counted here.
    per_cycle = max(1.0, round(row.macs_per_cycle / MACS))
    unpacked = tile.vectors if plan.int4 else 0
    weights = tile.vectors / 2 if plan.int4 else tile.vectors
    pixels = tile.rows * tile.pairs
    far = 0.0
    if plan.copied_bytes / default_chunks(plan, target) > target.l1_bytes / 2:
        far += pixels * 2 * DEPTH
    if plan.steps * weights * 2 * DEPTH > target.l1_bytes / 2:
        far += weights * 2 * DEPTH
    step = max(
        (tile.sums + unpacked) / per_cycle,
        (pixels + weights) / LOADS_PER_CYCLE,
        far * target.clock_hz / target.l2_bytes_per_s,
        CHAIN_CYCLES,
    )
    tiles = plan.spots * plan.blocks
    operations = EPILOGUE + NARROW / tile.vectors + (RAGGED if plan.ragged else 0.0)
    if plan.staged:
        operations += ONE_BY_ONE if plan.shuffle is None else LOOKED_UP
    return tiles * (plan.steps * (step + STEP_CYCLES) + tile.sums * operations / per_cycle + TILE_CYCLES)


def chunk_counts(plan: Plan) -> list[int]:
    """Into how many equal chunks the positions can be cut: of whole pictures, or of one. The places of other tiles are
    no products, and TVM then does not see what of the input they read.
    """
    extent, batch = plan.positions, plan.geometry.batch
    picture = extent // batch
    return [count for count in divisors(extent, extent) if extent // count % picture == 0 or count % batch == 0]


def default_chunks(plan: Plan, target: Target) -> int:
    """The count of chunks with which least is read from beyond the L1. Of each chunk that is all weights, and its input
    once if that stays there, else once for each block of channels. With threads, one of which each has its share, and
    copies its own input.
    """
    weights = plan.blocks * plan.tile.vectors * 2 * plan.steps * DEPTH // (2 if plan.int4 else 1)
    threads = plan.workload.parallel if worth_parallel(plan, target) else 1
    counts = chunk_counts(plan)

    def traffic(count: int) -> float:
        stays = plan.copied_bytes / count <= target.l1_bytes / 2
        return weights * count + plan.copied_bytes * (1 if stays else plan.blocks)

    return min([n for n in counts if n % threads == 0] or counts, key=lambda count: (traffic(count), count))


def worth_parallel(plan: Plan, target: Target) -> bool:
    """Whether the work, at the target's rate, is worth threads."""
    row = row_of(plan.workload, target)
    assert row is not None
    work_s = plan.geometry.macs / (row.macs_per_cycle * target.clock_hz)
    return common.worth_threads(plan.workload.parallel, work_s, target)
