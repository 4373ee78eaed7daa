"""What an AMX kernel does, decided by arithmetic alone: how pixels and channels become tiles, and what that costs.

A tile of sums is up to 16 pixels by 16 output channels. ``Source`` says where tile rows lie in memory: input pixels in
place, or a padded copy, in which a strided convolution's columns and rows are sorted by phase so that neighbouring
outputs read neighbouring pixels. Outputs are walked as runs: one row of the picture, or the whole picture at the width
of its rows in memory, whose surplus columns are computed and dropped. A run is cut into equal blocks of ``mt`` tiles;
the last is moved back rather than cut, so that every block has the same tile rows and one configuration serves all.

``cycles`` counts by the figures of Sapphire Rapids (Intel 64 and IA-32 Architectures Optimization Reference Manual,
AMX instruction throughput and latency): a product starts every 16 cycles whatever its rows, a load takes 8 from the L1,
a store 16, and a product's sums are ready after 52. So 2 x 2 tiles, with 4 loads beside 4 products, are bound by
products; fewer than 4 tiles of sums, by latency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hwq.schedules.x86.geometry import Geometry
from hwq.target import Target
from hwq.workload import Workload

TILE_ROWS, TILE_BYTES, LANES, TILES = 16, 64, 16, 8
PRODUCT_CYCLES, LATENCY_CYCLES, LOAD_CYCLES, STORE_CYCLES = 16.0, 52.0, 8.0, 16.0
# Bytes that tile loads get from the L2 in a cycle, of the 64 that the L2 can give.
L2_BYTES = 32.0
# Epilogue of a vector of 16 sums: ten operations on two ports, somewhat overlapped.
VECTOR_CYCLES = 5.0
# Of the products and the epilogue that run beside them, what shows of the shorter one; and starting a block.
SHADOW, BLOCK_CYCLES = 0.1, 24.0
# Bytes that a copy of the input moves in a cycle.
COPY_BYTES = 24.0
# Bytes of int4 weights that are unpacked in a cycle.
UNPACK_BYTES = 32.0
# Work below this is not split over threads: starting them would cost a tenth of it.
PARALLEL_LEAST_S = 30e-6
# Blocks of sums: what is held is the smaller side, the other streams through one register or more.
SHAPES = ((2, 2), (1, 4), (4, 1), (3, 1), (1, 3), (2, 1), (1, 2), (1, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the rows of A tiles are, in elements.

    copied: from a padded copy of the input, (batch, *phases, high, wide, in_c); else the input itself. phase: pixels of
    the input are sorted by their remainder modulo these; phases: how many remainders the kernel's taps have. step:
    pixels between neighbouring outputs.
    merged: kernel columns are neighbours in memory, so a row of the kernel is one stretch. joined: all output rows make
    one run, else each is one.
    """

    copied: bool
    phase: tuple[int, int]
    phases: tuple[int, int]
    step: tuple[int, int]
    high: int
    wide: int
    merged: bool
    joined: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One kernel. item_bytes: of an activation as it is multiplied; weight: "int8", "int4" or "bfloat16".

    width: elements of the reduction in a step, in every tile; run_steps steps make a stretch. mt, nt: tiles of pixels
    and of channels in a block. chunks: parts of all blocks of pixels, and of channels; a part of the one with a part of
    the other is a section, and if parallel, threads share those out. pixels_inner: within a section the blocks of
    pixels pass inside those of channels.
    """

    workload: Workload
    geometry: Geometry
    source: Source
    item_bytes: int
    weight: str
    width: int
    mt: int
    nt: int
    chunks: tuple[int, int] = (1, 1)
    parallel: bool = False
    pixels_inner: bool = True

    @property
    def stretch(self) -> int:
        """Contiguous elements of a tap, or of a row of taps."""
        return self.geometry.in_c * (self.geometry.kernel_w if self.source.merged else 1)

    @property
    def weight_type(self) -> str:
        """The type of weights as they are multiplied."""
        return "int8" if self.weight == "int4" else self.weight

    @property
    def image(self) -> int:
        """Elements of one picture where A tiles are loaded from."""
        source = self.source
        return source.phases[0] * source.phases[1] * source.high * source.wide * self.geometry.in_c

    @property
    def columns(self) -> int:
        return 1 if self.source.merged else self.geometry.kernel_w

    @property
    def run_steps(self) -> int:
        return math.ceil(self.stretch / self.width)

    @property
    def steps(self) -> int:
        """Steps of the reduction: products into each tile of sums."""
        return self.geometry.kernel_h * self.columns * self.run_steps

    @property
    def runs(self) -> int:
        return self.geometry.batch * (1 if self.source.joined else self.geometry.out_h)

    @property
    def pitch(self) -> int:
        """Outputs, dropped ones included, from one row of the picture to the next within a run."""
        if not self.source.joined:
            return self.geometry.out_w
        return self.source.wide * self.source.step[0] // self.source.step[1]

    @property
    def length(self) -> int:
        """Outputs of a run, dropped ones included."""
        return self.geometry.out_w + ((self.geometry.out_h - 1) * self.pitch if self.source.joined else 0)

    @property
    def blocks(self) -> int:
        return math.ceil(self.length / (TILE_ROWS * self.mt))

    @property
    def block_rows(self) -> int:
        return math.ceil(self.length / self.blocks)

    @property
    def tile_rows(self) -> tuple[int, ...]:
        """Rows of each of the ``mt`` tiles of a block."""
        return tuple(self.block_rows // self.mt + (i < self.block_rows % self.mt) for i in range(self.mt))

    @property
    def block_lanes(self) -> int:
        return self.nt * LANES

    @property
    def channel_blocks(self) -> int:
        return math.ceil(self.geometry.out_c / self.block_lanes)

    @property
    def panel_bytes(self) -> int:
        """Weights of a block of channels, as they are multiplied."""
        return self.steps * self.nt * self.width * LANES * self.item_bytes

    @property
    def slice_rows(self) -> int:
        """Rows of the finished block's epilogue that stand in each step of the next block's reduction."""
        return math.ceil(self.block_rows / (self.steps - self.lead))

    @property
    def lead(self) -> int:
        """Steps before the first such slice, in which stores of the sums come to rest."""
        return 1 if self.steps >= 4 else 0

    @property
    def products(self) -> int:
        """Tile products of one call."""
        return self.runs * self.blocks * self.channel_blocks * self.mt * self.nt * self.steps

    @property
    def utilization(self) -> float:
        """Useful multiply-adds of one call over what its products could do: 64 bytes x 16 x 16 each."""
        return self.geometry.macs * self.item_bytes / (self.products * TILE_BYTES * TILE_ROWS * LANES)


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


def sources(shape: Geometry, *, convert: bool) -> list[Source]:
    """The ways to read a convolution's input. convert: its elements have to change type, so it is copied anyway."""
    found = []
    stride, tap_h, tap_w = (shape.stride_h, shape.stride_w), shape.dilation_h, shape.dilation_w
    merged = shape.dilation_w == 1 or shape.kernel_w == 1
    span_h, span_w = (shape.kernel_h - 1) * tap_h, (shape.kernel_w - 1) * tap_w
    for joined in (True, False):
        if not (shape.padded or convert):
            place = Source(
                copied=False,
                phase=(1, 1),
                phases=(1, 1),
                step=stride,
                high=shape.in_h,
                wide=shape.in_w,
                merged=merged,
                joined=joined,
            )
            if not joined or shape.in_w * stride[0] % stride[1] == 0:
                found.append(place)
        wide = (shape.out_w - 1) * stride[1] + span_w + 1
        wide = next(n for n in range(wide, wide + stride[1]) if n * stride[0] % stride[1] == 0)
        high = (shape.out_h - 1) * stride[0] + span_h + 1
        sorted_by = [((1, 1), stride, high, wide, merged)]
        if stride != (1, 1):
            high, wide = shape.out_h + span_h // stride[0], shape.out_w + span_w // stride[1]
            sorted_by.append((stride, (1, 1), high, wide, merged and (stride[1] == 1 or shape.kernel_w == 1)))
        for phase, step, high, wide, neighbours in sorted_by:
            phases = (
                1 + max(k * tap_h % phase[0] for k in range(shape.kernel_h)),
                1 + max(k * tap_w % phase[1] for k in range(shape.kernel_w)),
            )
            found.append(
                Source(
                    copied=True,
                    phase=phase,
                    phases=phases,
                    step=step,
                    high=high,
                    wide=wide,
                    merged=neighbours,
                    joined=joined,
                )
            )
    return found


def step_width(stretch: int, item_bytes: int) -> int:
    """Elements of a step: the least that does with as few steps as 64 bytes would, in whole groups of 4 bytes."""
    group, most = 4 // item_bytes, TILE_BYTES // item_bytes
    even = math.ceil(stretch / math.ceil(stretch / most))
    return math.ceil(even / group) * group


def candidates(workload: Workload, shape: Geometry, item_bytes: int, weight: str, *, convert: bool) -> list[Plan]:
    """Every plan there is for one section of code, in both orders."""
    found = []
    for source in sources(shape, convert=convert):
        stretch = shape.in_c * (shape.kernel_w if source.merged else 1)
        width = step_width(stretch, item_bytes)
        # The last step of a stretch is moved back to end with it; one that is shorter than a step reads on behind it.
        if not source.copied and stretch < width:
            continue
        for mt, nt in SHAPES:
            for pixels_inner in (True, False) if weight != "int4" else (True,):
                plan = Plan(
                    workload=workload,
                    geometry=shape,
                    source=source,
                    item_bytes=item_bytes,
                    weight=weight,
                    width=width,
                    mt=mt,
                    nt=nt,
                    pixels_inner=pixels_inner,
                )
                if plan.block_rows >= mt and (nt == 1 or shape.out_c > (nt - 1) * LANES):
                    found.append(plan)
    return found


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
    fresh = rows * min(shape.kernel_h, shape.kernel_h if plan.pixels_inner else 1)
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
    loads = max(many * plan.steps * step_loads * LOAD_CYCLES, l2_bytes / L2_BYTES)
    stores = many * tiles * STORE_CYCLES
    epilogue = many * plan.block_rows * plan.nt * VECTOR_CYCLES
    packed = weights // 2 if plan.weight == "int4" else weights
    far = 0.0
    if packed > target.l2_bytes // 2:
        far = packed / (target.l3_bytes_per_s or target.memory_bytes_per_s) * target.clock_hz
    copy = shape.batch * plan.image * plan.item_bytes / COPY_BYTES if plan.source.copied else 0.0
    unpack = weights / UNPACK_BYTES if plan.weight == "int4" else 0.0
    parts = (products, loads, stores, epilogue, far)
    total = max(parts) + SHADOW * (sum(parts) - max(parts)) + many * BLOCK_CYCLES + copy + unpack
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
