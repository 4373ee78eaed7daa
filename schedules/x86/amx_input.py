"""The padded copy of an AMX kernel's input: (batch, phases, high, wide, in_c), flat, in the type that is multiplied.

Rows are moved whole; where a stride sorts pixels by phase, pixel by pixel. What the input does not reach is filled
with the zero point, or 0.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwq.schedules import epilogue as ep
from hwq.schedules.x86.amx_plan import TILE_BYTES, Plan

Expr = Any
# Bytes behind the copy, which the last step of a stretch shorter than a step reads.
SLACK_BYTES = TILE_BYTES


def padded_copy(plan: Plan, x: Any, act: str, numbers: ep.Numbers | None) -> Any:
    """A buffer of ``act`` with the copy of x, made by the statements that this leaves in the builder."""
    shape, source = plan.geometry, plan.source
    rows = T.alloc_buffer((shape.batch * plan.image + SLACK_BYTES,), act)
    fill = tirx.const(0.0, act) if numbers is None else numbers.zp_x.astype(act)
    count_h, count_w = source.phases
    with (T.parallel if plan.parallel else T.serial)(0, shape.batch * count_h * source.high) as line:
        n, phase_h, h = line // (count_h * source.high), line // source.high % count_h, line % source.high
        row = T.Bind(h * source.phase[0] + phase_h - shape.pad_top)
        for phase_w in range(count_w):
            to = T.Bind((((n * count_h + phase_h) * count_w + phase_w) * source.high + h) * source.wide * shape.in_c)
            with T.If(tirx.all(row >= 0, row < shape.in_h)):
                with T.Then():
                    start = T.Bind((n * shape.in_h + row) * shape.in_w * shape.in_c)
                    _copy_row(plan, x, rows, act, fill, start, to, phase_w)
                with T.Else():
                    _fill(rows, fill, to, source.wide * shape.in_c)
    return rows


def _copy_row(plan: Plan, x: Any, rows: Any, act: str, fill: Expr, start: Expr, to: Expr, phase_w: int) -> None:
    """The pixels of phase ``phase_w`` of the input's row at ``start``, with its padding, to the row at ``to``."""
    shape, source = plan.geometry, plan.source
    apart = source.phase[1]
    first = max(0, math.ceil((shape.pad_left - phase_w) / apart))
    end = max(first, min(source.wide, math.ceil((shape.in_w + shape.pad_left - phase_w) / apart)))
    left = first * apart + phase_w - shape.pad_left
    _fill(rows, fill, to, first * shape.in_c)
    moved = to + first * shape.in_c
    if apart == 1:
        _each((end - first) * shape.in_c, lambda i: (moved + i, x[start + left * shape.in_c + i].astype(act)), rows)
    else:
        with T.serial(0, end - first) as w:
            at, pixel = moved + w * shape.in_c, start + (w * apart + left) * shape.in_c
            _each(shape.in_c, lambda i: (at + i, x[pixel + i].astype(act)), rows)
    _fill(rows, fill, to + end * shape.in_c, (source.wide - end) * shape.in_c)


def _fill(rows: Any, fill: Expr, to: Expr, count: int) -> None:
    _each(count, lambda i: (to + i, fill), rows)


def _each(count: int, rule: Callable[[Expr], tuple[Expr, Expr]], rows: Any) -> None:
    """rows[index] = value for (index, value) = rule(i), i < count: a loop that LLVM turns into vector moves."""
    if count > 0:
        with T.serial(0, count) as i:
            index, value = rule(i)
            T.buffer_store(rows, value, [index])
