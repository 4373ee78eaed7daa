"""attention_cache: attention of one query on keys and values in int8, with a float scale for each key and head.

    for each part of the heads of keys (parallel where it pays):
        for each block of keys, for each head of keys, for each head that reads it: products with the keys as floats, in
            lanes along the depth; the lanes of a block's keys are turned into keys for lanes, and added; times scales
        for each head: maximum, powers, their sum
        for some keys at a time, for each head: powers times scales, times values as floats, added to sums in memory
        divided and stored

Each cache is read once and in order. What is added to what is settled by the depth and by a key's place, not by how
many keys there are. Limit: bytes, a quarter of those of floats: on a Zen 4 core 2048 keys of 32 heads of 64 are read at
16 GB/s, where floats take 36; of 8 heads of 128, each read by four, at 6, which arithmetic limits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.cost import compute_s
from hwq.graph import Shape
from hwq.integer_attention import LOG2_E
from hwq.schedules.cpu import attention_parts as parts
from hwq.schedules.cpu.attention_plan import even
from hwq.schedules.cpu.attention_stages import ask, ceiling
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "cpu/attention_cache:1"
Expr = Any
# Keys whose values are read before the next head's, and registers of sums.
TOGETHER, SUMS = 8, 16
# How far ahead of their use keys and values are asked for.
AHEAD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``heads`` x ``depth`` of one query meet ``length`` keys of ``kv_heads`` x ``depth`` and ``width``.

    bias: its shape (1, heads or 1, 1, length or 1), None without; constant: it comes behind the inputs. parts: of the
    heads of keys, which threads share.
    """

    length: int
    heads: int
    kv_heads: int
    depth: int
    width: int
    scale: float
    bias: Shape | None
    constant: bool
    lanes: int
    fused: bool
    parts: int

    @property
    def group(self) -> int:
        """Heads that read the same head of keys and values."""
        return self.heads // self.kv_heads

    @property
    def pitch(self) -> int:
        """Scores from one head to the next."""
        return math.ceil(self.length / self.lanes) * self.lanes + 16


def apply(workload: Workload, target: Target) -> Kernel | None:
    """q (1, 1, H*D), k int8 (1, T, G*D), its scales (1, T, G), v, its scales, [bias], span, [constant bias], out."""
    if workload.op != "attention_cache":
        return None
    plan = make_plan(workload, target)
    func = _code(plan)
    names = ("q", "k", "ks", "v", "vs")
    named = dict(zip(names, workload.input_shapes, strict=False)) | {"out": workload.output_shape}
    if plan.bias is not None:
        named["bias"] = plan.bias
    shapes = {place: named[param.name] for place, param in enumerate(func.params) if param.name in named}
    return common.finish(workload, with_shapes(func, shapes), NAME)


def make_plan(workload: Workload, target: Target) -> Plan:
    """The plan of a workload."""
    (_, _, across), (_, length, deep), _, (_, _, wide), _, *rest = workload.input_shapes
    kv_heads, heads = workload.attr("kv_heads"), workload.attr("heads")
    assert across == deep // kv_heads * heads, workload
    constant = tuple(dict(workload.attrs).get("bias", ()))
    threads = workload.parallel if common.worth_threads(workload.parallel, compute_s(workload, target), target) else 1
    counts = [n for n in range(1, kv_heads + 1) if kv_heads % n == 0]
    return Plan(
        length=length,
        heads=heads,
        kv_heads=kv_heads,
        depth=deep // kv_heads,
        width=wide // kv_heads,
        scale=float(workload.attr("scale")),
        bias=constant or (rest[0] if len(rest) > 1 else None),
        constant=bool(constant),
        lanes=target.lanes(),
        fused=target.architecture != "x86_64" or "fma" in target.cpu_flags,
        parts=next((n for n in counts if even(n, threads)), kv_heads),
    )


def _code(plan: Plan) -> Any:
    """The kernel as a PrimFunc of flat arguments."""
    sizes = {
        "q": (plan.heads * plan.depth, "float32"),
        "k": (plan.length * plan.kv_heads * plan.depth, "int8"),
        "ks": (plan.length * plan.kv_heads, "float32"),
        "v": (plan.length * plan.kv_heads * plan.width, "int8"),
        "vs": (plan.length * plan.kv_heads, "float32"),
        "out": (plan.heads * plan.width, "float32"),
    }
    q, k, ks, v, vs, out = (tirx.decl_buffer((size,), dtype, name) for name, (size, dtype) in sizes.items())
    bias = None if plan.bias is None else tirx.decl_buffer((math.prod(plan.bias),), "float32", "bias")
    span = tirx.decl_buffer((2,), "int32", "span")
    with IRBuilder() as builder:
        with T.seq_scope():
            keys = T.Bind(tirx.max(tirx.min(span[1], plan.length), 1))
            scores = T.alloc_buffer((plan.heads * plan.pitch,), "float32")
            totals = T.alloc_buffer((plan.heads,), "float32")
            sums = T.alloc_buffer((plan.heads * plan.width,), "float32")
            own = plan.kv_heads // plan.parts
            with (T.parallel if plan.parts > 1 else T.serial)(0, plan.parts) as part:
                first = T.Bind(part * own)
                with T.serial(0, ceiling(keys, plan.lanes)) as block, T.serial(0, own) as head:
                    _products(plan, q, k, ks, scores, keys, block, first + head)
                with T.serial(0, own * plan.group) as place:
                    row = T.Bind(first * plan.group + place)
                    _powers(plan, scores, bias, totals, keys, row)
                    for at, lanes in parts.pieces(plan.width, plan.lanes):
                        parts.put(sums, parts.wide(0.0, lanes), row * plan.width + at, lanes)
                with T.serial(0, ceiling(keys, TOGETHER)) as chunk, T.serial(0, own) as head:
                    _values(plan, scores, v, vs, sums, keys, chunk, first + head)
                with T.serial(0, own * plan.group) as place:
                    row = T.Bind(first * plan.group + place)
                    total = T.Bind(totals[row])
                    for at, lanes in parts.pieces(plan.width, plan.lanes):
                        goal = row * plan.width + at
                        parts.put(out, parts.loaded(sums, goal, lanes) * parts.wide(total, lanes), goal, lanes)
        body = builder.get().body
    others = (span, bias) if plan.constant else (bias, span)
    return tirx.PrimFunc([each for each in (q, k, ks, v, vs, *others, out) if each is not None], body)


def _floats(buffer: Any, start: Expr, lanes: int) -> Expr:
    return tirx.Cast("float32" if lanes == 1 else f"float32x{lanes}", parts.loaded(buffer, start, lanes))


def _products(plan: Plan, q: Any, k: Any, ks: Any, scores: Any, keys: Expr, block: Expr, head: Expr) -> None:
    """The products of a block of keys with the heads that read head ``head`` of it, times their scales."""
    lanes = plan.lanes
    factors = T.alloc_buffer((lanes,), "float32")
    starts = []
    for lane in range(lanes):
        row = T.Bind(tirx.min(block * lanes + lane, keys - 1) * plan.kv_heads + head)
        starts.append(T.Bind(row * plan.depth))
        parts.put(factors, ks[row], lane, 1)
        ask(k, (row + AHEAD * plan.kv_heads) * plan.depth)
    whole = plan.depth // lanes
    with T.serial(0, plan.group) as member:
        row = T.Bind(head * plan.group + member)
        found = parts.wide(0.0, lanes)
        if whole:
            sums = T.alloc_buffer((lanes * lanes,), "float32", scope="local")
            for lane in range(lanes):
                parts.put(sums, parts.wide(0.0, lanes), lane * lanes, lanes)
            with T.serial(0, whole) as piece:
                query = T.Bind(parts.loaded(q, row * plan.depth + piece * lanes, lanes))
                for lane, start in enumerate(starts):
                    key = _floats(k, start + piece * lanes, lanes)
                    before = parts.loaded(sums, lane * lanes, lanes)
                    total = parts.multiply_add(query, key, before, lanes, fused=plan.fused)
                    parts.put(sums, total, lane * lanes, lanes)
            turned = parts.turned([T.Bind(parts.loaded(sums, lane * lanes, lanes)) for lane in range(lanes)])
            while len(turned) > 1:
                turned = [T.Bind(a + b) for a, b in zip(turned[::2], turned[1::2], strict=True)]
            found = turned[0]
        rest = parts.pieces(plan.depth - whole * lanes, lanes)
        if rest:
            dots = T.alloc_buffer((lanes,), "float32")
            for lane, start in enumerate(starts):
                value: Expr = tirx.const(0.0, "float32")
                for at, some in rest:
                    place = whole * lanes + at
                    query = parts.loaded(q, row * plan.depth + place, some)
                    value = value + parts.fold(query * _floats(k, start + place, some), some, lambda a, b: a + b)
                parts.put(dots, value, lane, 1)
            found = found + parts.loaded(dots, 0, lanes)
        value = found * (parts.loaded(factors, 0, lanes) * parts.wide(plan.scale, lanes))
        parts.put(scores, value, row * plan.pitch + block * lanes, lanes)


def _powers(plan: Plan, scores: Any, bias: Any, totals: Any, keys: Expr, row: Expr) -> None:
    """A head's scores become powers, those beyond the last key 0; and one over their sum."""
    lanes = plan.lanes
    most = T.alloc_buffer((lanes,), "float32", scope="local")
    total = T.alloc_buffer((lanes,), "float32", scope="local")
    parts.put(most, parts.wide(float("-inf"), lanes), 0, lanes)
    parts.put(total, parts.wide(0.0, lanes), 0, lanes)
    with T.serial(0, ceiling(keys, lanes)) as vector:
        at = row * plan.pitch + vector * lanes
        score = parts.loaded(scores, at, lanes)
        places = tirx.Ramp(vector * lanes, 1, lanes)
        if bias is not None:
            assert plan.bias is not None
            start = row * plan.bias[3] if plan.bias[1] > 1 else tirx.const(0, "int32")
            last = parts.wide(plan.bias[3] - 1, lanes, "int32")
            score = score + bias[parts.wide(start, lanes) + tirx.min(places, last)]
        there = places < parts.wide(keys, lanes, "int32")
        score = T.Bind(tirx.Select(there, score, parts.wide(float("-inf"), lanes)))
        parts.put(scores, score, at, lanes)
        parts.put(most, tirx.max(parts.loaded(most, 0, lanes), score), 0, lanes)
    largest = T.Bind(parts.wide(parts.fold(parts.loaded(most, 0, lanes), lanes, tirx.max), lanes))
    with T.serial(0, ceiling(keys, lanes)) as vector:
        at = row * plan.pitch + vector * lanes
        distance = T.Bind(parts.loaded(scores, at, lanes) - largest)
        value = parts.power(distance, parts.wide(LOG2_E, lanes), lanes, fused=plan.fused)
        parts.put(scores, value, at, lanes)
        parts.put(total, parts.loaded(total, 0, lanes) + value, 0, lanes)
    found = parts.fold(parts.loaded(total, 0, lanes), lanes, lambda a, b: a + b)
    parts.put(totals, tirx.const(1.0, "float32") / found, row, 1)


def _values(plan: Plan, scores: Any, v: Any, vs: Any, sums: Any, keys: Expr, chunk: Expr, head: Expr) -> None:
    """Powers times values of TOGETHER keys, added to the sums of the heads that read head ``head`` of them."""
    columns = parts.pieces(plan.width, plan.lanes)
    rows = max(1, min(plan.group, SUMS // len(columns)))
    for first in range(0, plan.group, rows):
        members = [head * plan.group + min(first + r, plan.group - 1) for r in range(min(rows, plan.group - first))]
        kept = T.alloc_buffer((len(members) * plan.width,), "float32", scope="local")
        for r, row in enumerate(members):
            for at, lanes in columns:
                parts.put(kept, parts.loaded(sums, row * plan.width + at, lanes), r * plan.width + at, lanes)
        with T.serial(chunk * TOGETHER, tirx.min((chunk + 1) * TOGETHER, keys)) as key:
            place = T.Bind(key * plan.kv_heads + head)
            start = T.Bind(place * plan.width)
            ask(v, start + AHEAD * plan.kv_heads * plan.width)
            values = [T.Bind(_floats(v, start + at, lanes)) for at, lanes in columns]
            for r, row in enumerate(members):
                share = T.Bind(scores[row * plan.pitch + key] * vs[place])
                for (at, lanes), value in zip(columns, values, strict=True):
                    goal = r * plan.width + at
                    before = parts.loaded(kept, goal, lanes)
                    total = parts.multiply_add(parts.wide(share, lanes), value, before, lanes, fused=plan.fused)
                    parts.put(kept, total, goal, lanes)
        for r, row in enumerate(members):
            for at, lanes in columns:
                parts.put(sums, parts.loaded(kept, r * plan.width + at, lanes), row * plan.width + at, lanes)
