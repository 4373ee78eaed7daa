"""Attention and gather in float32 as plain loops: right everywhere, fast nowhere.

Stands last among the families: for what the kernels of these operators do not take. The arithmetic is written down as
``hwq.transformer`` has it, step after step, scores and weights of attention in memory, and scheduled like any operator
of TVM's (``float_func``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from hwq.schedules.generic import common
from hwq.schedules.generic.float_func import schedule_float
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/plain:1"
# What a score is that no key has: less than any, and an exponential of it is 0.
_UNSEEN = -3.0e38


def apply(workload: Workload, target: Target) -> Kernel | None:
    """Inputs, constants, out, as in ``hwq.graph.Layer``; all float32 but ids and span."""
    make = _MAKERS.get(workload.op)
    if make is None:
        return None
    if workload.scheme != "f32" or workload.activation.kind != "none":
        return common.decline(workload, "only float32 without an activation")
    func = te.create_prim_func(make(workload)).with_attr("tirx.noalias", True)
    made = schedule_float(func, target, workload.parallel, f"{workload.op}_{workload.scheme}_{workload.digest}")
    pack = (lambda weight: weight) if workload.op == "gather" else None
    return Kernel(symbol=made.symbol, func=made.func, schedule=NAME, pack=pack)


def _gather(workload: Workload) -> list[te.Tensor]:
    *shape, columns = workload.output_shape
    kind, count = workload.attr("ids"), workload.attr("rows")
    ids = te.placeholder(shape, kind, "ids")
    table = te.placeholder((count, columns), "float32", "table")
    last, zero = tirx.const(count - 1, kind), tirx.const(0, kind)

    def out(*i: Any) -> Any:
        at = ids[i[:-1]]
        at = tirx.if_then_else(at < zero, at + tirx.const(count, kind), at)
        return table[tirx.max(tirx.min(at, last), zero), i[-1]]

    return [ids, table, te.compute((*shape, columns), out, "out")]


def _attention(workload: Workload) -> list[te.Tensor]:
    attrs = dict(workload.attrs)
    heads, groups = attrs["heads"], attrs["kv_heads"]
    each = heads // groups
    shapes = list(workload.input_shapes)
    q, k, v = (te.placeholder(shape, "float32", name) for shape, name in zip(shapes, "qkv", strict=False))
    (batch, length, width), (_, keys, _) = shapes[:2]
    dim, dim_v = width // heads, shapes[2][-1] // groups
    args = [q, k, v]
    span = te.placeholder((2,), "int32", "span") if attrs.get("cut") else None
    given = shapes[3:-1] if span is not None else shapes[3:]
    bias = te.placeholder(given[0] if given else attrs["bias"], "float32", "bias") if given or "bias" in attrs else None
    ends = [bias, span] if given else [span, bias]
    args += [each for each in ends if each is not None]
    n, t = (length, keys) if span is None else (span[0], span[1])

    d = te.reduce_axis((0, dim), "d")
    products = te.compute(
        (batch, heads, length, keys),
        lambda b, h, i, j: te.sum(q[b, i, h * dim + d] * k[b, j, h // each * dim + d], axis=d),
        "products",
    )

    def score(b: Any, h: Any, i: Any, j: Any) -> Any:
        value = products[b, h, i, j] * tirx.const(attrs["scale"], "float32")
        if bias is not None:
            value += bias[tuple(at if size > 1 else 0 for at, size in zip((b, h, i, j), bias.shape, strict=True))]
        seen = j < t
        if attrs["causal"]:
            seen = tirx.all(seen, j <= i + t - n)
        return tirx.if_then_else(seen, value, tirx.const(_UNSEEN, "float32"))

    scores = te.compute((batch, heads, length, keys), score, "scores")
    j = te.reduce_axis((0, keys), "j")
    most = te.compute((batch, heads, length), lambda b, h, i: te.max(scores[b, h, i, j], axis=j), "most")
    power = te.compute(scores.shape, lambda b, h, i, j: te.exp(scores[b, h, i, j] - most[b, h, i]), "power")
    j1, j2 = (te.reduce_axis((0, keys), name) for name in ("j1", "j2"))
    total = te.compute((batch, heads, length), lambda b, h, i: te.sum(power[b, h, i, j1], axis=j1), "total")
    zero = tirx.const(0.0, "float32")

    def real(b: Any, j: Any, c: Any) -> Any:
        return v[b, j, c] if span is None else tirx.if_then_else(j < t, v[b, j, c], zero)

    summed = te.compute(
        (batch, length, heads * dim_v),
        lambda b, i, c: te.sum(
            power[b, c // dim_v, i, j2] * real(b, j2, c // dim_v // each * dim_v + c % dim_v), axis=j2
        ),
        "summed",
    )
    out = te.compute(summed.shape, lambda b, i, c: summed[b, i, c] / total[b, c // dim_v, i], "out")
    return [*args, out]


_MAKERS: dict[str, Callable[[Workload], list[te.Tensor]]] = {
    "attention": _attention,
    "gather": _gather,
}
