"""Batch norm becomes one multiplication and one addition by constants per channel.

Before:  lv = R.nn.batch_norm(x, gamma, beta, mean, var, axis=1, epsilon=e); gv = lv[0]
After:   lv = R.multiply(x, s); gv = R.add(lv, t)    s = gamma / sqrt(var + e), t = beta - mean * s, both (1, C, 1, 1)

Stands before fold_scale, which merges the two into the convolution or dense layer beside them. A batch norm in training
mode, one with parameters that are not constant, or one whose running statistics are read, is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import IRModule, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt


@module_pass(opt_level=0, name="FoldBatchNorm")
@dataclass(frozen=True)
class FoldBatchNorm:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    if not isinstance(value, relax.TupleGetItem) or value.index != 0:
        return None
    norm = scope.definition(value.tuple_value)
    if rt.op_name(norm) != "nn.batch_norm" or norm.attrs.training or not all(rt.is_const(arg) for arg in norm.args[1:]):
        return None
    gamma, beta, mean, var = (rt.value_of(arg).astype(np.float64) for arg in norm.args[1:])
    data, attrs = norm.args[0], norm.attrs
    scale = (gamma if attrs.scale else 1.0) / np.sqrt(var + float(attrs.epsilon))
    shift = (beta if attrs.center else 0.0) - mean * scale
    shape = [1] * len(rt.shape_of(data))
    shape[int(attrs.axis)] = -1
    dtype = rt.dtype_of(data)
    name = rt.origin(norm)
    scaled = scope.emit(relax.op.multiply(data, rt.const(scale.reshape(shape).astype(dtype))), name)
    return rt.with_origin(relax.op.add(scaled, rt.const(shift.reshape(shape).astype(dtype))), name)
