"""Attention becomes one call on the tensors that dense layers write, heads side by side.

Before:  s = R.matmul(q, R.permute_dims(k, [0, 1, 3, 2]))              q (b, h, s, d), k (b, h, t, d), v (b, h, t, e)
         p = R.nn.softmax(R.add(R.multiply(s, scale), mask), axis=-1); gv = R.matmul(p, v)
After:   q1, k1, v1 = R.reshape(R.permute_dims(q, [0, 2, 1, 3]), [b, s, h * d]), ...; lv = attention(q1, k1, v1, mask)
         gv = R.permute_dims(R.reshape(lv, [b, s, h, e]), [0, 2, 1, 3])

attention is a private function of the module (``hwq.layer_functions``), with attributes heads, kv_heads, scale and
causal. Stands after recognize_rope; simplify_layout takes out the transposes that meet the network's own. The scale may
stand anywhere, on q and k too; masks may be added or chosen by R.where, and keep the small shape that they had before
they were broadcast, and -infinity in them is finite; a constant one that hides the future is the attribute causal.
Heads of keys and values that were repeated are read where they were not. A call of R.nn.attention is taken too. Weights
that anything else reads, and products of other ranks than 3 and 4, are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
from tvm import IRModule, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt
from hwq.follow import made_of, terms_of
from hwq.graph import LEAST
from hwq.layer_functions import Functions, causal_mask
from hwq.scores import FAR, SWALLOWS, Scores, finite_masks, scores_of, unscaled, weights_of

_SWAP = (0, 2, 1, 3)


@module_pass(opt_level=0, name="RecognizeAttention")
@dataclass(frozen=True)
class RecognizeAttention:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        functions = Functions(builder=relax.BlockBuilder(mod))
        mod = functions.into(rt.rewrite(mod, lambda value, scope: _rule(value, scope, functions)))
        return finite_masks(mod)


def _rule(value: rt.Expr, scope: rt.Scope, functions: Functions) -> rt.Expr | None:
    op = rt.op_name(value)
    if op in ("nn.attention", "nn.attention_bias"):
        return _called(value, scope, functions)
    if op != "matmul" or rt.is_const(value.args[1]) or rt.dtype_of(value) != "float32":
        return None
    weights = weights_of(value.args[0], scope)
    if weights is None:
        return None
    found = scores_of(weights.args[0], scope)
    out, v = rt.shape_of(value), value.args[1]
    if found is None or len(out) != len(rt.shape_of(v)):
        return None
    heads, rank = _heads(found, rt.shape_of(weights), out, scope), len(rt.shape_of(found.q))
    if rank == 3 and rt.shape_of(found.q)[0] != prod(heads):
        return None
    scale = found.scale
    q, factor = unscaled(found.q, scope)
    scale *= factor
    keys, factor = unscaled(found.keys, scope)
    scale *= factor
    axes = [*range(rank - 2), rank - 1, rank - 2]
    k = scope.emit(relax.op.permute_dims(keys, axes), "")
    whole = (*heads, out[-2], rt.shape_of(v)[-2])
    if not all(_is_head_of(x, heads) for x in (k, v)):
        return None
    masks = [_four(mask, whole, scope) for mask in found.masks]
    if any(mask is None for mask in masks):
        return None
    q, k, v = (_split(x, heads, scope) for x in (q, k, v))
    made = _attention(q, k, v, masks, scale, scope, functions, rt.origin(weights) or rt.origin(value))
    return scope.emit(relax.op.reshape(made, out), "")


def _called(value: rt.Expr, scope: rt.Scope, functions: Functions) -> rt.Expr | None:
    """R.nn.attention, whose tensors are (B, S, H, D)."""
    attrs, (q, k, v, *bias) = value.attrs, value.args
    if attrs.window_size is not None or rt.dtype_of(value) != "float32":
        return None
    (batch, length, heads, dim), keys = rt.shape_of(q), rt.shape_of(k)[1]
    scale = 1.0 / sqrt(dim) if attrs.scale is None else float(attrs.scale.value)
    whole = (batch, heads, length, keys)
    masks = [_four(mask, whole, scope) for mask in bias]
    if attrs.causal_mask is not None:
        seen = causal_mask(length, length if attrs.causal_mask == "TopLeft" else keys)
        hidden = np.full((length, keys), LEAST, np.float32)
        count = min(keys, seen.shape[1])
        hidden[:, :count][seen[:, :count]] = 0.0
        masks.append(rt.const(hidden[None, None]))
    if any(mask is None for mask in masks):
        return None
    q, k, v = (scope.emit(relax.op.permute_dims(x, _SWAP), "") for x in (q, k, v))
    made = _attention(q, k, v, masks, scale, scope, functions, rt.origin(value))
    return scope.emit(relax.op.permute_dims(made, _SWAP), "")


def _heads(found: Scores, weights: tuple[int, ...], out: tuple[int, ...], scope: rt.Scope) -> tuple[int, int]:
    """(B, H), as the weights or the product show them; einsum takes both for one axis in either product. Of a product
    of rank 3 that shows them nowhere, as the queries lie in memory, else one head each."""
    for shape in (weights, out):
        if len(shape) == 4:
            return shape[0], shape[1]
    if found.split is not None:
        return found.split
    made = made_of(found.q, scope, moves_only=True)
    terms = None if made is None or not made.steps else terms_of(made, made.source, 1)
    for heads in range(out[0], 0, -1):
        if terms and out[0] % heads == 0:
            rows = terms[0].index.reshape(out[0] // heads, heads, *rt.shape_of(found.q)[1:]).transpose(_SWAP)
            if (rows.reshape(-1) == np.arange(rows.size)).all():
                return out[0] // heads, heads
    return out[0], 1


def _is_head_of(x: rt.Expr, heads: tuple[int, int]) -> bool:
    """Whether keys or values are of as many heads as the queries, or of one for all."""
    shape = rt.shape_of(x)
    return shape[0] == prod(heads) if len(shape) == 3 else shape[0] == heads[0] and shape[1] in (1, heads[1])


def _split(x: rt.Expr, heads: tuple[int, int], scope: rt.Scope) -> rt.Expr:
    """(B * H, S, D) as (B, H, S, D)."""
    shape = rt.shape_of(x)
    return x if len(shape) == 4 else scope.emit(relax.op.reshape(x, (*heads, *shape[1:])), "")


def _four(mask: rt.Expr, whole: tuple[int, ...], scope: rt.Scope) -> rt.Expr | None:
    """A mask that broadcasts to the scores (B, H, S, T), or to (B * H, S, T), with four axes; None for any other."""
    shape = rt.shape_of(mask)
    if rt.dtype_of(mask) != "float32" or len(shape) > 4:
        return None
    if len(shape) == 3 and shape[0] not in (1, whole[1]) and shape[0] == whole[0] * whole[1]:
        full: tuple[int, ...] = (*whole[:2], *shape[1:])
    else:
        full = (*(1,) * (4 - len(shape)), *shape)
    if any(size not in (1, most) for size, most in zip(full, whole, strict=True)):
        return None
    if rt.is_const(mask):
        return rt.const(rt.value_of(mask).reshape(full))
    return mask if full == shape else scope.emit(relax.op.reshape(mask, full), "")


def _attention(
    q: rt.Expr, k: rt.Expr, v: rt.Expr, masks: Sequence[rt.Expr], scale: float, scope: rt.Scope, functions: Functions,
    name: str,
) -> rt.Expr:  # fmt: skip
    """The call for heads (B, H, S, D), (B, H, T, D) and (B, H, T, E); its result as (B, H, S, E)."""
    batch, heads, length, _ = rt.shape_of(q)
    keys = rt.shape_of(k)[2]
    k, v = _ungrouped(k, v, heads, scope)
    groups, width = rt.shape_of(k)[1], rt.shape_of(v)[3]
    constant = sum(
        (rt.value_of(mask).astype(np.float64) for mask in masks if rt.is_const(mask)), np.zeros((1, 1, 1, 1))
    )
    given = [mask for mask in masks if not rt.is_const(mask)]
    constant, causal = _without_future(constant, length, keys, SWALLOWS if given else FAR)
    if constant.any():
        bias = rt.const(np.maximum(constant, LEAST).astype(np.float32))
        given.append(bias)
    while len(given) > 1:
        given = [scope.emit(relax.op.add(given[0], given[1]), name), *given[2:]]
    attrs = {"heads": heads, "kv_heads": groups, "scale": scale, "causal": causal}
    out = scope.emit(functions.call("attention", [*(_rows(x, scope) for x in (q, k, v)), *given], attrs), name)
    out = scope.emit(relax.op.reshape(out, (batch, length, heads, width)), "")
    return scope.emit(relax.op.permute_dims(out, _SWAP), "")


def _rows(x: rt.Expr, scope: rt.Scope) -> rt.Expr:
    """(B, H, S, D) as (B, S, H * D)."""
    batch, heads, length, dim = rt.shape_of(x)
    moved = scope.emit(relax.op.permute_dims(x, _SWAP), "")
    return scope.emit(relax.op.reshape(moved, (batch, length, heads * dim)), "")


def _without_future(mask: rt.Array, length: int, keys: int, hides: float) -> tuple[rt.Array, bool]:
    """(What a constant mask adds where ``causal`` shows a key, whether it hides all others, adding ``hides`` or less);
    axes that do not vary are of size 1. Where other masks may hide what it shows, keys of the future count beside them
    if they are hidden no better."""
    seen = causal_mask(length, keys)
    full = np.broadcast_to(mask, (*mask.shape[:2], length, keys))
    causal = bool(not seen.all() and (full[..., ~seen] <= hides).all() and (full[..., seen] > FAR).all())
    if causal:
        mask = np.where(seen, full, 0.0)
        if not mask.any():
            mask = np.zeros((1, 1, 1, 1))
    for axis in range(4):
        first = mask.take([0], axis)
        mask = first if (mask == first).all() else mask
    return mask, causal


def _ungrouped(k: rt.Expr, v: rt.Expr, heads: int, scope: rt.Scope) -> tuple[rt.Expr, rt.Expr]:
    """Keys and values (B, G, T, D) before their heads were repeated, where both were, and alike."""
    if rt.shape_of(k)[1] == rt.shape_of(v)[1] == 1:
        return k, v
    found = [_before_repeat(x, heads, scope) for x in (k, v)]
    counts = {None if x is None else rt.shape_of(x)[1] for x in found}
    if len(counts) == 1 and None not in counts:
        return found[0], found[1]
    return _repeated(k, heads, scope), _repeated(v, heads, scope)


def _repeated(x: rt.Expr, heads: int, scope: rt.Scope) -> rt.Expr:
    batch, count, length, dim = rt.shape_of(x)
    return x if count == heads else scope.emit(relax.op.broadcast_to(x, (batch, heads, length, dim)), "")


def _before_repeat(x: rt.Expr, heads: int, scope: rt.Scope) -> rt.Expr | None:
    """The heads (B, G, T, D) that ``x`` (B, H, T, D) repeats, each H / G times in turn; None where it does not."""
    shape = rt.shape_of(x)
    made = made_of(x, scope, moves_only=True)
    if made is None or not made.steps or shape[1] != heads:
        return None
    for source in made.stems():
        size = prod(rt.shape_of(source))
        if size >= prod(shape) or prod(shape) % size or heads % (prod(shape) // size):
            continue
        each = prod(shape) // size
        terms = terms_of(made, source, 1)
        if not terms:
            return None
        index = terms[0].index
        groups = index[:, ::each]
        if not (index == np.repeat(groups, each, axis=1)).all():
            return None
        order = np.arange(size)
        if (groups.reshape(-1) == order).all():
            return scope.emit(relax.op.reshape(source, groups.shape), "")
        if (groups.transpose(_SWAP).reshape(-1) == order).all():
            rows = scope.emit(relax.op.reshape(source, [groups.shape[axis] for axis in _SWAP]), "")
            return scope.emit(relax.op.permute_dims(rows, _SWAP), "")
    return None
