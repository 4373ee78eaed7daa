"""A transpose that leaves the last axis where it is moves behind the dense layer and the bias that read it.

Before:  lv = R.permute_dims(x, [1, 0, 2]); lv1 = R.matmul(lv, w); gv = R.add(lv1, b)
After:   lv = R.matmul(x, w); lv1 = R.add(lv, b); gv = R.permute_dims(lv1, [1, 0, 2])

Stands before split_dense. Modules that put positions before samples (torch.nn.MultiheadAttention) move every tensor
there and back; behind the dense layers the two meet, and those of attention with them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import IRModule, ir, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt


@module_pass(opt_level=0, name="SinkTranspose")
@dataclass(frozen=True)
class SinkTranspose:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    op = rt.op_name(value)
    if op not in ("matmul", "add"):
        return None
    place = 0 if op == "matmul" or rt.is_const(value.args[1]) else 1
    data, other = value.args[place], value.args[1 - place]
    made = scope.definition(data)
    if rt.op_name(made) != "permute_dims" or not rt.is_const(other) or made.attrs.axes is None:
        return None
    axes, shape = rt.ints(made.attrs.axes), rt.shape_of(other)
    if axes[-1] != len(axes) - 1 or rt.shape_of(data)[:-1] != rt.shape_of(value)[:-1]:
        return None
    source = scope.definition(made.args[0])
    if op == "matmul" and len(shape) != 2:
        return None
    # A bias moves with the dense layer's transpose only: other sums stand where they stood.
    if op == "add" and (any(size != 1 for size in shape[:-1]) or rt.op_name(source) != "matmul"):
        return None
    args = [made.args[0], other] if place == 0 else [other, made.args[0]]
    moved = ir.Call(value.op, args, value.attrs, value.ty_args, value.span)
    return relax.op.permute_dims(scope.emit(moved), axes)
