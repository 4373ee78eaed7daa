"""Merge multiplications and additions by constants into the convolution or dense layer before or behind them.

Before:  lv = R.nn.conv2d(x, w); lv1 = R.multiply(lv, s); gv = R.add(lv1, t)    s, t constant per channel
After:   lv = R.nn.conv2d(x, w * s); gv = R.add(lv, t)

Stands after fold_batch_norm and before to_nhwc. Into a convolution behind it an addition is merged only where there is
no padding, since the padding must stay 0. Divisions and subtractions by constants become multiplications and additions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import IRModule, ir, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt


@module_pass(opt_level=0, name="FoldScale")
@dataclass(frozen=True)
class FoldScale:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    op = rt.op_name(value)
    if op in ("add", "subtract", "multiply", "divide"):
        return rt.first_of((_canonical, _merge_backward), value, scope)
    if op in ("nn.conv2d", "matmul") and rt.is_const(value.args[1]):
        return _merge_forward(value, scope)
    return None


def _per_channel(data: rt.Expr, other: rt.Expr) -> rt.Array | None:
    """The constant ``other`` as (C,), where it varies along the channel axis of ``data`` only: axis 1 of 4, else the
    last."""
    if not rt.is_const(other) or rt.dtype_of(data) != "float32" or rt.dtype_of(other) != "float32":
        return None
    shape = rt.shape_of(data)
    rank = len(shape)
    array = rt.value_of(other)
    if rank == 0 or array.ndim > rank:
        return None
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    axis = 1 if rank == 4 else rank - 1
    if any(dim != 1 for i, dim in enumerate(array.shape) if i != axis) or array.shape[axis] not in (1, shape[axis]):
        return None
    return np.broadcast_to(array.reshape(-1), (shape[axis],))


def _constant(data: rt.Expr, channels: rt.Array) -> rt.Expr:
    """``channels`` (C,) as a constant that broadcasts against ``data``."""
    rank = len(rt.shape_of(data))
    shape = (1, -1, 1, 1) if rank == 4 else (1,) * (rank - 1) + (-1,)
    return rt.const(np.asarray(channels, np.float32).reshape(shape))


def _canonical(value: ir.Call, scope: rt.Scope) -> rt.Expr | None:
    """Constants on the right; subtract and divide by constants as add and multiply."""
    op, (left, right) = rt.op_name(value), value.args
    if op in ("add", "multiply") and rt.is_const(left) and not rt.is_const(right):
        return ir.Call(value.op, [right, left], value.attrs, value.ty_args, value.span)
    if op == "subtract" and _per_channel(left, right) is not None:
        return relax.op.add(left, rt.const(-rt.value_of(right)))
    if op == "subtract" and _per_channel(right, left) is not None:
        return relax.op.add(scope.emit(relax.op.multiply(right, relax.const(-1.0, "float32"))), left)
    if op == "divide" and _per_channel(left, right) is not None and (rt.value_of(right) != 0).all():
        inverse = 1.0 / rt.value_of(right).astype(np.float64)
        return relax.op.multiply(left, rt.const(inverse.astype(np.float32)))
    return None


def _merge_backward(value: ir.Call, scope: rt.Scope) -> rt.Expr | None:
    op, (data, other) = rt.op_name(value), value.args
    factor = _per_channel(data, other)
    if factor is None:
        return _merge_sums(value, scope) if op == "add" else None
    added = scope.sole_reader(data, "add")
    inner = _per_channel(added.args[0], added.args[1]) if added is not None else None
    if added is not None and inner is not None:
        if op == "add":
            return relax.op.add(added.args[0], _constant(data, inner + factor))
        scaled = scope.emit(relax.op.multiply(added.args[0], _constant(data, factor)), rt.origin(value))
        return rt.with_origin(relax.op.add(scaled, _constant(data, inner * factor)), rt.origin(added))
    if op != "multiply":
        return None
    product = scope.sole_reader(data, "multiply")
    if product is not None:
        before = _per_channel(product.args[0], product.args[1])
        if before is not None:
            return rt.with_origin(
                relax.op.multiply(product.args[0], _constant(data, before * factor)), rt.origin(product)
            )
    for anchor, axis in (("nn.conv2d", 0), ("matmul", -1)):
        made = scope.sole_reader(data, anchor)
        if made is not None and _weight_folds(made):
            weight = rt.value_of(made.args[1]).astype(np.float64)
            shape = [1] * weight.ndim
            shape[axis] = -1
            return _with_weight(made, made.args[0], weight * factor.reshape(shape))
    return None


def _merge_sums(value: ir.Call, scope: rt.Scope) -> rt.Expr | None:
    """x + a + b with constants that vary along any axes, positions and types of tokens, as x + (a + b)."""
    data, other = value.args
    added = scope.sole_reader(data, "add")
    if added is None or not (rt.is_const(other) and rt.is_const(added.args[1])):
        return None
    inner = added.args[0]
    if rt.is_const(inner) or not (rt.shape_of(inner) == rt.shape_of(data) == rt.shape_of(value)):
        return None
    return relax.op.add(inner, rt.const(rt.value_of(added.args[1]) + rt.value_of(other)))


def _merge_forward(value: ir.Call, scope: rt.Scope) -> rt.Expr | None:
    """A multiplication or addition in front of a convolution or dense layer."""
    if not _weight_folds(value):
        return None
    op, data, weight = rt.op_name(value), value.args[0], rt.value_of(value.args[1]).astype(np.float64)
    for before in ("multiply", "add"):
        made = scope.sole_reader(data, before)
        channels = _per_channel(made.args[0], made.args[1]) if made is not None else None
        if made is None or channels is None or rt.shape_of(made.args[0]) != rt.shape_of(data):
            continue
        if op == "matmul":
            spread = channels.reshape(-1, 1)
        else:  # (O, I / groups, 1, 1): each group of outputs reads its own inputs
            groups = int(value.attrs.groups)
            spread = np.repeat(channels.reshape(groups, -1), weight.shape[0] // groups, axis=0)[:, :, None, None]
        if before == "multiply":
            return _with_weight(value, made.args[0], weight * spread)
        if op == "nn.conv2d" and any(rt.ints(value.attrs.padding)):
            continue
        shift = (weight * spread).sum(axis=0 if op == "matmul" else (1, 2, 3))
        out = scope.emit(ir.Call(value.op, [made.args[0], value.args[1]], value.attrs, value.ty_args, value.span))
        return relax.op.add(out, _constant(out, shift))
    return None


def _weight_folds(anchor: ir.Call) -> bool:
    if not rt.is_const(anchor.args[1]) or rt.dtype_of(anchor.args[1]) != "float32":
        return False
    if rt.op_name(anchor) == "matmul":
        return len(rt.shape_of(anchor.args[1])) == 2
    return bool(anchor.attrs.data_layout == "NCHW" and anchor.attrs.kernel_layout == "OIHW")


def _with_weight(anchor: ir.Call, data: rt.Expr, weight: rt.Array) -> ir.Call:
    return ir.Call(anchor.op, [data, rt.const(weight.astype(np.float32))], anchor.attrs, anchor.ty_args, anchor.span)
