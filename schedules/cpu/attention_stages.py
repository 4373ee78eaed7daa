"""The stages of an attention kernel on a tile of rows: keys packed, scores, their maxima, powers, sums of values.

They work on flat buffers within TVM's IRBuilder; ``attention_code`` and ``attention_step`` put them in order. What lies
beyond a row's last key is -inf before the maximum and exactly 0 behind it. A tile's rows beyond the last are the last
again, and so are a block's keys: nothing is read or written that is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwq.integer_attention import LOG2_E
from hwq.schedules.cpu import attention_parts as parts
from hwq.schedules.cpu.attention_plan import Plan

Expr = Any
First = Callable[[int, int, int], Any]
# Steps along the depth that are written out, and rows whose powers are computed side by side.
UNROLLED, ROWS_BESIDE = 4, 4
# How far ahead of their use the keys and values of one query are asked for: where memory is read just once.
KEYS_AHEAD, VALUES_AHEAD = 64, 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Buffers:
    """The arguments, flat, and how many queries and keys there are; ints, floats: of the integer form."""

    q: Any
    k: Any
    v: Any
    bias: Any
    ints: Any
    floats: Any
    out: Any
    queries: Expr
    keys: Expr


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One head of keys of a batch. packed: its keys, or a block of them; copied, scores: the queries and scores of rows
    that are worked on. Of the integer form: the values packed, if keys are packed once, shares as bytes, and what zero
    points add to the scores of a key, and of a row."""

    batch: Expr
    head: Expr
    packed: Any
    copied: Any
    scores: Any
    values: Any = None
    shares: Any = None
    key_starts: Any = None
    row_starts: Any = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stages:
    """The stages of the float form, or the integer one's; see the functions of their names."""

    pack: Callable[..., None]
    pack_values: Callable[..., None]
    copy_queries: Callable[..., None]
    scores: Callable[..., None]
    shares: Callable[..., list[tuple[Expr, Expr]]]
    sums: Callable[..., Any]
    finish: Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """Rows of one tile. ends: each one's number of keys; last: the largest. origin: where its rows begin among those of
    ``Task``."""

    queries: list[Expr]
    heads: list[Expr]
    ends: list[Expr]
    last: Expr
    origin: Expr


def new_task(plan: Plan, batch: Expr, head: Expr, rows: int, blocks: int) -> Task:
    """A task with room for ``rows`` rows and ``blocks`` blocks of keys."""
    integer, keys = plan.integer, blocks * plan.block
    return Task(
        batch=batch,
        head=head,
        packed=T.alloc_buffer((keys * plan.depth // (4 if integer else 1),), plan.summed),
        copied=T.alloc_buffer((rows * plan.depth,), plan.stored),
        scores=T.alloc_buffer((rows * plan.pitch,), "float32"),
        values=T.alloc_buffer((ceiling(plan.keys, 4) * plan.width,), "int32") if integer and plan.packs_once else None,
        shares=T.alloc_buffer((rows * plan.pitch,), "uint8") if integer else None,
        key_starts=T.alloc_buffer((keys,), "int32") if integer else None,
        row_starts=T.alloc_buffer((rows,), "float32") if integer and plan.added else None,
    )


def ceiling(a: Expr, b: int) -> Expr:
    """a / b, rounded up."""
    return -(-a // b) if isinstance(a, int) else (a + (b - 1)) // b


def lesser(a: Expr, b: Expr) -> Expr:
    """The lesser of two, a number if both are."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(a, b)


def places(first: Expr, count: Expr, rows: int) -> list[Expr]:
    """``rows`` places from ``first`` on, those beyond ``count`` being the last again."""
    if isinstance(count, int) and count % rows == 0:
        return [first + r for r in range(rows)]
    return [T.Bind(lesser(first + r, count - 1)) for r in range(rows)]


def copy_queries(plan: Plan, buffers: Buffers, task: Task, tile: Tile) -> None:
    """The tile's queries side by side."""
    for r in range(plan.rows):
        row = (task.batch * plan.queries + tile.queries[r]) * plan.heads + tile.heads[r]
        start = T.Bind(row * plan.depth)
        for at, lanes in parts.pieces(plan.depth, plan.lanes):
            goal = (tile.origin + r) * plan.depth + at
            parts.put(task.copied, parts.loaded(buffers.q, start + at, lanes), goal, lanes)


def pack(plan: Plan, buffers: Buffers, task: Task, block: Expr, place: Expr) -> None:
    """Block ``block`` of the keys to place ``place`` of the packed ones: (depth, vectors * lanes)."""
    lanes = plan.lanes
    ragged = plan.cut or plan.keys % plan.block != 0
    with T.serial(0, plan.vectors) as vector:
        starts = []
        for lane in range(lanes):
            key = block * plan.block + vector * lanes + lane
            key = tirx.min(key, buffers.keys - 1) if ragged else key
            row = (task.batch * plan.keys + key) * plan.kv_heads + task.head
            starts.append(T.Bind(row * plan.depth))
        goal = T.Bind(place * (plan.block * plan.depth) + vector * lanes)

        def turn(deep: Expr, size: int) -> None:
            rows = [T.Bind(parts.loaded(buffers.k, start + deep, size)) for start in starts]
            for i, column in enumerate(parts.turned(rows) if size == lanes else parts.turned_quads(rows)):
                parts.put(task.packed, column, goal + (deep + i) * plan.block, lanes)

        squares = plan.depth // lanes * lanes
        with T.serial(0, squares // lanes) as square:
            if plan.by_heads:
                for start in starts:
                    ask(buffers.k, start + square * lanes + KEYS_AHEAD * plan.kv_heads * plan.depth)
            turn(square * lanes, lanes)
        quads = plan.depth // 4 * 4
        for deep in range(squares, quads, 4):
            turn(deep, 4)
        if quads < plan.depth:
            with T.serial(quads, plan.depth) as rest:
                for lane, start in enumerate(starts):
                    parts.put(task.packed, buffers.k[start + rest], goal + rest * plan.block + lane, 1)


def ask(buffer: Any, element: Expr) -> None:
    """Asks for the line of an element ahead of time, into the second level of cache; it may lie beyond the end."""
    how = [tirx.const(each, "int32") for each in (0, 2, 1)]
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", tirx.address_of(buffer[element]), *how))


def scores(plan: Plan, task: Task, origin: Expr, block: Expr, place: Expr) -> None:
    """The scores of the rows from ``origin`` on with block ``block`` of the keys, which is at ``place``."""
    lanes, rows, vectors = plan.lanes, plan.rows, plan.vectors
    sums = T.alloc_buffer((rows * vectors * lanes,), "float32", scope="local")
    for i in range(rows * vectors):
        parts.put(sums, parts.wide(0.0, lanes), i * lanes, lanes)

    def step(deep: Expr) -> None:
        start = (place * plan.depth + deep) * plan.block
        columns = [T.Bind(parts.loaded(task.packed, start + c * lanes, lanes)) for c in range(vectors)]
        for r in range(rows):
            query = T.Bind(parts.wide(task.copied[(origin + r) * plan.depth + deep], lanes))
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
            parts.put(task.scores, value, (origin + r) * plan.pitch + block * plan.block + c * lanes, lanes)


def largest(plan: Plan, buffers: Buffers, task: Task, tile: Tile) -> list[Expr]:
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
            at = (tile.origin + r) * plan.pitch + key
            score = parts.loaded(task.scores, at, lanes)
            if plan.integer and plan.added:  # both are whole numbers
                score = score + parts.wide(task.row_starts[tile.origin + r], lanes)
            if plan.shifted:
                addend = _bias_at(plan, buffers, biases[r], key, masked) if biases else parts.wide(0.0, lanes)
                scale = parts.wide(buffers.floats[0] if plan.integer else plan.scale, lanes)
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


def _bias_at(plan: Plan, buffers: Buffers, start: Expr, key: Expr, masked: bool) -> Expr:
    """The bias of a vector of keys; masked: where some may not be there."""
    lanes = plan.lanes
    if not masked:
        return parts.loaded(buffers.bias, start + key, lanes)
    keys = tirx.min(tirx.Ramp(key, 1, lanes), parts.wide(plan.keys - 1, lanes, "int32"))
    return buffers.bias[parts.wide(start, lanes) + keys]


def shares(plan: Plan, _buffers: Buffers, task: Task, tile: Tile, largest: list[Expr]) -> list[tuple[Expr, Expr]]:
    """Scores become powers, whose shares of their sum they are; of each row (one over their sum, what its sums of
    values begin with)."""
    lanes = plan.lanes
    factor = parts.wide(LOG2_E * (1.0 if plan.shifted else plan.scale), lanes)
    sums = T.alloc_buffer((plan.rows * lanes,), "float32", scope="local")
    for first in range(0, plan.rows, ROWS_BESIDE):
        some = range(first, min(first + ROWS_BESIDE, plan.rows))
        for r in some:
            parts.put(sums, parts.wide(0.0, lanes), r * lanes, lanes)
        with T.serial(0, ceiling(tile.last, lanes)) as vector:
            for r in some:
                at = (tile.origin + r) * plan.pitch + vector * lanes
                distance = T.Bind(parts.loaded(task.scores, at, lanes) - largest[r])
                value = parts.power(distance, factor, lanes, fused=plan.fused)
                parts.put(task.scores, value, at, lanes)
                parts.put(sums, parts.loaded(sums, r * lanes, lanes) + value, r * lanes, lanes)
    totals = [parts.fold(parts.loaded(sums, r * lanes, lanes), lanes, lambda a, b: a + b) for r in range(plan.rows)]
    return [(T.Bind(tirx.const(1.0, "float32") / total), tirx.const(0.0, "float32")) for total in totals]


def sums(
    plan: Plan, buffers: Buffers, task: Task, tile: Tile, piece: tuple[int, int], keys: tuple[Expr, Expr], before: First
) -> Any:
    """Sums of shares times values over keys ``keys`` (first, end), for outputs ``piece`` (first, count) of each row.

    before(row, output, lanes): what they begin with. The sums are in registers, row after row.
    """
    first, size = piece
    columns = parts.pieces(size, plan.lanes)
    found = T.alloc_buffer((plan.rows * size,), "float32", scope="local")
    for r in range(plan.rows):
        for at, lanes in columns:
            parts.put(found, before(r, first + at, lanes), r * size + at, lanes)
    with T.serial(*keys) as key:
        row = (task.batch * plan.keys + key) * plan.kv_heads + task.head
        start = T.Bind(row * plan.width + first)
        values = [T.Bind(parts.loaded(buffers.v, start + at, lanes)) for at, lanes in columns]
        if plan.by_heads:
            for at, _ in columns:
                ask(buffers.v, start + at + VALUES_AHEAD * plan.kv_heads * plan.width)
        for r in range(plan.rows):
            share = T.Bind(task.scores[(tile.origin + r) * plan.pitch + key])
            for (at, lanes), value in zip(columns, values, strict=True):
                place = r * size + at
                total = parts.multiply_add(
                    parts.wide(share, lanes), value, parts.loaded(found, place, lanes), lanes, fused=plan.fused
                )
                parts.put(found, total, place, lanes)
    return found


def finish(
    plan: Plan, buffers: Buffers, task: Task, tile: Tile, found: Any, piece: tuple[int, int], totals: list[Expr]
) -> None:
    """A tile's sums, of outputs ``piece`` of each row, times ``totals``: to the output."""
    first, size = piece
    for r in range(plan.rows):
        row = (task.batch * plan.queries + tile.queries[r]) * plan.heads + tile.heads[r]
        start = T.Bind(row * plan.width + first)
        for at, lanes in parts.pieces(size, plan.lanes):
            value = parts.loaded(found, r * size + at, lanes) * parts.wide(totals[r], lanes)
            parts.put(buffers.out, value, start + at, lanes)


def nothing(*_: Any) -> None:
    """Values of floats are read where they are."""


FLOAT = Stages(
    pack=pack,
    pack_values=nothing,
    copy_queries=copy_queries,
    scores=scores,
    shares=shares,
    sums=sums,
    finish=finish,
)
