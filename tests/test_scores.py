"""What scores are made of; networks of them are in tests/passes/test_recognize_attention.py."""

from __future__ import annotations

import numpy as np
from tvm import relax

from hwq import relax_tools as rt
from hwq.graph import LEAST
from hwq.scores import scores_of, unscaled, weights_of

op = relax.op
Q = relax.Var("q", relax.TensorType((2, 3, 5, 4), "float32"))
K = relax.Var("k", relax.TensorType((2, 3, 4, 7), "float32"))
MASK = relax.Var("m", relax.TensorType((7,), "bool"))


def test_scale_and_masks_on_the_way() -> None:
    scope = rt.Scope()
    emit = scope.emit
    table = rt.const(np.ones((5, 7), "float32"))
    scores = emit(op.multiply(emit(op.add(emit(op.matmul(Q, K)), table)), relax.const(0.5)))
    scores = emit(op.where(MASK, scores, relax.const(float("-inf"))))
    found = scores_of(scores, scope)
    assert found is not None
    assert found.q.same_as(Q)
    assert found.keys.same_as(K)
    assert (found.scale, found.split) == (0.5, None)
    first, second = found.masks
    np.testing.assert_array_equal(rt.value_of(first), np.full((5, 7), 0.5))
    assert [rt.scalar_of(arg) for arg in scope.definition(second).args[1:]] == [0.0, np.float32(LEAST)]
    split = scores_of(emit(op.reshape(emit(op.reshape(scores, (6, 5, 7))), (2, 3, 5, 7))), scope)
    assert split is not None
    assert split.split == (2, 3)


def test_what_are_no_scores() -> None:
    scope = rt.Scope()
    emit = scope.emit
    product = emit(op.matmul(Q, K))
    for call in (
        op.tanh(product),
        op.multiply(product, product),
        op.where(MASK, product, relax.const(0.0)),
        op.reshape(product, (2, 3, 7, 5)),
        op.maximum(product, relax.const(0.0)),
    ):
        assert scores_of(emit(call), scope) is None


def test_factors_come_out_of_transposes() -> None:
    scope = rt.Scope()
    emit = scope.emit
    scaled = emit(op.multiply(emit(op.divide(Q, relax.const(2.0))), relax.const(3.0)))
    data, factor = unscaled(emit(op.permute_dims(emit(op.reshape(scaled, (6, 5, 4))), [1, 0, 2])), scope)
    assert factor == 1.5
    inner = scope.definition(scope.definition(data).args[0])
    assert inner.args[0].same_as(Q)
    assert unscaled(Q, scope) == (Q, 1.0)


def test_weights() -> None:
    scope = rt.Scope()
    weights = scope.emit(op.nn.softmax(scope.emit(op.matmul(Q, K)), 3))
    assert weights_of(weights, scope) is scope.definition(weights)
    scope.readers[weights] = 2
    assert weights_of(weights, scope) is None
    assert weights_of(scope.emit(op.nn.softmax(Q, 2)), scope) is None
