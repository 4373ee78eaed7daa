"""The code of a float attention kernel, as TVM's IRBuilder makes it from a plan.

    for each batch, head of keys, and part of its rows (parallel where it pays):
        the keys with keys for lanes: blocks of (depth, vectors * lanes); of one tile of rows each just before its use
        for each tile of rows, queries of one head:
            its queries, copied; its scores, by blocks of keys, up to the causal limit
            scaled, with bias, the maximum of each row; powers, and their sum
            shares times values, vectors of those in registers over all keys; divided and stored

One query's rows are its heads, see ``attention_step``.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.schedules.cpu import attention_parts as parts
from hwq.schedules.cpu import attention_step
from hwq.schedules.cpu.attention_bytes import BYTES
from hwq.schedules.cpu.attention_plan import Plan
from hwq.schedules.cpu.attention_stages import FLOAT, Buffers, Stages, Task, Tile, ceiling, largest, new_task, places

Expr = Any


def kernel_code(plan: Plan) -> Any:
    """The kernel as a PrimFunc of q, k, v, the bias and the span (a constant bias behind it), out, all flat."""
    sizes = {
        "q": plan.batch * plan.queries * plan.heads * plan.depth,
        "k": plan.batch * plan.keys * plan.kv_heads * plan.depth,
        "v": plan.batch * plan.keys * plan.kv_heads * plan.width,
        "bias": 0 if plan.bias is None else math.prod(plan.bias),
        "out": plan.batch * plan.queries * plan.heads * plan.width,
    }
    kinds = dict.fromkeys("qkv", plan.stored) | {"out": plan.out_dtype}
    arguments = {
        name: tirx.decl_buffer((size,), kinds.get(name, "float32"), name) if size else None
        for name, size in sizes.items()
    }
    ints = tirx.decl_buffer((4,), "int32", "ints") if plan.integer else None
    floats = tirx.decl_buffer((2,), "float32", "floats") if plan.integer else None
    span = tirx.decl_buffer((2,), "int32", "span") if plan.cut else None
    stages = BYTES if plan.integer else FLOAT
    with IRBuilder() as builder:
        with T.seq_scope():
            queries: Expr = plan.queries
            keys: Expr = plan.keys
            if span is not None:  # whatever is in there, nothing is read or written that is not there
                queries = T.Bind(tirx.min(span[0], plan.queries))
                keys = T.Bind(tirx.min(span[1], plan.keys))
            buffers = Buffers(**arguments, ints=ints, floats=floats, queries=queries, keys=keys)
            with (T.parallel if plan.parallel else T.serial)(0, plan.tasks) as task:
                (attention_step.task if plan.by_heads else _task)(plan, stages, buffers, task)
        body = builder.get().body
    q, k, v, bias, out = arguments.values()
    others = (span, bias) if plan.constant else (bias, span)
    return tirx.PrimFunc([each for each in (q, k, v, *others, ints, floats, out) if each is not None], body)


def _task(plan: Plan, stages: Stages, buffers: Buffers, index: Expr) -> None:
    """A part of the rows of one head of keys."""
    batch = T.Bind(index // (plan.kv_heads * plan.parts))
    head = T.Bind(index // plan.parts % plan.kv_heads)
    task = new_task(plan, batch, head, plan.rows, plan.blocks if plan.packs_once else 1)
    if plan.packs_once:
        with T.serial(0, ceiling(buffers.keys, plan.block)) as block:
            stages.pack(plan, buffers, task, block, block)
        stages.pack_values(plan, buffers, task)
    tiles = T.Bind(ceiling(buffers.queries, plan.rows)) if plan.cut else ceiling(buffers.queries, plan.rows)
    part = index % plan.parts
    jobs = tiles * plan.group
    first, end = (0, jobs) if plan.parts == 1 else (part * jobs // plan.parts, (part + 1) * jobs // plan.parts)
    with T.serial(first, end) as job:
        _tile(plan, stages, buffers, task, job % tiles * plan.rows, job // tiles)


def _tile(plan: Plan, stages: Stages, buffers: Buffers, task: Task, first: Expr, head: Expr) -> None:
    """The queries from ``first`` on of head ``head`` of the group."""
    queries = places(first, buffers.queries, plan.rows)
    ends = [buffers.keys] * plan.rows
    if plan.causal:
        ends = [T.Bind(tirx.min(query + 1 + (buffers.keys - buffers.queries), buffers.keys)) for query in queries]
    heads = [task.head * plan.group + head] * plan.rows
    tile = Tile(queries=queries, heads=heads, ends=ends, last=ends[-1], origin=0)
    stages.copy_queries(plan, buffers, task, tile)
    with T.serial(0, ceiling(tile.last, plan.block)) as block:
        if not plan.packs_once:
            stages.pack(plan, buffers, task, block, 0)
        stages.scores(plan, task, 0, block, block if plan.packs_once else 0)
    found = stages.shares(plan, buffers, task, tile, largest(plan, buffers, task, tile))
    totals = [total for total, _ in found]
    for piece in plan.pieces:
        keys = (tirx.const(0, "int32"), tile.last)
        sums = stages.sums(plan, buffers, task, tile, piece, keys, lambda r, _, lanes: parts.wide(found[r][1], lanes))
        stages.finish(plan, buffers, task, tile, sums, piece, totals)
