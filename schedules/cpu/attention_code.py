"""The code of a float attention kernel, as TVM's IRBuilder makes it from a plan.

    for each batch, head of keys, and part of its rows (parallel where it pays):
        the keys with keys for lanes: blocks of (depth, vectors * lanes); of one tile of rows each just before its use
        for each tile of rows:
            its queries, copied; its scores, by blocks of keys, up to the causal limit
            scaled, with bias, the maximum of each row; powers, and their sum
            shares times values, vectors of those in registers over all keys; divided and stored

What lies beyond a row's last key is -inf before the maximum and exactly 0 behind it. A tile's rows beyond the last are
the last again, and so are a block's keys: nothing is read or written that is not there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.schedules.cpu import attention_parts as parts
from hwq.schedules.cpu.attention_plan import Plan

Expr = Any
# Steps along the depth that are written out, and rows whose powers are computed side by side.
UNROLLED, ROWS_BESIDE = 4, 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Buffers:
    """The arguments, flat, and how many queries and keys there are."""

    q: Any
    k: Any
    v: Any
    bias: Any
    out: Any
    queries: Expr
    keys: Expr


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One head of keys of a batch. packed: its keys, or a block of them; copied: a tile's queries; scores: too."""

    batch: Expr
    head: Expr
    packed: Any
    copied: Any
    scores: Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """Rows of one tile: their queries and heads; ``ends``: each one's number of keys; ``last``: the largest."""

    queries: list[Expr]
    heads: list[Expr]
    ends: list[Expr]
    last: Expr


def kernel_code(plan: Plan) -> Any:
    """The kernel as a PrimFunc of q, k, v, the bias and the span (a constant bias behind it), out, all flat."""
    sizes = {
        "q": plan.batch * plan.queries * plan.heads * plan.depth,
        "k": plan.batch * plan.keys * plan.kv_heads * plan.depth,
        "v": plan.batch * plan.keys * plan.kv_heads * plan.width,
        "bias": 0 if plan.bias is None else math.prod(plan.bias),
        "out": plan.batch * plan.queries * plan.heads * plan.width,
    }
    arguments = {name: tirx.decl_buffer((size,), "float32", name) if size else None for name, size in sizes.items()}
    span = tirx.decl_buffer((2,), "int32", "span") if plan.cut else None
    with IRBuilder() as builder:
        with T.seq_scope():
            queries: Expr = plan.queries
            keys: Expr = plan.keys
            if span is not None:  # whatever is in there, nothing is read or written that is not there
                queries = T.Bind(tirx.min(span[0], plan.queries))
                keys = T.Bind(tirx.min(span[1], plan.keys))
            buffers = Buffers(**arguments, queries=queries, keys=keys)
            tasks = plan.batch * plan.kv_heads * plan.parts
            with (T.parallel if plan.parallel else T.serial)(0, tasks) as task:
                _task(plan, buffers, task)
        body = builder.get().body
    q, k, v, bias, out = arguments.values()
    others = (span, bias) if plan.constant else (bias, span)
    return tirx.PrimFunc([each for each in (q, k, v, *others, out) if each is not None], body)


def _task(plan: Plan, buffers: Buffers, index: Expr) -> None:
    """A part of the rows of one head of keys."""
    packed_blocks = plan.blocks if plan.packs_once else 1
    task = Task(
        batch=T.Bind(index // (plan.kv_heads * plan.parts)),
        head=T.Bind(index // plan.parts % plan.kv_heads),
        packed=T.alloc_buffer((packed_blocks * plan.block * plan.depth,), "float32"),
        copied=T.alloc_buffer((plan.rows * plan.depth,), "float32"),
        scores=T.alloc_buffer((plan.rows * plan.pitch,), "float32"),
    )
    if plan.by_heads:
        with T.serial(0, math.ceil(plan.group / plan.rows)) as tile:
            _tile(plan, buffers, task, tile * plan.rows, 0)
        return
    if plan.packs_once:
        with T.serial(0, ceiling(buffers.keys, plan.block)) as block:
            _pack(plan, buffers, task, block, block)
    tiles = T.Bind(ceiling(buffers.queries, plan.rows)) if plan.cut else ceiling(buffers.queries, plan.rows)
    part = index % plan.parts
    jobs = tiles * plan.group
    first, end = (0, jobs) if plan.parts == 1 else (part * jobs // plan.parts, (part + 1) * jobs // plan.parts)
    with T.serial(first, end) as job:
        _tile(plan, buffers, task, job % tiles * plan.rows, job // tiles)


def ceiling(a: Expr, b: int) -> Expr:
    """a / b, rounded up."""
    return -(-a // b) if isinstance(a, int) else (a + (b - 1)) // b


def lesser(a: Expr, b: Expr) -> Expr:
    """The lesser of two, a number if both are."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(a, b)


def _pack(plan: Plan, buffers: Buffers, task: Task, block: Expr, place: Expr) -> None:
    """Block ``block`` of the keys to place ``place`` of the packed ones: (depth, vectors * lanes)."""
    lanes = plan.lanes
    ragged = plan.cut or plan.keys % plan.block != 0
    whole = plan.depth // lanes * lanes
    with T.serial(0, plan.vectors) as vector:
        starts = []
        for lane in range(lanes):
            key = block * plan.block + vector * lanes + lane
            key = tirx.min(key, buffers.keys - 1) if ragged else key
            row = (task.batch * plan.keys + key) * plan.kv_heads + task.head
            starts.append(T.Bind(row * plan.depth))
        goal = T.Bind(place * (plan.block * plan.depth) + vector * lanes)
        if whole:
            with T.serial(0, whole // lanes) as step:
                rows = [T.Bind(parts.loaded(buffers.k, start + step * lanes, lanes)) for start in starts]
                for i, column in enumerate(parts.transposed(rows)):
                    parts.put(task.packed, column, goal + (step * lanes + i) * plan.block, lanes)
        if whole < plan.depth:
            with T.serial(whole, plan.depth) as deep:
                for lane, start in enumerate(starts):
                    parts.put(task.packed, buffers.k[start + deep], goal + deep * plan.block + lane, 1)


def _tile(plan: Plan, buffers: Buffers, task: Task, first: Expr, head: Expr) -> None:
    """The rows from ``first`` on: queries of head ``head`` of the group, or heads of the group."""
    tile = _rows(plan, buffers, task, first, head)
    for r in range(plan.rows):
        row = (task.batch * plan.queries + tile.queries[r]) * plan.heads + tile.heads[r]
        start = T.Bind(row * plan.depth)
        for at, lanes in parts.pieces(plan.depth, plan.lanes):
            parts.put(task.copied, parts.loaded(buffers.q, start + at, lanes), r * plan.depth + at, lanes)
    with T.serial(0, ceiling(tile.last, plan.block)) as block:
        if plan.packs_once:
            _scores(plan, task, block, block)
        else:
            _pack(plan, buffers, task, block, 0)
            _scores(plan, task, block, 0)
    largest = _largest(plan, buffers, task, tile)
    totals = _powers(plan, task, tile, largest)
    for at in range(0, plan.width, plan.values * plan.lanes):
        _sums(plan, buffers, task, tile, totals, at, min(plan.width - at, plan.values * plan.lanes))


def _rows(plan: Plan, buffers: Buffers, task: Task, first: Expr, head: Expr) -> Tile:
    count = plan.group if plan.by_heads else buffers.queries
    ragged = not isinstance(count, int) or count % plan.rows != 0
    places = [T.Bind(lesser(first + r, count - 1)) if ragged else first + r for r in range(plan.rows)]
    own = task.head * plan.group
    if plan.by_heads:
        queries: list[Expr] = [tirx.const(0, "int32")] * plan.rows
        heads = [own + place for place in places]
    else:
        queries, heads = places, [own + head] * plan.rows
    ends = [buffers.keys] * plan.rows
    if plan.causal and not (plan.by_heads and not plan.cut):
        ends = [T.Bind(tirx.min(query + 1 + (buffers.keys - buffers.queries), buffers.keys)) for query in queries]
    return Tile(queries=queries, heads=heads, ends=ends, last=ends[-1])


def _scores(plan: Plan, task: Task, block: Expr, place: Expr) -> None:
    """A tile's scores with one block of keys."""
    lanes, rows, vectors = plan.lanes, plan.rows, plan.vectors
    sums = T.alloc_buffer((rows * vectors * lanes,), "float32", scope="local")
    for i in range(rows * vectors):
        parts.put(sums, parts.wide(0.0, lanes), i * lanes, lanes)

    def step(deep: Expr) -> None:
        start = (place * plan.depth + deep) * plan.block
        columns = [T.Bind(parts.loaded(task.packed, start + c * lanes, lanes)) for c in range(vectors)]
        for r in range(rows):
            query = T.Bind(parts.wide(task.copied[r * plan.depth + deep], lanes))
            for c, column in enumerate(columns):
                at = (r * vectors + c) * lanes
                total = parts.multiply_add(query, column, parts.loaded(sums, at, lanes), lanes, fused=plan.fused)
                parts.put(sums, total, at, lanes)

    unrolled = next(n for n in (UNROLLED, 2, 1) if plan.depth % n == 0)
    with T.serial(0, plan.depth // unrolled) as outer:
        for inner in range(unrolled):
            step(outer * unrolled + inner)
    for r in range(rows):
        for c in range(vectors):
            value = parts.loaded(sums, (r * vectors + c) * lanes, lanes)
            parts.put(task.scores, value, r * plan.pitch + block * plan.block + c * lanes, lanes)


def _largest(plan: Plan, buffers: Buffers, task: Task, tile: Tile) -> list[Expr]:
    """The largest score of each row, in every lane; scores beyond its end become -inf, and the others what they are
    with scale and bias, where those matter before."""
    lanes, rows = plan.lanes, plan.rows
    most = T.alloc_buffer((rows * lanes,), "float32", scope="local")
    for r in range(rows):
        parts.put(most, parts.wide(float("-inf"), lanes), r * lanes, lanes)
    biases = [_bias_row(plan, task, tile, r) for r in range(rows)] if plan.added else []

    def visit(vector: Expr, masked: bool) -> None:
        key = vector * lanes
        for r in range(rows):
            at = r * plan.pitch + key
            score = parts.loaded(task.scores, at, lanes)
            if plan.shifted:
                addend = _bias(plan, buffers, biases[r], key, masked) if biases else parts.wide(0.0, lanes)
                scale = parts.wide(plan.scale, lanes)
                score = T.Bind(parts.multiply_add(score, scale, addend, lanes, fused=plan.fused))
            if masked:
                there = tirx.Ramp(key, 1, lanes) < parts.wide(tile.ends[r], lanes, "int32")
                score = T.Bind(tirx.Select(there, score, parts.wide(float("-inf"), lanes)))
            if plan.shifted or masked:
                parts.put(task.scores, score, at, lanes)
            parts.put(most, tirx.max(parts.loaded(most, r * lanes, lanes), score), r * lanes, lanes)

    whole = tile.ends[0] // lanes
    whole = whole if isinstance(whole, int) else T.Bind(tirx.max(whole, 0))
    with T.serial(0, whole) as vector:
        visit(vector, False)
    end = ceiling(tile.last, lanes)
    if not (isinstance(whole, int) and isinstance(end, int) and whole == end):
        with T.serial(whole, end) as vector:
            visit(vector, True)
    found = [parts.fold(parts.loaded(most, r * lanes, lanes), lanes, tirx.max) for r in range(rows)]
    return [T.Bind(parts.wide(value, lanes)) for value in found]


def _bias_row(plan: Plan, task: Task, tile: Tile, r: int) -> Expr:
    """Where the bias of a row begins."""
    assert plan.bias is not None
    start: Expr = tirx.const(0, "int32")
    for size, index in zip(plan.bias[:3], (task.batch, tile.heads[r], tile.queries[r]), strict=True):
        start = start * size + (index if size > 1 else 0)
    return T.Bind(start * plan.bias[3])


def _bias(plan: Plan, buffers: Buffers, start: Expr, key: Expr, masked: bool) -> Expr:
    """The bias of a vector of keys; masked: where some may not be there."""
    lanes = plan.lanes
    if not masked:
        return parts.loaded(buffers.bias, start + key, lanes)
    keys = tirx.min(tirx.Ramp(key, 1, lanes), parts.wide(plan.keys - 1, lanes, "int32"))
    return buffers.bias[parts.wide(start, lanes) + keys]


def _powers(plan: Plan, task: Task, tile: Tile, largest: list[Expr]) -> list[Expr]:
    """Scores become powers; one over their sum, for each row, in every lane."""
    lanes = plan.lanes
    factor = parts.wide(parts.LOG2_E * (1.0 if plan.shifted else plan.scale), lanes)
    sums = T.alloc_buffer((plan.rows * lanes,), "float32", scope="local")
    for first in range(0, plan.rows, ROWS_BESIDE):
        some = range(first, min(first + ROWS_BESIDE, plan.rows))
        for r in some:
            parts.put(sums, parts.wide(0.0, lanes), r * lanes, lanes)
        with T.serial(0, ceiling(tile.last, lanes)) as vector:
            for r in some:
                at = r * plan.pitch + vector * lanes
                distance = T.Bind(parts.loaded(task.scores, at, lanes) - largest[r])
                value = parts.power(distance, factor, lanes, fused=plan.fused)
                parts.put(task.scores, value, at, lanes)
                parts.put(sums, parts.loaded(sums, r * lanes, lanes) + value, r * lanes, lanes)
    totals = [parts.fold(parts.loaded(sums, r * lanes, lanes), lanes, lambda a, b: a + b) for r in range(plan.rows)]
    return [T.Bind(tirx.const(1.0, "float32") / total) for total in totals]


def _sums(plan: Plan, buffers: Buffers, task: Task, tile: Tile, totals: list[Expr], first: int, size: int) -> None:
    """``size`` of a tile's outputs from ``first`` on: shares times values, key by key."""
    columns = parts.pieces(size, plan.lanes)
    sums = T.alloc_buffer((plan.rows * size,), "float32", scope="local")
    for r in range(plan.rows):
        for at, lanes in columns:
            parts.put(sums, parts.wide(0.0, lanes), r * size + at, lanes)
    with T.serial(0, tile.last) as key:
        row = (task.batch * plan.keys + key) * plan.kv_heads + task.head
        start = T.Bind(row * plan.width + first)
        values = [T.Bind(parts.loaded(buffers.v, start + at, lanes)) for at, lanes in columns]
        for r in range(plan.rows):
            share = T.Bind(task.scores[r * plan.pitch + key])
            for (at, lanes), value in zip(columns, values, strict=True):
                place = r * size + at
                total = parts.multiply_add(
                    parts.wide(share, lanes), value, parts.loaded(sums, place, lanes), lanes, fused=plan.fused
                )
                parts.put(sums, total, place, lanes)
    for r in range(plan.rows):
        row = (task.batch * plan.queries + tile.queries[r]) * plan.heads + tile.heads[r]
        start = T.Bind(row * plan.width + first)
        for at, lanes in columns:
            value = parts.loaded(sums, r * size + at, lanes) * parts.wide(totals[r], lanes)
            parts.put(buffers.out, value, start + at, lanes)
