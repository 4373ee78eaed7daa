"""op "float": a decent CPU schedule for any PrimFunc that Relax legalizes an operator to.

exp, tanh, sigmoid and erf of float32 become expressions that vectorize. Then every block of the function by its kind:
elementwise work is one outer loop and a plain innermost loop, for LLVM to vectorize; a reduction with an output axis
innermost in memory walks that axis innermost; a reduction along the innermost axis of its input is summed in lanes.
A block that none of this fits keeps its loops: always right, perhaps slow.

Limits, on one Zen 4 core: of a product of matrices the multiply-adds, 58 of 59 GMAC/s for 12 of 128x64 with 64x128; of
a mean the bytes, 95 to 117 GB/s where the L2 gives 115; of an exponential arithmetic, 4.5 a nanosecond.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV, ScheduleError

from hwq.schedules.cut import cut_function
from hwq.schedules.generic import common, float_math
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/float_func:1"
# A lane count for reductions along an innermost axis, largest first: the first that divides the axis is taken.
LANES = (64, 32, 16, 8, 4)
# An innermost axis shorter than this is fused with the next one.
SHORT = 16
# Rows of a product of matrices that are summed at once.
ROWS = 4
_REPLACED: dict[str, Callable[[Any], Any]] = {
    "tirx.exp": float_math.exp,
    "tirx.tanh": float_math.tanh,
    "tirx.sigmoid": float_math.sigmoid,
    "tirx.erf": float_math.erf,
}


def func_digest(func: Any) -> str:
    """16 hex digits of the function's text, the same in every process: a float workload's attribute "func_digest"."""
    return hashlib.sha256(func.script(show_meta=True).encode()).hexdigest()[:16]


def apply(workload: Workload, target: Target, func: Any) -> Kernel:
    """The kernel of an op "float" from its PrimFunc, whose digest is the workload's attribute "func_digest"."""
    assert workload.op == "float", workload
    assert workload.attr("func_digest") == func_digest(func), workload
    made = schedule_float(func, target, workload.parallel, f"float_{workload.scheme}_{workload.digest}")
    return replace(made, func=cut_function(made.func, workload))


def schedule_float(func: Any, target: Target, parallel: int, symbol: str) -> Kernel:
    """Schedules ``func`` for ``target`` and names it ``symbol``. parallel: worker threads it may be split over."""
    fast = vectorizable_math(func)
    try:
        sch = Schedule(fast)
        inline_elementwise(sch)
        for block in leaves(sch):
            try:
                _schedule_block(sch, block, target, parallel)
            except ScheduleError as error:
                common.log.debug("%s: block %s keeps its loops: %s", symbol, sch.get(block).name_hint, _reason(error))
        fast = sch.mod["main"]
    except ScheduleError as error:
        common.log.debug("%s keeps its loops: %s", symbol, _reason(error))
    return common.named(symbol, fast, NAME)


def _reason(error: ScheduleError) -> str:
    """The sentence at the end of TVM's picture of the program."""
    return str(error).rpartition("Error message:")[2].strip().partition("\n")[0]


def vectorizable_math(func: Any) -> Any:
    """``func`` with float32 calls of the library replaced by expressions."""

    def replace(call: ir.Call) -> Any:
        rule = _REPLACED.get(call.op.name) if isinstance(call.op, ir.Op) else None
        return rule(call.args[0]) if rule is not None and str(call.ty) == "float32" else call

    return func.with_body(tvm_ffi.structural_map(func.body, (ir.Call, replace)))


def leaves(sch: Schedule) -> list[SBlockRV]:
    """The blocks that compute, in order."""
    found: list[SBlockRV] = []

    def visit(block: SBlockRV) -> None:
        children = sch.get_child_blocks(block)
        for child in children:
            visit(child)
        if not children:
            found.append(block)

    visit(sch.get_sblock("root"))
    return found


def inline_elementwise(sch: Schedule) -> None:
    """Moves each elementwise block into its consumer, where that is one elementwise block of the same size."""
    for block in leaves(sch):
        consumers = sch.get_consumers(block)
        if len(consumers) == 1 and all(_elements(sch, each) == _elements(sch, block) for each in (block, *consumers)):
            with contextlib.suppress(ScheduleError):
                sch.compute_inline(block)


def _elements(sch: Schedule, block: SBlockRV) -> int | None:
    """How often an elementwise block runs; None for any other block."""
    iters = sch.get(block).iter_vars
    if any(each.iter_type != tirx.IterVar.DataPar for each in iters):
        return None
    return math.prod(int(each.dom.extent) for each in iters)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nest:
    """The loops around a block: over output elements, and over what is summed for each.

    loads: of each load the axis variables in its last index (the innermost in memory), and those in the others.
    """

    spatial: list[Any]
    spatial_vars: list[Any]
    reduce: list[Any]
    reduce_vars: list[Any]
    extents: dict[Any, int]
    loads: list[tuple[list[Any], list[Any]]]

    def walks(self, var: Any) -> bool:
        """Whether stepping ``var`` walks along memory: it is in the last index of some load, and in no other index."""
        return _holds([each for last, _ in self.loads for each in last], var) and not _holds(
            [each for _, others in self.loads for each in others], var
        )

    def work(self) -> int:
        return 8 * math.prod(self.extents.values())


def read_nest(sch: Schedule, block: SBlockRV) -> Nest | None:
    """The nest of ``block``; None if its loops are not one for each axis, or if it writes more than one buffer."""
    body = sch.get(block)
    loops = sch.get_loops(block)
    kinds = [each.iter_type for each in body.iter_vars]
    if len(loops) != len(kinds) or len(body.writes) != 1 or not loops:
        return None
    if not set(kinds) <= {tirx.IterVar.DataPar, tirx.IterVar.CommReduce}:
        return None
    extents = [int(sch.get(loop).extent) for loop in loops]
    if extents != [int(each.dom.extent) for each in body.iter_vars]:
        return None
    loads: list[tuple[list[Any], list[Any]]] = []

    def visit(load: Any) -> None:
        if not load.source.same_as(body.writes[0].source) and len(load.indices):
            *others, last = [tirx.analysis.undefined_vars(index) for index in load.indices]
            loads.append((list(last), [var for index in others for var in index]))

    tvm_ffi.structural_walk(body.body, (ir.TensorLoad, visit))
    pairs = list(zip(loops, body.iter_vars, strict=True))
    return Nest(
        spatial=[loop for loop, each in pairs if each.iter_type == tirx.IterVar.DataPar],
        spatial_vars=[each.var for _, each in pairs if each.iter_type == tirx.IterVar.DataPar],
        reduce=[loop for loop, each in pairs if each.iter_type == tirx.IterVar.CommReduce],
        reduce_vars=[each.var for _, each in pairs if each.iter_type == tirx.IterVar.CommReduce],
        extents=dict(zip(loops, extents, strict=True)),
        loads=loads,
    )


def _holds(variables: list[Any], var: Any) -> bool:
    return any(var.same_as(each) for each in variables)


def _schedule_block(sch: Schedule, block: SBlockRV, target: Target, parallel: int) -> None:
    nest = read_nest(sch, block)
    if nest is None:
        return
    threads = parallel if common.worth_parallel(parallel, nest.work(), target) else 1
    if not nest.reduce:
        _elementwise(sch, nest, threads)
    elif nest.spatial and nest.walks(nest.spatial_vars[-1]):
        _columns(sch, block, nest, threads)
    elif nest.walks(nest.reduce_vars[-1]):
        _rows(sch, nest, threads)


def _elementwise(sch: Schedule, nest: Nest, threads: int) -> None:
    keep = 1
    sizes = [nest.extents[loop] for loop in nest.spatial]
    while keep < len(sizes) and math.prod(sizes[-keep:]) < SHORT:
        keep += 1
    if keep > 1:
        sch.fuse(*nest.spatial[-keep:])
    if threads > 1 and sizes[:-keep]:
        common.split_outer(sch, nest.spatial[:-keep], sizes[:-keep], threads)


def _columns(sch: Schedule, block: SBlockRV, nest: Nest, threads: int) -> None:
    """Sums of whole vectors of neighbouring outputs; for a product of matrices, of four rows at once."""
    *outer, column = nest.spatial
    sizes = [nest.extents[loop] for loop in outer]
    width = next((lanes for lanes in LANES if nest.extents[column] % lanes == 0), None)
    if width is None:
        sch.reorder(*outer, *nest.reduce, column)
    else:
        over, lane = sch.split(column, [None, width])
        rows: list[Any] = []
        if outer and sizes[-1] % ROWS == 0 and len(nest.loads) > 1:
            outer[-1], row = sch.split(outer[-1], [None, ROWS])
            sizes[-1] //= ROWS
            rows = [row]
        sch.reorder(*outer, over, *nest.reduce, *rows, lane)
        sch.vectorize(lane)
        for row in rows:
            sch.unroll(row)
        outer, sizes = [*outer, over], [*sizes, nest.extents[column] // width]
    if threads > 1 and outer:
        common.split_outer(sch, outer, sizes, threads)
    first = sch.decompose_reduction(block, nest.reduce[0])
    if width is not None:
        sch.vectorize(sch.get_loops(first)[-1])


def _rows(sch: Schedule, nest: Nest, threads: int) -> None:
    """Along the innermost axis: partial results in lanes, then those."""
    last = nest.reduce[-1]
    size = nest.extents[last]
    widths = [lanes for lanes in LANES if size % lanes == 0 and size > lanes]
    if widths:
        # Decompositions come last, here and above: what they leave is no reduction to TVM, which then refuses the rest.
        width = min(widths, key=lambda lanes: lanes + size // lanes)  # the steps, and then the lanes, one after another
        _, lane = sch.split(last, [None, width])
        partial = sch.rfactor(lane, len(nest.spatial))
        if nest.spatial:
            sch.compute_at(partial, nest.spatial[-1], preserve_unit_loops=True)
        # rfactor puts the lanes' axis first, and compute_at makes the loops anew in the order of the axes.
        inner = sch.get_loops(partial)[len(nest.spatial) :]
        lanes = inner[0] if nest.spatial else inner[-1]
        assert int(sch.get(lanes).extent) == width, sch.get(lanes)
        steps = [loop for loop in inner if not loop.same_as(lanes)]
        sch.reorder(*steps, lanes)
        sch.vectorize(lanes)
    if threads > 1 and nest.spatial:
        common.split_outer(sch, nest.spatial, [nest.extents[loop] for loop in nest.spatial], threads)
    if widths:
        sch.vectorize(sch.get_loops(sch.decompose_reduction(partial, steps[0]))[-1])
