"""3x3 convolution with a quarter of the products: Winograd's F(4x4, 3x3) in exact integers, see ``winograd_maths``.

    rows     a block of tile rows, with padding                                      bytes
    columns  B^T applied along a row of the picture, half of the results at a time   registers
    v        B^T applied across the rows: 36 matrices (tiles, channels)              int16, L2
    m        their 36 products with the weights, a register tile at a time           int32, L1 or L2
    half     A^T applied across the rows                                             registers
    y        A^T applied along the row; divided, chunks added up, centring undone    registers
    out      bias, requantize, residual, activation; ragged edges are cut here

Takes integer conv2d, 3x3, stride 1, no dilation, one group, on AVX512-VNNI and AVX2, where the model of
``winograd_tiling`` expects it to be faster than the direct kernel. Its limit is the 16-bit dot product: 36 products of
16-bit pairs where the direct kernel has 144 of 8-bit quadruples (AVX512-VNNI) or 16-bit pairs (AVX2), so at best 2 or 4
times as fast. On one core of Zen 4, AVX512-VNNI, 28x28x128 runs at 413 GMAC/s, 90% of the limit and 1.77 times the
direct kernel; 56x56x64 at 369, 8x8x64 at 351. With few channels the transforms, some 280 cycles a tile and vector,
weigh as much as the products: 32x32x16 at 236 GMAC/s, 1.14 times.

Sums leave int32 on their way and come back: additions here wrap. TVM marks them as not wrapping for LLVM, which has no
use for that in additions of values it knows nothing of; the tests run the extremes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from hwq.schedules import epilogue as ep
from hwq.schedules.cpu import tiling
from hwq.schedules.cpu.conv2d_plan import core_of
from hwq.schedules.cpu.ends import finished, kernel_function, padded_rows, schedule_rows, schedule_tail
from hwq.schedules.cpu.geometry import Form, Geometry, form, geometry
from hwq.schedules.cpu.prefetch import mark, prefetched
from hwq.schedules.cpu.tiles import Core
from hwq.schedules.generic import common
from hwq.schedules.template import DEFAULT, Choice, Draft, Template
from hwq.schedules.x86.intrinsics import dot
from hwq.schedules.x86.winograd_expand import Layout, expand, pack, pick
from hwq.schedules.x86.winograd_maths import (
    CENTRED,
    INVERSE_OF_9,
    ONE,
    SHIFTS,
    TILE,
    WINDOW,
    input_rows,
    output_rows,
)
from hwq.schedules.x86.winograd_tiling import (
    FAR_L2S,
    MARGIN,
    Blocking,
    Sizes,
    best_blocking,
    cycles,
    ranked_blockings,
    shares,
    sizes,
    suits,
    weights_bytes,
)
from hwq.target import Target
from hwq.workload import Kernel, Workload

# Instruction of a target's compute row for 8-bit products -> the one for 16-bit products in an assembly.
WORDS = {"avx512.vpdpbusd": "vpdpwssd", "avx.vpdpbusd": "vpdpwssd", "avx2.vpmaddwd": "vpmaddwd"}
NAME = "x86/winograd:3"
# Steps of a product that are written out in a row, at most.
MOST_STEPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One kernel: what it computes, in which form, and how it is cut."""

    workload: Workload
    geometry: Geometry
    form: Form
    blocking: Blocking
    sizes: Sizes

    @property
    def layout(self) -> Layout:
        """How the weights are blocked."""
        size = self.sizes
        return Layout(
            kind=self.form.weight,
            blocks=size.blocks,
            vectors=self.blocking.vectors,
            lanes=size.lanes,
            chunks=size.chunks,
            steps=size.steps,
        )

    @property
    def centre(self) -> int:
        """The centre of the stored type's range."""
        return 128 if self.form.stored == "uint8" else 0

    @property
    def ragged(self) -> bool:
        """Whether the last vectors hold channels that the output lacks."""
        return self.sizes.blocks * self.blocking.vectors * self.sizes.lanes != self.geometry.out_c

    @property
    def staged(self) -> bool:
        """Whether the epilogue goes through a buffer: its first part by vectors, then a table."""
        return not (self.ragged or self.workload.activation.clamps)

    @property
    def packed(self) -> bool:
        """Whether the epilogue ends in ``narrow``: where the four pixels of a tile's row share a store."""
        shared = shares(self.geometry, self.blocking, self.sizes)
        return shared and self.form.stored == "uint8" and self.workload.out_dtype == "int8"


def make_plan(workload: Workload, found: Form, core: Core, threads: int) -> Plan:
    """The plan with the best blocking by the model."""
    return plan_of(workload, found, best_blocking(geometry(workload), found, core, threads))


def plan_of(workload: Workload, found: Form, blocking: Blocking) -> Plan:
    """The plan with ``blocking``."""
    shape = geometry(workload)
    return Plan(workload=workload, geometry=shape, form=found, blocking=blocking, sizes=sizes(shape, found, blocking))


def apply(workload: Workload, target: Target, *, seed: int | None = None, always: bool = False) -> Kernel | None:
    """The kernel of a 3x3 conv2d where it is expected to be faster than the direct one, or None.

    seed: sample the decisions, instead of taking the defaults. always: even where it is expected to be slower.
    """
    found = next(templates(workload, target), None)
    return None if found is None or not (found.cycles == 1.0 or always) else found.kernel(seed)


def templates(workload: Workload, target: Target) -> Iterator[Template]:
    """The kernels of a 3x3 conv2d, a blocking each, the model's best first. Cycles are shares of its best ones, where
    that is expected to be faster than the direct kernel; else of the direct one's.
    """
    if workload.op != "conv2d" or not common.is_integer(workload):
        common.decline(workload, "not an integer conv2d")
        return
    found = form(workload, target)
    if found is None or found.instruction not in WORDS:
        common.decline(workload, f"no 16-bit dot product on {target.name}")
        return
    shape = geometry(workload)
    if not suits(shape):
        common.decline(workload, "not 3x3 with stride 1, no dilation and one group")
        return
    core = core_of(workload, found, target)
    direct = tiling.cycles(shape, found, core, tiling.best_tile(shape, found, core))
    parallel = common.worth_threads(workload.parallel, direct / target.clock_hz, target)
    threads = workload.parallel if parallel else 1
    if weights_bytes(shape) > FAR_L2S * target.l2_bytes:
        core = replace(core, far_bytes_per_cycle=target.memory_bytes_per_s / target.clock_hz)
    blockings = ranked_blockings(shape, found, core, threads)
    expected = [cycles(shape, found, core, one, threads, table=not workload.activation.clamps) for one in blockings]
    if expected[0] * (1.0 + MARGIN) >= direct:
        common.decline(workload, f"{expected[0]:.0f} cycles expected, of the direct kernel {direct:.0f}")
        base = direct / (1.0 + MARGIN)
    else:
        base = expected[0]
    for blocking, each in zip(blockings, expected, strict=True):
        plan = plan_of(workload, found, blocking)
        outer = parallel and shape.batch * plan.sizes.bands > 1
        yield template_of(plan, outer, f"{blocking.rows}x{blocking.tiles}x{blocking.vectors}", each / base)


def template_of(plan: Plan, parallel: bool, variant: str, cycles: float) -> Template:
    """The template of ``plan``."""

    def start() -> Draft:
        arguments, tail = computation(plan)
        return Draft(
            func=te.create_prim_func(arguments),
            schedule=lambda sch, choice: schedule(sch, plan, choice, parallel=parallel),
            finish=functools.partial(finish, plan, tail),
        )

    return Template(name=NAME, variant=variant, cycles=cycles, start=start)


def finish(plan: Plan, tail: ep.Epilogue, func: Any) -> Kernel:
    """The kernel of the scheduled function of ``plan``."""
    function = kernel_function(prefetched(func), plan.workload, tail)
    kernel = common.finish(plan.workload, function, NAME, WORDS[plan.form.instruction])
    layout = plan.layout
    return replace(kernel, pack=functools.partial(pack, layout), expand=expand(layout, f"{kernel.symbol}_expand"))


def computation(plan: Plan) -> tuple[list[Any], ep.Epilogue]:
    """The arguments of the kernel and its epilogue; the blocks of the module's docstring, "staged" before a table."""
    shape, found, size = plan.geometry, plan.form, plan.sizes
    x = te.placeholder((shape.batch, shape.in_h, shape.in_w * shape.in_c), found.stored, "x")
    out_shape = (shape.batch, shape.out_h, shape.out_w, shape.out_c)
    tail = ep.make_epilogue(plan.workload, found.stored, out_shape)
    weight = te.placeholder(plan.layout.expanded, "int16", "weight")
    row = (TILE * size.across + 1) * shape.in_c + size.channels
    plain = replace(found, act=found.stored)
    rows = padded_rows(shape, plain, x, tail, size.bands * plan.blocking.rows * TILE, row)
    v = _transformed_input(plan, rows)
    y = _inverse(plan, _products(plan, v, weight), _centres(plan, weight))

    def sums(n: Any, h: Any, w: Any, c: Any) -> Any:
        return y[n, h, w, c // size.lanes, c % size.lanes]

    return tail.arguments(x, weight, finished(tail, sums, out_shape, staged=plan.staged, packed=plan.packed)), tail


def held(dtype: str) -> Callable[[Any], Any]:
    """Values of ``dtype`` that TVM's simplifier does not see into: it would multiply out what several results share."""
    return lambda value: tirx.call_intrin(dtype, "tirx.reinterpret", value)


def _transformed_input(plan: Plan, rows: Any) -> Any:
    """Blocks "columns" and "v" (batch, band, 6, 6, tile, channel); v of the input less its type's centre."""
    shape, size, height = plan.geometry, plan.sizes, plan.blocking.rows * TILE
    lead = (shape.batch, size.bands)

    def column(n: Any, band: Any, t: Any, a: Any, j: Any, c: Any) -> Any:
        h, w = band * height + t // size.across * TILE + a, t % size.across * TILE
        return pick(
            j, input_rows([rows[n, h, (w + i) * shape.in_c + c].astype("int16") for i in range(WINDOW)], held("int16"))
        )

    columns = te.compute((*lead, size.block, WINDOW, WINDOW, size.channels), column, name="columns")

    def value(n: Any, band: Any, i: Any, j: Any, t: Any, c: Any) -> Any:
        values = input_rows([columns[n, band, t, a, j, c] for a in range(WINDOW)], held("int16"))
        shift, none = tirx.const(plan.centre * ONE, "int16"), tirx.const(0, "int16")
        values[CENTRED[0]] = values[CENTRED[0]] - tirx.Select(j == CENTRED[1], shift, none)
        return pick(i, values)

    return te.compute((*lead, WINDOW, WINDOW, size.block, size.channels), value, name="v")


def _products(plan: Plan, v: Any, weight: Any) -> Any:
    """Block "m" (batch, band, block, chunk, 6, 6, tile, vector, lane): sums over the channels of a chunk."""
    size = plan.sizes
    k, r = te.reduce_axis((0, size.steps), "k"), te.reduce_axis((0, 2), "r")

    def product(n: Any, band: Any, b: Any, q: Any, i: Any, j: Any, t: Any, vec: Any, lane: Any) -> Any:
        value = v[n, band, i, j, t, (q * size.steps + k) * 2 + r].astype("int32")
        return te.sum(value * weight[b, q, i, j, k, vec, lane, r].astype("int32"), axis=[k, r])

    lead = (plan.geometry.batch, size.bands, size.blocks, size.chunks, WINDOW, WINDOW, size.block)
    return te.compute((*lead, plan.blocking.vectors, size.lanes), product, name="m")


def _centres(plan: Plan, weight: Any) -> Any:
    """Block "centres" (block, vector, lane): what centring takes from the sums, centre times the sum of the weights,
    which the transformed weights hold at CENTRED."""
    size = plan.sizes
    middle = te.compute((2,), lambda _: tirx.const(plan.centre, "int16"), name="middle")
    q, k, r = (te.reduce_axis((0, extent), name) for extent, name in ((size.chunks, "q"), (size.steps, "k"), (2, "r")))

    def value(b: Any, vec: Any, lane: Any) -> Any:
        at = (b, q, *CENTRED, k, vec, lane, r)
        return te.sum(middle[r].astype("int32") * weight[at].astype("int32"), axis=[q, k, r])

    return te.compute((size.blocks, plan.blocking.vectors, size.lanes), value, name="centres")


def _inverse(plan: Plan, m: Any, centres: Any) -> Any:
    """Blocks "half", "full" and "y" (batch, h, w, vector, lane): the sums of the direct convolution, whole tiles."""
    shape, size, blocking = plan.geometry, plan.sizes, plan.blocking
    height, vectors = blocking.rows * TILE, blocking.vectors
    lead = (shape.batch, size.bands, size.blocks, size.chunks, size.block)

    def half_at(n: Any, band: Any, b: Any, q: Any, t: Any, a: Any, j: Any, vec: Any, lane: Any) -> Any:
        return pick(a, output_rows([m[n, band, b, q, i, j, t, vec, lane] for i in range(WINDOW)], held("int32")))

    half = te.compute((*lead, TILE, WINDOW, vectors, size.lanes), half_at, name="half")

    def y_at(n: Any, h: Any, w: Any, b: Any, lane: Any) -> Any:
        t = h // TILE % blocking.rows * size.across + w // TILE
        shift = pick(h % TILE, SHIFTS) + pick(w % TILE, SHIFTS)
        value = centres[b // vectors, b % vectors, lane]
        for q in range(size.chunks):
            row = [half[n, h // height, b // vectors, q, t, h % TILE, j, b % vectors, lane] for j in range(WINDOW)]
            whole = held("int32")(pick(w % TILE, output_rows(row, held("int32"))))
            value = value + (whole * tirx.const(INVERSE_OF_9, "int32") >> shift)
        return value

    pixels = (shape.batch, size.bands * height, size.across * TILE, size.blocks * vectors)
    return te.compute((*pixels, size.lanes), y_at, name="y")


def schedule(sch: Schedule, plan: Plan, choice: Choice = DEFAULT, *, parallel: bool) -> None:
    """Schedules ``computation(plan)``. Sampling instructions: how many steps of a product are written out, and whether
    weights are asked for ahead of time.
    """
    names = ("y", "half", "m", "centres", "middle", "v", "columns")
    y, half, m, centres, middle, v, columns = (sch.get_sblock(name) for name in names)
    n, h, w, b, lane = sch.get_loops(y)
    g, tr, a = sch.split(h, [None, plan.blocking.rows, TILE])
    tw, c = sch.split(w, [None, TILE])
    block, vec = sch.split(b, [None, plan.blocking.vectors])
    sch.reorder(n, g, block, tr, tw, vec, a, c, lane)
    outer = sch.fuse(n, g)
    if parallel:
        sch.parallel(outer)
    sch.compute_at(half, vec, preserve_unit_loops=True)
    sch.compute_at(m, block, preserve_unit_loops=True)
    _schedule_products(sch, plan, m, choice)
    row, column = sch.get_loops(half)[-4:-2]
    sch.reorder(column, row)
    _in_registers(sch, half, sch.get_loops(half)[5:])
    _in_registers(sch, y, sch.get_loops(y)[5:])
    sch.compute_at(centres, block, preserve_unit_loops=True)
    sch.compute_at(middle, outer, preserve_unit_loops=True)
    sch.compute_at(v, outer, preserve_unit_loops=True)
    _schedule_centres(sch, plan, centres)
    _schedule_inputs(sch, plan, v, columns)
    schedule_tail(
        sch,
        a,
        plan.geometry,
        lanes=plan.sizes.lanes,
        whole=not plan.ragged,
        staged=plan.staged,
        packed=plan.packed,
    )
    if not plan.ragged and not plan.packed:
        for name in ("staged", "out") if plan.staged else ("out",):
            for loop in sch.get_loops(sch.get_sblock(name))[6:-1]:
                sch.unroll(loop)
    rows = sch.get_sblock("rows")
    sch.compute_at(rows, outer, preserve_unit_loops=True)
    schedule_rows(sch)


def _in_registers(sch: Schedule, stage: Any, loops: Sequence[Any]) -> None:
    """Whole vectors, all of them at once."""
    sch.set_scope(stage, 0, "local")
    sch.vectorize(loops[-1])
    for loop in loops[:-1]:
        sch.unroll(loop)


def _schedule_products(sch: Schedule, plan: Plan, m: Any, choice: Choice) -> None:
    """36 products one after the other, and their copy to memory, by lines that do not crowd one set of the L1."""
    copy = sch.cache_write(m, 0, "local")
    t, vec, lane, k, r = sch.get_loops(m)[-5:]
    tiles = plan.blocking.tiles
    t_out, t_in = sch.split(t, [None, tiles])
    sch.reorder(t_out, k, t_in, vec, lane, r)
    step, at_once = k, choice.sizes(sch, k, 1, MOST_STEPS)
    if int(sch.get(at_once[1])) > 1:
        k, step = sch.split(k, at_once)
        sch.unroll(step)
    if choice.pick(sch, (0, 1), 0):
        mark(sch, step, axis=3, ahead=1, count=plan.blocking.vectors, along=5)
    sch.reverse_compute_at(copy, t_out, preserve_unit_loops=True)
    *_, t_copy, vec_copy, lane_copy = sch.get_loops(copy)
    sch.vectorize(lane_copy)
    for loop in (t_copy, vec_copy):
        sch.unroll(loop)
    _tensorize(sch, plan, m, k, (t_in, vec), lane)
    sch.storage_align(copy, 0, 5, 32, 16)


def _tensorize(sch: Schedule, plan: Plan, sums: Any, reduced: Any, inner: Sequence[Any], lane: Any) -> None:
    """The sums of the loop ``reduced`` by the dot product, ``inner`` unrolled, from zeros before it."""
    for loop in inner:
        sch.unroll(loop)
    *outer, init_lane = sch.get_loops(sch.decompose_reduction(sums, reduced))
    sch.vectorize(init_lane)
    for loop in outer[-len(inner) :]:
        sch.unroll(loop)
    sch.tensorize(lane, dot(WORDS[plan.form.instruction], plan.sizes.lanes, weight="int16"))


def _schedule_centres(sch: Schedule, plan: Plan, centres: Any) -> None:
    *_, vec, lane, q, k, r = sch.get_loops(centres)
    sch.set_scope(centres, 0, "local")
    sch.reorder(q, k, vec, lane, r)
    _tensorize(sch, plan, centres, q, (vec,), lane)


def _schedule_inputs(sch: Schedule, plan: Plan, v: Any, columns: Any) -> None:
    *_, i, j, t, c = sch.get_loops(v)
    c_out, c_in = sch.split(c, [None, plan.sizes.wide])
    j_out, j_in = sch.split(j, [2, 3])
    sch.reorder(t, c_out, j_out, j_in, i, c_in)
    sch.compute_at(columns, j_out, preserve_unit_loops=True)
    sch.set_scope(columns, 0, "local")
    loops = sch.get_loops(columns)
    for loop in (j_out, j_in, i, *loops[-3:-1]):
        sch.unroll(loop)
    sch.vectorize(c_in)
    sch.vectorize(loops[-1])
    sch.storage_align(v, 0, 3, 64, 32)
