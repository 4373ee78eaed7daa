"""Which elements of one tensor another is made of."""

from __future__ import annotations

import numpy as np
from tvm import relax

from hwq import relax_tools as rt
from hwq.follow import made_of, terms_of

op = relax.op
X = relax.Var("x", relax.TensorType((2, 3, 4), "float32"))
Y = relax.Var("y", relax.TensorType((2, 3, 4), "float32"))


def test_the_sum_of_the_terms_is_what_is_computed() -> None:
    scope = rt.Scope()
    emit = scope.emit
    stem = emit(op.permute_dims(emit(op.reshape(X, (6, 4))), [1, 0]))  # (4, 6)
    halves = emit(op.split(stem, 2, 0))
    first, second = (emit(relax.TupleGetItem(halves, at)) for at in (0, 1))
    table = np.arange(6, dtype="float32")
    left = emit(op.concat([emit(op.negative(second)), first], 0))
    right = emit(op.divide(emit(op.multiply(stem, rt.const(table))), relax.const(2.0)))
    end = emit(op.subtract(left, emit(op.flip(right, 1))))

    made = made_of(end, scope)
    assert made is not None
    assert made.source.same_as(X)
    assert [rt.shape_of(var) for var in made.stems()] == [(2, 3, 4), (6, 4), (4, 6)]
    terms = terms_of(made, X)
    assert terms is not None
    assert len(terms) == 2
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    moved = x.reshape(6, 4).T
    expected = np.concatenate([-moved[2:], moved[:2]]) - (moved * table / 2)[:, ::-1]
    found = sum(x.reshape(-1)[term.index] * term.factor for term in terms)
    np.testing.assert_allclose(found, expected)
    assert terms_of(made, X, most=1) is None


def test_what_comes_from_two_tensors_or_through_another_operator_is_not_followed() -> None:
    scope = rt.Scope()
    emit = scope.emit
    assert made_of(emit(op.add(X, Y)), scope) is None
    bent = emit(op.tanh(X))
    made = made_of(emit(op.reshape(bent, (24,))), scope)
    assert made is not None
    assert made.source.same_as(bent)
    scaled = emit(op.reshape(emit(op.multiply(X, relax.const(2.0))), (24,)))
    moves = made_of(scaled, scope, moves_only=True)
    assert moves is not None
    assert not moves.source.same_as(X)
