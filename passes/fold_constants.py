"""Evaluate in NumPy every operator whose inputs are all constant, and every question about a static shape.

Before:  lv = R.reshape(b, R.shape([1, 8, 1, 1])); gv = R.add(x, lv)      with b a constant
After:   gv = R.add(x, c)                                                  with c a constant

Stands wherever a pass leaves operators on constants. Relax's own FoldConstant compiles each of them, which takes
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import IRModule, ir, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt

_ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": np.maximum, "minimum": np.minimum,
    "negative": np.negative, "sqrt": np.sqrt, "exp": np.exp, "abs": np.abs, "less": np.less, "equal": np.equal,
    "where": np.where, "nn.relu": lambda x: np.maximum(x, x.dtype.type(0)), "rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip


@module_pass(opt_level=0, name="FoldConstants")
@dataclass(frozen=True)
class FoldConstants:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    op = rt.op_name(value)
    if op == "shape_to_tensor":
        shape = scope.definition(value.args[0])
        if rt.op_name(shape) == "shape_of":
            return rt.const(np.array(rt.shape_of(shape.args[0]), np.int64))
        return None
    if not op or not value.args:
        return None
    tensors = (
        list(value.args[0].fields) if op == "concat" else [a for a in value.args if not isinstance(a, relax.ShapeExpr)]
    )
    if not tensors or not all(rt.is_const(arg) for arg in tensors):
        return None
    result = _evaluate(op, value, [rt.value_of(arg) for arg in tensors])
    if result is None:
        return None
    result = np.asarray(result)
    assert result.shape == rt.shape_of(value), f"{op} folded to {result.shape}, not {rt.shape_of(value)}"
    return rt.const(result.astype(rt.dtype_of(value), copy=False))


def _evaluate(op: str, value: ir.Call, arrays: list[rt.Array]) -> Any:
    if op in _ELEMENTWISE:
        return _ELEMENTWISE[op](*arrays)
    if op == "divide" and arrays[0].dtype.kind == "f":
        return np.divide(*arrays)
    if op in ("reshape", "expand_dims", "squeeze"):
        return arrays[0].reshape(rt.shape_of(value))
    if op == "permute_dims":
        return arrays[0].transpose(None if value.attrs.axes is None else rt.ints(value.attrs.axes))
    if op == "broadcast_to":
        return np.broadcast_to(arrays[0], rt.shape_of(value))
    if op == "astype":
        return arrays[0].astype(rt.dtype_of(value))
    if op == "take" and value.attrs.axis is not None:
        return np.take(arrays[0], arrays[1], axis=int(value.attrs.axis), mode="wrap")
    if op == "concat":
        return np.concatenate(arrays, int(value.attrs.axis))
    return None
