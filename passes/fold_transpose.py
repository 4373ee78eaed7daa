"""Flattening a channels-last tensor into a dense layer: the weights are permuted instead of the tensor.

Before:  lv = R.permute_dims(x, [0, 3, 1, 2]); lv1 = R.reshape(lv, [n, c * h * w]); gv = R.matmul(lv1, w)
After:   lv = R.reshape(x, [n, h * w * c]); gv = R.matmul(lv, w')          w' = the rows of w in the order (h, w, c)

Stands after to_nhwc. Activations between the reshape and the dense layer are looked through. A flattened tensor that
anything else reads is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import IRModule, ir, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt
from hwq.passes.to_nhwc import TO_NCHW

_POINTWISE = ("nn.relu", "clip", "sigmoid", "tanh", "nn.leakyrelu", "nn.gelu", "nn.silu")


@module_pass(opt_level=0, name="FoldTranspose")
@dataclass(frozen=True)
class FoldTranspose:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    if rt.op_name(value) != "matmul" or not rt.is_const(value.args[1]) or len(rt.shape_of(value.args[1])) != 2:
        return None
    between: list[ir.Call] = []
    made, data = scope.definition(value.args[0]), value.args[0]
    while rt.op_name(made) in _POINTWISE and scope.readers.get(data) == 1:
        between.append(made)
        data = made.args[0]
        made = scope.definition(data)
    if rt.op_name(made) != "reshape" or scope.readers.get(data) != 1:
        return None
    moved = scope.definition(made.args[0])
    if rt.op_name(moved) != "permute_dims" or moved.attrs.axes is None or rt.ints(moved.attrs.axes) != TO_NCHW:
        return None
    n, c, h, w = rt.shape_of(moved)
    if rt.shape_of(made) != (n, c * h * w):
        return None
    rows = np.arange(c * h * w).reshape(c, h, w).transpose(1, 2, 0).reshape(-1)
    out = scope.emit(relax.op.reshape(moved.args[0], (n, h * w * c)), rt.origin(made))
    for call in reversed(between):
        out = scope.emit(ir.Call(call.op, [out, *call.args[1:]], call.attrs, call.ty_args, call.span))
    return relax.op.matmul(out, rt.const(rt.value_of(value.args[1])[rows]))
