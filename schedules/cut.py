"""Kernels cut to the tokens that are there: the static kernel of the most, its loops over rows shortened at run time.

A kernel whose workload is ``cut`` takes one more input, int32 (1,), after its data inputs: n, how many of its
``workload.cut`` tokens there are. The first n tokens of its output are then what the static kernel makes of them, bit
for bit, as the code of a row is the same; the rest of the output is left, or anything.

A loop is shortened where the place that it writes in the output first, or that it copies of the input, is a sum of its
loops with constant steps: turns that begin beyond token n - 1 are left out. Loops for which that is not so run in full,
which is right as well. Rows beyond n are whatever lies in memory; a kernel may compute with them, but no address.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import ir, sym, tirx
from tvm.s_tir.stmt import SBlock, SBlockRealize

from hwq.workload import Workload

# The input that says how many tokens there are.
COUNT = "tokens"
# A loop over more tokens than these a turn has the loops within it cut as well.
FEW = 16
# Operators whose first input's rows are their output's: what is made of rows that are not there need not be made.
_ROWS = ("dense", "layer_norm", "rms_norm", "softmax", "quantize_rows", "row_scale")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Cut:
    """count: the new input. out, given: the buffers that are the output, and the first input where copies of its rows
    are cut; out_size, given_size: elements of a token in them.
    """

    count: Any
    out: tuple[Any, ...]
    out_size: int
    given: tuple[Any, ...]
    given_size: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Place:
    """Where a loop's body touches the output (or, if not ``written``, the input): the place of the first element in
    memory as a sum of loops, those ``within`` the body among them.
    """

    written: bool
    flat: Any
    within: tuple[Any, ...]


def cut_function(func: Any, workload: Workload) -> Any:
    """``func``, the scheduled kernel of ``workload``, with the input that counts tokens; itself where it is not cut."""
    if not workload.cut or any(param.name == COUNT for param in func.params):  # or it counts them itself
        return func
    count = tirx.decl_buffer((1,), "int32", COUNT)
    params = list(func.params)
    what = _Cut(
        count=count,
        out=_names_of(params[-1], func),
        out_size=math.prod(workload.output_shape) // workload.cut,
        given=_names_of(params[0], func) if workload.op in _ROWS else (),
        given_size=math.prod(workload.input_shapes[0]) // workload.cut,
    )
    params.insert(len(workload.input_shapes), count)
    return tirx.PrimFunc(params, _walked(func.body, what, {}), func.ret_type, func.attrs)


def _names_of(param: Any, func: Any) -> tuple[Any, ...]:
    """A parameter's buffer, and those that are declared in its memory."""
    found = [param]

    def visit(declared: Any) -> None:
        if tvm_ffi.structural_equal(declared.data, param.data):
            found.append(declared.buffer)

    tvm_ffi.structural_walk(func.body, (tirx.DeclBuffer, visit))
    return tuple(found)


def _walked(stmt: Any, what: _Cut, known: Mapping[Any, Any]) -> Any:
    """``stmt`` with its loops cut. known: the variables of the loops around it, or their values where they have one."""
    if isinstance(stmt, tirx.SeqStmt):
        return tirx.SeqStmt([_walked(each, what, known) for each in stmt])
    if isinstance(stmt, tirx.AttrStmt):
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, _walked(stmt.body, what, known))
    if isinstance(stmt, SBlockRealize):
        block = stmt.block
        if len(block.iter_vars):
            return stmt
        parts = (
            block.iter_vars,
            block.reads,
            block.writes,
            block.name_hint,
            _walked(block.body, what, known),
            block.init,
        )
        whole = SBlock(*parts, block.alloc_buffers, block.match_buffers, block.annotations)
        return SBlockRealize(stmt.iter_values, stmt.predicate, whole)
    if not isinstance(stmt, tirx.For) or stmt.kind not in (tirx.ForKind.SERIAL, tirx.ForKind.PARALLEL):
        return stmt
    extent, done = _extent(stmt, what, known)
    single = isinstance(stmt.extent, tirx.IntImm) and int(stmt.extent) == 1
    known = {**known, stmt.loop_var: stmt.min if single else stmt.loop_var}
    body = stmt.body if done else _walked(stmt.body, what, known)
    return tirx.For(stmt.loop_var, stmt.min, extent, stmt.kind, body, stmt.thread_binding, stmt.annotations)


def _extent(loop: Any, what: _Cut, known: Mapping[Any, Any]) -> tuple[Any, bool]:
    """How many turns of ``loop`` are to be made, and whether the loops within it need not be cut any more."""
    if not isinstance(loop.extent, tirx.IntImm) or int(loop.extent) == 1:
        return loop.extent, False
    places = list(_places(loop.body, what, (), known))
    places = [place for place in places if place.written] or places
    kind = str(loop.loop_var.ty)
    most, steps = tirx.const(0, kind), []
    for place in places:
        found = list(sym.detect_linear_equation(place.flat, [loop.loop_var, *place.within]))
        *factors, begin = found or [None]
        if not factors or not all(isinstance(each, tirx.IntImm) and int(each) >= 0 for each in factors):
            return loop.extent, False
        if not all(var in known for var in tirx.analysis.undefined_vars(begin)):
            return loop.extent, False
        step, size = int(factors[0]), what.out_size if place.written else what.given_size
        behind = isinstance(begin, tirx.IntImm) and int(begin) >= size
        columns = step < size and any(int(factor) >= size for factor in factors[1:])
        if columns or (step * int(loop.extent) <= size and not behind):
            return loop.extent, False
        limit = what.count[0].astype(str(begin.ty)) * size
        turns = tirx.floordiv(limit - begin + (step - 1), step)
        most = tirx.max(most, tirx.min(turns, loop.extent).astype(kind))
        steps.append(step / size)
    return (most, max(steps) <= FEW) if steps else (loop.extent, False)


def _places(stmt: Any, what: _Cut, loops: tuple[Any, ...], values: Mapping[Any, Any]) -> Iterator[_Place]:
    """The places of the output and input in ``stmt``. loops: those around it so far; values: of the axes of blocks."""
    if isinstance(stmt, tirx.SeqStmt):
        for each in stmt:
            if isinstance(each, tirx.Bind):
                values = {**values, each.var: _replaced(each.value, values)}
            yield from _places(each, what, loops, values)
    elif isinstance(stmt, tirx.BufferStore):
        if any(stmt.buffer.same_as(buffer) for buffer in what.out):
            first = [index.base if isinstance(index, tirx.Ramp) else index for index in stmt.indices]
            yield _Place(written=True, flat=_flat(stmt.buffer, first, values), within=loops)
    elif isinstance(stmt, tirx.IfThenElse):
        for each in (stmt.then_case, stmt.else_case):
            yield from _places(each, what, loops, values)
    elif isinstance(stmt, tirx.For):
        yield from _places(stmt.body, what, (*loops, stmt.loop_var), values)
    elif isinstance(stmt, tirx.AttrStmt):
        yield from _places(stmt.body, what, loops, values)
    elif isinstance(stmt, SBlockRealize):
        block = stmt.block
        axes = zip(block.iter_vars, stmt.iter_values, strict=True)
        inner = {**values, **{axis.var: _replaced(value, values) for axis, value in axes}}
        for regions, buffers, written in ((block.writes, what.out, True), (block.reads, what.given, False)):
            for region in regions:
                if any(region.source.same_as(buffer) for buffer in buffers):
                    first = [each.min for each in region.region]
                    yield _Place(written=written, flat=_flat(region.source, first, inner), within=loops)
        if not isinstance(block.body, tirx.BufferStore):
            yield from _places(block.body, what, loops, inner)


def _flat(buffer: Any, first: Sequence[Any], values: Mapping[Any, Any]) -> Any:
    """The place in memory of an element of ``buffer``."""
    flat: Any = 0
    for extent, index in zip(buffer.shape, first, strict=True):
        flat = flat * extent + index
    return sym.Analyzer().simplify(_replaced(flat, values))


def _replaced(value: Any, values: Mapping[Any, Any]) -> Any:
    return tvm_ffi.structural_map(value, (ir.Var, lambda var: values.get(var, var))) if values else value
