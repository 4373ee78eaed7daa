"""The code of a float attention kernel of one query, as in decoding: it reads keys and values once, and in order.

    for each batch and part of the heads of keys (parallel where it pays):
        for each block of keys, for each head of keys: the block packed, the scores of the heads that read it
        for each head: maximum, powers, their sum
        for some keys at a time, for each head: shares times values, added to sums in memory
        divided and stored

In memory a key's heads are neighbours, and all are read before the next key's. What comes next is asked for ahead of
time: measured on Zen 4 that halves the time, since between its loads a core is busy for longer than it looks ahead.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwq.schedules.cpu import attention_parts as parts
from hwq.schedules.cpu.attention_plan import Plan
from hwq.schedules.cpu.attention_stages import (
    Buffers,
    First,
    Stages,
    Task,
    Tile,
    ceiling,
    largest,
    lesser,
    new_task,
    places,
)

Expr = Any
# Keys whose values are read before the next head's.
TOGETHER = 8


def task(plan: Plan, stages: Stages, buffers: Buffers, index: Expr) -> None:
    """A part of the heads of keys of a batch."""
    count = plan.kv_heads // plan.parts
    tiles = math.ceil(plan.group / plan.rows)
    rows = count * tiles * plan.rows
    first = T.Bind(index % plan.parts * count)
    own = new_task(plan, T.Bind(index // plan.parts), first, rows, 1)
    totals = T.alloc_buffer((rows,), "float32")
    sums = T.alloc_buffer((rows * plan.width,), plan.summed)

    def tile(head: Expr, number: Expr) -> tuple[Task, Tile]:
        heads = [(first + head) * plan.group + place for place in places(number * plan.rows, plan.group, plan.rows)]
        return replace(own, head=first + head), Tile(
            queries=[tirx.const(0, "int32")] * plan.rows,
            heads=heads,
            ends=[buffers.keys] * plan.rows,
            last=buffers.keys,
            origin=T.Bind((head * tiles + number) * plan.rows),
        )

    with T.grid(count, tiles) as (head, number):
        stages.copy_queries(plan, buffers, *tile(head, number))
    with T.serial(0, ceiling(buffers.keys, plan.block)) as block, T.serial(0, count) as head:
        stages.pack(plan, buffers, replace(own, head=first + head), block, 0)
        with T.serial(0, tiles) as number:
            stages.scores(plan, own, (head * tiles + number) * plan.rows, block, 0)
    with T.grid(count, tiles) as (head, number):
        some, these = tile(head, number)
        found = stages.shares(plan, buffers, some, these, largest(plan, buffers, some, these))
        for r, (total, start) in enumerate(found):
            parts.put(totals, total, these.origin + r, 1)
            for at, lanes in parts.pieces(plan.width, plan.lanes):
                parts.put(sums, parts.wide(start, lanes), (these.origin + r) * plan.width + at, lanes)
    with T.serial(0, ceiling(buffers.keys, TOGETHER)) as chunk:
        keys = (chunk * TOGETHER, lesser((chunk + 1) * TOGETHER, buffers.keys))
        with T.grid(count, tiles) as (head, number):
            some, these = tile(head, number)
            for piece in plan.pieces:
                summed = stages.sums(plan, buffers, some, these, piece, keys, _kept(plan, sums, these))
                for r in range(plan.rows):
                    for at, lanes in parts.pieces(piece[1], plan.lanes):
                        goal = (these.origin + r) * plan.width + piece[0] + at
                        parts.put(sums, parts.loaded(summed, r * piece[1] + at, lanes), goal, lanes)
    with T.grid(count, tiles) as (head, number):
        some, these = tile(head, number)
        for piece in plan.pieces:
            whole = T.alloc_buffer((plan.rows * piece[1],), plan.summed, scope="local")
            for r in range(plan.rows):
                for at, lanes in parts.pieces(piece[1], plan.lanes):
                    parts.put(whole, _kept(plan, sums, these)(r, piece[0] + at, lanes), r * piece[1] + at, lanes)
            steps = [totals[these.origin + r] for r in range(plan.rows)]
            stages.finish(plan, buffers, some, these, whole, piece, steps)


def _kept(plan: Plan, sums: Any, tile: Tile) -> First:
    """What was summed so far for a row of the tile, from some output on."""
    return lambda r, at, lanes: parts.loaded(sums, (tile.origin + r) * plan.width + at, lanes)
