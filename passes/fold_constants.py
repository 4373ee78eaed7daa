"""Evaluate in NumPy every operator whose inputs are all constant, and every question about a static shape.

Before:  lv = R.reshape(b, R.shape([1, 8, 1, 1])); gv = R.add(x, lv)      with b a constant
After:   gv = R.add(x, c)                                                  with c a constant

Stands wherever a pass leaves operators on constants. Relax's own FoldConstant compiles each of them, which takes
seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import IRModule, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt
from hwq.relax_numpy import evaluate, tensors_of

# Operators that make a tensor of numbers and shapes.
_MAKERS = ("zeros", "ones", "arange")


@module_pass(opt_level=0, name="FoldConstants")
@dataclass(frozen=True)
class FoldConstants:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    if isinstance(value, relax.TupleGetItem):
        made = scope.definition(value.tuple_value)
        return _folded(made, value, value.index) if rt.op_name(made) == "split" else None
    op = rt.op_name(value)
    if op == "shape_to_tensor":
        shape = scope.definition(value.args[0])
        if rt.op_name(shape) == "shape_of":
            return rt.const(np.array(rt.shape_of(shape.args[0]), np.int64))
        return None
    return _folded(value, value) if op and op != "split" and isinstance(value.ty, relax.TensorType) else None


def _folded(value: rt.Expr, result: rt.Expr, item: int | None = None) -> rt.Expr | None:
    """``result``, which is ``value`` or one of its parts, as a constant; None where not all that it reads is."""
    tensors = tensors_of(value)
    if not all(rt.is_const(arg) for arg in tensors) or not (tensors or rt.op_name(value) in _MAKERS):
        return None
    found = evaluate(value, [rt.value_of(arg) for arg in tensors])
    if found is None:
        return None
    array = np.asarray(found if item is None else found[item])
    what = f"{rt.op_name(value)} folded to {array.shape}, not {rt.shape_of(result)}"
    assert array.shape == rt.shape_of(result), what
    return rt.const(array.astype(rt.dtype_of(result), copy=False))
