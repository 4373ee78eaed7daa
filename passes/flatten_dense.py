"""A product of a tensor of any rank with a constant matrix becomes one of two matrices: a dense layer.

Before:  gv = R.matmul(x, w)                       x (b, t, k), w (k, o)
After:   lv = R.reshape(x, [b * t, k]); lv1 = R.matmul(lv, w); gv = R.reshape(lv1, [b, t, o])

Stands before sink_reshape, which moves the reshape behind bias and activation. Products of two computed tensors, and of
constants that are not one matrix, are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tvm import IRModule, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt


@module_pass(opt_level=0, name="FlattenDense")
@dataclass(frozen=True)
class FlattenDense:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    if rt.op_name(value) != "matmul" or not rt.is_const(value.args[1]) or len(rt.shape_of(value.args[1])) != 2:
        return None
    data, weight = value.args
    shape = rt.shape_of(data)
    if len(shape) == 2:
        return None
    flat = scope.emit(relax.op.reshape(data, (prod(shape[:-1]), shape[-1])))
    return relax.op.reshape(scope.emit(relax.op.matmul(flat, weight)), rt.shape_of(value))
