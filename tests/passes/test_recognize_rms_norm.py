"""RMS norms spelled out in arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from relax_cases import assert_left_alone, assert_same_numbers, module_of
from tvm import IRModule, relax

from hwq import relax_tools as rt
from hwq.passes.recognize_rms_norm import RecognizeRMSNorm

SHAPE = (2, 3, 8)
SCALE = np.random.default_rng(3).standard_normal(8).astype(np.float32)
op = relax.op
Emit = Callable[[rt.Expr], rt.Expr]


def _number(value: float) -> rt.Expr:
    return relax.const(value, "float32")


def _module(make: Any) -> IRModule:
    return module_of(make, SHAPE)


def _mean(e: Emit, square: rt.Expr, epsilon: float = 1e-3, axis: int = -1) -> rt.Expr:
    return e(op.add(e(op.mean(e(square), [axis], True)), _number(epsilon)))


def _rsqrt(e: Emit, x: rt.Expr) -> rt.Expr:
    """As torch exports LLaMA's."""
    return e(op.multiply(x, e(op.rsqrt(_mean(e, op.power(x, _number(2.0)))))))


def _divided(e: Emit, x: rt.Expr) -> rt.Expr:
    return e(op.divide(x, e(op.sqrt(_mean(e, op.multiply(x, x), axis=2)))))


def _reciprocal(e: Emit, x: rt.Expr) -> rt.Expr:
    root = e(op.sqrt(_mean(e, op.square(x))))
    return e(op.multiply(e(op.divide(_number(1.0), root)), x))


def _power(e: Emit, x: rt.Expr) -> rt.Expr:
    return e(op.multiply(x, e(op.power(_mean(e, op.square(x)), _number(-0.5)))))


@pytest.mark.parametrize("make", [_rsqrt, _divided, _reciprocal, _power])
@pytest.mark.parametrize("scale", [True, False])
def test_one_call_remains(make: Any, scale: bool) -> None:
    before = _module(lambda e, x: e(op.multiply(rt.const(SCALE), make(e, x))) if scale else make(e, x))
    after = RecognizeRMSNorm()(before)
    relax.analysis.well_formed(after)
    ((_, value),) = rt.bindings_of(after)
    assert rt.op_name(value) == "nn.rms_norm"
    assert float(value.attrs.epsilon) == pytest.approx(1e-3, rel=1e-6)
    assert np.array_equal(rt.value_of(value.args[1]), SCALE if scale else np.ones(8))
    tvm.ir.assert_structural_equal(RecognizeRMSNorm()(after), after)
    assert_same_numbers(before, after)


def test_what_is_read_elsewhere_stays() -> None:
    def make(e: Emit, x: rt.Expr) -> list[rt.Expr]:
        y = _rsqrt(e, x)
        return [y, e(op.multiply(y, rt.const(SCALE)))]

    before = _module(make)
    after = RecognizeRMSNorm()(before)
    assert [rt.op_name(value) for _, value in rt.bindings_of(after)] == ["nn.rms_norm", "multiply"]
    assert_same_numbers(before, after)


@pytest.mark.parametrize(
    "make",
    [
        lambda e, x: e(op.divide(x, e(op.sqrt(_mean(e, op.power(x, _number(3.0))))))),
        lambda e, x: e(op.divide(x, e(op.sqrt(_mean(e, op.square(x), axis=1))))),
        lambda e, x: e(op.divide(x, e(op.sqrt(_mean(e, op.square(e(op.tanh(x)))))))),
        lambda e, x: e(op.divide(x, _mean(e, op.square(x)))),
        lambda e, x: e(op.multiply(x, e(op.sqrt(_mean(e, op.square(x)))))),
        lambda e, x: e(op.divide(x, e(op.sqrt(_mean(e, op.square(x), epsilon=-1e-3))))),
        lambda e, x: e(op.multiply(x, rt.const(SCALE))),
    ],
    ids=["cubed", "another axis", "another square", "no root", "times", "negative", "no norm"],
)
def test_what_only_looks_alike_is_left_alone(make: Any) -> None:
    assert_left_alone(RecognizeRMSNorm(), _module(make))
