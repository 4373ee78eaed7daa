"""max_pool2d and avg_pool2d over NHWC, integer and float, vectorized over channels.

Padding is not stored: the taps of a window are clamped to the nearest tap inside the picture, which leaves a maximum
as it is; sums mask the outer taps. A window of few taps is one unrolled expression, so that its partial results stay
in registers; a large maximum is taken along rows and then columns; a large sum loops over its taps for a block of
channels held in registers. Sums of bytes are 16 bits wide where they fit.

Limits, on a Zen 4 core whose L2 gives 115 GB/s: a maximum of 3x3 or 2x2 with stride 2 moves 93 to 113 GB/s (its bytes
are the limit), 3x3 with stride 1 loads 200 GB/s from L1 (its loads are). An average over the whole picture reads 75
GB/s (widening bytes takes as long as reading them), a padded 3x3 one gives 4 G outputs/s (additions and requantize).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from hwq.graph import Shape
from hwq.schedules.generic import common
from hwq.schedules.generic.float_math import activate
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/pool:2"
# Windows of at most this many taps are written out.
UNROLLED_TAPS = 25
# A maximum of more is taken along rows and then along columns: 5 + 5 loads instead of 25.
MAXIMUM_TAPS = 9
# As many bytes, of either sign, sum to what 16 bits hold.
TAPS_IN_16_BITS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One spatial axis of a window: ``size`` input elements, ``out`` windows."""

    size: int
    out: int
    kernel: int
    stride: int
    before: int
    dilation: int

    def start(self, at: Any) -> Any:
        return at * self.stride - self.before

    @property
    def inside(self) -> bool:
        """No window leaves the picture."""
        return self.before <= 0 and self._end <= self.size

    @property
    def _end(self) -> int:
        return (self.out - 1) * self.stride - self.before + (self.kernel - 1) * self.dilation + 1

    def taps(self, at: int) -> int:
        """How many taps of window ``at`` lie in the picture."""
        places = (at * self.stride - self.before + tap * self.dilation for tap in range(self.kernel))
        return sum(0 <= place < self.size for place in places)

    @property
    def all_touch(self) -> bool:
        """Every window has a tap in the picture."""
        return all(self.taps(at) > 0 for at in range(self.out))

    def index(self, at: Any, tap: Any) -> Any:
        """The source index of a tap, moved to the window's nearest tap in the picture, or into it if there is none."""
        place = self.start(at) + tap * self.dilation
        if self.inside:
            return place
        first: Any = 0
        last: Any = self.size - 1
        if self.dilation > 1 and self.all_touch:
            first = tirx.floormod(self.start(at), self.dilation)
            last = last - tirx.floormod(self.size - 1 - self.start(at), self.dilation)
        return tirx.min(tirx.max(place, first), last)

    def valid(self, at: Any, tap: Any) -> list[Any]:
        """Conditions under which a tap is in the picture; none where it always is."""
        place = self.start(at) + tap * self.dilation
        return [] if self.inside else [place >= 0, place < self.size]

    def valid_if_needed(self, at: Any, tap: Any) -> list[Any]:
        """As ``valid``, for a maximum: none where ``index`` finds an equal tap of the same window."""
        return [] if self.all_touch else self.valid(at, tap)

    def count(self, at: Any) -> Any:
        """The taps of window ``at`` in the picture, as an int32 expression."""
        if self.inside:
            return tirx.const(self.kernel, "int32")
        total: Any = tirx.const(0, "int32")
        for tap in range(self.kernel):
            total = total + tirx.Select(tirx.all(*self.valid(at, tap)), 1, 0)
        return total


def axes(workload: Workload) -> tuple[Axis, Axis]:
    """The row and column axes of a pool's windows."""
    rows, columns = (
        Axis(
            size=workload.input_shapes[0][1 + axis],
            out=workload.output_shape[1 + axis],
            kernel=int(workload.attr("kernel")[axis]),
            stride=int(workload.attr("strides")[axis]),
            before=int(workload.attr("padding")[axis]),
            dilation=int(workload.attr("dilation")[axis]),
        )
        for axis in range(2)
    )
    return rows, columns


def apply(workload: Workload, target: Target, *, seed: int | None = None) -> Kernel | None:
    """max_pool2d: x, out. avg_pool2d: int8: x, multiplier (OH, OW), ints (zp_x, -, zp_y, lo, hi), out; f32: x, out."""
    if workload.op not in ("max_pool2d", "avg_pool2d"):
        return None
    if len(workload.output_shape) != 4:
        return common.decline(workload, f"{len(workload.output_shape)} axes, not 4")
    if not workload.activation.clamps or (workload.op == "max_pool2d" and workload.activation.kind != "none"):
        return common.decline(workload, f"activation {workload.activation.kind}")
    sch = _maximum(workload, target) if workload.op == "max_pool2d" else _average(workload, target, seed)
    return common.finish(workload, sch.mod["main"], NAME)


def _maximum(workload: Workload, target: Target) -> Schedule:
    rows, columns = axes(workload)
    dtype = common.element_type(workload, target)
    shape = workload.output_shape
    x = te.placeholder(workload.input_shapes[0], dtype, "x")
    work = common.moved_bytes(workload, common.ITEM_BYTES[dtype])
    if rows.kernel * columns.kernel <= MAXIMUM_TAPS:

        def rule(n: Any, h: Any, w: Any, c: Any) -> Any:
            taps = [(r, k) for r in range(rows.kernel) for k in range(columns.kernel)]
            values = [x[n, rows.index(h, r), columns.index(w, k), c] for r, k in taps]
            inside = [[*rows.valid_if_needed(h, r), *columns.valid_if_needed(w, k)] for r, k in taps]
            return tree([_or_least(value, test, dtype) for value, test in zip(values, inside, strict=True)], tirx.max)

        sch = common.schedule_of([x, common.compute(shape, rule)])
        common.schedule_rows(sch, workload, target, _maximum_work(work, shape, rows.kernel * columns.kernel, dtype))
        return sch
    middle_shape = (shape[0], rows.size, shape[2], shape[3])
    middle = _maximum_along(x, columns, 2, middle_shape, dtype, "middle")
    sch = common.schedule_of([x, _maximum_along(middle, rows, 1, shape, dtype, "out")])
    for name, axis, stage in (("middle", columns, middle_shape), ("out", rows, shape)):
        loops = sch.get_loops(sch.get_sblock(name))
        if axis.kernel > UNROLLED_TAPS:
            sch.reorder(loops[4], loops[3])
        if common.worth_parallel(workload.parallel, _maximum_work(work, stage, axis.kernel, dtype), target):
            common.split_outer(sch, loops[:2], stage[:2], workload.parallel)
        if axis.kernel > UNROLLED_TAPS:
            sch.decompose_reduction(sch.get_sblock(name), loops[4])
    return sch


def _maximum_work(moved_bytes: int, shape: Shape, taps: int, dtype: str) -> int:
    """Bytes that take as long at ``common.CORE_BYTES_PER_S`` as a maximum of ``taps`` for each element of ``shape``
    does, by memory's 100 GB/s or by the loads' 200.
    """
    return max(2 * moved_bytes, math.prod(shape) * taps * common.ITEM_BYTES[dtype]) // 5


def _maximum_along(x: te.Tensor, axis: Axis, place: int, shape: Shape, dtype: str, name: str) -> te.Tensor:
    """The maximum of windows along axis ``place`` (1 or 2) only."""

    def value(at: tuple[Any, ...], tap: Any) -> Any:
        source = [*at]
        source[place] = axis.index(at[place], tap)
        return _or_least(x[tuple(source)], axis.valid_if_needed(at[place], tap), dtype)

    if axis.kernel <= UNROLLED_TAPS:
        return common.compute(shape, lambda *at: tree([value(at, tap) for tap in range(axis.kernel)], tirx.max), name)
    tap = te.reduce_axis((0, axis.kernel), "tap")
    return common.compute(shape, lambda *at: te.max(value(at, tap), axis=tap), name)


def _average(workload: Workload, target: Target, seed: int | None) -> Schedule:
    rows, columns = axes(workload)
    dtype = common.element_type(workload, target)
    integer = common.is_integer(workload)
    taps = rows.kernel * columns.kernel
    sums = ("int32" if taps > TAPS_IN_16_BITS else dtype.replace("8", "16")) if integer else "float32"
    bits = "int32" if sums == "float32" else sums
    x = te.placeholder(workload.input_shapes[0], dtype, "x")

    masks = [
        None if axis.inside else _masks(axis, name, bits)
        for axis, name in ((rows, "row_masks"), (columns, "column_masks"))
    ]

    def value(n: Any, h: Any, w: Any, c: Any, r: Any, k: Any) -> Any:
        read = x[n, rows.index(h, r), columns.index(w, k), c].astype(sums)
        found = [mask[at] for mask, at in zip(masks, ((h, r), (w, k)), strict=True) if mask is not None]
        if not found:
            return read
        return tirx.reinterpret(sums, tirx.reinterpret(bits, read) & tree(found, lambda a, b: a & b))

    if taps <= UNROLLED_TAPS:

        def total(n: Any, h: Any, w: Any, c: Any) -> Any:
            places = [(r, k) for r in range(rows.kernel) for k in range(columns.kernel)]
            return tree([value(n, h, w, c, r, k) for r, k in places], lambda a, b: a + b)
    else:
        row, column = te.reduce_axis((0, rows.kernel), "row"), te.reduce_axis((0, columns.kernel), "column")
        reduced = lambda n, h, w, c: te.sum(value(n, h, w, c, row, column), axis=[row, column])  # noqa: E731
        total = common.compute(workload.output_shape, reduced, "total")

    if integer:
        multiplier = te.placeholder(workload.output_shape[1:3], "float32", "multiplier")
        ints = common.scalars("ints", 5, "int32")

        def rule(n: Any, h: Any, w: Any, c: Any) -> Any:
            sum_above_zero = total(n, h, w, c).astype("int32") - rows.count(h) * columns.count(w) * ints[0]
            scaled = sum_above_zero.astype("float32") * multiplier[h, w]
            return common.round_clamp(scaled, ints[3], ints[4], ints[2], dtype)

        args = [x, multiplier, ints, common.compute(workload.output_shape, rule)]
    else:
        padded = bool(workload.attr("count_include_pad"))

        def rule(n: Any, h: Any, w: Any, c: Any) -> Any:
            count = tirx.const(taps, "int32") if padded else tirx.max(rows.count(h) * columns.count(w), 1)
            return activate(workload.activation, total(n, h, w, c) / count.astype("float32"))

        args = [x, common.compute(workload.output_shape, rule)]
    sch = common.schedule_of(args, seed)
    work = common.moved_bytes(workload, common.ITEM_BYTES[dtype])
    if taps <= UNROLLED_TAPS:
        common.schedule_rows(sch, workload, target, work * taps // 4)
    else:
        _schedule_sum(sch, workload, target, work, sums, seed)
    return sch


def _masks(axis: Axis, name: str, dtype: str) -> te.Tensor:
    """(windows, taps) whose bits are all set where a tap lies in the picture.

    Read from memory they are numbers to LLVM. Conditions it would turn into masked loads of what lies outside, which
    processors do at a hundredth of their speed, or into a loop for each combination.
    """

    def ones(at: Any, tap: Any) -> Any:
        return tirx.Select(tirx.all(*axis.valid(at, tap)), -1, 0).astype(dtype)

    return te.compute((axis.out, axis.kernel), ones, name)


def _schedule_sum(sch: Schedule, workload: Workload, target: Target, work: int, sums: str, seed: int | None) -> None:
    """A loop over taps for a block of channels whose sums stay in registers: four registers of them by default."""
    channels = workload.output_shape[3]
    blocks = channel_blocks(channels, target.lanes(sums))
    *outer, channel = sch.get_loops(sch.get_sblock("out"))
    width = common.choose(sch, blocks, blocks[-1], seed)
    block, lane = sch.split(channel, [None, width])
    total = sch.get_sblock("total")
    sch.compute_at(total, block, preserve_unit_loops=True)
    sch.set_scope(total, 0, "local")
    inner, row, column = sch.get_loops(total)[-3:]
    sch.reorder(row, column, inner)
    vector = blocks != (channels,) or channels <= 4 * target.lanes(sums)
    if vector:
        sch.vectorize(lane)
        sch.vectorize(inner)
    if common.worth_parallel(workload.parallel, work, target):
        extents = (*workload.output_shape[:3], channels // int(sch.get(width)))
        common.split_outer(sch, [*outer, block], extents, workload.parallel)
    first = sch.decompose_reduction(total, row)  # last: what is left is no reduction to TVM
    if vector:
        sch.vectorize(sch.get_loops(first)[-1])


def channel_blocks(channels: int, lanes: int) -> tuple[int, ...]:
    """Divisors of ``channels`` that fill one, two or four registers of ``lanes`` sums; if none does, ``channels``."""
    fits = tuple(lanes * count for count in (1, 2, 4) if channels % (lanes * count) == 0)
    return fits or (channels,)


def tree(values: list[Any], combine: Any) -> Any:
    """The values combined pairwise, so that no chain is longer than need be."""
    while len(values) > 1:
        pairs = [values[at : at + 2] for at in range(0, len(values), 2)]
        values = [combine(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return values[0]


def _or_least(value: Any, inside: list[Any], dtype: str) -> Any:
    """``value``, or the type's least where one of the conditions ``inside`` fails."""
    return tirx.Select(tirx.all(*inside), value, tirx.min_value(dtype)) if inside else value
