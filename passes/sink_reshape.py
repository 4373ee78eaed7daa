"""A reshape moves behind the elementwise operator that reads it, so that an anchor's epilogue stands next to it.

Before:  lv = R.nn.conv2d(x, w); lv1 = R.reshape(lv, [n, c, w]); gv = R.nn.relu(lv1)
After:   lv = R.nn.conv2d(x, w); lv1 = R.nn.relu(lv); gv = R.reshape(lv1, [n, c, w])

Stands after fold_batch_norm and flatten_dense, before recognize_activations. Convolutions over one axis, and dense
layers over more than two, meet their epilogues this way. A constant moves along where it varies over one axis, which
the shape before has too; of two tensors both must come from the same shape, or the one be a dense layer's, and the
operator the addition of a residual: the other tensor is then read in the dense layer's shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tvm import IRModule, ir, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt
from hwq.graph import Shape

_UNARY = (
    *("nn.relu", "nn.relu6", "nn.leakyrelu", "nn.gelu", "nn.gelu_tanh", "nn.silu", "sigmoid", "tanh", "clip", "erf"),
    *("exp", "sqrt", "abs", "negative", "square"),
)
_BINARY = ("add", "subtract", "multiply", "divide", "maximum", "minimum", "power")


@module_pass(opt_level=0, name="SinkReshape")
@dataclass(frozen=True)
class SinkReshape:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    op = rt.op_name(value)
    if op not in _UNARY and op not in _BINARY:
        return None
    count = 1 if op in _UNARY else 2
    out = rt.shape_of(value)
    sources = [_source(arg, out, scope) for arg in value.args[:count]]
    before = next((rt.shape_of(source) for source in sources if source is not None), None)
    if before is None:
        return None
    args = [_moved(arg, source, out, before) for arg, source in zip(value.args[:count], sources, strict=True)]
    if op == "add" and [arg is None for arg in args].count(True) == 1:
        args = _residual(value, args, sources, before, scope)
    if any(arg is None for arg in args):
        return None
    moved = ir.Call(value.op, [*args, *value.args[count:]], value.attrs, value.ty_args, value.span)
    return relax.op.reshape(scope.emit(moved), out)


def _residual(
    value: ir.Call, args: list[rt.Expr | None], sources: list[rt.Expr | None], before: Shape, scope: rt.Scope
) -> list[rt.Expr | None]:
    """``args`` with another tensor that is added to a dense layer's in the dense layer's shape."""
    other = args.index(None)
    data = value.args[other]
    added = sources[1 - other]
    same = not rt.is_const(data) and rt.shape_of(data) == rt.shape_of(value) and rt.dtype_of(data) == "float32"
    if same and added is not None and _is_dense(added, scope):
        args[other] = scope.emit(relax.op.reshape(data, before), "")
    return args


def _is_dense(expr: rt.Expr, scope: rt.Scope) -> bool:
    """Whether a value is a dense layer's, perhaps with a bias, that nothing else reads."""
    made = scope.definition(expr)
    if scope.readers.get(expr, 0) != 1:
        return False
    if rt.op_name(made) in ("add", "multiply"):
        data, other = made.args if rt.is_const(made.args[1]) else reversed(made.args)
        return rt.is_const(other) and not rt.is_const(data) and _is_dense(data, scope)
    return rt.op_name(made) == "matmul" and rt.is_const(made.args[1])


def _source(arg: rt.Expr, out: Shape, scope: rt.Scope) -> rt.Expr | None:
    """What a reshape to ``out`` was made from."""
    made = scope.definition(arg)
    return made.args[0] if rt.op_name(made) == "reshape" and rt.shape_of(made) == out else None


def _moved(arg: rt.Expr, source: rt.Expr | None, out: Shape, before: Shape) -> rt.Expr | None:
    """The argument in front of the reshape from ``before`` to ``out``; None where there is no such."""
    if source is not None:
        return source if rt.shape_of(source) == before else None
    if not rt.is_const(arg):
        return None
    array = rt.value_of(arg)
    if array.size == 1:
        return rt.const(array.reshape(()))
    array = array.reshape((1,) * (len(out) - array.ndim) + array.shape)
    varying = [axis for axis, size in enumerate(array.shape) if size > 1]
    if len(varying) != 1:
        return None
    axis = varying[0]
    for place, size in enumerate(before):
        if size == out[axis] and prod(before[:place]) == prod(out[:axis]):
            return rt.const(array.reshape([size if i == place else 1 for i in range(len(before))]))
    return None
