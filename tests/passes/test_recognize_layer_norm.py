"""Layer norms spelled out in arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from relax_cases import assert_left_alone, assert_same_numbers, module_of
from tvm import IRModule, relax

from hwq import relax_tools as rt
from hwq.passes.recognize_layer_norm import RecognizeLayerNorm

SHAPE = (2, 3, 8)
GAMMA, BETA = np.random.default_rng(3).standard_normal((2, 8)).astype(np.float32)
op = relax.op
Emit = Callable[[rt.Expr], rt.Expr]


def _number(value: float) -> rt.Expr:
    return relax.const(value, "float32")


def _module(make: Any) -> IRModule:
    return module_of(make, SHAPE)


def _centred(e: Emit, x: rt.Expr, axis: int = -1, keep: bool = True) -> rt.Expr:
    return e(op.subtract(x, e(op.mean(x, [axis], keep))))


def _variance(e: Emit, square: rt.Expr, epsilon: float = 1e-3, axis: int = 2) -> rt.Expr:
    return e(op.add(e(op.mean(e(square), [axis], True)), _number(epsilon)))


def _power(e: Emit, x: rt.Expr) -> rt.Expr:
    """As torch exports it."""
    d = _centred(e, x)
    return e(op.divide(d, e(op.sqrt(_variance(e, op.power(d, _number(2.0)))))))


def _product(e: Emit, x: rt.Expr) -> rt.Expr:
    d = _centred(e, x, 2)
    return e(op.multiply(e(op.rsqrt(_variance(e, op.multiply(d, d)))), d))


def _apart(e: Emit, x: rt.Expr) -> rt.Expr:
    """With a difference for the variance of its own, and a reciprocal."""
    root = e(op.sqrt(_variance(e, op.square(_centred(e, x)))))
    return e(op.multiply(_centred(e, x), e(op.divide(_number(1.0), root))))


def _affine(e: Emit, y: rt.Expr) -> rt.Expr:
    return e(op.add(rt.const(BETA), e(op.multiply(y, rt.const(GAMMA)))))


@pytest.mark.parametrize("make", [_power, _product, _apart])
@pytest.mark.parametrize("affine", [True, False])
def test_one_call_remains(make: Any, affine: bool) -> None:
    before = _module(lambda e, x: _affine(e, make(e, x)) if affine else make(e, x))
    after = RecognizeLayerNorm()(before)
    relax.analysis.well_formed(after)
    ((_, value),) = rt.bindings_of(after)
    assert rt.op_name(value) == "nn.layer_norm"
    assert float(value.attrs.epsilon) == pytest.approx(1e-3, rel=1e-6)
    gamma, beta = (rt.value_of(arg) for arg in value.args[1:])
    assert np.array_equal(gamma, GAMMA if affine else np.ones(8))
    assert np.array_equal(beta, BETA if affine else np.zeros(8))
    tvm.ir.assert_structural_equal(RecognizeLayerNorm()(after), after)
    assert_same_numbers(before, after)


def test_what_is_read_elsewhere_stays() -> None:
    def make(e: Emit, x: rt.Expr) -> list[rt.Expr]:
        y = _power(e, x)
        return [y, _affine(e, y)]

    before = _module(make)
    after = RecognizeLayerNorm()(before)
    assert [rt.op_name(value) for _, value in rt.bindings_of(after)] == ["nn.layer_norm", "multiply", "add"]
    assert_same_numbers(before, after)


@pytest.mark.parametrize(
    "make",
    [
        lambda e, x: e(op.divide(_centred(e, x), e(op.sqrt(_variance(e, op.square(x)))))),
        lambda e, x: e(
            op.divide(d := _centred(e, x, 1), e(op.sqrt(_variance(e, op.square(d), axis=1)))),
        ),
        lambda e, x: e(op.divide(d := _centred(e, x), e(op.sqrt(_variance(e, op.square(d), axis=1))))),
        lambda e, x: e(op.divide(d := _centred(e, x), e(op.sqrt(_variance(e, op.power(d, _number(3.0))))))),
        lambda e, x: e(op.divide(d := _centred(e, x), _variance(e, op.square(d)))),
        lambda e, x: e(op.divide(d := _centred(e, x), e(op.sqrt(_variance(e, op.square(d), -1.0))))),
        lambda e, x: e(op.multiply(d := _centred(e, x), e(op.sqrt(_variance(e, op.square(d)))))),
        lambda e, x: _affine(e, x),
    ],
    ids=["another square", "another axis", "two axes", "cubed", "no root", "negative", "times", "no norm"],
)
def test_what_only_looks_alike_is_left_alone(make: Any) -> None:
    assert_left_alone(RecognizeLayerNorm(), _module(make))
