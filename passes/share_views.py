"""Operators on the same tensors that give the same are computed once.

Before:  lv = R.reshape(x, [6, 4]); a = R.matmul(lv, w); lv1 = R.reshape(x, [6, 4]); b = R.matmul(lv1, v)
After:   lv = R.reshape(x, [6, 4]); a = R.matmul(lv, w); b = R.matmul(lv, v)

Stands first, since what is recognized may be cut twice from one tensor, and last: the passes before it put a reshape in
front of each reader, and what is made of one tensor for all its readers is to see one tensor. Only operators that are
cheap and common in masks are looked at, besides views: a network that computes a layer twice keeps both.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from tvm import IRModule, ir, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt

_SHARED = (
    *(
        "reshape",
        "permute_dims",
        "broadcast_to",
        "strided_slice",
        "astype",
        "where",
        "negative",
        "logical_not",
        "logical_and",
    ),
    *("add", "subtract", "multiply", "divide", "equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
)
# Elements of a constant that are compared; larger ones are never the same.
_SMALL = 64


@module_pass(opt_level=0, name="ShareViews")
@dataclass(frozen=True)
class ShareViews:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _Seen().rule, repeat=False)


@dataclass(slots=True)
class _Seen:
    """The bindings of one run, each by what it computes."""

    made: dict[tuple[Hashable, ...], rt.Expr] = field(default_factory=dict)

    def rule(self, value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
        key = _key(value)
        if key is None:
            return None
        if key in self.made:
            return self.made[key]
        self.made[key] = scope.emit(value)
        return self.made[key]


def _key(value: rt.Expr) -> tuple[Hashable, ...] | None:
    """What a call computes; None for what is not shared."""
    op = rt.op_name(value)
    if op not in _SHARED:
        return None
    axes = rt.ints(value.attrs.axes) if op == "permute_dims" and value.attrs.axes is not None else ()
    parts: list[Hashable] = [op, axes, rt.shape_of(value), rt.dtype_of(value)]
    for arg in value.args:
        if isinstance(arg, relax.Var):
            parts.append(arg)
        elif rt.is_const(arg) and rt.value_of(arg).size <= _SMALL:
            parts.append((rt.dtype_of(arg), rt.shape_of(arg), rt.value_of(arg).tobytes()))
        elif isinstance(arg, ir.Tuple) and all(isinstance(item, ir.prim.IntImm) for item in arg.fields):
            parts.append(rt.ints(arg.fields))
        elif not isinstance(arg, relax.ShapeExpr):
            return None
    return tuple(parts)
