"""A tensor is broadcast behind the elementwise operators that read it, or not at all where they broadcast themselves.

Before:  lv = R.broadcast_to(m, [b, 1, s, t]); lv1 = R.subtract(1, lv); gv = R.multiply(lv1, least)      m (b, 1, 1, t)
After:   lv = R.subtract(1, m); lv1 = R.multiply(lv, least); gv = R.broadcast_to(lv1, [b, 1, s, t])

Stands before recognize_attention, which reads masks in the shape they had. What else reads the broadcast tensor keeps
it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import IRModule, ir, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt

_ELEMENTWISE = (
    *("add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "where", "negative", "abs", "astype"),
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "exp", "clip", "isnan", "isinf"),
    *("logical_not", "logical_and", "logical_or", "bitwise_not", "bitwise_and", "bitwise_or"),
)


@module_pass(opt_level=0, name="SinkBroadcast")
@dataclass(frozen=True)
class SinkBroadcast:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    if rt.op_name(value) not in _ELEMENTWISE:
        return None
    tensors = [isinstance(arg, relax.Var) or rt.is_const(arg) for arg in value.args]
    narrow = [_narrow(arg, scope) if tensor else arg for arg, tensor in zip(value.args, tensors, strict=True)]
    if all(new.same_as(old) for new, old in zip(narrow, value.args, strict=True)):
        return None
    moved = ir.Call(value.op, narrow, value.attrs, value.ty_args, value.span)
    out = rt.shape_of(value)
    shapes = [rt.shape_of(arg) for arg, tensor in zip(narrow, tensors, strict=True) if tensor]
    return moved if np.broadcast_shapes(*shapes) == out else relax.op.broadcast_to(scope.emit(moved), out)


def _narrow(expr: rt.Expr, scope: rt.Scope) -> rt.Expr:
    """What was broadcast to ``expr``, itself where nothing was."""
    made = scope.definition(expr)
    return made.args[0] if rt.op_name(made) == "broadcast_to" else expr
