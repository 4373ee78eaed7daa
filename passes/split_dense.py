"""A dense layer whose output is cut into parts becomes one dense layer for each part: the weights are cut instead.

Before:  lv = R.matmul(x, w); lv1 = R.add(lv, b); q = R.strided_slice(lv1, [2], [0], [c])        and so k and v
After:   lv = R.matmul(x, w[:, :c]); q = R.add(lv, b[:c])

Stands before the passes that recognize rope and attention: projections of queries, keys and values that are one
product come apart, and nothing is copied. Slices, parts of a split and single items are looked through reshapes and
transposes, as vision transformers write them (batch, length, 3, heads, size), to the columns they take. A dense layer
that anything else reads is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import IRModule, ir, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt
from hwq.relax_numpy import cut_of, moved

_CUTS = ("strided_slice", "take", "split")
_VIEWS = ("reshape", "permute_dims", "expand_dims", "squeeze")


@module_pass(opt_level=0, name="SplitDense")
@dataclass(frozen=True)
class SplitDense:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        weights = _only_cut(mod)
        return rt.rewrite(mod, lambda value, scope: _rule(value, scope, weights)) if weights else mod


def _only_cut(mod: IRModule) -> list[rt.Expr]:
    """The weights of the dense layers that nothing but cuts read, through biases and views."""
    readers: dict[rt.Expr, list[tuple[rt.Expr, rt.Expr]]] = {}
    for var, value in rt.bindings_of(mod):
        for read in rt.variables(value):
            readers.setdefault(read, []).append((var, value))
    ends = set(rt.variables(mod["main"].body.body))

    def cut(var: rt.Expr) -> bool:
        found = readers.get(var, [])
        if not found or var in ends:
            return False
        for out, value in found:
            op = rt.op_name(value)
            bias = op == "add" and any(rt.is_const(arg) for arg in value.args)
            if not (op in _CUTS or ((op in _VIEWS or bias) and cut(out))):
                return False
        return True

    dense = [(var, value) for var, value in rt.bindings_of(mod) if _is_dense(value)]
    return [value.args[1] for var, value in dense if cut(var)]


def _is_dense(value: Any) -> bool:
    if rt.op_name(value) != "matmul" or not rt.is_const(value.args[1]) or rt.is_const(value.args[0]):
        return False
    return len(rt.shape_of(value.args[1])) == 2 and rt.dtype_of(value) == "float32"


def _rule(value: rt.Expr, scope: rt.Scope, weights: list[rt.Expr]) -> rt.Expr | None:
    data, made = value, None
    if isinstance(value, relax.TupleGetItem):
        made = scope.definition(value.tuple_value)
        if rt.op_name(made) != "split":
            return None
        data = made
    elif rt.op_name(value) not in ("strided_slice", "take"):
        return None
    if rt.is_const(data.args[0]) or (rt.op_name(value) == "take" and not rt.is_const(value.args[1])):
        return None
    found = _axis_and_items(value, data)
    if found is None or rt.dtype_of(value) != "float32":
        return None
    out = _taken(data.args[0], *found, scope, weights)
    return None if out is None else relax.op.reshape(out, rt.shape_of(value))


def _axis_and_items(value: rt.Expr, call: ir.Call) -> tuple[int, rt.Array] | None:
    """(axis, which items of it) a cut along one axis takes; None for any other."""
    shape = rt.shape_of(call.args[0])
    op = rt.op_name(call)
    if op == "strided_slice":
        cut = cut_of(call)
        axes = [axis for axis, one in enumerate(cut or ()) if one != slice(0, shape[axis], 1)]
        return (axes[0], np.arange(shape[axes[0]])[cut[axes[0]]]) if cut and len(axes) == 1 else None
    if call.attrs.axis is None:
        return None
    axis = int(call.attrs.axis) % len(shape)
    if op == "take":
        return axis, np.arange(shape[axis])[rt.value_of(call.args[1]).reshape(-1)]
    along = np.arange(shape[axis]).reshape([size if at == axis else 1 for at, size in enumerate(shape)])
    parts = moved(call, [np.broadcast_to(along, shape)])
    return axis, np.unique(parts[value.index])


def _taken(expr: rt.Expr, axis: int, items: rt.Array, scope: rt.Scope, weights: list[rt.Expr]) -> rt.Expr | None:
    """``items`` of ``axis`` of ``expr``, cut out of the weights of the dense layer that it comes from."""
    value = scope.definition(expr)
    op, shape = rt.op_name(value), rt.shape_of(expr)
    if _is_dense(value):
        if axis != len(shape) - 1 or not any(value.args[1].same_as(weight) for weight in weights):
            return None
        part = rt.const(rt.value_of(value.args[1])[:, items])
        return scope.emit(relax.op.matmul(value.args[0], part), rt.origin(value))
    if op == "add":
        data, other = value.args if rt.is_const(value.args[1]) else reversed(value.args)
        along = rt.value_of(other).reshape(-1) if rt.is_const(other) else np.array([])
        # One number per column: a sum along rows, (S, 1), may have as many.
        if not rt.is_const(other) or rt.shape_of(other)[-1:] != shape[-1:] or along.size != shape[-1]:
            return None
        if rt.is_const(data) or axis != len(shape) - 1 or rt.shape_of(data) != shape:
            return None
        inner = _taken(data, axis, items, scope, weights)
        return None if inner is None else scope.emit(relax.op.add(inner, rt.const(along[items])), rt.origin(value))
    if op == "permute_dims" and value.attrs.axes is not None:
        axes = rt.ints(value.attrs.axes)
        inner = _taken(value.args[0], axes[axis], items, scope, weights)
        return None if inner is None else scope.emit(relax.op.permute_dims(inner, axes), "")
    if op in _VIEWS and op != "permute_dims":
        return _through_reshape(value, axis, items, scope, weights)
    return None


def _through_reshape(
    value: ir.Call, axis: int, items: rt.Array, scope: rt.Scope, weights: list[rt.Expr]
) -> rt.Expr | None:
    before, after = rt.shape_of(value.args[0]), rt.shape_of(value)
    target = (*after[:axis], len(items), *after[axis + 1 :])
    inner = None
    for at, size in enumerate(before):
        if size == after[axis] and prod(before[:at]) == prod(after[:axis]):
            inner = _taken(value.args[0], at, items, scope, weights)
            break
    else:
        # The last axis taken apart: columns of the part that is taken.
        start = next((at for at in range(len(after)) if prod(after[at:]) == before[-1]), len(after))
        if start <= axis:
            columns = np.arange(before[-1]).reshape(after[start:]).take(items, axis - start).reshape(-1)
            inner = _taken(value.args[0], len(before) - 1, columns, scope, weights)
    return None if inner is None else scope.emit(relax.op.reshape(inner, target), "")
