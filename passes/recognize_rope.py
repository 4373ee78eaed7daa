"""Rotary positions become one call on the tensor that a dense layer writes, heads side by side.

Before:  q1 = R.strided_slice(q, [3], [0], [d / 2]); q2 = R.strided_slice(q, [3], [d / 2], [d])     q (b, h, s, d)
         r = R.concat((R.negative(q2), q1), axis=3); gv = R.add(R.multiply(q, cos), R.multiply(r, sin))
After:   lv = R.reshape(R.permute_dims(q, [0, 2, 1, 3]), [b, s, h * d]); lv1 = rope(lv, cos, sin)
         gv = R.permute_dims(R.reshape(lv1, [b, s, h, d]), [0, 2, 1, 3])

rope is a private function of the module (``hwq.layer_functions``), with attributes heads and style. Stands before
recognize_attention; simplify_layout takes out the transposes that meet others. Any spelling is taken, in heads before
or after positions: what is looked at is of which two elements each element is the sum. cos and sin must be constant,
and the same in every head and every sample of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from tvm import IRModule, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt
from hwq.follow import Term, made_of, terms_of
from hwq.layer_functions import Functions

_ENDS = ("add", "subtract", "concat", "reshape")
_SWAP = (0, 2, 1, 3)
STYLES = ("half", "interleaved")


@module_pass(opt_level=0, name="RecognizeRope")
@dataclass(frozen=True)
class RecognizeRope:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        functions = Functions(builder=relax.BlockBuilder(mod))
        return functions.into(rt.rewrite(mod, lambda value, scope: _rule(value, scope, functions)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """shape: (B, S, H, D). view: whether the source lies in that order, rather than in the result's."""

    style: str
    shape: tuple[int, ...]
    heads_first: bool
    view: bool
    cos: rt.Array
    sin: rt.Array


def _rule(value: rt.Expr, scope: rt.Scope, functions: Functions) -> rt.Expr | None:
    if rt.op_name(value) not in _ENDS or rt.dtype_of(value) != "float32":
        return None
    shape = rt.shape_of(value)
    core = _without_ones(shape)
    if len(core) not in (3, 4):
        return None
    made = made_of(relax.Var("end", value.ty), scope, value=value)
    if made is None or not {"multiply"} < {rt.op_name(step) for _, step in made.steps}:
        return None
    for source in made.stems():
        if prod(rt.shape_of(source)) != prod(shape):
            continue
        terms = terms_of(made, source)
        found = None if terms is None or len(terms) != 2 else _read(terms, core)
        if found is not None:
            return _call(source, found, shape, scope, functions)
    return None


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(B, S, H, 1, D), as keys are made ready to be repeated for groups of queries, as (B, S, H, D)."""
    while len(shape) > 4 and 1 in shape[1:-1]:
        at = shape.index(1, 1)
        shape = (*shape[:at], *shape[at + 1 :])
    return shape


def _call(source: rt.Expr, found: _Found, shape: tuple[int, ...], scope: rt.Scope, functions: Functions) -> rt.Expr:
    batch, length, heads, dim = found.shape
    flat = (batch, length, heads * dim)
    data = source
    if found.heads_first and not found.view:
        data = scope.emit(relax.op.reshape(data, (batch, heads, length, dim)), "")
        data = scope.emit(relax.op.permute_dims(data, _SWAP), "")
    data = scope.emit(relax.op.reshape(data, flat), "")
    tables = [rt.const(table.astype(np.float32)) for table in (found.cos, found.sin)]
    out = scope.emit(functions.call("rope", [data, *tables], {"heads": heads, "style": found.style}))
    out = scope.emit(relax.op.reshape(out, found.shape), "")
    if found.heads_first:
        out = scope.emit(relax.op.permute_dims(out, _SWAP), "")
    return scope.emit(relax.op.reshape(out, shape), "")


def _read(terms: list[Term], shape: tuple[int, ...]) -> _Found | None:
    """What two terms for each element of a result of ``shape`` turn, if they are that."""
    heads = (shape[0], 1, *shape[1:]) if len(shape) == 3 else shape  # (B, H, S, D), or (B, S, H, D)
    index, factor = (np.stack([getattr(term, key).reshape(heads) for term in terms]) for key in ("index", "factor"))
    natural = np.arange(prod(heads), dtype=np.int32).reshape(heads)
    for heads_first in (True, False):
        order = tuple(heads[axis] for axis in _SWAP) if heads_first else heads
        ways = [(True, natural.reshape(order).transpose(_SWAP)), (False, natural)] if heads_first else [(True, natural)]
        for view, own in ways:
            for style in STYLES:
                tables = _tables(index, factor, own, style)
                if tables is not None and all(_repeats(table, heads_first) for table in tables):
                    cos, sin = (table[0, 0] if heads_first else table[0, :, 0] for table in tables)
                    return _Found(style=style, shape=order, heads_first=heads_first, view=view, cos=cos, sin=sin)
    return None


def _repeats(table: rt.Array, heads_first: bool) -> bool:
    """Whether a table over all elements is the same for every head and every sample."""
    return bool((table == (table[:1, :1] if heads_first else table[:1, :, :1])).all())


def _tables(index: rt.Array, factor: rt.Array, own: rt.Array, style: str) -> tuple[rt.Array, rt.Array] | None:
    """(cos, sin) for every element, where one of its terms is the element of the source at ``own``, and the other the
    one that ``style`` puts beside it.

    index, factor: (2, *own.shape).
    """
    dim = own.shape[-1]
    if dim % 2:
        return None
    at = np.arange(dim)
    other, first = ((at + dim // 2) % dim, at < dim // 2) if style == "half" else (at ^ 1, at % 2 == 0)
    beside = own[..., other]
    straight = (index[0] == own) & (index[1] == beside)
    across = (index[1] == own) & (index[0] == beside)
    if not (straight | across).all():
        return None
    cos = np.where(straight, factor[0], factor[1])
    sin = np.where(straight, factor[1], factor[0]) * np.where(first, -1.0, 1.0)
    return (cos, sin) if sin.any() else None
