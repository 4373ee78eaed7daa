"""Private functions of a module that stand for one layer: rotary positions and attention, each with its arithmetic.

A pass that recognizes one puts a call of such a function in its place. Its attributes are the layer's (``hwq.graph``),
"layer" among them; its body, which nothing here runs, says what the call computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import IRModule, ir, relax, tirx

from hwq import relax_tools as rt


@dataclass(slots=True, kw_only=True)
class Functions:
    """The private functions that one run of a pass makes, each once; ``builder`` holds the module's too."""

    builder: relax.BlockBuilder
    made: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def call(self, layer: str, args: Sequence[rt.Expr], attrs: Mapping[str, Any]) -> rt.Expr:
        """A call of the function of this layer ("rope" or "attention") with these attributes, for arguments like
        ``args``: for rope x, cos, sin; for attention q, k, v and perhaps bias.
        """
        key = (layer, *(rt.shape_of(arg) for arg in args), *sorted(attrs.items()))
        if key not in self.made:
            func = _function(layer, [rt.shape_of(arg) for arg in args], attrs)
            self.made[key] = self.builder.add_func(func, layer)
        return ir.Call(self.made[key], list(args))

    def into(self, mod: IRModule) -> IRModule:
        """``mod`` with those of the functions that its ``main`` calls."""
        called = {value.op for _, value in rt.bindings_of(mod) if isinstance(value, ir.Call)}
        for gvar in sorted(called & set(self.made.values()), key=lambda gvar: str(gvar.name_hint)):
            mod.update_func(gvar, self.builder.get()[gvar])
        return mod


def layer_attrs(mod: IRModule, value: rt.Expr) -> dict[str, Any] | None:
    """The attributes of the layer whose function ``value`` calls, in Python's types; None for anything else."""
    if not (isinstance(value, ir.Call) and isinstance(value.op, ir.GlobalVar)):
        return None
    attrs = mod[value.op].attrs
    if attrs is None or "layer" not in attrs:
        return None
    kinds = {"layer": str, "heads": int, "kv_heads": int, "style": str, "scale": float, "causal": bool}
    return {key: kind(getattr(attrs[key], "value", attrs[key])) for key, kind in kinds.items() if key in attrs}


def _function(layer: str, shapes: Sequence[tuple[int, ...]], attrs: Mapping[str, Any]) -> Any:
    names = ("x", "cos", "sin") if layer == "rope" else ("q", "k", "v", "bias")
    params = [relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in zip(names, shapes, strict=False)]
    builder = relax.BlockBuilder()
    with builder.function(layer, params, private=True):
        with builder.dataflow():
            body = _rope if layer == "rope" else _attention
            out = builder.emit_output(body(builder, params, attrs))
        builder.emit_func_output(out)
    return builder.get()[layer].with_attrs({"layer": layer, **{key: _attr(value) for key, value in attrs.items()}})


def _attr(value: Any) -> Any:
    if isinstance(value, str):
        return value
    kind = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "float64"
    return tirx.const(value, kind)


def _rope(builder: relax.BlockBuilder, params: Sequence[rt.Expr], attrs: Mapping[str, Any]) -> rt.Expr:
    op = relax.op
    x, *tables = params
    batch, length, width = rt.shape_of(x)
    dim = width // attrs["heads"]
    half = attrs["style"] == "half"
    apart = builder.emit(op.reshape(x, (batch, length, attrs["heads"], *((2, dim // 2) if half else (dim // 2, 2)))))
    axis = 3 if half else 4
    first, second = (builder.emit(op.strided_slice(apart, [axis], [at], [at + 1])) for at in (0, 1))
    turned = builder.emit(op.concat([builder.emit(op.negative(second)), first], axis))
    shape = (batch, length, attrs["heads"], dim)
    cos, sin = (builder.emit(op.reshape(table, (length, 1, dim))) for table in tables)
    straight = builder.emit(op.multiply(builder.emit(op.reshape(x, shape)), cos))
    across = builder.emit(op.multiply(builder.emit(op.reshape(turned, shape)), sin))
    return op.reshape(builder.emit(op.add(straight, across)), (batch, length, width))


def _attention(builder: relax.BlockBuilder, params: Sequence[rt.Expr], attrs: Mapping[str, Any]) -> rt.Expr:
    op, emit = relax.op, builder.emit
    heads, groups = attrs["heads"], attrs["kv_heads"]

    def apart(x: rt.Expr, count: int) -> rt.Expr:
        """(B, S, count * D) as (B, count, S, D)."""
        batch, length, width = rt.shape_of(x)
        return emit(op.permute_dims(emit(op.reshape(x, (batch, length, count, width // count))), [0, 2, 1, 3]))

    q = apart(params[0], heads)
    k, v = (emit(op.repeat(apart(x, groups), heads // groups, 1)) for x in params[1:3])
    scores = emit(op.matmul(q, emit(op.permute_dims(k, [0, 1, 3, 2]))))
    scores = emit(op.multiply(scores, relax.const(attrs["scale"], "float32")))
    if len(params) > 3:
        scores = emit(op.add(scores, params[3]))
    length, keys = rt.shape_of(scores)[2:]
    if attrs["causal"]:
        mask = causal_mask(length, keys)
        scores = emit(op.where(rt.const(mask), scores, relax.const(float("-inf"), "float32")))
    summed = emit(op.matmul(emit(op.nn.softmax(scores, -1)), v))
    batch, length, _ = rt.shape_of(params[0])
    out = emit(op.permute_dims(summed, [0, 2, 1, 3]))
    return op.reshape(out, (batch, length, heads * rt.shape_of(v)[3]))


def causal_mask(queries: int, keys: int) -> rt.Array:
    """bool (queries, keys): query i sees key j where j <= i + keys - queries."""
    return np.arange(keys) <= np.arange(queries)[:, None] + keys - queries
