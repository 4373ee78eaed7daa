"""What an AMX kernel does, decided by arithmetic alone: how pixels and channels become tiles.

A tile of sums is up to 16 pixels by 16 output channels. ``Source`` says where tile rows lie in memory: input pixels in
place, or a padded copy, in which a strided convolution's columns and rows are sorted by phase so that neighbouring
outputs read neighbouring pixels. Outputs are walked as runs: one row of the picture, or the whole picture at the width
of its rows in memory, whose surplus columns are computed and dropped. A run is cut into equal blocks of ``mt`` tiles;
the last is moved back rather than cut, so that every block has the same tile rows and one configuration serves all.

What a plan costs is in ``amx_model``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwq.schedules.cpu.geometry import Geometry
from hwq.schedules.cpu.narrowing import sharing
from hwq.workload import Workload

TILE_ROWS, TILE_BYTES, LANES, TILES = 16, 64, 16, 8
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
    def bf16(self) -> bool:
        """Whether what is multiplied is bfloat16, in buffers of its bits."""
        return self.weight == "bfloat16"

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
    def biased(self) -> bool:
        """Whether sums start at the bias, which is loaded like any tile: if there is one, of whole tiles."""
        return (self.workload.has_bias or not self.bf16) and self.geometry.out_c % LANES == 0

    @property
    def together(self) -> int:
        """Rows whose bytes are made together, to fill a register: 1 where not all of them are outputs of this block,
        or their channels are not all there.
        """
        surplus = self.blocks * self.block_rows - self.length
        whole = self.geometry.out_c % self.block_lanes == 0 and self.pitch == self.geometry.out_w
        if not whole or self.workload.out_dtype == "float32":
            return 1
        return sharing(math.gcd(self.block_rows, surplus), self.nt)

    @property
    def slice_rows(self) -> int:
        """Rows of the finished block's epilogue that stand in each step of the next block's reduction."""
        return math.ceil(self.block_rows / self.together / (self.steps - self.lead)) * self.together

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
