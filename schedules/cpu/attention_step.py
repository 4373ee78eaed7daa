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
from hwq.schedules.cpu import attention_stages as stages
from hwq.schedules.cpu.attention_plan import Plan
from hwq.schedules.cpu.attention_stages import Buffers, Task, Tile, ceiling, lesser

Expr = Any
# Keys whose values are read before the next head's.
TOGETHER = 8


def task(plan: Plan, buffers: Buffers, index: Expr) -> None:
    """A part of the heads of keys of a batch."""
    count = plan.kv_heads // plan.parts
    tiles = math.ceil(plan.group / plan.rows)
    rows = count * tiles * plan.rows
    first = T.Bind(index % plan.parts * count)
    own = Task(
        batch=T.Bind(index // plan.parts),
        head=first,
        packed=T.alloc_buffer((plan.block * plan.depth,), "float32"),
        copied=T.alloc_buffer((rows * plan.depth,), "float32"),
        scores=T.alloc_buffer((rows * plan.pitch,), "float32"),
    )
    totals = T.alloc_buffer((rows,), "float32")
    sums = T.alloc_buffer((rows * plan.width,), "float32")

    def tile(head: Expr, number: Expr) -> tuple[Task, Tile]:
        heads = [
            (first + head) * plan.group + place for place in stages.places(number * plan.rows, plan.group, plan.rows)
        ]
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
        some, rows_ = tile(head, number)
        found = stages.powers(plan, some, rows_, stages.largest(plan, buffers, some, rows_))
        for r, total in enumerate(found):
            parts.put(totals, total, rows_.origin + r, 1)
    for at, lanes in parts.pieces(rows * plan.width, plan.lanes):
        parts.put(sums, parts.wide(0.0, lanes), at, lanes)
    with T.serial(0, ceiling(buffers.keys, TOGETHER)) as chunk:
        keys = (chunk * TOGETHER, lesser((chunk + 1) * TOGETHER, buffers.keys))
        with T.grid(count, tiles) as (head, number):
            some, rows_ = tile(head, number)
            for piece in plan.pieces:
                summed = stages.sums(plan, buffers, some, rows_, piece, keys, kept=sums)
                for r in range(plan.rows):
                    for at, lanes in parts.pieces(piece[1], plan.lanes):
                        goal = (rows_.origin + r) * plan.width + piece[0] + at
                        parts.put(sums, parts.loaded(summed, r * piece[1] + at, lanes), goal, lanes)
    with T.grid(count, tiles) as (head, number):
        some, rows_ = tile(head, number)
        for piece in plan.pieces:
            found = T.alloc_buffer((plan.rows * piece[1],), "float32", scope="local")
            for r in range(plan.rows):
                for at, lanes in parts.pieces(piece[1], plan.lanes):
                    goal = (rows_.origin + r) * plan.width + piece[0] + at
                    parts.put(found, parts.loaded(sums, goal, lanes), r * piece[1] + at, lanes)
            stages.finish(
                plan, buffers, some, rows_, found, piece, [totals[rows_.origin + r] for r in range(plan.rows)]
            )
