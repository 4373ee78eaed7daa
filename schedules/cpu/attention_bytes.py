"""The stages of an integer attention kernel by products of bytes (``vpdpbusd``): see ``hwq.integer_attention``.

Bytes are q + 128; the instruction multiplies them with signed ones, so that keys and values are packed less 128, keys
in groups of four depths, values of four keys, and what the zero points add is in the sums' first values. What a
row adds to all its scores alike changes no share, and is left out where there is no bias. Scores are floats in memory,
which hold them exactly: what makes shares of them are the float kernel's stages.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwq.integer_attention import LOG2_E, ROUNDER, WHOLE_SHARE
from hwq.schedules.cpu import attention_parts as parts
from hwq.schedules.cpu.attention_plan import Plan
from hwq.schedules.cpu.attention_stages import KEYS_AHEAD, VALUES_AHEAD, Buffers, First, Stages, Task, Tile, ask
from hwq.schedules.generic.float_math import ROUNDER_BITS

Expr = Any
# The zero points of q, k, v and the output; a step of a score, and of v.
ZERO_Q, ZERO_K, ZERO_V, ZERO_OUT = range(4)
SCORE_STEP, VALUE_STEP = range(2)
_FLIP = 0x80808080 - (1 << 32)


def dot(sums: Expr, bytes_: Expr, signed: Expr, lanes: int) -> Expr:
    """sums + products of four uint8 and four int8 for each of ``lanes``, given as int32."""
    return tirx.call_llvm_pure_intrin(
        f"int32x{lanes}",
        f"llvm.x86.avx512.vpdpbusd.{32 * lanes}",
        sums,
        tirx.reinterpret(f"uint8x{4 * lanes}", bytes_),
        tirx.reinterpret(f"int8x{4 * lanes}", signed),
    )


def flipped(words: Expr, lanes: int) -> Expr:
    """Bytes less 128, as int32."""
    return words ^ parts.wide(_FLIP, lanes, "int32")


def pack(plan: Plan, buffers: Buffers, task: Task, block: Expr, place: Expr) -> None:
    """Block ``block`` of the keys to place ``place`` of the packed ones: (depth / 4, vectors * lanes) of four bytes;
    and what the zero point of q adds to each key's scores."""
    lanes = plan.lanes
    ragged = plan.cut or plan.keys % plan.block != 0
    words = plan.depth // 4
    with T.serial(0, plan.vectors) as vector:
        starts = []
        for lane in range(lanes):
            key = block * plan.block + vector * lanes + lane
            key = tirx.min(key, buffers.keys - 1) if ragged else key
            row = (task.batch * plan.keys + key) * plan.kv_heads + task.head
            starts.append(T.Bind(row * plan.depth))
        goal = T.Bind(place * (plan.block * words) + vector * lanes)
        total = T.alloc_buffer((lanes,), "int32", scope="local")
        parts.put(total, parts.wide(0, lanes, "int32"), 0, lanes)
        ones = parts.wide(0x01010101, lanes, "int32")
        if plan.by_heads:
            for start in starts:
                ask(buffers.k, start + KEYS_AHEAD * plan.kv_heads * plan.depth)

        def turn(first: Expr, size: int) -> None:
            kind = f"int32x{size}"
            rows = [
                T.Bind(tirx.reinterpret(kind, parts.loaded(buffers.k, start + first * 4, 4 * size))) for start in starts
            ]
            for i, column in enumerate(parts.turned(rows) if size == lanes else parts.turned_quads(rows)):
                column = T.Bind(flipped(column, lanes))
                parts.put(total, dot(parts.loaded(total, 0, lanes), ones, column, lanes), 0, lanes)
                parts.put(task.packed, column, goal + (first + i) * plan.block, lanes)

        squares = words // lanes * lanes
        with T.serial(0, squares // lanes) as square:
            turn(square * lanes, lanes)
        for first in range(squares, words, 4):
            turn(first, 4)
        less = parts.wide(0 - buffers.ints[ZERO_Q], lanes)
        parts.put(task.key_starts, parts.loaded(total, 0, lanes) * less, place * plan.block + vector * lanes, lanes)


def pack_values(plan: Plan, buffers: Buffers, task: Task) -> None:
    """All values as (keys / 4, width) of four bytes."""
    with T.serial(0, (buffers.keys + 3) // 4) as four, T.serial(0, plan.width // plan.lanes) as vector:
        start = vector * plan.lanes
        parts.put(task.values, _four(plan, buffers, task, four, start), four * plan.width + start, plan.lanes)


def _four(plan: Plan, buffers: Buffers, task: Task, four: Expr, first: Expr) -> Expr:
    """A vector of values, of four keys each, less 128; keys beyond the last are the last again, and have no share."""
    lanes = plan.lanes
    rows = []
    for i in range(4):
        key = tirx.min(four * 4 + i, buffers.keys - 1)
        row = T.Bind(((task.batch * plan.keys + key) * plan.kv_heads + task.head) * plan.width + first)
        rows.append(tirx.reinterpret(f"int32x{lanes // 4}", parts.loaded(buffers.v, row, lanes)))
        if plan.by_heads:
            ask(buffers.v, row + 2 * VALUES_AHEAD * plan.kv_heads * plan.width)
    quarter = lanes // 4
    # Rows of four bytes a lane, side by side; then what belongs to four outputs in each quarter of a register.
    apart = T.Bind(tirx.Shuffle(rows, [r * quarter + q for q in range(quarter) for r in range(4)]))
    bytes_ = tirx.reinterpret(f"uint8x{4 * lanes}", apart)
    places = [16 * q + 4 * key + output for q in range(quarter) for output in range(4) for key in range(4)]
    return T.Bind(flipped(tirx.reinterpret(f"int32x{lanes}", tirx.Shuffle([bytes_], places)), lanes))


def copy_queries(plan: Plan, buffers: Buffers, task: Task, tile: Tile) -> None:
    """The tile's queries side by side; and what each adds to all its scores, where there is a bias."""
    for r in range(plan.rows):
        row = (task.batch * plan.queries + tile.queries[r]) * plan.heads + tile.heads[r]
        start = T.Bind(row * plan.depth)
        for at, lanes in parts.pieces(plan.depth, 4 * plan.lanes):
            goal = (tile.origin + r) * plan.depth + at
            parts.put(task.copied, parts.loaded(buffers.q, start + at, lanes), goal, lanes)
        if plan.added:
            total = T.alloc_buffer((1,), "int32", scope="local")
            parts.put(total, tirx.const(0, "int32"), 0, 1)
            with T.serial(0, plan.depth) as deep:
                parts.put(total, total[0] + buffers.q[start + deep].astype("int32"), 0, 1)
            own = total[0] - plan.depth * buffers.ints[ZERO_Q]
            parts.put(task.row_starts, (own * (128 - buffers.ints[ZERO_K])).astype("float32"), tile.origin + r, 1)


def scores(plan: Plan, task: Task, origin: Expr, block: Expr, place: Expr) -> None:
    """The scores of the rows from ``origin`` on with block ``block`` of the keys, which is at ``place``."""
    lanes, rows, vectors = plan.lanes, plan.rows, plan.vectors
    sums = T.alloc_buffer((rows * vectors * lanes,), "int32", scope="local")
    for c in range(vectors):
        start = T.Bind(parts.loaded(task.key_starts, place * plan.block + c * lanes, lanes))
        for r in range(rows):
            parts.put(sums, start, (r * vectors + c) * lanes, lanes)
    words = plan.depth // 4
    with T.serial(0, words // 4) as outer:
        for inner in range(4):
            deep = outer * 4 + inner
            first = (place * words + deep) * plan.block
            columns = [T.Bind(parts.loaded(task.packed, first + c * lanes, lanes)) for c in range(vectors)]
            for r in range(rows):
                four = task.copied[parts.at((origin + r) * plan.depth + deep * 4, 4)]
                query = T.Bind(parts.wide(tirx.reinterpret("int32", four), lanes))
                for c, column in enumerate(columns):
                    at = (r * vectors + c) * lanes
                    parts.put(sums, dot(parts.loaded(sums, at, lanes), query, column, lanes), at, lanes)
    for r in range(rows):
        for c in range(vectors):
            value = tirx.Cast(f"float32x{lanes}", parts.loaded(sums, (r * vectors + c) * lanes, lanes))
            parts.put(task.scores, value, (origin + r) * plan.pitch + block * plan.block + c * lanes, lanes)


def shares(plan: Plan, buffers: Buffers, task: Task, tile: Tile, largest: list[Expr]) -> list[tuple[Expr, Expr]]:
    """Shares as bytes; of each row (a step of v over their sum, what the zero point of v adds to its sums)."""
    lanes = plan.lanes
    step = tirx.const(LOG2_E, "float32") if plan.added else buffers.floats[SCORE_STEP]
    factor = T.Bind(parts.wide(step, lanes))
    sums = T.alloc_buffer((plan.rows * lanes,), "int32", scope="local")
    for r in range(plan.rows):
        parts.put(sums, parts.wide(0, lanes, "int32"), r * lanes, lanes)
    with T.serial(0, (tile.last + (lanes - 1)) // lanes) as vector:
        for r in range(plan.rows):
            at = (tile.origin + r) * plan.pitch + vector * lanes
            distance = T.Bind(parts.loaded(task.scores, at, lanes) - largest[r])
            value = parts.power(distance, factor, lanes, fused=True)
            whole, number = (parts.wide(float(each), lanes) for each in (WHOLE_SHARE, ROUNDER))
            bits = tirx.reinterpret(f"int32x{lanes}", parts.multiply_add(value, whole, number, lanes, fused=True))
            share = T.Bind(bits - parts.wide(ROUNDER_BITS, lanes, "int32"))
            parts.put(task.shares, tirx.Cast(f"uint8x{lanes}", share), at, lanes)
            parts.put(sums, parts.loaded(sums, r * lanes, lanes) + share, r * lanes, lanes)
    found = []
    for r in range(plan.rows):
        total = parts.fold(parts.loaded(sums, r * lanes, lanes), lanes, lambda a, b: a + b)
        # Of a row without shares too, whose sums are 0.
        step_of_row = T.Bind(buffers.floats[VALUE_STEP] / tirx.max(total, 1).astype("float32"))
        found.append((step_of_row, T.Bind((128 - buffers.ints[ZERO_V]) * total)))
    return found


def sums(
    plan: Plan, buffers: Buffers, task: Task, tile: Tile, piece: tuple[int, int], keys: tuple[Expr, Expr], before: First
) -> Any:
    """Sums of shares times values over keys ``keys`` (first, a multiple of four, and end), for outputs ``piece`` of
    each row. before(row, output, lanes): what they begin with.
    """
    start, size = piece
    lanes = plan.lanes
    columns = range(0, size, lanes)
    found = T.alloc_buffer((plan.rows * size,), "int32", scope="local")
    for r in range(plan.rows):
        for at in columns:
            parts.put(found, before(r, start + at, lanes), r * size + at, lanes)
    with T.serial(keys[0] // 4, (keys[1] + 3) // 4) as four:
        if plan.packs_once:
            loaded = [parts.loaded(task.values, four * plan.width + start + at, lanes) for at in columns]
            values = [T.Bind(value) for value in loaded]
        else:
            values = [_four(plan, buffers, task, four, start + at) for at in columns]
        for r in range(plan.rows):
            group = task.shares[parts.at((tile.origin + r) * plan.pitch + four * 4, 4)]
            share = T.Bind(parts.wide(tirx.reinterpret("int32", group), lanes))
            for at, value in zip(columns, values, strict=True):
                place = r * size + at
                parts.put(found, dot(parts.loaded(found, place, lanes), share, value, lanes), place, lanes)
    return found


def finish(
    plan: Plan, buffers: Buffers, task: Task, tile: Tile, found: Any, piece: tuple[int, int], steps: list[Expr]
) -> None:
    """A tile's sums, of outputs ``piece`` of each row, times ``steps``: to the output, as floats or bytes."""
    first, size = piece
    lanes = plan.lanes
    for r in range(plan.rows):
        row = (task.batch * plan.queries + tile.queries[r]) * plan.heads + tile.heads[r]
        start = T.Bind(row * plan.width + first)
        for at in range(0, size, lanes):
            total = tirx.Cast(f"float32x{lanes}", parts.loaded(found, r * size + at, lanes))
            value = T.Bind(total * parts.wide(steps[r], lanes))
            if plan.out_dtype != "float32":
                zero = buffers.ints[ZERO_OUT]
                low, high = ((bound - zero).astype("float32") for bound in (0, 255))
                value = tirx.min(tirx.max(value, parts.wide(low, lanes)), parts.wide(high, lanes))
                bits = tirx.reinterpret(f"int32x{lanes}", value + parts.wide(float(ROUNDER), lanes))
                value = tirx.Cast(f"uint8x{lanes}", bits + parts.wide(zero - ROUNDER_BITS, lanes))
            parts.put(buffers.out, value, start + at, lanes)


BYTES = Stages(
    pack=pack,
    pack_values=pack_values,
    copy_queries=copy_queries,
    scores=scores,
    shares=shares,
    sums=sums,
    finish=finish,
)
