"""Depthwise convolution kernels for CPUs: vectors of channels, plain multiply-adds that LLVM turns into the CPU's own.

    rows     the input with its spatial padding; absent or inlined where it can be read in place
    weights  int4 only: unpacked to bytes, all of them at once (they are few)
    acc      sums[n, oh, ow, block, lane], a tile of pixels at a time; the taps of one block stay in registers
    out      bias, requantize, residual, activation; ragged edges are cut here

Takes depthwise_conv2d in f32, w8a8 and w4a8 on any target of this family; integers go to ``depthwise_dot`` first, which
brings taps together for dot products. The limit of float is a load for each multiply-add, one vector a cycle on Zen 4;
a third (7x7 pixels) to three quarters (112x112) of it is reached. On NEON, which multiplies bytes to words, as many
taps as a word holds are added up there first: two of int8, up to 31 of int4.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from hwq.schedules import epilogue as ep
from hwq.schedules.cpu import lookup
from hwq.schedules.cpu.ends import (
    finished,
    from_bias,
    kernel_function,
    padded_rows,
    schedule_rows,
    schedule_tail,
    table_entries,
)
from hwq.schedules.cpu.geometry import Form, Geometry, form, geometry
from hwq.schedules.cpu.packing import pack_nibbles, pack_taps
from hwq.schedules.cpu.tiling import divisors
from hwq.schedules.generic import common
from hwq.schedules.template import DEFAULT, Choice, Draft, Template, first
from hwq.schedules.x86 import depthwise_dot
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "cpu/depthwise:2"
# Kernels of more taps than this keep their rows as a loop.
UNROLLED_TAPS = 49
# Kernels of at most so many taps may read their padding by conditions; without a stride, rows of at least so many
# pixels, of which few tiles are at an edge. The tiles are narrow, since conditions multiply their code.
INLINED_TAPS, INLINED_WIDTH, INLINED_PIXELS = 9, 16, 2
# Sums on NEON that a tile may keep, in registers of four; more would not leave any for words.
MOST_SUMS = 20
# How much longer each further plan is expected to take, as a share: there is no model.
NEXT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One kernel: pixels is the tile's width, blocks the number of channel vectors of ``lanes``. inlined: the padding
    is a condition on each load, that the loops of the middle go without, instead of a copy of the input.
    """

    workload: Workload
    geometry: Geometry
    form: Form
    pixels: int
    lanes: int
    blocks: int
    inlined: bool

    @property
    def ragged(self) -> bool:
        return self.geometry.out_c % self.lanes != 0

    @property
    def staged(self) -> bool:
        return not (self.ragged or self.form.acc == "float32" or self.workload.activation.clamps)

    @property
    def out_w(self) -> int:
        return math.ceil(self.geometry.out_w / self.pixels) * self.pixels

    @property
    def taps(self) -> int:
        return self.geometry.kernel_h * self.geometry.kernel_w

    @property
    def together(self) -> int:
        """Taps whose products are added up in words, where those cannot overflow; 0: each is widened to the sum's type.

        Few steps of as equal length as can be: what the last one has beyond the taps has weights of zero.
        """
        if not self.form.neon or self.form.acc == "float32" or self.taps > UNROLLED_TAPS:
            return 0
        most = 32767 // (128 * (8 if self.form.weight == "int4" else 127))
        return math.ceil(self.taps / math.ceil(self.taps / most))

    @property
    def held_taps(self) -> int:
        """Taps with those of weight zero."""
        return math.ceil(self.taps / self.together) * self.together if self.together else self.taps

    @property
    def packed(self) -> bool:
        """Whether the epilogue ends in ``narrow``, and sums start at the bias."""
        return self.form.neon and self.form.narrows and not self.ragged and self.workload.out_dtype == "int8"

    @property
    def shuffle(self) -> str | None:
        """The instruction that looks bytes up in a table, if there is a table, and a vector fills it."""
        able = (name for name in self.form.shuffles if self.lanes % lookup.LANES[name] == 0)
        return next(able, None) if self.packed and self.staged else None

    @property
    def row(self) -> int:
        """Elements of an input row, padding included, that whole tiles and whole vectors read."""
        shape = self.geometry
        pixels = (self.out_w - 1) * shape.stride_w + (shape.kernel_w - 1) * shape.dilation_w
        return pixels * shape.in_c + self.blocks * self.lanes

    @property
    def copied(self) -> bool:
        shape = self.geometry
        return shape.padded or shape.rows(shape.out_h) > shape.in_h or self.row > shape.in_w * shape.in_c


def elementwise(found: Form) -> Form:
    """The form in which single products are added: a dot product instruction has no neighbours to add up here."""
    mnemonic = found.mnemonic if found.acc == "float32" else None
    return replace(found, act=found.stored, r=1, intrinsic=False, mnemonic=mnemonic)


def make_plan(workload: Workload, found: Form) -> Plan:
    """The default plan: the widest vectors that the channels fill to three quarters, and four to seven pixels a time,
    so that the sums' chains overlap.
    """
    return next(plans(workload, found))


def plans(workload: Workload, found: Form) -> Iterator[Plan]:
    """The default plan, then those of other widths, by what tiles leave over; and with a padding that is copied where
    the default reads it by conditions.
    """
    shape = geometry(workload)
    words = found.neon and found.acc != "float32"
    vectors = (16, 8, 4) if words else found.vectors
    lanes = next((n for n in vectors if shape.in_c / (math.ceil(shape.in_c / n) * n) >= 0.75), vectors[-1])
    if words:
        lanes = next((n for n in (16, 8) if shape.in_c % n == 0), lanes)
    inlined = (
        found.acc == "float32"
        and not found.neon  # which has no loads under a mask
        and shape.padded
        and shape.in_c % lanes == 0
        and shape.kernel_h * shape.kernel_w <= INLINED_TAPS
        and (shape.stride_w > 1 or shape.out_w >= INLINED_WIDTH)
    )
    for inline in (True, False) if inlined else (False,):
        widths = [width for width in range(1, 8) if width <= shape.out_w]
        if inline:
            widths = widths[:INLINED_PIXELS]
        if words:
            widths = widths[: 4 * MOST_SUMS // lanes]
        for pixels in sorted(widths, key=lambda width: (math.ceil(shape.out_w / width) * max(width, 4), -width)):
            yield Plan(
                workload=workload,
                geometry=shape,
                form=elementwise(found),
                pixels=pixels,
                lanes=lanes,
                blocks=math.ceil(shape.in_c / lanes),
                inlined=inline,
            )


def apply(workload: Workload, target: Target, *, seed: int | None = None) -> Kernel | None:
    """The kernel of a depthwise workload, or None. seed: sample the decisions instead of taking the default ones."""
    return first(templates(workload, target), seed)


def templates(workload: Workload, target: Target) -> Iterator[Template]:
    """The kernels of a depthwise workload: those of ``depthwise_dot`` if there are any, else a tile each."""
    if workload.op != "depthwise_conv2d":
        common.decline(workload, "not depthwise")
        return
    found = form(workload, target)
    if found is None:
        common.decline(workload, f"no form for it on {target.name}")
        return
    dots = depthwise_dot.templates(workload, found, target) if common.is_integer(workload) else iter(())
    dot = next(dots, None)
    if dot is not None:
        yield dot
        yield from dots
        return
    for number, plan in enumerate(plans(workload, found)):
        variant = f"{plan.pixels}x{plan.lanes}{' inlined' if plan.inlined else ''}"
        yield template_of(plan, target, variant, 1.0 + NEXT * number)


def template_of(plan: Plan, target: Target, variant: str, cycles: float) -> Template:
    """The template of ``plan``."""

    def start() -> Draft:
        arguments, tail = computation(plan)
        return Draft(
            func=from_bias(arguments) if plan.packed else te.create_prim_func(arguments),
            schedule=lambda sch, choice: schedule(sch, plan, target, choice),
            finish=functools.partial(finish, plan, tail),
        )

    return Template(name=NAME, variant=variant, cycles=cycles, start=start)


def finish(plan: Plan, tail: ep.Epilogue, func: Any) -> Kernel:
    """The kernel of the scheduled function of ``plan``."""
    mnemonic = plan.form.mnemonic if plan.taps > 1 else None  # one product needs no addition
    kernel = common.finish(plan.workload, kernel_function(func, plan.workload, tail), NAME, mnemonic)
    return replace(kernel, pack=functools.partial(pack, plan))


def pack(plan: Plan, weight: Any) -> Any:
    """(C, KH, KW, 1) as the kernel of ``plan`` reads it: (taps, whole vectors of channels); int4 half the taps."""
    packed = pack_taps(weight, plan.blocks * plan.lanes, plan.held_taps)
    return pack_nibbles(packed, axis=0) if plan.form.weight == "int4" else packed


def computation(plan: Plan) -> tuple[list[Any], ep.Epilogue]:
    """The arguments of the kernel and its epilogue; blocks "rows", "weights", "acc", ["staged"] and "out"."""
    shape, found, lanes = plan.geometry, plan.form, plan.lanes
    x = te.placeholder((shape.batch, shape.in_h, shape.in_w * shape.in_c), found.stored, "x")
    out_shape = (shape.batch, shape.out_h, shape.out_w, shape.out_c)
    tail = ep.make_epilogue(plan.workload, found.stored, out_shape)
    rows = padded_rows(shape, found, x, tail, shape.out_h, plan.row) if plan.copied else x

    channels = plan.blocks * lanes
    if found.weight == "int4":
        weight = te.placeholder((math.ceil(plan.held_taps / 2), channels), "uint8", "weight")
        taps = te.compute(
            (plan.held_taps, channels), lambda tap, c: ep.nibble(weight[tap // 2, c], tap % 2), name="weights"
        )
    else:
        weight = te.placeholder((plan.held_taps, channels), found.weight, "weight")
        taps = weight
    kh = te.reduce_axis((0, shape.kernel_h), "kh")
    kw = te.reduce_axis((0, shape.kernel_w), "kw")
    step = te.reduce_axis((0, plan.held_taps // max(1, plan.together)), "step")

    def product(kind: str, tap: Any, kh: Any, kw: Any, *at: Any) -> Any:
        n, h, w, b, lane = at
        place = (w * shape.stride_w + kw * shape.dilation_w) * shape.in_c + b * lanes + lane
        value = rows[n, h * shape.stride_h + kh * shape.dilation_h, place]
        return value.astype(kind) * taps[tap, b * lanes + lane].astype(kind)

    def in_words(tap: Any, *at: Any) -> Any:
        there = tirx.min(tap, plan.taps - 1) if plan.held_taps > plan.taps else tap
        return product("int16", tap, there // shape.kernel_w, there % shape.kernel_w, *at)

    def total(n: Any, h: Any, w: Any, b: Any, lane: Any) -> Any:
        at = n, h, w, b, lane
        if not plan.together:
            return te.sum(product(found.acc, kh * shape.kernel_w + kw, kh, kw, *at), axis=[kh, kw])
        words = [in_words(step * plan.together + each, *at) for each in range(plan.together)]
        return te.sum(functools.reduce(operator.add, words).astype(found.acc), axis=step)

    acc = te.compute((shape.batch, shape.out_h, plan.out_w, plan.blocks, lanes), total, name="acc")

    def sums(n: Any, h: Any, w: Any, c: Any) -> Any:
        return acc[n, h, w, c // lanes, c % lanes]

    entries = table_entries(plan.shuffle)
    packed = plan.packed
    out = finished(tail, sums, out_shape, staged=plan.staged, packed=packed, biased=packed, entries=entries)
    return [*tail.arguments(x, weight, out), *([] if entries is None else [entries])], tail


def schedule(sch: Schedule, plan: Plan, target: Target, choice: Choice = DEFAULT) -> None:
    """Schedules ``computation(plan)``. A sampling instruction: the output rows for which input is copied at a time."""
    shape, found = plan.geometry, plan.form
    acc = sch.get_sblock("acc")
    n, h, w, b, lane, *taps = sch.get_loops(acc)
    w_out, w_in = sch.split(w, [None, plan.pixels])
    h_out, h_in = choice.cut(sch, h, default_height(plan, target), shape.out_h)
    sch.reorder(n, h_out, h_in, b, w_out, *taps, w_in, lane)
    outer = sch.fuse(n, h_out)
    parallel = worth_parallel(plan, target)
    if parallel:
        sch.parallel(outer)
    sch.set_scope(acc, 0, "local")
    if found.weight == "int4":
        tap, _ = sch.get_loops(sch.get_sblock("weights"))
        sch.unroll(tap)
    if plan.copied:
        if plan.inlined:
            sch.compute_inline(sch.get_sblock("rows"))
            for loop in (h_in, w_out):
                sch.annotate(loop, "pragma_loop_partition_hint", 1)
        else:
            sch.compute_at(sch.get_sblock("rows"), outer, preserve_unit_loops=True)
            schedule_rows(sch)
    lanes = found.vectors[0] if plan.packed else plan.lanes
    schedule_tail(
        sch,
        w_out,
        shape,
        lanes=lanes,
        whole=not plan.ragged,
        staged=plan.staged,
        packed=plan.packed,
        shuffle=plan.shuffle,
    )
    for loop in (*(taps if plan.taps <= UNROLLED_TAPS else taps[1:]), w_in):
        sch.unroll(loop)
    sch.vectorize(lane)
    init = sch.decompose_reduction(acc, taps[0])
    *init_outer, _ = sch.get_loops(init)
    sch.unroll(init_outer[-1])


def default_height(plan: Plan, target: Target) -> int:
    """Output rows for which the input is copied at a time: what a quarter of the L2 holds, shared out to threads."""
    shape, item_bytes = plan.geometry, plan.form.item_bytes
    most = shape.out_h
    if worth_parallel(plan, target):
        most = math.ceil(shape.out_h / plan.workload.parallel)
    good = [
        rows for rows in divisors(shape.out_h, most) if shape.rows(rows) * plan.row * item_bytes <= target.l2_bytes // 4
    ]
    return good[-1] if good else 1


def worth_parallel(plan: Plan, target: Target) -> bool:
    """Whether the work, at a vector of multiply-adds a cycle, is worth threads."""
    return common.worth_threads(plan.workload.parallel, plan.geometry.macs / plan.lanes / target.clock_hz, target)
