"""The plan of the convolution template: its register tile, what follows from it, and the defaults of its schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from hwq.schedules.cpu import lookup
from hwq.schedules.cpu.geometry import Form, Geometry, compute_row, geometry
from hwq.schedules.cpu.holding import hold_of
from hwq.schedules.cpu.int4 import SCALE_BITS, scaled_nibble, unpacking_registers, within_range
from hwq.schedules.cpu.tiles import Core, Tile
from hwq.schedules.cpu.tiling import divisors, ranked_tiles
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Workload

# Pixels behind whose products the unpacking of a vector of weights does not show.
HIDING_SPOTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One kernel: what it computes, in which form and tile. blocks: vectors of channels in a group, in whole tiles.

    in_registers: whether int4 is unpacked without a buffer, if there are registers for it; None: where it pays.
    """

    workload: Workload
    geometry: Geometry
    form: Form
    tile: Tile
    blocks: int
    ragged: bool
    copied: bool
    in_registers: bool | None = None

    @property
    def staged(self) -> bool:
        """Whether the epilogue goes through a buffer: its first part by vectors, then a table."""
        return not (self.ragged or self.form.acc == "float32" or self.workload.activation.clamps)

    @property
    def packed(self) -> bool:
        """Whether the epilogue ends in ``narrow``: tiles hold only channels of the output, and bytes are written."""
        return not self.ragged and self.form.narrows and self.workload.out_dtype == "int8"

    @property
    def shuffle(self) -> str | None:
        """The instruction that looks bytes up in a table, if there is a table, and tiles hold its vectors."""
        channels = self.tile.vectors * self.tile.lanes
        able = (name for name in self.form.shuffles if channels % lookup.LANES[name] == 0)
        return next(able, None) if self.packed and self.staged else None

    @property
    def apart(self) -> bool:
        """Whether groups have axes of their own, in the sums and in the output: their channels do not fill vectors."""
        return self.ragged and self.geometry.groups > 1

    @property
    def biased(self) -> bool:
        """Whether the sums start at the bias; where they are ``scaled`` they could not hold it."""
        return not (self.ragged or self.form.acc == "float32" or self.scaled)

    @property
    def out_h(self) -> int:
        return math.ceil(self.geometry.out_h / self.tile.rows) * self.tile.rows

    @property
    def out_w(self) -> int:
        return math.ceil(self.geometry.out_w / self.tile.pixels) * self.tile.pixels

    @property
    def steps(self) -> int:
        """Steps of the reduction: vectors of weights in a block."""
        return self.geometry.kernel_h * self.geometry.columns * self.run_steps

    @property
    def unpacked_in_registers(self) -> bool:
        """Whether int4 weights are unpacked where they are used, with no buffer between: if there are registers for it,
        and a tile has so many pixels that it hides behind their products, or there are too few tiles for a buffer.
        """
        spots = self.tile.rows * self.tile.pixels
        across = self.geometry.batch * self.out_h * self.out_w // spots
        unpacking = unpacking_registers(self.form, self.tile.vectors, spots)
        room = spots * self.tile.vectors + unpacking <= self.form.registers
        pays = spots >= HIDING_SPOTS or across <= 2
        wanted = pays if self.in_registers is None else self.in_registers
        return self.form.weight == "int4" and self.run_steps % 2 == 0 and room and wanted

    @property
    def scaled(self) -> bool:
        """Whether the sums are 16 times too large, which int4 weights are unpacked the fastest to; not where two
        products are added up in 16 bits.
        """
        return self.unpacked_in_registers and self.form.parts == 1 and within_range(self.steps * self.form.r)

    def unpacked(self, byte: Any, odd: Any) -> Any:
        """The int4 weight in a half of ``byte``, 16 times if ``scaled``."""
        found = scaled_nibble(byte, odd, signed=self.form.signed_nibbles)
        return found if self.scaled else found >> tirx.const(SCALE_BITS, "int8")

    @property
    def hold(self) -> int:
        """Steps whose activations are loaded together and stay in a register; 1: each is a broadcast."""
        return hold_of(self.form, self.geometry.run)

    @property
    def run_steps(self) -> int:
        return math.ceil(self.geometry.run / (self.form.r * self.hold)) * self.hold


def core_of(workload: Workload, found: Form, target: Target) -> Core:
    """What the tile model wants to know of ``target``."""
    row = compute_row(workload, target)
    assert row is not None
    far = target.l3_bytes_per_s or target.memory_bytes_per_s
    multiplies = row.macs_per_cycle / (found.vectors[0] * found.r)
    return Core(
        multiplies=multiplies if found.neon else min(max(multiplies, 1.0), 2.0),
        l1_bytes=target.l1_bytes,
        l2_bytes=target.l2_bytes,
        l2_bytes_per_cycle=target.l2_bytes_per_s / target.clock_hz,
        far_bytes_per_cycle=far / target.clock_hz,
    )


def make_plan(workload: Workload, found: Form, core: Core) -> Plan:
    """The plan with the best tile by the model."""
    return plan_of(workload, found, ranked(workload, found, core)[0][1])


def ranked(workload: Workload, found: Form, core: Core) -> list[tuple[float, Tile]]:
    """The tiles that may be, best first, with their cycles by the model."""
    shape = geometry(workload)
    looked_up = [] if workload.activation.clamps else [lookup.LANES[name] for name in found.shuffles]
    multiple = next((lanes for lanes in looked_up if shape.group_out % lanes == 0), 1)
    return ranked_tiles(shape, found, core, multiple=multiple)


def plan_of(workload: Workload, found: Form, tile: Tile) -> Plan:
    """The plan with ``tile``."""
    shape = geometry(workload)
    vectors = math.ceil(shape.group_out / tile.lanes)
    blocks = math.ceil(vectors / tile.vectors) * tile.vectors
    rough = Plan(workload=workload, geometry=shape, form=found, tile=tile, blocks=blocks, ragged=False, copied=False)
    enough = (
        shape.rows(rough.out_h) <= shape.in_h
        and shape.row_elements(rough.out_w, found.r * rough.hold) <= shape.in_w * shape.in_c
    )
    return Plan(
        workload=workload,
        geometry=shape,
        form=found,
        tile=tile,
        blocks=blocks,
        ragged=blocks * tile.lanes != shape.group_out,
        copied=shape.padded or not enough or found.act != found.stored,
    )


def default_chunks(plan: Plan, target: Target, extent: int) -> int:
    """How many chunks ``extent`` positions make. One where the weights fill more than half of the L2: each block of
    them is then read but once; else so many that a chunk's input and output fit in half of it, while blocks of channels
    pass over them. With threads, more if the chunks' blocks do not share out evenly, or chunks that copy their input.
    """
    shape = plan.geometry
    pixels = shape.batch * shape.out_h * shape.out_w * (4 if plan.workload.out_dtype == "float32" else 1)
    touched = shape.batch * shape.in_h * shape.in_w * shape.in_c * plan.form.item_bytes + pixels * shape.out_c
    weight_bytes = shape.groups * plan.blocks * plan.tile.lanes * plan.steps * plan.form.r * plan.form.weight_item_bytes
    half = target.l2_bytes // 2
    least = math.ceil(touched / half) if weight_bytes <= half else 1
    blocks = shape.groups * plan.blocks // plan.tile.vectors
    threads = plan.workload.parallel if worth_parallel(plan, target) else 1
    picture = extent // shape.batch  # a chunk is whole pictures, or of one: else its tiles' places are no products
    whole = [count for count in divisors(extent, extent) if extent // count % picture == 0 or count % shape.batch == 0]
    good = [
        count for count in whole if count >= least and (count * blocks % threads == 0 or count * blocks >= 4 * threads)
    ]
    even = [count for count in good if plan.copied and count % threads == 0]
    return next(iter(even or good), extent)


def worth_parallel(plan: Plan, target: Target) -> bool:
    """Whether the work, at the target's rate, is worth threads."""
    row = compute_row(plan.workload, target)
    assert row is not None
    work_s = plan.geometry.macs / (row.macs_per_cycle * target.clock_hz)
    return common.worth_threads(plan.workload.parallel, work_s, target)
