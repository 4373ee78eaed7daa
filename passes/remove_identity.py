"""Drop what does nothing: dropout, reshapes to the same shape, zero padding, full slices, ``x + 0``, ``x * 1``.

Before:  lv = R.nn.dropout(x); lv1 = lv[0]; gv = R.nn.relu(lv1)
After:   gv = R.nn.relu(x)

Stands first, and again after every pass that moves shapes. Squeezes and the like become reshapes, a reshape of a
reshape becomes one, as does a transpose that moves only axes of size 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import IRModule, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt


@module_pass(opt_level=0, name="RemoveIdentity")
@dataclass(frozen=True)
class RemoveIdentity:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    if isinstance(value, relax.TupleGetItem):
        made = scope.definition(value.tuple_value)
        return made.args[0] if rt.op_name(made) == "nn.dropout" and value.index == 0 else None
    op = rt.op_name(value)
    if op in ("squeeze", "expand_dims", "flatten", "nn.batch_flatten"):
        return relax.op.reshape(value.args[0], rt.shape_of(value))
    if op == "reshape":
        inner = scope.definition(value.args[0])
        if rt.op_name(inner) == "reshape":
            return relax.op.reshape(inner.args[0], rt.shape_of(value))
    if op == "permute_dims" and value.attrs.axes is not None:
        shape, axes = rt.shape_of(value.args[0]), rt.ints(value.attrs.axes)
        moved = [axis for axis in axes if shape[axis] != 1]
        if moved == sorted(moved):
            return relax.op.reshape(value.args[0], [shape[axis] for axis in axes])
    kept = _kept_argument(op, value)
    if kept is None or rt.shape_of(kept) != rt.shape_of(value) or rt.dtype_of(kept) != rt.dtype_of(value):
        return None
    return kept


def _kept_argument(op: str, value: rt.Expr) -> rt.Expr | None:
    """The argument that the call returns unchanged wherever its shape and type agree with the result's."""
    args: rt.Expr = value.args if op else ()
    attrs: rt.Expr = value.attrs if op else None
    if op in ("reshape", "broadcast_to", "astype"):
        return args[0]
    if op == "nn.pad" and not any(rt.ints(attrs.pad_width)):
        return args[0]
    if op == "concat" and len(args[0].fields) == 1:
        return args[0].fields[0]
    if op == "strided_slice" and all(int(step) > 0 for step in (args[4].fields if len(args) > 4 else ())):
        return args[0]  # of the same shape and going forward: everything
    if op == "clip" and math.isinf(float(args[1].value)) and math.isinf(float(args[2].value)):
        return args[0] if float(args[1].value) < 0 < float(args[2].value) else None
    if op in ("nn.max_pool2d", "nn.avg_pool2d") and set(rt.ints(attrs.pool_size)) == {1} == set(rt.ints(attrs.strides)):
        return args[0] if not any(rt.ints(attrs.padding)) else None
    if op in ("add", "multiply"):
        neutral = 0.0 if op == "add" else 1.0
        for this, other in ((args[0], args[1]), (args[1], args[0])):
            if rt.is_const(other) and (rt.value_of(other) == neutral).all():
                return this
    return None
