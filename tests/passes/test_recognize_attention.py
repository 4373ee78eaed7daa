"""Attention as exporters and hands write it: where the scale stands, what masks are, how heads are made and merged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from relax_cases import assert_left_alone, assert_same_in_numpy
from tvm import IRModule, relax

from hwq import relax_tools as rt
from hwq.graph import LEAST
from hwq.layer_functions import layer_attrs
from hwq.passes.fold_constants import FoldConstants
from hwq.passes.recognize_attention import RecognizeAttention
from hwq.passes.remove_identity import RemoveIdentity
from hwq.passes.simplify_layout import SimplifyLayout

op = relax.op
Emit = Callable[[rt.Expr], rt.Expr]
B, S, H, D = 2, 5, 4, 8
FIRST = [0, 2, 1, 3]
FUTURE = np.triu(np.full((S, S), -np.inf, "float32"), 1)


def _number(value: float) -> rt.Expr:
    return relax.const(value, "float32")


def _module(
    make: Any, kv: int = H, keys: int = S, mask: tuple[int, ...] | None = None, kind: str = "float32"
) -> IRModule:
    """``make(emit, q, k, v[, mask])`` of (B, S, H * D) and twice (B, keys, kv * D)."""
    builder = relax.BlockBuilder()
    shapes = [(B, S, H * D), (B, keys, kv * D), (B, keys, kv * D)]
    params = [relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in zip("qkv", shapes, strict=True)]
    if mask is not None:
        params.append(relax.Var("mask", relax.TensorType(mask, kind)))
    with builder.function("main", params):
        with builder.dataflow():
            out = make(builder.emit, *params)
            outs = [builder.emit_output(item) for item in (out if isinstance(out, list) else [out])]
        builder.emit_func_output(relax.Tuple(outs) if len(outs) > 1 else outs[0])
    return FoldConstants()(builder.get())


def _heads(e: Emit, x: rt.Expr, dim: int = D) -> rt.Expr:
    batch, length, width = rt.shape_of(x)
    return e(op.permute_dims(e(op.reshape(x, (batch, length, width // dim, dim))), FIRST))


def _merged(e: Emit, x: rt.Expr) -> rt.Expr:
    return e(op.reshape(e(op.permute_dims(x, FIRST)), (B, S, H * D)))


def _attend(
    e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr, change: Callable[[rt.Expr], rt.Expr] = lambda scores: scores
) -> rt.Expr:
    """Of heads; ``change`` is what happens to the scores."""
    scores = change(e(op.matmul(q, e(op.permute_dims(k, [0, 1, 3, 2])))))
    return _merged(e, e(op.matmul(e(op.nn.softmax(scores, -1)), v)))


def _recognized(before: IRModule, **expected: Any) -> Any:
    """The one attention that remains of ``before``, with nothing around it but what is no part of it."""
    after = RecognizeAttention()(before)
    relax.analysis.well_formed(after)
    assert_same_in_numpy(before, after)
    tvm.ir.assert_structural_equal(RecognizeAttention()(after), after)
    short = RemoveIdentity()(SimplifyLayout()(after))
    (call,) = [value for _, value in rt.bindings_of(short) if layer_attrs(short, value)]
    assert not {"permute_dims", "matmul", "nn.softmax"} & {rt.op_name(value) for _, value in rt.bindings_of(short)}
    attrs = layer_attrs(short, call) or {}
    wanted = {"layer": "attention", "heads": H, "kv_heads": H, "scale": 1.0, "causal": False, **expected}
    assert attrs.pop("scale") == pytest.approx(wanted.pop("scale"), rel=1e-6)
    assert attrs == wanted
    return call


def _apart(e: Emit, *xs: rt.Expr) -> list[rt.Expr]:
    return [_heads(e, x) for x in xs]


@pytest.mark.parametrize(
    ("change", "scale"),
    [
        (lambda e, s: s, 1.0),
        (lambda e, s: e(op.divide(s, _number(math.sqrt(D)))), 1 / math.sqrt(D)),
        (lambda e, s: e(op.multiply(relax.const(np.full((1, 1, 1, 1), 0.25, "float32")), s)), 0.25),
        (lambda e, s: e(op.multiply(e(op.negative(s)), _number(0.25))), -0.25),
    ],
)
def test_scale_of_the_scores(change: Any, scale: float) -> None:
    before = _module(lambda e, q, k, v: _attend(e, *_apart(e, q, k, v), lambda s: change(e, s)))
    call = _recognized(before, scale=scale)
    assert [str(arg.name) for arg in call.args] == ["q", "k", "v"]


def test_scale_of_queries_and_keys_and_one_transpose_of_the_keys() -> None:
    def make(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr) -> rt.Expr:
        root = _number(D**-0.25)
        q = _heads(e, e(op.multiply(q, root)))  # before the heads are made
        k = e(op.multiply(e(op.permute_dims(e(op.reshape(k, (B, S, H, D))), [0, 2, 3, 1])), root))
        p = e(op.nn.softmax(e(op.matmul(q, k)), 3))
        return _merged(e, e(op.matmul(p, _heads(e, v))))

    _recognized(_module(make), scale=D**-0.5)


@pytest.mark.parametrize("shape", [(B, 1, 1, S), (S, S), (1, H, S, S), (H, 1, 1)])
def test_a_mask_that_is_added_keeps_its_shape(shape: tuple[int, ...]) -> None:
    def make(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr, mask: rt.Expr) -> rt.Expr:
        mask = e(op.multiply(mask, _number(3.0)))
        return _attend(e, *_apart(e, q, k, v), lambda s: e(op.add(mask, e(op.divide(s, _number(2.0))))))

    call = _recognized(_module(make, mask=shape), scale=0.5)
    assert rt.shape_of(call.args[3]) == (1,) * (4 - len(shape)) + shape


def test_a_mask_that_was_broadcast_is_read_before() -> None:
    def make(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr, mask: rt.Expr) -> rt.Expr:
        wide = e(op.broadcast_to(mask, (B, 1, S, S)))
        return _attend(e, *_apart(e, q, k, v), lambda s: e(op.subtract(s, wide)))

    call = _recognized(_module(make, mask=(B, 1, 1, S)))
    assert rt.shape_of(call.args[3]) == (B, 1, 1, S)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_mask_made_apart_is_finite_where_only_scores_read_it(elsewhere: bool) -> None:
    """Its -infinity is LEAST then, that of what is added to it on the way too; so no query gives NaN."""

    def make(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr, mask: rt.Expr) -> Any:
        test = e(op.greater(mask, _number(2.0)))
        apart = e(op.where(test, _number(-math.inf), _number(0.0)))
        wide = e(op.add(e(op.broadcast_to(e(op.reshape(apart, (B, 1, 1, S))), (B, 1, S, S))), rt.const(FUTURE)))
        out = _attend(e, *_apart(e, q, k, v), lambda s: e(op.multiply(e(op.add(s, wide)), _number(0.5))))
        return [out, e(op.exp(apart))] if elsewhere else out

    call = _recognized(_module(make, mask=(B, S)), scale=0.5)
    assert rt.shape_of(call.args[3]) == (B, 1, S, S)
    after = RecognizeAttention()(_module(make, mask=(B, S)))
    values = [value for _, value in rt.bindings_of(after)]
    (fill,) = [rt.scalar_of(value.args[1]) for value in values if rt.op_name(value) == "where"]
    (table,) = [rt.value_of(value.args[1]) for value in values if rt.op_name(value) == "add"]
    assert fill == (-math.inf if elsewhere else np.float32(LEAST))
    np.testing.assert_array_equal(table, np.maximum(FUTURE, np.float32(LEAST)))


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("fill", [-math.inf, -3.4e38, -1e9])
def test_a_mask_that_chooses(hidden: bool, fill: float) -> None:
    def make(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr, mask: rt.Expr) -> rt.Expr:
        test = e(op.greater(mask, _number(2.0)) if hidden else op.less_equal(mask, _number(2.0)))
        fills = rt.const(np.full((1, 1, S, S), fill, "float32"))

        def change(s: rt.Expr) -> rt.Expr:
            return e(op.multiply(e(op.where(test, fills, s) if hidden else op.where(test, s, fills)), _number(0.5)))

        return _attend(e, *_apart(e, q, k, v), change)

    call = _recognized(_module(make, mask=(B, 1, 1, S)), scale=0.5)
    assert rt.shape_of(call.args[3]) == (B, 1, 1, S)


@pytest.mark.parametrize(
    "change",
    [
        lambda e, s: e(op.add(s, rt.const(FUTURE))),
        lambda e, s: e(op.add(s, rt.const(np.maximum(FUTURE, -1e4)[None, None]))),
        lambda e, s: e(op.where(rt.const(FUTURE < 0), _number(-3e38), s)),
        lambda e, s: e(op.where(rt.const(FUTURE < 0), _number(-1e4), s)),
        lambda e, s: e(op.where(rt.const((FUTURE == 0)[None, None]), s, _number(-1e9))),
        lambda e, s: e(op.maximum(e(op.add(s, rt.const(FUTURE))), _number(-3.4e38))),
    ],
)
def test_a_constant_mask_that_hides_the_future_is_causal(change: Any) -> None:
    before = _module(lambda e, q, k, v: _attend(e, *_apart(e, q, k, v), lambda s: change(e, s)))
    assert len(_recognized(before, causal=True).args) == 3


def _chosen(e: Emit, s: rt.Expr, mask: rt.Expr) -> rt.Expr:
    return e(op.where(e(op.greater(mask, _number(2.0))), _number(-1e4), s))


def _chosen_before(e: Emit, s: rt.Expr, mask: rt.Expr) -> rt.Expr:
    return e(op.add(e(op.where(rt.const(FUTURE < 0), _number(-1e4), s)), mask))


def _chosen_behind(e: Emit, s: rt.Expr, mask: rt.Expr) -> rt.Expr:
    return e(op.where(rt.const(FUTURE < 0), _number(-1e4), e(op.add(s, mask))))


def _blind(e: Emit, s: rt.Expr, mask: rt.Expr) -> rt.Expr:
    return e(op.where(rt.const(np.arange(S)[:, None] > np.zeros(S)), s, _number(-1e4)))


@pytest.mark.parametrize("change", [_chosen, _chosen_before, _chosen_behind, _blind])
def test_a_fill_that_leaves_something_of_scores_is_no_sum(change: Any) -> None:
    """A query that sees nothing would weigh keys by scores that the fill replaced."""
    before = _module(
        lambda e, q, k, v, mask: _attend(e, *_apart(e, q, k, v), lambda s: change(e, s, mask)), mask=(B, 1, 1, S)
    )
    assert_left_alone(RecognizeAttention(), before)


@pytest.mark.parametrize(("fill", "causal"), [(-1e4, False), (-1e9, True)])
def test_the_future_is_hidden_as_well_as_the_network_hides_it_beside_another_mask(fill: float, causal: bool) -> None:
    future = rt.const(np.maximum(FUTURE, np.float32(fill)))
    padding = rt.const(np.float32([-1e4, -1e4, 0, 0, 0]))  # the first two queries see no key

    def change(e: Emit, s: rt.Expr, mask: rt.Expr) -> rt.Expr:
        return e(op.add(e(op.add(s, e(op.add(mask, padding)))), future))

    before = _module(
        lambda e, q, k, v, m: _attend(e, *_apart(e, q, k, v), lambda s: change(e, s, m)), mask=(B, 1, 1, S)
    )
    _recognized(before, causal=causal)


def test_queries_at_the_end_of_more_keys() -> None:
    future = np.triu(np.full((S, S + 3), -1e9, "float32"), 4)
    before = _module(
        lambda e, q, k, v: _attend(e, *_apart(e, q, k, v), lambda s: e(op.add(s, rt.const(future)))), keys=S + 3
    )
    _recognized(before, causal=True)
    early = np.triu(np.full((S, S + 3), -1e9, "float32"), 1)  # aligned at the start: a mask like any other
    before = _module(
        lambda e, q, k, v: _attend(e, *_apart(e, q, k, v), lambda s: e(op.add(s, rt.const(early)))), keys=S + 3
    )
    assert rt.shape_of(_recognized(before).args[3]) == (1, 1, S, S + 3)


def test_what_else_a_constant_mask_adds_stays_and_so_does_a_given_one() -> None:
    slopes = (np.arange(S) * np.arange(1, H + 1)[:, None, None]).astype("float32")  # ALiBi: by key and head

    def make(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr) -> rt.Expr:
        return _attend(e, *_apart(e, q, k, v), lambda s: e(op.add(e(op.add(s, rt.const(slopes))), rt.const(FUTURE))))

    call = _recognized(_module(make), causal=True)
    np.testing.assert_array_equal(rt.value_of(call.args[3]), np.where(FUTURE < 0, 0, slopes)[None])

    def both(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr, mask: rt.Expr) -> rt.Expr:
        return _attend(e, *_apart(e, q, k, v), lambda s: e(op.add(e(op.add(s, mask)), rt.const(FUTURE))))

    call = _recognized(_module(both, mask=(B, 1, 1, S)), causal=True)
    assert call.args[3].name == "mask"


def _expanded(e: Emit, x: rt.Expr, kv: int) -> rt.Expr:
    """As LLaMA's reference repeats heads: before they come first."""
    x = e(op.expand_dims(e(op.reshape(x, (B, S, kv, D))), [3]))
    x = e(op.reshape(e(op.broadcast_to(x, (B, S, kv, H // kv, D))), (B, S, H, D)))
    return e(op.permute_dims(x, FIRST))


def _concatenated(e: Emit, x: rt.Expr, kv: int) -> rt.Expr:
    x = e(op.expand_dims(_heads(e, x), [2]))
    return e(op.reshape(e(op.concat([x] * (H // kv), 2)), (B, H, S, D)))


REPEATS = [
    _expanded,
    _concatenated,
    lambda e, x, kv: e(op.repeat(_heads(e, x), H // kv, 1)),
    lambda e, x, kv: e(op.take(_heads(e, x), rt.const(np.arange(H) // (H // kv)), 1)),
]


@pytest.mark.parametrize("kv", [1, 2])
@pytest.mark.parametrize("repeat", REPEATS)
def test_repeated_heads_are_read_before(repeat: Any, kv: int) -> None:
    before = _module(lambda e, q, k, v: _attend(e, _heads(e, q), repeat(e, k, kv), repeat(e, v, kv)), kv=kv)
    call = _recognized(before, kv_heads=kv)
    assert [str(arg.name) for arg in call.args] == ["q", "k", "v"]


def test_one_head_for_all_and_heads_that_take_turns() -> None:
    call = _recognized(_module(lambda e, q, k, v: _attend(e, *_apart(e, q, k, v)), kv=1), kv_heads=1)
    assert [str(arg.name) for arg in call.args] == ["q", "k", "v"]

    def turns(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr) -> rt.Expr:
        k, v = (e(op.tile(_heads(e, x), (1, 2, 1, 1))) for x in (k, v))
        return _attend(e, _heads(e, q), k, v)

    before = _module(turns, kv=2)
    after = RecognizeAttention()(before)
    assert_same_in_numpy(before, after)
    (attrs,) = [found for _, value in rt.bindings_of(after) if (found := layer_attrs(after, value))]
    assert attrs["kv_heads"] == H  # repeated as the network does


@pytest.mark.parametrize("shown", [True, False])
def test_products_of_rank_three(shown: bool) -> None:
    """As torch.bmm has them; shown: batch and heads come apart for the mask."""

    def flat(e: Emit, x: rt.Expr) -> rt.Expr:
        return e(op.reshape(_heads(e, x), (B * H, S, D)))

    def make(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr, mask: rt.Expr) -> rt.Expr:
        q, k, v = (flat(e, x) for x in (q, k, v))
        scores = e(op.matmul(q, e(op.permute_dims(k, [0, 2, 1]))))
        if shown:
            scores = e(op.add(e(op.reshape(scores, (B, H, S, S))), mask))
            scores = e(op.reshape(scores, (B * H, S, S)))
        out = e(op.matmul(e(op.nn.softmax(scores, 2)), v))
        return _merged(e, e(op.reshape(out, (B, H, S, D))))

    call = _recognized(_module(make, mask=(B, 1, 1, S)))
    assert len(call.args) == 3 + shown


@pytest.mark.parametrize("scores_joined", [True, False])
@pytest.mark.parametrize("values_joined", [True, False])
def test_products_over_batches_and_heads_in_one_axis(scores_joined: bool, values_joined: bool) -> None:
    """As einsum makes them, of either product."""

    def make(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr) -> rt.Expr:
        def joined(x: rt.Expr) -> rt.Expr:
            shape = rt.shape_of(x)
            return e(op.reshape(x, (B * H, *shape[2:])))

        q, k, v = _apart(e, q, k, v)
        k = e(op.permute_dims(k, [0, 1, 3, 2]))
        s = e(op.matmul(joined(q), joined(k))) if scores_joined else e(op.matmul(q, k))
        p = e(op.nn.softmax(e(op.reshape(s, (B, H, S, S))) if scores_joined else s, -1))
        y = e(op.matmul(joined(p), joined(v))) if values_joined else e(op.matmul(p, v))
        return _merged(e, e(op.reshape(y, (B, H, S, D))) if values_joined else y)

    call = _recognized(_module(make))
    assert [str(arg.name) for arg in call.args] == ["q", "k", "v"]


def test_the_call_of_a_library_operator() -> None:
    def make(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr) -> rt.Expr:
        q, k, v = (e(op.reshape(x, (B, S, H, D))) for x in (q, k, v))
        return e(op.reshape(e(op.nn.attention(q, k, v, causal_mask="TopLeft")), (B, S, H * D)))

    call = _recognized(_module(make), causal=True, scale=D**-0.5)
    assert len(call.args) == 3


def test_weights_of_queries_that_see_nothing_are_seen_through() -> None:
    def make(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr) -> rt.Expr:
        q, k, v = _apart(e, q, k, v)
        p = e(op.nn.softmax(e(op.matmul(q, e(op.permute_dims(k, [0, 1, 3, 2])))), -1))
        return _merged(e, e(op.matmul(e(op.where(e(op.isnan(p)), _number(0.0), p)), v)))

    _recognized(_module(make))


def _read_twice(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr) -> list[rt.Expr]:
    q, k, v = _apart(e, q, k, v)
    p = e(op.nn.softmax(e(op.matmul(q, e(op.permute_dims(k, [0, 1, 3, 2])))), -1))
    return [p, _merged(e, e(op.matmul(p, v)))]


def _other_axis(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr) -> rt.Expr:
    q, k, v = _apart(e, q, k, v)
    p = e(op.nn.softmax(e(op.matmul(q, e(op.permute_dims(k, [0, 1, 3, 2])))), -2))
    return _merged(e, e(op.matmul(p, v)))


def _no_scores(e: Emit, q: rt.Expr, k: rt.Expr, v: rt.Expr) -> rt.Expr:
    q, k, v = _apart(e, q, k, v)
    scores = e(op.tanh(e(op.matmul(q, e(op.permute_dims(k, [0, 1, 3, 2]))))))
    return _merged(e, e(op.matmul(e(op.nn.softmax(scores, -1)), v)))


@pytest.mark.parametrize("make", [_read_twice, _other_axis, _no_scores])
def test_what_only_looks_alike_is_left_alone(make: Any) -> None:
    assert_left_alone(RecognizeAttention(), _module(make))
