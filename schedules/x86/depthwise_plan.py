"""The plan of the x86 dot product depthwise kernel: its groups of taps, its chunks of channels, its weights' order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.schedules.cpu.geometry import Form, Geometry, geometry
from hwq.schedules.cpu.packing import pack_nibbles
from hwq.schedules.generic import common
from hwq.schedules.x86 import table
from hwq.schedules.x86.depthwise_vectors import GROUP_BYTES, unit_order
from hwq.schedules.x86.narrow import UNIT
from hwq.target import Target
from hwq.workload import Workload

Array = npt.NDArray[Any]
# Pixels of a tile at most; with a stride it reads more columns than it has pixels.
PIXELS, STRIDED_PIXELS = 7, 4
# Work of a tile that does not depend on its width, in pixels: weights to load, addresses, branches.
TILE_PIXELS = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """``count`` chunks of ``channels`` (64, 32 or 16) neighbours from channel ``first`` on, in tiles of ``pixels``.

    slot: where their numbers begin, in channels, among those of all chunks.
    """

    channels: int
    first: int
    count: int
    slot: int
    pixels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One kernel. r: rows in a group. rows: output rows that share groups. lanes: int32 in a register. lookup: the
    instruction of the activation's table, None without one.
    """

    workload: Workload
    geometry: Geometry
    instruction: str
    weight: str
    r: int
    rows: int
    lanes: int
    chunks: tuple[Chunk, ...]
    lookup: str | None

    @property
    def groups(self) -> int:
        return math.ceil(self.geometry.kernel_h / self.r)

    @property
    def blocks(self) -> int:
        """Blocks of output rows that share groups."""
        return math.ceil(self.geometry.out_h / self.rows)

    @property
    def dots(self) -> int:
        """Dot products of one sum."""
        return self.groups * self.geometry.kernel_w

    @property
    def slots(self) -> int:
        last = self.chunks[-1]
        return last.slot + last.count * last.channels

    @property
    def weight_elements(self) -> int:
        return self.slots * self.rows * self.dots * self.r

    @property
    def used_rows(self) -> int:
        """Input rows of a block that some output uses, in steps of the dilation."""
        shape = self.geometry
        return shape.kernel_h + ((self.rows - 1) * shape.stride_h if shape.dilation_h == 1 else 0)

    def pairs(self, chunk: Chunk) -> int:
        """Pairs of vectors of sums in a chunk."""
        return max(1, chunk.channels // (2 * self.lanes))

    def tiles(self, chunk: Chunk) -> int:
        return math.ceil(self.geometry.out_w / chunk.pixels)

    def column(self, chunk: Chunk) -> int:
        """Bytes of a chunk's groups at one input column."""
        return self.groups * chunk.channels * GROUP_BYTES

    def span(self, pixels: int) -> int:
        """Input columns, padding included, that ``pixels`` neighbouring outputs read."""
        shape = self.geometry
        return (pixels - 1) * shape.stride_w + (shape.kernel_w - 1) * shape.dilation_w + 1


def make_plan(workload: Workload, found: Form, target: Target) -> Plan | None:
    """The default plan, or None where this family does not fit."""
    shape = geometry(workload)
    r = {"vpdpbusd": 4, "vpmaddwd": 2}.get(found.instruction.split(".")[-1])
    if r is None or found.stored != "uint8" or "avx2" not in target.cpu_flags or shape.in_c < 16:
        return None
    if workload.residual or workload.out_dtype != "int8":
        return None
    known = () if workload.activation.clamps else table.instructions(target)
    lookup = next((name for name in known if shape.out_w * shape.out_c >= table.LANES[name]), None)
    if lookup is None and not workload.activation.clamps:
        return None
    lanes = target.lanes("int32")
    return Plan(
        workload=workload,
        geometry=shape,
        instruction=found.instruction,
        weight=found.weight,
        r=r,
        rows=sharing_rows(shape, r),
        lanes=lanes,
        chunks=chunks_of(shape, lanes),
        lookup=lookup,
    )


def sharing_rows(shape: Geometry, r: int) -> int:
    """Output rows, at most, that share groups of ``r`` input rows."""
    groups = math.ceil(shape.kernel_h / r)
    rows = (groups * r - shape.kernel_h) // shape.stride_h + 1 if shape.dilation_h == 1 else 1
    return min(rows, shape.out_h)


def plans(workload: Workload, found: Form, target: Target) -> Iterator[Plan]:
    """The default plan, then others: widths of a tile, by what tiles leave over, up to what has registers; and narrower
    chunks, or fewer output rows that share groups. None where this family does not fit.
    """
    default = make_plan(workload, found, target)
    if default is None:
        return
    shape = default.geometry
    most = min(2 * PIXELS if shape.stride_w == 1 else 2 * STRIDED_PIXELS, shape.out_w)
    widths = sorted(range(1, most + 1), key=lambda width: (_work(shape.out_w, width), -width))
    first = default.chunks[0].pixels
    yield default
    for width in [first, *(width for width in widths if width != first)]:
        for rows in range(default.rows, 0, -1):
            for widest in (64, 32):
                plan = replace(default, rows=rows, chunks=chunks_of(shape, default.lanes, width, widest))
                if plan != default and (widest == 64 or shape.in_c >= 64):
                    yield plan


def chunks_of(shape: Geometry, lanes: int, width: int | None = None, widest: int = 64) -> tuple[Chunk, ...]:
    """The channels in chunks as wide as four registers, then narrower ones; the last 16 may repeat some of those before
    them, which come out the same. width: pixels of a tile (None: the best). widest: channels of a chunk, at most.
    """
    found: list[Chunk] = []
    pixels = width or best_width(shape.out_w, PIXELS if shape.stride_w == 1 else STRIDED_PIXELS)
    first = slot = 0
    for channels in (size for size in (64, 32, 16) if size <= min(4 * lanes, widest)):
        count = (shape.in_c - first) // channels
        if count:
            found.append(Chunk(channels=channels, first=first, count=count, slot=slot, pixels=pixels))
            first, slot = first + count * channels, slot + count * channels
    if first < shape.in_c:
        found.append(Chunk(channels=16, first=shape.in_c - 16, count=1, slot=slot, pixels=pixels))
    return tuple(found)


def best_width(out_w: int, most: int) -> int:
    """Pixels of a tile: the fewest whole tiles' work over an output row."""
    widths = range(1, min(most, out_w) + 1)
    return min(widths, key=lambda width: (_work(out_w, width), -width))


def _work(out_w: int, width: int) -> float:
    """Of an output row in tiles of ``width``, in pixels."""
    return math.ceil(out_w / width) * (width + TILE_PIXELS)


def pack(plan: Plan, weight: Array) -> Array:
    """(C, KH, KW, 1) as the kernel reads it, flat: chunk, output row, group, column, channel in unit order, tap."""
    shape, r = plan.geometry, plan.r
    shifted = np.zeros((plan.rows, plan.groups * r, shape.kernel_w, shape.in_c), np.int8)
    for row in range(plan.rows):
        first = row * shape.stride_h if shape.dilation_h == 1 else 0
        shifted[row, first : first + shape.kernel_h] = weight[..., 0].transpose(1, 2, 0)
    taps = shifted.reshape(plan.rows, plan.groups, r, shape.kernel_w, shape.in_c).transpose(0, 1, 3, 4, 2)
    parts = []
    for chunk in plan.chunks:
        order = np.array([UNIT * unit + i for unit in unit_order(chunk.channels) for i in range(UNIT)])
        for number in range(chunk.count):
            parts.append(taps[..., chunk.first + number * chunk.channels + order, :].ravel())
    flat = np.concatenate(parts)
    if plan.weight == "int4":
        return pack_nibbles(flat.reshape(-1, 2, 8 * r))
    return flat if r == 4 else flat.astype(np.int16)


def default_part(plan: Plan, chunk: Chunk, target: Target) -> int:
    """Pixels whose interleaved rows are kept at a time: what half of the L1 holds, in whole tiles if that can be."""
    width = plan.geometry.out_w
    parts = [part for part in range(1, width + 1) if width % part == 0]
    fit = [part for part in parts if plan.span(part) * plan.column(chunk) <= target.l1_bytes // 2] or parts[:1]
    return max(fit, key=lambda part: (part / (math.ceil(part / chunk.pixels) * chunk.pixels) > 0.9, part))


def worth_parallel(plan: Plan, target: Target) -> bool:
    """Whether the work, at a vector of dot products a cycle and four more for its epilogue, is worth threads."""
    shape = plan.geometry
    vectors = shape.batch * shape.out_h * shape.out_w * math.ceil(plan.slots / plan.lanes)
    return common.worth_threads(plan.workload.parallel, vectors * (plan.dots + 4) / target.clock_hz, target)
