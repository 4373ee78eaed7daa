"""A product of a tensor of any rank with a constant matrix becomes one of two matrices: a dense layer.

Before:  gv = R.matmul(x, w)                       x (b, t, k), w (k, o), axes of one before them too
After:   lv = R.reshape(x, [b * t, k]); lv1 = R.matmul(lv, w); gv = R.reshape(lv1, [b, t, o])
Before:  gv = R.matmul(w, x)                       x (b, k, t), w (o, k)
After:   lv = R.permute_dims(x, [0, 2, 1]); lv1 = R.matmul(lv, w^T) as above; gv = R.permute_dims(lv1, [0, 2, 1])

Stands before sink_reshape, which moves the reshape behind bias and activation. Products of two computed tensors, and of
constants that are not one matrix, are left alone; so are those by a row of numbers, but by a plain matrix on the right:
angles of positions are made so, and are no layer.
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
    if rt.op_name(value) != "matmul":
        return None
    data, weight = value.args
    if not rt.is_const(weight) and _is_matrix(data, -1):
        turned = _turned(weight, scope)
        made = scope.emit(relax.op.matmul(turned, rt.const(_matrix(data).T)))
        return relax.op.reshape(_turned(made, scope), rt.shape_of(value))
    shape, plain = rt.shape_of(data), rt.is_const(weight) and len(rt.shape_of(weight)) == 2
    if (plain and len(shape) == 2) or not (plain or _is_matrix(weight, -2)):
        return None
    flat = scope.emit(relax.op.reshape(data, (prod(shape[:-1]), shape[-1])))
    made = scope.emit(relax.op.matmul(flat, weight if plain else rt.const(_matrix(weight))))
    return relax.op.reshape(made, rt.shape_of(value))


def _is_matrix(expr: rt.Expr, summed: int) -> bool:
    """Whether a constant is one matrix, axes of one before it or not, of which more than one number is summed."""
    if not rt.is_const(expr) or rt.dtype_of(expr) != "float32":
        return False
    shape = rt.shape_of(expr)
    return len(shape) > 1 and prod(shape[:-2]) == 1 and shape[summed] > 1


def _matrix(expr: rt.Expr) -> rt.Array:
    return rt.value_of(expr).reshape(rt.shape_of(expr)[-2:])


def _turned(expr: rt.Expr, scope: rt.Scope) -> rt.Expr:
    """The last two axes swapped, where there are two."""
    rank = len(rt.shape_of(expr))
    return expr if rank < 2 else scope.emit(relax.op.permute_dims(expr, [*range(rank - 2), rank - 1, rank - 2]))
