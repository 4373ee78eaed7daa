"""Dense kernels for CPUs: the weights pass once, as one stream of blocks, and each is multiplied with every row.

    rows     x, widened, rounded or filled up to whole steps and tiles; absent if it can be read in place
    weights  int4 only: a step's vectors unpacked in registers, see ``int4``
    acc      sums of a tile of rows x vectors of channels, in registers
    out      bias, requantize, residual, activation; ragged edges are cut here

Takes dense of any number of rows, and conv2d that is one of at most MOST_PIXELS, on the forms of ``geometry``; not
schemes with a scale for each group of inputs (``grouped``), nor so many products that int4's sums leave int32, nor many
rows of int4 without a dot product of bytes.
The limit is bytes: at one row a core needs all that memory gives, and int4 gains what it saves. Measured on Zen 4, one
core, 4096 x 4096 from memory, one row: int8 and float at 33 to 34 GB/s where a plain read has 31, int4 at 32, 1.9 times
as fast as int8. From about eight rows on the limit is the multiplier: int8 reaches 95% of it, int4 92%. Rows with
scales of their own cost nothing (64 x 384 -> 1536: 169 us, as w8a8), a GELU behind them in float 48 us more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from hwq import numerics
from hwq.cost import weight_bytes
from hwq.schedules import epilogue as ep
from hwq.schedules.arm import model as arm
from hwq.schedules.cpu import lookup
from hwq.schedules.cpu.ends import finished, kernel_function, table_entries
from hwq.schedules.cpu.geometry import Form, compute_row, form, geometry, no_form
from hwq.schedules.cpu.holding import axes_of, hold_of, reduction, schedule_held
from hwq.schedules.cpu.int4 import SCALE_BITS, scaled_nibble, unpacking_registers, within_range
from hwq.schedules.cpu.native import dot
from hwq.schedules.cpu.packing import pack_nibbles, pack_stream
from hwq.schedules.cpu.prefetch import mark, prefetched
from hwq.schedules.cpu.tiling import CHAIN_CYCLES, crowd, divisors
from hwq.schedules.generic import common
from hwq.schedules.template import DEFAULT, Choice, Draft, Template, first
from hwq.schedules.x86 import bf16
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "cpu/dense:5"
# Convolutions of more rows are left to ``conv2d``, whose tiles are wider where rows are not crowded.
MOST_PIXELS = 16
# Rows of a tile at most; and of int4 where products are added up by an instruction of their own: LLVM then sums them in
# another order than written, for want of registers, and a block that is unpacked once (``conv2d``) serves more of them.
MOST_ROWS, MOST_UNFUSED_ROWS = 16, 4
# Vectors of channels in a tile at most: with eight a core asks memory for less at a time than with four.
MOST_VECTORS = 4
# A load or broadcast beside a cycle's multiply; and as much again where int4 is unpacked, whose masks and shifts want
# the same ports. (Fitted to tiles of 2 to 8 rows by 1 to 4 vectors.)
LOAD_CYCLES, UNPACK_CYCLES = 0.3, 0.3
# A byte that is looked up in a table alone (64x384->1536 with GELU: 30 us of it, and up to 48 inside a network).
LOOKUP_CYCLES = 1.0
# Steps ahead of their use, by which weights may be asked for.
STEPS_AHEAD = (0, 8, 32)
# Multiplies that are written out in a row.
UNROLLED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One kernel: what it computes, in which form and tile: ``rows`` x ``vectors`` of ``lanes`` channels.

    blocks: tiles beside each other, the last perhaps beyond the real channels.
    """

    workload: Workload
    form: Form
    count: int
    inputs: int
    channels: int
    rows: int
    vectors: int
    lanes: int

    @property
    def blocks(self) -> int:
        return math.ceil(self.channels / (self.vectors * self.lanes))

    @property
    def tiles(self) -> int:
        """Tiles below each other, the last perhaps beyond the real rows."""
        return math.ceil(self.count / self.rows)

    @property
    def hold(self) -> int:
        """Steps whose activations are loaded together and stay in a register; 1: each is a broadcast."""
        return hold_of(self.form, self.inputs)

    @property
    def steps(self) -> int:
        """Vectors of weights that a vector of sums takes; whole registers of activations where those are held, and even
        in int4, which has two to a byte.
        """
        steps = math.ceil(self.inputs / (self.form.r * self.hold)) * self.hold
        return steps + steps % 2 if self.form.weight == "int4" else steps

    @property
    def scaled(self) -> bool:
        """Whether the sums are 16 times too large; not where two products are added up in 16 bits."""
        return self.form.weight == "int4" and self.form.parts == 1

    @property
    def crowded(self) -> bool:
        return crowd(self.rows, self.inputs * self.form.item_bytes)

    @property
    def copied(self) -> bool:
        whole = self.steps * self.form.r == self.inputs and self.tiles * self.rows == self.count
        return self.form.act != self.form.stored or not whole or self.crowded

    @property
    def staged(self) -> bool:
        """Whether the epilogue goes through a buffer: its first part by vectors, then a table."""
        return common.is_tabled(self.workload)

    @property
    def shuffle(self) -> str | None:
        """The instruction that looks bytes up in a table, if there is a table, and tiles hold its vectors."""
        width = self.vectors * self.lanes
        able = (name for name in self.form.shuffles if width % lookup.LANES[name] == 0 == self.channels % width)
        return next(able, None) if self.staged else None


def make_plan(workload: Workload, found: Form) -> Plan:
    """The plan with the tile of fewest ``cycles`` that has registers."""
    return ranked(workload, found)[0][1]


def ranked(workload: Workload, found: Form) -> list[tuple[float, Plan]]:
    """The plans of every tile that has registers, fewest ``cycles`` first, with those."""
    shape = geometry(workload)
    lanes = next((n for n in found.vectors if n <= shape.out_c), found.vectors[-1])
    vectors = math.ceil(shape.out_c / lanes)
    rows_most, wide_most = min(MOST_ROWS, shape.in_w), min(arm.MOST_VECTORS if found.neon else MOST_VECTORS, vectors)
    tiles = [(rows, wide) for rows in range(1, rows_most + 1) for wide in range(1, wide_most + 1)]
    plan = functools.partial(
        Plan, workload=workload, form=found, count=shape.in_w, inputs=shape.in_c, channels=shape.out_c, lanes=lanes
    )
    plans = [
        (cycles(found, shape.in_w, vectors, rows, wide) + one_by_one(it), it)
        for rows, wide in tiles
        if fits(found, rows, wide)
        for it in [plan(rows=rows, vectors=wide)]
    ]
    return sorted(plans, key=lambda plan: plan[0])


def one_by_one(plan: Plan) -> float:
    """What looking bytes up one by one takes, as a share of each step; 0.0 where it is not done."""
    return LOOKUP_CYCLES * plan.count * plan.channels / plan.steps if plan.staged and plan.shuffle is None else 0.0


def fits(found: Form, rows: int, vectors: int) -> bool:
    """Whether the sums have registers, beside a step's weights, what unpacks them, and a broadcast."""
    if found.weight == "int4":
        others = unpacking_registers(found, vectors, rows) + (0 if found.r == 4 else rows * vectors)
    elif found.neon:
        return arm.has_registers(found, rows, vectors)
    else:
        others = vectors + (2 if found.act == "int16" else 1)
    return rows * vectors + others <= found.registers


def cycles(found: Form, count: int, vectors: int, rows: int, wide: int) -> float:
    """What a step of the reduction takes, of ``count`` rows by ``vectors`` vectors in tiles of ``rows`` by ``wide``: a
    cycle for a multiply, at least a sum's own latency, and a share of loads, broadcasts and what unpacks. What the
    tiles hold beyond the channels is computed in vain.
    """
    unpack = UNPACK_CYCLES * (rows + wide) if found.weight == "int4" else 0.0
    return math.ceil(count / rows) * math.ceil(vectors / wide) * (tile_cycles(found, rows, wide) + unpack)


def tile_cycles(found: Form, rows: int, wide: int) -> float:
    """Cycles of one step of a tile, with its loads."""
    if found.neon:
        return arm.step_cycles(found, rows, wide)
    return max(rows * wide, CHAIN_CYCLES) + LOAD_CYCLES * (rows + wide)


def apply(workload: Workload, target: Target, *, seed: int | None = None) -> Kernel | None:
    """The kernel of a dense workload, or None. seed: sample the decisions, not the default ones."""
    return first(templates(workload, target), seed)


def templates(workload: Workload, target: Target) -> Iterator[Template]:
    """The kernels of a dense workload, a register tile each, the model's best first."""
    if workload.op not in ("conv2d", "dense"):
        return
    shape = geometry(workload)
    if not shape.is_product or (workload.op == "conv2d" and shape.in_w > MOST_PIXELS):
        common.decline(workload, f"neither dense nor a convolution that is a product of {MOST_PIXELS} rows")
        return
    found = form(workload, target)
    if found is None:
        common.decline(workload, no_form(workload, target))
        return
    if found.weight == "int4" and found.parts == 1 and not within_range(shape.in_c):
        common.decline(workload, f"{shape.in_c} inputs are too many for scaled int4 sums")
        return
    if found.weight == "int4" and found.r < 4 and shape.in_w > MOST_UNFUSED_ROWS:
        common.decline(workload, f"more than {MOST_UNFUSED_ROWS} rows to unpack int4 for, one by one")
        return
    plans = ranked(workload, found)
    for expected, plan in plans:
        yield template_of(plan, target, f"{plan.rows}x{plan.vectors}x{plan.lanes}", expected / plans[0][0])


def template_of(plan: Plan, target: Target, variant: str, cycles: float) -> Template:
    """The template of ``plan``."""

    def start() -> Draft:
        arguments, tail = computation(plan)
        return Draft(
            func=te.create_prim_func(arguments),
            schedule=lambda sch, choice: schedule(sch, plan, target, choice),
            finish=functools.partial(finish, plan, tail),
        )

    return Template(name=NAME, variant=variant, cycles=cycles, start=start)


def finish(plan: Plan, tail: ep.Epilogue, func: Any) -> Kernel:
    """The kernel of the scheduled function of ``plan``."""
    found = plan.form
    # A sum of one product needs no addition, and so no fused multiply-add.
    mnemonic = found.mnemonic if found.intrinsic or plan.steps > 1 else None
    kernel = common.finish(plan.workload, kernel_function(prefetched(func), plan.workload, tail), NAME, mnemonic)
    return replace(kernel, pack=functools.partial(pack, plan))


def pack(plan: Plan, weight: Any) -> Any:
    """``Layer.weight``, or its integers, as the kernel of ``plan`` reads it: block after block one stream."""
    stream = pack_stream(
        weight,
        vectors=plan.vectors,
        lanes=plan.lanes,
        r=plan.form.r,
        parts=plan.form.parts,
        inputs=plan.steps * plan.form.r,
    )
    if plan.form.bf16:
        return numerics.to_bf16(stream)
    return pack_nibbles(stream, signed=plan.form.signed_nibbles) if plan.form.weight == "int4" else stream


def computation(plan: Plan) -> tuple[list[Any], ep.Epilogue]:
    """The arguments of the kernel and its epilogue; blocks "rows", "weights", "acc", ["staged"] and "out"."""
    found, vectors, lanes, r, steps = plan.form, plan.vectors, plan.lanes, plan.form.r, plan.steps
    x = te.placeholder((plan.count, plan.inputs), found.stored, "x")
    out_shape = (plan.count, plan.channels)
    tail = ep.make_epilogue(plan.workload, found.stored, out_shape)
    rows = x
    if plan.copied:
        zero = tirx.const(0, found.act)

        def copy(m: Any, j: Any) -> Any:
            there = tirx.all(m < plan.count, j < plan.inputs)
            return tirx.if_then_else(there, bf16.as_multiplied(x[m, j], found), zero)

        rows = te.compute((plan.tiles * plan.rows, steps * r), copy, name="rows")
    int4 = found.weight == "int4"
    width = found.parts * lanes, r // found.parts
    if int4:
        weight = te.placeholder((plan.blocks, steps // 2, vectors, *width), "uint8", "weight")

        def unpacked(b: Any, k: Any, odd: Any, v: Any, lane: Any, i: Any) -> Any:
            value = scaled_nibble(weight[b, k, v, lane, i], odd, signed=found.signed_nibbles)
            return value if plan.scaled else value >> tirx.const(SCALE_BITS, "int8")

        bytes_ = te.compute((plan.blocks, steps // 2, 2, vectors, *width), unpacked, name="weights")
    else:
        weight = te.placeholder((plan.blocks, steps, vectors, *width), found.weight, "weight")

    def weight_at(b: Any, k: Any, v: Any, lane: Any, i: Any) -> Any:
        return bytes_[b, k // 2, k % 2, v, lane, i] if int4 else weight[b, k, v, lane, i]

    run = reduction(found, steps, plan.hold)
    if plan.hold > 1:
        reach = plan.hold * r
        held = te.compute(
            (plan.tiles * plan.rows, steps // plan.hold, reach), lambda m, k, i: rows[m, k * reach + i], "held"
        )

    def product(m: Any, b: Any, v: Any, lane: Any) -> Any:
        value = held[m, run.outer, run.within] if plan.hold > 1 else rows[m, run.step * r + run.within]
        factor = weight_at(b, run.step, v, run.lane(lane, lanes), run.i)
        value, factor = (bf16.as_summed(one, found) for one in (value, factor))
        return te.sum(value * factor, axis=list(run.axes))

    acc = te.compute((plan.tiles * plan.rows, plan.blocks, vectors, lanes), product, name="acc")

    def sums(m: Any, c: Any) -> Any:
        total = acc[m, c // (vectors * lanes), c // lanes % vectors, c % lanes]
        return total >> SCALE_BITS if plan.scaled else total

    entries = table_entries(plan.shuffle)
    out = finished(tail, sums, out_shape, staged=plan.staged, entries=entries)
    return [*tail.arguments(x, weight, out), *([] if entries is None else [entries])], tail


def schedule(sch: Schedule, plan: Plan, target: Target, choice: Choice = DEFAULT) -> None:
    """Schedules ``computation(plan)``. Sampling instructions: how far the reduction is written out, and how many
    steps ahead of their use weights are asked for.
    """
    found = plan.form
    int4 = found.weight == "int4"
    acc = sch.get_sblock("acc")
    m, b, v, lane, *others = sch.get_loops(acc)
    k, steps, added = axes_of(others, plan.hold)
    m_out, m_in = sch.split(m, [None, plan.rows])
    if int4:
        halves = sch.split(steps[0] if steps else k, [None, 2])
        k, steps = (k, halves) if steps else (halves[0], [halves[1]])
    extent = int(sch.get(k).extent)
    # Written out, sums of separate products are added up in another order by LLVM, which then lacks registers.
    most = 1 if found.act == "int16" else max(1, UNROLLED // (plan.rows * plan.vectors * (plan.steps // extent)))
    k_out, k_in = choice.cut(sch, k, divisors(extent, most)[-1], 2 * most)
    ahead = choice.pick(sch, STEPS_AHEAD, 0)
    if ahead:
        mark(sch, k_in, axis=1, ahead=ahead, count=plan.vectors, along=2)
    within = [k_in, *steps]
    sch.reorder(b, m_out, k_out, *within, m_in, v, lane, *added)
    if plan.hold > 1:
        schedule_held(sch, k_in)
    if found.bf16:
        bf16.import_functions(sch, b)
    if plan.blocks > 1 and worth_parallel(plan.workload, target):
        sch.parallel(b)
    if int4:
        weights = sch.get_sblock("weights")
        sch.compute_at(weights, within[-2], preserve_unit_loops=True)
        *_, odd, w_v, w_lane, w_i = sch.get_loops(weights)
        sch.unroll(odd)
        sch.unroll(w_v)
        sch.vectorize(sch.fuse(w_lane, w_i))
        sch.set_scope(weights, 0, "local")
    sch.set_scope(acc, 0, "local")
    schedule_tail(sch, m_out, plan.lanes, plan.channels, staged=plan.staged, shuffle=plan.shuffle)
    for loop in (*within, m_in, v):
        sch.unroll(loop)
    if not found.intrinsic:
        sch.vectorize(lane)
    init = sch.decompose_reduction(acc, k_out)
    *_, init_m, init_v, init_lane = sch.get_loops(init)
    sch.vectorize(init_lane)
    sch.unroll(init_m)
    sch.unroll(init_v)
    if found.intrinsic:
        sch.tensorize(lane, dot(found, plan.lanes, held=plan.hold > 1, in_registers=int4))
    if plan.copied:
        rows = sch.get_sblock("rows")
        sch.annotate(sch.get_loops(rows)[-1], "pragma_loop_partition_hint", 1)
        if plan.crowded:
            set_apart(sch, rows, found)


def set_apart(sch: Schedule, rows: Any, found: Form) -> None:
    """Lays rows an odd number of lines apart: neighbours then use different sets."""
    line = 64 // found.item_bytes
    sch.storage_align(rows, 0, 0, 2 * line, line)


def worth_parallel(workload: Workload, target: Target) -> bool:
    """Whether the work, at the target's rates of products and of bytes, is worth threads."""
    row = compute_row(workload, target)
    assert row is not None
    far = target.l3_bytes_per_s or target.memory_bytes_per_s
    seconds = max(geometry(workload).macs / (row.macs_per_cycle * target.clock_hz), weight_bytes(workload) / far)
    return common.worth_threads(workload.parallel, seconds, target)


def schedule_tail(
    sch: Schedule, at: Any, lanes: int, channels: int, *, staged: bool, shuffle: str | None = None
) -> None:
    """The epilogue of a tile by vectors of channels: the widest that the output's channels divide into.

    shuffle: what looks its bytes up in a table; None: they go one by one.
    """
    out = sch.get_sblock("out")
    width = next((n for n in (16, 8, 4) if n <= lanes and channels % n == 0), 1)
    first = sch.get_sblock("staged") if staged else out
    sch.reverse_compute_at(first, at, preserve_unit_loops=True)
    if width > 1:
        rows, channel = sch.get_loops(first)[-2:]
        vectors, lane = sch.split(channel, [None, width])
        sch.unroll(rows)
        sch.unroll(vectors)
        sch.vectorize(lane)
    if staged:
        sch.reverse_compute_at(out, at, preserve_unit_loops=True)
    if shuffle is not None:
        sch.vectorize(sch.split(sch.get_loops(out)[-1], [None, lookup.LANES[shuffle]])[1])
