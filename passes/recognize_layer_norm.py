"""Layer norms that are spelled out in arithmetic become one call.

Before:  m = R.mean(x, axis=[-1], keepdims=True); d = R.subtract(x, m)
         v = R.mean(R.power(d, 2), axis=[-1], keepdims=True); s = R.sqrt(R.add(v, eps))
         gv = R.add(R.multiply(R.divide(d, s), gamma), beta)
After:   gv = R.nn.layer_norm(x, gamma, beta, axes=[-1], epsilon=eps)

Stands before fold_scale, which would pull scale and shift apart, and once more at the end, for norms over channels that
to_nhwc has made the last axis. The square may be a power, a product or a square, the
quotient a product with 1 / s, and either difference a call of its own; without scale or shift gamma is 1 and beta 0.
What else reads a value in between keeps it. Norms over other axes than the last are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import IRModule, ir, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt
from hwq.arithmetic import mean_of, orders, square_of


@module_pass(opt_level=0, name="RecognizeLayerNorm")
@dataclass(frozen=True)
class RecognizeLayerNorm:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    op = rt.op_name(value)
    if op not in ("multiply", "divide", "add") or rt.dtype_of(value) != "float32":
        return None
    return rt.first_of((_normalized, _scaled) if op == "multiply" else (_normalized, _shifted), value, scope)


def _normalized(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon)."""
    for left, right in orders(value):
        data, root = _centred(left, scope), _root(value, right, scope)
        added = scope.definition(root)
        if data is None or rt.op_name(added) != "add":
            continue
        for variance, number in orders(added):
            epsilon, square = rt.scalar_of(number), mean_of(variance, scope)
            if epsilon is None or epsilon <= 0.0 or square is None:
                continue
            source = _centred(square_of(square, scope), scope)
            if source is not None and source.same_as(data):
                size = rt.shape_of(data)[-1]
                return _norm(data, np.ones(size, np.float32), np.zeros(size, np.float32), epsilon)
    return None


def _scaled(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    found = _norm_and_channels(value, scope)
    if found is None:
        return None
    norm, channels = found
    gamma, beta = (rt.value_of(arg) for arg in norm.args[1:])
    return _norm(norm.args[0], gamma * channels, beta * channels, float(norm.attrs.epsilon))


def _shifted(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    found = _norm_and_channels(value, scope) if rt.op_name(value) == "add" else None
    if found is None:
        return None
    norm, channels = found
    gamma, beta = (rt.value_of(arg) for arg in norm.args[1:])
    return _norm(norm.args[0], gamma, beta + channels, float(norm.attrs.epsilon))


def _norm(data: rt.Expr, gamma: rt.Array, beta: rt.Array, epsilon: float) -> rt.Expr:
    return relax.op.nn.layer_norm(data, rt.const(gamma), rt.const(beta), axes=[-1], epsilon=epsilon)


def _norm_and_channels(value: rt.Expr, scope: rt.Scope) -> tuple[ir.Call, rt.Array] | None:
    """The layer norm that only ``value`` reads, with the constant of one number an element that meets it there."""
    for data, other in orders(value):
        norm = scope.sole_reader(data, "nn.layer_norm")
        if norm is None or not rt.is_const(other) or not all(rt.is_const(arg) for arg in norm.args[1:]):
            continue
        shape, array = rt.shape_of(data), rt.value_of(other)
        along = array.ndim <= len(shape) and array.size in (1, shape[-1]) and set(array.shape[:-1]) <= {1}
        if along and rt.ints(norm.attrs.axes) in ((-1,), (len(shape) - 1,)):
            return norm, np.broadcast_to(array.reshape(-1), (shape[-1],))
    return None


def _centred(expr: rt.Expr, scope: rt.Scope) -> Any:
    """x where ``expr`` is x - mean(x), else None."""
    made = scope.definition(expr)
    if rt.op_name(made) != "subtract":
        return None
    source = mean_of(made.args[1], scope)
    return source if source is not None and source.same_as(made.args[0]) else None


def _root(value: ir.Call, expr: rt.Expr, scope: rt.Scope) -> Any:
    """What ``value`` divides by the square root of, ``expr`` being its divisor, or the factor that is 1 over it."""
    made = scope.definition(expr)
    if rt.op_name(value) == "multiply":
        if rt.op_name(made) == "rsqrt":
            return made.args[0]
        if rt.op_name(made) != "divide" or rt.scalar_of(made.args[0]) != 1.0:
            return None
        made = scope.definition(made.args[1])
    return made.args[0] if rt.op_name(value) != "add" and rt.op_name(made) == "sqrt" else None
