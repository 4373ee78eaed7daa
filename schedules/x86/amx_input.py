"""The padded copy of an AMX kernel's input: (batch, phases, high, wide, in_c), flat, in the type that is multiplied.

Rows are moved whole; where a stride sorts pixels by phase, pixel by pixel. What the input does not reach is filled
with the zero point, or 0.0. Floats become bfloat16 on the way, held as their bits (see ``bf16``); an input that is
copied for that alone is no more than its elements, and shared out in pieces of any length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwq.schedules import epilogue as ep
from hwq.schedules.x86 import bf16
from hwq.schedules.x86.amx_plan import TILE_BYTES, Plan

Expr = Any
# Bytes behind the copy, which the last step of a stretch shorter than a step reads.
SLACK_BYTES = TILE_BYTES
# Elements of a piece, where there are no rows to share out.
PIECE = 4096


def padded_copy(plan: Plan, x: Any, numbers: ep.Numbers | None) -> Any:
    """A buffer with the copy of x, made by the statements that this leaves in the builder; numbers: None for floats."""
    shape, source = plan.geometry, plan.source
    size = shape.batch * plan.image
    dtype = "uint16" if plan.bf16 else x.dtype
    rows = T.alloc_buffer((size + SLACK_BYTES,), dtype)
    fill = tirx.const(0, dtype) if numbers is None else numbers.zp_x.astype(dtype)
    if plan.bf16 and plan.stretch < plan.width:
        _fill(rows, fill, size, plan.width - plan.stretch)  # times weights of 0, which makes 0 of numbers alone
    same = (source.phase, source.high, source.wide) == ((1, 1), shape.in_h, shape.in_w)
    if plan.bf16 and not shape.padded and same:
        _convert(plan, x, rows, size)
        return rows
    count_h, count_w = source.phases
    with (T.parallel if plan.parallel else T.serial)(0, shape.batch * count_h * source.high) as line:
        n, phase_h, h = line // (count_h * source.high), line // source.high % count_h, line % source.high
        row = T.Bind(h * source.phase[0] + phase_h - shape.pad_top)
        for phase_w in range(count_w):
            to = T.Bind((((n * count_h + phase_h) * count_w + phase_w) * source.high + h) * source.wide * shape.in_c)
            with T.If(tirx.all(row >= 0, row < shape.in_h)):
                with T.Then():
                    start = T.Bind((n * shape.in_h + row) * shape.in_w * shape.in_c)
                    _copy_row(plan, x, rows, fill, start, to, phase_w)
                with T.Else():
                    _fill(rows, fill, to, source.wide * shape.in_c)
    return rows


def _convert(plan: Plan, x: Any, rows: Any, size: int) -> None:
    """All elements, in their order."""
    whole = size // PIECE
    with (T.parallel if plan.parallel else T.serial)(0, whole) as piece:
        begin = T.Bind(piece * PIECE)
        _move(plan, x, begin, rows, begin, PIECE)
    last = tirx.const(whole * PIECE, "int32")
    _move(plan, x, last, rows, last, size - whole * PIECE)


def _move(plan: Plan, x: Any, begin: Expr, rows: Any, to: Expr, count: int) -> None:
    """``count`` neighbours of the input from ``begin`` on, in the type that is multiplied."""
    if not plan.bf16:
        _each(count, lambda i: (to + i, x[begin + i]), rows)
        return
    whole = count // bf16.LANES * bf16.LANES
    if whole:
        with T.serial(0, whole // bf16.LANES) as vector:
            at = vector * bf16.LANES
            values = x.vload([begin + at], f"float32x{bf16.LANES}")
            T.buffer_store(rows, bf16.rounded_vector(values), [tirx.Ramp(to + at, 1, bf16.LANES)])
    _each(count - whole, lambda i: (to + whole + i, bf16.rounded(x[begin + whole + i])), rows)


def _copy_row(plan: Plan, x: Any, rows: Any, fill: Expr, start: Expr, to: Expr, phase_w: int) -> None:
    """The pixels of phase ``phase_w`` of the input's row at ``start``, with its padding, to the row at ``to``."""
    shape, source = plan.geometry, plan.source
    apart = source.phase[1]
    first = min(source.wide, max(0, math.ceil((shape.pad_left - phase_w) / apart)))
    end = max(first, min(source.wide, math.ceil((shape.in_w + shape.pad_left - phase_w) / apart)))
    left = first * apart + phase_w - shape.pad_left
    _fill(rows, fill, to, first * shape.in_c)
    moved = to + first * shape.in_c
    if apart == 1:
        _move(plan, x, start + left * shape.in_c, rows, moved, (end - first) * shape.in_c)
    else:
        with T.serial(0, end - first) as w:
            at, pixel = moved + w * shape.in_c, start + (w * apart + left) * shape.in_c
            _move(plan, x, pixel, rows, at, shape.in_c)
    _fill(rows, fill, to + end * shape.in_c, (source.wide - end) * shape.in_c)


def _fill(rows: Any, fill: Expr, to: Expr, count: int) -> None:
    _each(count, lambda i: (to + i, fill), rows)


def _each(count: int, rule: Callable[[Expr], tuple[Expr, Expr]], rows: Any) -> None:
    """rows[index] = value for (index, value) = rule(i), i < count: a loop that LLVM turns into vector moves."""
    if count > 0:
        with T.serial(0, count) as i:
            index, value = rule(i)
            T.buffer_store(rows, value, [index])
