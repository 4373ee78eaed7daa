"""Rotary positions as exporters and hands write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from relax_cases import assert_left_alone, assert_same_in_numpy
from tvm import IRModule, relax

from hwq import relax_tools as rt
from hwq.layer_functions import layer_attrs
from hwq.passes.fold_constants import FoldConstants
from hwq.passes.recognize_rope import RecognizeRope
from hwq.passes.simplify_layout import SimplifyLayout

op = relax.op
Emit = Callable[[rt.Expr], rt.Expr]
B, S, H, D = 2, 5, 3, 8
ANGLES = np.random.default_rng(3).uniform(0, 6, (S, D // 2)).astype(np.float32)
HALF, PAIRS = np.concatenate([ANGLES, ANGLES], 1), np.repeat(ANGLES, 2, axis=1)


def _module(make: Any) -> IRModule:
    """``make(emit, heads)`` of the heads (B, S, H, D) of one tensor (B, S, H * D)."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((B, S, H * D), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            heads = builder.emit(op.reshape(x, (B, S, H, D)))
            out = builder.emit_output(make(builder.emit, heads))
        builder.emit_func_output(out)
    return builder.get()


def _tables(angles: Any, shape: Any) -> list[rt.Expr]:
    return [rt.const(table(angles).reshape(shape)) for table in (np.cos, np.sin)]


def _slice(e: Emit, x: rt.Expr, *cut: int) -> rt.Expr:
    """Of the last axis."""
    return e(op.strided_slice(x, [len(rt.shape_of(x)) - 1], *([item] for item in cut)))


def _torch_half(e: Emit, heads: rt.Expr) -> rt.Expr:
    """As torch exports LLaMA: heads first, slices, negative, concat."""
    q = e(op.permute_dims(heads, [0, 2, 1, 3]))
    cos, sin = _tables(HALF, (1, 1, S, D))
    turned = e(op.concat([e(op.negative(_slice(e, q, D // 2, D))), _slice(e, q, 0, D // 2)], -1))
    return e(op.add(e(op.multiply(q, cos)), e(op.multiply(turned, sin))))


def _split_half(e: Emit, heads: rt.Expr) -> rt.Expr:
    """Halves of a split, each turned by itself, before heads come first; the scale of a query goes into the tables."""
    cos, sin = _tables(ANGLES, (S, 1, D // 2))
    halves = e(op.split(e(op.multiply(heads, relax.const(0.5))), 2, 3))
    a, b = (e(relax.TupleGetItem(halves, at)) for at in (0, 1))
    first = e(op.subtract(e(op.multiply(a, cos)), e(op.multiply(b, sin))))
    second = e(op.add(e(op.multiply(b, cos)), e(op.multiply(a, sin))))
    return e(op.concat([first, second], 3))


def _pairs(e: Emit, heads: rt.Expr) -> rt.Expr:
    """As LLaMA's reference does, with a last axis of pairs."""
    cos, sin = _tables(ANGLES, (1, S, 1, D // 2))
    pairs = e(op.reshape(heads, (B, S, H, D // 2, 2)))
    a, b = (e(op.take(pairs, relax.const(at, "int64"), 4)) for at in (0, 1))
    first = e(op.subtract(e(op.multiply(a, cos)), e(op.multiply(b, sin))))
    second = e(op.add(e(op.multiply(a, sin)), e(op.multiply(b, cos))))
    stacked = e(op.concat([e(op.expand_dims(first, [4])), e(op.expand_dims(second, [4]))], 4))
    return e(op.reshape(stacked, (B, S, H, D)))


def _strided_pairs(e: Emit, heads: rt.Expr) -> rt.Expr:
    """As GPT-J does, by every other element; the tables are made of numbers."""
    positions = e(op.arange(0, S, 1, "float32"))
    angles = e(op.multiply(e(op.expand_dims(positions, [1])), rt.const(ANGLES[1:2])))
    angles = e(op.reshape(e(op.repeat(angles, 2, 1)), (S, 1, D)))
    odd, even = _slice(e, heads, 1, D, 2), _slice(e, heads, 0, D, 2)
    turned = e(op.reshape(e(op.stack([e(op.negative(odd)), even], -1)), (B, S, H, D)))
    return e(op.add(e(op.multiply(turned, e(op.sin(angles)))), e(op.multiply(heads, e(op.cos(angles))))))


@pytest.mark.parametrize(
    ("make", "style", "angles"),
    [
        (_torch_half, "half", HALF),
        (_split_half, "half", HALF),
        (_pairs, "interleaved", PAIRS),
        (_strided_pairs, "interleaved", np.arange(S)[:, None] * PAIRS[1]),
    ],
)
def test_one_call_on_rows_remains(make: Any, style: str, angles: Any) -> None:
    before = FoldConstants()(_module(make))
    after = RecognizeRope()(before)
    relax.analysis.well_formed(after)
    assert_same_in_numpy(before, after)
    short = SimplifyLayout()(after)
    calls = [value for _, value in rt.bindings_of(short)]
    heads_first = make is _torch_half
    assert [rt.op_name(value) for value in calls] == ["", "reshape", *(["permute_dims"] if heads_first else [])]
    assert layer_attrs(short, calls[0]) == {"layer": "rope", "heads": H, "style": style}
    assert calls[0].args[0].same_as(short["main"].params[0])
    cos, sin = (rt.value_of(arg) for arg in calls[0].args[1:])
    scale = 0.5 if make is _split_half else 1.0
    np.testing.assert_allclose(cos, scale * np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin, scale * np.sin(angles), atol=1e-6)
    tvm.ir.assert_structural_equal(RecognizeRope()(after), after)


def test_a_slice_of_a_wider_tensor_is_turned_where_it_lies() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((B, S, H, 2 * D), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(_torch_half(builder.emit, _slice(builder.emit, x, D, 2 * D)))
        builder.emit_func_output(out)
    before = builder.get()
    after = RecognizeRope()(before)
    assert [layer_attrs(after, value) is not None for _, value in rt.bindings_of(after)].count(True) == 1
    assert_same_in_numpy(before, after)


def _by_head(e: Emit, heads: rt.Expr) -> rt.Expr:
    """Other angles for each head."""
    table = rt.const(np.random.default_rng(1).uniform(size=(H, S, D)).astype("float32"))
    q = e(op.permute_dims(heads, [0, 2, 1, 3]))
    turned = e(op.concat([e(op.negative(_slice(e, q, D // 2, D))), _slice(e, q, 0, D // 2)], -1))
    return e(op.add(e(op.multiply(q, table)), e(op.multiply(turned, table))))


def _rolled(e: Emit, heads: rt.Expr) -> rt.Expr:
    """Elements beside others."""
    cos, sin = _tables(HALF, (S, 1, D))
    turned = e(op.concat([_slice(e, heads, 1, D), _slice(e, heads, 0, 1)], -1))
    return e(op.add(e(op.multiply(heads, cos)), e(op.multiply(turned, sin))))


@pytest.mark.parametrize(
    "make",
    [
        _by_head,
        _rolled,
        lambda e, x: e(op.add(e(op.multiply(x, relax.const(2.0))), x)),
        lambda e, x: e(op.add(e(op.multiply(x, relax.const(2.0))), e(op.tanh(x)))),
    ],
    ids=["by head", "rolled", "thrice", "another tensor"],
)
def test_what_only_looks_alike_is_left_alone(make: Any) -> None:
    assert_left_alone(RecognizeRope(), _module(make))
