"""What the scores of attention are made of: a product of queries with keys, a scale, and what is added for masks.

Used by the pass that recognizes attention. Masks become sums: where(seen, s, fill) is s + where(seen, 0, fill), which
is the same to a softmax where the fill leaves nothing of s beside it, or where every query sees some key. Masks that
the network makes are finite: a query that no key is shown to weighs all alike, and its result is their mean, no NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import IRModule, ir, relax

from hwq import relax_tools as rt
from hwq.arithmetic import orders, scaled
from hwq.graph import LEAST, Shape
from hwq.layer_functions import layer_attrs
from hwq.relax_numpy import MOVES, tensors_of

# A score that has this much less than others counts for nothing.
FAR = -9e3
# In a sum with this, nothing is left of a score: a query that sees no key weighs all alike, whatever their scores.
SWALLOWS = -1e9
# What a mask may go through on its way to the scores, and hide the same keys with LEAST as with -infinity.
CARRY = (*MOVES, "add", "maximum", "minimum", "where", "astype")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """scale * q k^T + sum(masks). q: (N, S, D) or (B, H, S, D); keys: (..., D, T), as the product reads them; masks:
    broadcast to the scores, 3-d ones to (N, S, T); split: (B, H), where some operator shows N = B * H apart.
    """

    q: rt.Expr
    keys: rt.Expr
    scale: float = 1.0
    masks: tuple[rt.Expr, ...] = ()
    split: tuple[int, int] | None = None
    lone: bool = False


def scores_of(expr: rt.Expr, scope: rt.Scope) -> Scores | None:
    """Read ``expr`` as scores; None for anything else. What masks need of new operators is emitted."""
    value = scope.definition(expr)
    op = rt.op_name(value)
    if op == "matmul":
        return _product(value)
    factor = scaled(value)
    if factor is not None:
        return _times(scores_of(factor[0], scope), factor[1], scope)
    if op in ("add", "subtract"):
        for data, other in orders(value):
            found = scores_of(data, scope) if rt.shape_of(data) == rt.shape_of(value) else None
            if found is not None and not found.lone:
                other = _narrow(other, scope)
                mask = other if op == "add" else _factored(other, -1.0, scope)
                return replace(found, masks=(*found.masks, mask))
    if op == "where":
        return _where(value, scope)
    if op == "maximum":  # with the least number there is, after a mask of that size
        for data, other in orders(value):
            number = rt.scalar_of(other)
            if number is not None and number < LEAST:
                return scores_of(data, scope)
    if op == "reshape":
        return _reshaped(value, scope)
    return None


def weights_of(expr: rt.Expr, scope: rt.Scope) -> Any:
    """The softmax over the last axis that attention's weights ``expr`` are, seen through what sets weights of queries
    that see nothing to 0; None for anything else, or where something else reads the weights.
    """
    value = scope.definition(expr)
    if scope.readers.get(expr, 0) != 1:
        return None
    if rt.op_name(value) == "where" and _uniform(value.args[1]) == 0.0:
        test = scope.definition(value.args[0])
        if rt.op_name(test) != "isnan" or not test.args[0].same_as(value.args[2]):
            return None
        value = scope.definition(value.args[2])
    if rt.op_name(value) == "reshape" and _joined(rt.shape_of(value.args[0]), rt.shape_of(value)):
        return weights_of(value.args[0], scope)
    last = (-1, len(rt.shape_of(expr)) - 1)
    return value if rt.op_name(value) == "nn.softmax" and int(value.attrs.axis) in last else None


def finite_masks(mod: IRModule) -> IRModule:
    """``mod`` with LEAST for -infinity in the constants that masks are made of apart from the scores, as in
    where(seen, 0, -infinity), wherever all that comes of them is added to the scores of calls of attention, or is what
    a softmax weighs by, scores and all."""
    bindings, uses = rt.bindings_of(mod), rt.count_uses(mod)
    read: dict[rt.Expr, int] = {}
    made: list[tuple[rt.Expr, rt.Expr]] = []
    for var, value in reversed(bindings):
        parts: list[rt.Expr] = []
        if (layer_attrs(mod, value) or {}).get("layer") == "attention":
            parts = list(value.args[3:])
        elif rt.op_name(value) == "nn.softmax":
            parts = [value.args[0]]
        elif var in read and read[var] == uses[var] and _carries(value):
            parts, args = tensors_of(value), [_finite(arg) for arg in value.args]
            if not all(new.same_as(old) for new, old in zip(args, value.args, strict=True)):
                value = ir.Call(value.op, args, value.attrs, value.ty_args, value.span, value.ty)
        for part in parts:
            read[part] = read.get(part, 0) + 1
        made.append((var, value))
    if all(new.same_as(old) for (_, new), (_, old) in zip(made, reversed(bindings), strict=True)):
        return mod
    return rt.build_main(mod, mod["main"].params, made[::-1], mod["main"].body.body)


def _carries(value: rt.Expr) -> bool:
    """Whether what ``value`` reads hides by LEAST what it would hide by -infinity."""
    if rt.op_name(value) not in CARRY:
        factor = scaled(value)
        return factor is not None and factor[1] > 0
    return rt.dtype_of(value).startswith("float")


def _finite(expr: rt.Expr) -> rt.Expr:
    """A constant with LEAST for -infinity; anything else as it is."""
    if not rt.is_const(expr) or not rt.dtype_of(expr).startswith("float"):
        return expr
    array = rt.value_of(expr)
    hidden = np.isneginf(array)
    return rt.const(np.where(hidden, array.dtype.type(LEAST), array)) if hidden.any() else expr


def _joined(shape: Shape, to: Shape) -> bool:
    """Whether (B, H, S, T) becomes (B * H, S, T)."""
    return len(shape) == 4 and to == (shape[0] * shape[1], *shape[2:])


def unscaled(expr: rt.Expr, scope: rt.Scope) -> tuple[rt.Expr, float]:
    """``expr`` as (tensor, factor): products with numbers taken out, from before transposes and reshapes too."""
    value = scope.definition(expr)
    found = scaled(value)
    if found is not None:
        data, factor = unscaled(found[0], scope)
        return data, factor * found[1]
    if rt.op_name(value) in ("reshape", "permute_dims"):
        data, factor = unscaled(value.args[0], scope)
        if factor != 1.0:
            call = ir.Call(value.op, [data, *value.args[1:]], value.attrs, value.ty_args)
            return scope.emit(call, rt.origin(value)), factor
    return expr, 1.0


def _product(value: ir.Call) -> Scores | None:
    q, keys = value.args
    rank = len(rt.shape_of(q))
    if rt.is_const(q) or rt.is_const(keys) or rank not in (3, 4) or len(rt.shape_of(keys)) != rank:
        return None
    return Scores(q=q, keys=keys)


def _times(found: Scores | None, factor: float, scope: rt.Scope) -> Scores | None:
    if found is None:
        return None
    masks = tuple(_factored(mask, factor, scope) for mask in found.masks)
    return replace(found, scale=found.scale * factor, masks=masks)


def _narrow(expr: rt.Expr, scope: rt.Scope) -> rt.Expr:
    """What was broadcast to ``expr``, itself where nothing was."""
    value = scope.definition(expr)
    return value.args[0] if rt.op_name(value) == "broadcast_to" else expr


def _factored(mask: rt.Expr, factor: float, scope: rt.Scope) -> rt.Expr:
    if rt.is_const(mask):
        return rt.const(rt.value_of(mask) * np.float32(factor))
    return scope.emit(relax.op.multiply(mask, relax.const(factor, "float32")), "")


def _where(value: ir.Call, scope: rt.Scope) -> Scores | None:
    """where(seen, scores, fill), or where(hidden, fill, scores), the fill a number far below any score.

    One that does not swallow scores only of a constant mask, alone, that shows each query some key: s + fill and the
    fill itself differ where a query sees nothing.
    """
    test, *ways = value.args
    for data, other in (tuple(ways), tuple(reversed(ways))):
        fill = _uniform(other)
        if fill is None or fill > FAR or rt.is_const(data) or rt.shape_of(data) != rt.shape_of(value):
            continue
        found = scores_of(data, scope)
        if found is None or found.lone:
            continue
        number, first = max(fill, LEAST), data.same_as(ways[0])
        test = _narrow(test, scope)
        seen = rt.value_of(test).astype(bool) == first if rt.is_const(test) else None
        lone = fill > SWALLOWS
        if lone and (seen is None or found.masks or not np.atleast_1d(seen).any(-1).all()):
            continue
        if seen is not None:
            mask = rt.const(np.where(seen, np.float32(0.0), np.float32(number)))
        else:
            numbers = {True: relax.const(0.0, "float32"), False: relax.const(number, "float32")}
            mask = scope.emit(relax.op.where(test, numbers[first], numbers[not first]), "")
        return replace(found, masks=(*found.masks, mask), lone=lone)
    return None


def _reshaped(value: ir.Call, scope: rt.Scope) -> Scores | None:
    """(B * H, S, T) as (B, H, S, T), or back; masks that came before stay as they are, 3-d ones among 4-d."""
    before, after = rt.shape_of(value.args[0]), rt.shape_of(value)
    if before[-2:] != after[-2:] or {len(before), len(after)} != {3, 4}:
        return None
    found = scores_of(value.args[0], scope)
    batch, heads, *_ = before if len(before) == 4 else after
    return None if found is None else replace(found, split=(batch, heads))


def _uniform(expr: rt.Expr) -> float | None:
    """The one number that a constant holds, however often."""
    if not rt.is_const(expr) or not rt.value_of(expr).size:
        return None
    array = rt.value_of(expr)
    return float(array.flat[0]) if (array == array.flat[0]).all() else None
