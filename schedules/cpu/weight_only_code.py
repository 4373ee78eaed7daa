"""The code of a weight-only dense kernel, as TVM's IRBuilder makes it from a plan.

    each row in steps of its groups, 16 bits each, with what the weights' offset takes; rows that fill up a tile are 0
    for each block of vectors of channels (parallel where it pays), for each tile of rows:
        for each group of inputs:
            for each chunk of its weights: a load for each vector, four halves of words unpacked, multiplied and added
            sums to floats, times the row's step and the channel's scale
        bias, residual, activation

A word of weights holds four of them, plus 8, for inputs ``r`` apart; a shift and a mask unpack one for every lane.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.group_scales import LANES
from hwq.row_scales import LEAST
from hwq.schedules.cpu import attention_parts as parts
from hwq.schedules.cpu.attention_stages import ask
from hwq.schedules.cpu.weight_only_plan import NIBBLES, ZERO, Plan
from hwq.schedules.generic import common
from hwq.schedules.generic.float_math import activate
from hwq.weight_only import LARGEST, SHARE

Expr = Any
# Words of a cache line.
LINE_WORDS = 32


def kernel_code(plan: Plan) -> Any:
    """The kernel as a PrimFunc of x, [residual], weight, multiplier, [bias], out; all flat."""
    work = plan.workload
    sizes = {
        "x": (plan.count * plan.inputs, "float32"),
        "residual": (plan.count * plan.channels if work.residual else 0, "float32"),
        "weight": (plan.words, "uint16"),
        "multiplier": (-(-plan.channels // LANES) * plan.groups * LANES, "float32"),
        "bias": (plan.channels if work.has_bias else 0, "float32"),
        "out": (plan.count * plan.channels, "float32"),
    }
    given = {name: tirx.decl_buffer((size,), kind, name) if size else None for name, (size, kind) in sizes.items()}
    with IRBuilder() as builder:
        with T.seq_scope():
            rows = plan.tiles * plan.rows
            whole = T.alloc_buffer((rows * plan.pitch,), "int16")
            steps = T.alloc_buffer((rows * plan.groups,), "float32")
            starts = T.alloc_buffer((rows * plan.groups,), "int32")
            with (T.parallel if plan.parallel_rows else T.serial)(0, rows) as row:
                _prepare(plan, given["x"], row, whole, steps, starts)
            with (T.parallel if plan.parallel else T.serial)(0, plan.blocks) as block, T.serial(0, plan.tiles) as tile:
                _tile(plan, given, (whole, steps, starts), block, tile)
        body = builder.get().body
    return tirx.PrimFunc([each for each in given.values() if each is not None], body)


def _prepare(plan: Plan, x: Any, row: Expr, whole: Any, steps: Any, starts: Any) -> None:
    """One row in steps of its groups; a row beyond the last is the last one, and never stored."""
    start = T.Bind(tirx.min(row, plan.count - 1) * plan.inputs)
    if plan.whole_groups:
        with T.serial(0, plan.whole_groups) as group:
            _prepare_group(plan, x, row, start, group, plan.group, (whole, steps, starts))
    if plan.rest:
        _prepare_group(plan, x, row, start, plan.whole_groups, plan.rest, (whole, steps, starts))


def _prepare_group(
    plan: Plan, x: Any, row: Expr, start: Expr, group: Expr, size: int, kept: tuple[Any, Any, Any]
) -> None:
    whole, steps, starts = kept
    lanes, source, place = plan.lanes, start + group * plan.group, row * plan.pitch + group * plan.group
    vectors = size // lanes
    most = T.alloc_buffer((lanes,), "float32", scope="local")
    parts.put(most, parts.wide(0.0, lanes), 0, lanes)
    if vectors:
        with T.serial(0, vectors) as vector:
            found = tirx.abs(parts.loaded(x, source + vector * lanes, lanes))
            parts.put(most, tirx.max(parts.loaded(most, 0, lanes), found), 0, lanes)
    largest = parts.fold(parts.loaded(most, 0, lanes), lanes, tirx.max)
    for at in range(vectors * lanes, size):
        largest = tirx.max(largest, tirx.abs(x[source + at]))
    zero, one, least = (tirx.const(value, "float32") for value in (0.0, 1.0, float(LEAST)))
    step = T.Bind(largest * tirx.const(float(SHARE), "float32"))
    factor = T.Bind(tirx.Select(step < least, zero, one / tirx.max(step, least)))
    T.buffer_store(steps, tirx.Select(step < least, zero, step), [row * plan.groups + group])
    total = T.alloc_buffer((lanes,), "int32", scope="local")
    parts.put(total, parts.wide(0, lanes, "int32"), 0, lanes)

    origin = common.origin_of(tirx.const(0, "int32"))

    def put(at: Expr, many: int) -> Expr:
        # The clamp keeps LLVM from fusing the product with what rounds it.
        value = parts.loaded(x, source + at, many) * parts.wide(factor, many)
        bound = parts.wide(float(LARGEST), many)
        value = tirx.min(tirx.max(value, parts.wide(float(-LARGEST), many)), bound)
        number = T.Bind(common.rounded(value, origin, "int32", many))
        parts.put(whole, tirx.Cast(_type("int16", many), number), place + at, many)
        return number

    if vectors:
        with T.serial(0, vectors) as vector:
            number = put(vector * lanes, lanes)
            parts.put(total, parts.loaded(total, 0, lanes) + number, 0, lanes)
    summed = parts.fold(parts.loaded(total, 0, lanes), lanes, lambda a, b: a + b)
    for at in range(vectors * lanes, size):
        summed = T.Bind(summed + put(at, 1))
    for at in range(size, plan.padded(size)):
        T.buffer_store(whole, tirx.const(0, "int16"), [place + at])
    T.buffer_store(starts, summed * -ZERO, [row * plan.groups + group])


def _tile(plan: Plan, given: dict[str, Any], kept: tuple[Any, Any, Any], block: Expr, tile: Expr) -> None:
    """The outputs of a tile of rows by a block of channels."""
    lanes, rows, vectors = plan.lanes, plan.rows, plan.vectors
    totals = T.alloc_buffer((rows * vectors * lanes,), "float32", scope="local")
    for at in range(rows * vectors):
        parts.put(totals, parts.wide(0.0, lanes), at * lanes, lanes)
    if plan.whole_groups:
        with T.serial(0, plan.whole_groups) as group:
            _group(plan, given, kept, totals, block, tile, group, plan.group)
    if plan.rest:
        _group(plan, given, kept, totals, block, tile, plan.whole_groups, plan.rest)
    for r in range(rows):
        row = T.Bind(tile * rows + r)
        if plan.count % rows:
            with T.If(row < plan.count), T.Then():
                _store(plan, given, totals, block, row, r)
        else:
            _store(plan, given, totals, block, row, r)


def _group(
    plan: Plan,
    given: dict[str, Any],
    kept: tuple[Any, Any, Any],
    totals: Any,
    block: Expr,
    tile: Expr,
    group: Expr,
    size: int,
) -> None:
    """Adds one group of inputs to a tile's totals. Integers may be summed in any order: ``chains`` of sums hide what
    each takes."""
    whole, steps, starts = kept
    lanes, rows, vectors, chains = plan.lanes, plan.rows, plan.vectors, plan.chains
    sums = T.alloc_buffer((chains * rows * vectors * lanes,), "int32", scope="local")

    def place(chain: int, r: int, v: int) -> int:
        return ((chain * rows + r) * vectors + v) * lanes

    for r in range(rows):
        start = T.Bind(parts.wide(starts[(tile * rows + r) * plan.groups + group], lanes))
        for chain in range(chains):
            for v in range(vectors):
                parts.put(sums, start if chain == 0 else parts.wide(0, lanes, "int32"), place(chain, r, v), lanes)
    many = lanes * plan.r
    first = T.Bind((block * plan.chunks + group * (plan.group // plan.chunk)) * vectors * many)
    with T.serial(0, plan.padded(size) // plan.chunk) as chunk:
        words = [
            T.Bind(parts.loaded(given["weight"], first + (chunk * vectors + v) * many, many)) for v in range(vectors)
        ]
        for at in range(0, vectors * many, LINE_WORDS):
            ask(given["weight"], first + (chunk + plan.ahead) * vectors * many + at)
        for j in range(NIBBLES):
            unpacked = [T.Bind(_nibble(word, j, many)) for word in words]
            for r in range(rows):
                at = (tile * rows + r) * plan.pitch + group * plan.group + chunk * plan.chunk + j * plan.r
                given_row = T.Bind(_spread(plan, whole, at))
                for v in range(vectors):
                    here = place(j % chains, r, v)
                    parts.put(
                        sums, _multiplied(plan, parts.loaded(sums, here, lanes), given_row, unpacked[v]), here, lanes
                    )
    last = -(-plan.channels // LANES) - 1
    scales = []
    for v in range(vectors):
        number = block * vectors + v  # beyond the channels any scale will do
        at = (tirx.min(number * lanes // LANES, last) * plan.groups + group) * LANES + number * lanes % LANES
        scales.append(T.Bind(parts.loaded(given["multiplier"], at, lanes)))
    for r in range(rows):
        step = T.Bind(parts.wide(steps[(tile * rows + r) * plan.groups + group], lanes))
        for v in range(vectors):
            part = parts.loaded(sums, place(0, r, v), lanes)
            for chain in range(1, chains):
                part = part + parts.loaded(sums, place(chain, r, v), lanes)
            scaled = T.Bind(tirx.Cast(_type("float32", lanes), part) * step)
            at = (r * vectors + v) * lanes
            total = parts.multiply_add(scaled, scales[v], parts.loaded(totals, at, lanes), lanes, fused=True)
            parts.put(totals, total, at, lanes)


def _nibble(word: Expr, j: int, many: int) -> Expr:
    """Weight ``j`` of each word, plus 8, as int16."""
    shifted = word if j == 0 else word >> parts.wide(4 * j, many, "uint16")
    masked = shifted if j == NIBBLES - 1 else shifted & parts.wide(15, many, "uint16")
    return tirx.reinterpret(_type("int16", many), masked)


def _spread(plan: Plan, whole: Any, at: Expr) -> Expr:
    """``r`` activations of a row in each lane."""
    if plan.r == 1:
        return parts.wide(whole[at], plan.lanes)
    pair = tirx.reinterpret("int32", parts.loaded(whole, at, 2))
    return tirx.reinterpret(_type("int16", 2 * plan.lanes), tirx.Broadcast(pair, plan.lanes))


def _multiplied(plan: Plan, sums: Expr, row: Expr, weights: Expr) -> Expr:
    """Sums and the products of ``r`` activations with the weights of each lane."""
    if plan.r == 1:
        row, weights = (tirx.Cast(_type("int32", plan.lanes), each) for each in (row, weights))
        return sums + row * weights
    kind = _type("int32", plan.lanes)
    if plan.accumulates:
        return tirx.call_llvm_pure_intrin(kind, f"llvm.x86.avx512.vpdpwssd.{plan.lanes * 32}", sums, row, weights)
    name = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[plan.lanes]
    return sums + tirx.call_llvm_pure_intrin(kind, name, row, weights)


def _store(plan: Plan, given: dict[str, Any], totals: Any, block: Expr, row: Expr, r: int) -> None:
    """The end of one row of a tile."""
    width = plan.vectors * plan.lanes

    def value(at: Expr) -> None:
        channel = block * width + at
        total = totals[r * width + at]
        if given["bias"] is not None:
            total = total + given["bias"][channel]
        if given["residual"] is not None:
            total = total + given["residual"][row * plan.channels + channel]
        T.buffer_store(given["out"], activate(plan.workload.activation, total), [row * plan.channels + channel])

    def vectors() -> None:
        for v in range(plan.vectors):
            with T.vectorized(0, plan.lanes) as lane:
                value(v * plan.lanes + lane)

    rest = plan.channels - (plan.blocks - 1) * width
    if rest == width:
        vectors()
        return
    if plan.blocks == 1:
        with T.serial(0, rest) as at:
            value(at)
        return
    with T.If(block < plan.blocks - 1):
        with T.Then():
            vectors()
        with T.Else(), T.serial(0, rest) as at:
            value(at)


def _type(kind: str, lanes: int) -> str:
    return kind if lanes == 1 else f"{kind}x{lanes}"
