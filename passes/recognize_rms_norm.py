"""RMS norms that are spelled out in arithmetic become one call.

Before:  v = R.mean(R.power(x, 2), axis=[-1], keepdims=True); r = R.rsqrt(R.add(v, eps))
         gv = R.multiply(w, R.multiply(x, r))
After:   gv = R.nn.rms_norm(x, w, axes=[-1], epsilon=eps)

Stands after recognize_layer_norm, whose norms are RMS norms of x less its mean, and before fold_scale, which would move
the scale into a dense layer behind it. The square may be a power, a product
or a square; the inverse root a power, a reciprocal of a root, or a quotient by one; without a scale w is 1. What else
reads a value in between keeps it. Norms over other axes than the last are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import IRModule, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt
from hwq.arithmetic import added_number, mean_of, orders, square_of, under_root


@module_pass(opt_level=0, name="RecognizeRMSNorm")
@dataclass(frozen=True)
class RecognizeRMSNorm:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    if rt.op_name(value) not in ("multiply", "divide") or rt.dtype_of(value) != "float32":
        return None
    return rt.first_of((_normalized, _scaled), value, scope)


def _normalized(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    """x / sqrt(mean(x^2) + epsilon)."""
    for data, inner in under_root(value, scope):
        added = added_number(scope.definition(inner))
        if added is None or added[1] <= 0.0 or rt.is_const(data) or rt.shape_of(data) != rt.shape_of(value):
            continue
        square = mean_of(added[0], scope)
        source = None if square is None else square_of(square, scope)
        if source is not None and source.same_as(data):
            return _norm(data, np.ones(rt.shape_of(data)[-1], np.float32), added[1])
    return None


def _scaled(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    """A norm that only ``value`` reads, times one constant an element."""
    for data, other in orders(value) if rt.op_name(value) == "multiply" else []:
        norm = scope.sole_reader(data, "nn.rms_norm")
        if norm is None or not rt.is_const(other) or not rt.is_const(norm.args[1]):
            continue
        shape, array, scale = rt.shape_of(data), rt.value_of(other), rt.value_of(norm.args[1])
        along = array.ndim <= len(shape) and array.size in (1, shape[-1]) and set(array.shape[:-1]) <= {1}
        if along and rt.ints(norm.attrs.axes) in ((-1,), (len(shape) - 1,)):
            return _norm(norm.args[0], scale * array.reshape(-1), float(norm.attrs.epsilon))
    return None


def _norm(data: rt.Expr, scale: rt.Array, epsilon: float) -> rt.Expr:
    return relax.op.nn.rms_norm(data, rt.const(scale), [-1], epsilon)
