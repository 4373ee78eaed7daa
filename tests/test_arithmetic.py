"""What values are in arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
from tvm import relax

from hwq import relax_tools as rt
from hwq.arithmetic import (
    added_number,
    inverse_root_of,
    mean_of,
    orders,
    polynomial,
    root_of,
    scaled,
    square_of,
    under_root,
)

op = relax.op
X = relax.Var("x", relax.TensorType((2, 4), "float32"))
Y = relax.Var("y", relax.TensorType((2, 4), "float32"))


def _number(value: float) -> rt.Expr:
    return relax.const(value, "float32")


def _made(scope: rt.Scope, call: rt.Expr) -> Any:
    return scope.definition(scope.emit(call))


@pytest.mark.parametrize(
    ("call", "factor"),
    [
        (op.multiply(_number(3.0), X), 3.0),
        (op.divide(X, _number(4.0)), 0.25),
        (op.negative(X), -1.0),
        (op.divide(_number(4.0), X), None),
        (op.divide(X, _number(0.0)), None),
        (op.multiply(X, Y), None),
        (op.add(X, _number(2.0)), None),
        (op.multiply(relax.Var("row", relax.TensorType((4,), "float32")), relax.const([[2.0]], "float32")), None),
    ],
)
def test_products_with_numbers(call: rt.Expr, factor: float | None) -> None:
    found = scaled(_made(rt.Scope(), call))
    assert (found is None) == (factor is None)
    assert found is None or (found[0].same_as(X) and found[1] == factor)


def test_sums_with_numbers_and_orders() -> None:
    scope = rt.Scope()
    found = added_number(_made(scope, op.add(_number(2.0), X)))
    assert found is not None
    assert (found[0].same_as(X), found[1]) == (True, 2.0)
    assert added_number(_made(scope, op.add(X, Y))) is None
    assert added_number(_made(scope, op.multiply(X, _number(2.0)))) is None
    assert [len(orders(_made(scope, call))) for call in (op.add(X, Y), op.subtract(X, Y))] == [2, 1]


def test_squares_roots_and_means() -> None:
    scope = rt.Scope()
    emit = scope.emit
    for call in (op.square(X), op.multiply(X, X), op.power(X, _number(2.0))):
        assert square_of(emit(call), scope).same_as(X)
    for call in (op.multiply(X, Y), op.power(X, _number(3.0))):
        assert square_of(emit(call), scope) is None
    for call in (op.sqrt(X), op.power(X, _number(0.5))):
        assert root_of(emit(call), scope).same_as(X)
    root = emit(op.sqrt(X))
    inverses = (op.rsqrt(X), op.power(X, _number(-0.5)), op.divide(_number(1.0), root), op.power(root, _number(-1.0)))
    for call in inverses:
        assert inverse_root_of(emit(call), scope).same_as(X)
    assert inverse_root_of(emit(op.divide(_number(2.0), root)), scope) is None
    assert mean_of(emit(op.mean(X, [-1], True)), scope).same_as(X)
    for call in (op.mean(X, [0], True), op.mean(X, [-1], False), op.sum(X, [-1], True)):
        assert mean_of(emit(call), scope) is None


def test_quotients_by_roots() -> None:
    scope = rt.Scope()
    root, inverse = scope.emit(op.sqrt(X)), scope.emit(op.rsqrt(X))
    for call in (op.divide(Y, root), op.multiply(Y, inverse), op.multiply(inverse, Y)):
        ((data, inner),) = under_root(_made(scope, call), scope)
        assert data.same_as(Y)
        assert inner.same_as(X)
    assert not under_root(_made(scope, op.multiply(Y, root)), scope)


def test_polynomials() -> None:
    scope = rt.Scope()
    emit = scope.emit
    cube = emit(op.multiply(emit(op.square(X)), X))
    difference = emit(op.subtract(emit(op.power(X, _number(3.0))), emit(op.multiply(cube, _number(3.0)))))
    whole = emit(op.divide(difference, _number(2.0)))
    assert polynomial(whole, X, scope) == {3: -1.0}
    assert polynomial(emit(op.add(X, _number(2.0))), X, scope) == {0: 2.0, 1: 1.0}
    for call in (op.tanh(X), op.divide(_number(1.0), X), op.add(X, Y), op.power(X, _number(0.5))):
        assert polynomial(emit(call), X, scope) is None
    high = emit(op.power(emit(op.power(X, _number(3.0))), _number(3.0)))
    assert polynomial(high, X, scope) is None
