"""Activations spelled out in arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tvm
from relax_cases import assert_left_alone, assert_same_numbers, module_of
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from hwq import relax_tools as rt
from hwq.graph import Activation
from hwq.layer_ops import activation_of
from hwq.passes.recognize_activations import RecognizeActivations

SHAPE = (1, 3, 4, 4)
op, INF = relax.op, math.inf


def _number(value: float) -> rt.Expr:
    return relax.const(value, "float32")


def _hard_gate(e: Any, x: rt.Expr) -> rt.Expr:
    return e(op.clip(e(op.add(x, _number(3.0))), 0.0, 6.0))


def _gelu(e: Any, x: rt.Expr, order: int) -> rt.Expr:
    erf = e(op.add(e(op.erf(e(op.divide(x, _number(math.sqrt(2.0)))))), _number(1.0)))
    if order == 0:
        return e(op.multiply(e(op.multiply(x, erf)), _number(0.5)))
    return e(op.multiply(e(op.multiply(_number(0.5), x)), erf))


def _gelu_tanh(e: Any, x: rt.Expr, cube: rt.Expr, *, outside: bool) -> rt.Expr:
    """As GPT-2 spells it, or with the root inside of the brackets."""
    root, small = math.sqrt(2 / math.pi), 0.044715
    if outside:
        inner = e(op.multiply(_number(root), e(op.add(x, e(op.multiply(cube, _number(small)))))))
    else:
        inner = e(op.add(e(op.multiply(_number(root), x)), e(op.multiply(_number(root * small), cube))))
    return e(op.multiply(e(op.multiply(x, _number(0.5))), e(op.add(_number(1.0), e(op.tanh(inner))))))


SPELLINGS: list[tuple[str, Activation, Any]] = [
    ("relu by maximum", Activation(kind="relu"), lambda e, x: e(op.maximum(x, _number(0.0)))),
    ("relu by clip", Activation(kind="relu"), lambda e, x: e(op.clip(x, 0.0, INF))),
    (
        "min of max", Activation(kind="clip", lo=-1.0, hi=2.0),
        lambda e, x: e(op.minimum(e(op.maximum(x, _number(-1.0))), _number(2.0))),
    ),
    ("clip of relu", Activation(kind="clip", lo=0.0, hi=6.0), lambda e, x: e(op.clip(e(op.nn.relu(x)), -INF, 6.0))),
    ("prelu", Activation(kind="leaky_relu", alpha=0.25), lambda e, x: e(op.nn.prelu(x, rt.const(np.full(3, 0.25,
    "float32")), 1))), ("max of slopes", Activation(kind="leaky_relu", alpha=0.125), lambda e, x: e(op.maximum(x,
    e(op.multiply(x, _number(0.125)))))), ("silu", Activation(kind="silu"), lambda e, x: e(op.multiply(e(op.sigmoid(x)),
    x))), ("gelu", Activation(kind="gelu"), lambda e, x: _gelu(e, x, 0)), ("gelu, half first", Activation(kind="gelu"),
    lambda e, x: _gelu(e, x, 1)), (
        "gelu by tanh, a power", Activation(kind="gelu_tanh"),
        lambda e, x: _gelu_tanh(e, x, e(op.power(x, _number(3.0))), outside=True),
    ),
    (
        "gelu by tanh, products", Activation(kind="gelu_tanh"),
        lambda e, x: _gelu_tanh(e, x, e(op.multiply(e(op.multiply(x, x)), x)), outside=False),
    ), (
        "hard sigmoid", Activation(kind="hard_sigmoid", alpha=0.25, beta=0.5),
        lambda e, x: e(op.clip(e(op.add(e(op.multiply(_number(0.25), x)), _number(0.5))), 0.0, 1.0)),
    ),
    ("gate over 6", Activation(kind="hard_sigmoid", alpha=1 / 6, beta=0.5), lambda e, x: e(op.divide(_hard_gate(e, x),
    _number(6.0)))), ("hard swish", Activation(kind="hard_swish"), lambda e, x: e(op.multiply(x,
    e(op.divide(_hard_gate(e, x), _number(6.0)))))), ("hard swish, 6 last", Activation(kind="hard_swish"), lambda e, x:
    e(op.divide(e(op.multiply(x, _hard_gate(e, x))), _number(6.0)))), (
        "hard swish, times a sixth", Activation(kind="hard_swish"),
        lambda e, x: e(op.multiply(e(op.multiply(_hard_gate(e, x), x)), _number(1 / 6))),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("activation", "make"), [case[1:] for case in SPELLINGS], ids=[case[0] for case in SPELLINGS])
def test_one_call_remains(activation: Activation, make: Any) -> None:
    before = module_of(make, SHAPE)
    after = RecognizeActivations()(before)
    relax.analysis.well_formed(after)
    ((_, value),) = rt.bindings_of(after)
    found = activation_of(after, value)
    assert found is not None
    assert found.kind == activation.kind
    np.testing.assert_allclose([found.alpha, found.beta], [activation.alpha, activation.beta], rtol=1e-6)
    if activation.kind == "clip":
        assert (found.lo, found.hi) == (activation.lo, activation.hi)
    tvm.ir.assert_structural_equal(RecognizeActivations()(after), after)
    assert_same_numbers(before, after)


def test_hard_swish_is_a_private_function() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                lv = R.add(x, R.const(3.0, "float32"))
                lv1 = R.clip(lv, R.prim_value(0.0), R.prim_value(6.0))
                lv2 = R.divide(lv1, R.const(6.0, "float32"))
                gv = R.multiply(x, lv2)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function(private=True)
        def hard_swish(x: R.Tensor(("a", "b"), "float32")):
            R.func_attr({"activation": "hard_swish"})
            with R.dataflow():
                lv = R.add(x, R.const(3.0, "float32"))
                lv1 = R.clip(lv, R.prim_value(0.0), R.prim_value(6.0))
                lv2 = R.multiply(x, lv1)
                gv = R.divide(lv2, R.const(6.0, "float32"))
                R.output(gv)
            return gv

        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            cls = Expected
            with R.dataflow():
                gv: R.Tensor((2, 3), "float32") = cls.hard_swish(x)
                R.output(gv)
            return gv

    after = RecognizeActivations()(Before)
    tvm.ir.assert_structural_equal(after["main"].body.blocks[0].bindings[0].var.ty, Expected["main"].ret_ty)
    functions = {gvar.name_hint: func for gvar, func in after.functions.items()}
    assert sorted(functions) == ["hard_swish", "main"]
    tvm.ir.assert_structural_equal(functions["hard_swish"], Expected["hard_swish"], map_free_vars=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda e, x: [e(op.multiply(x, s := e(op.sigmoid(x)))), s],
        lambda e, x: e(op.multiply(e(op.nn.relu(x)), e(op.sigmoid(x)))),
        lambda e, x: e(op.maximum(x, e(op.multiply(x, _number(1.5))))),
        lambda e, x: e(op.divide(e(op.clip(e(op.add(x, _number(3.0))), 0.0, 5.0)), _number(6.0))),
        lambda e, x: e(op.nn.prelu(x, rt.const(np.array([0.1, 0.2, 0.3], "float32")), 1)),
        lambda e, x: e(op.multiply(e(op.nn.relu(x)), e(op.divide(_hard_gate(e, x), _number(7.0))))),
    ],
    ids=["read twice", "another tensor", "steep", "not up to 6", "slopes", "over 7"],
)
def test_what_only_looks_alike_is_left_alone(make: Any) -> None:
    assert_left_alone(RecognizeActivations(), module_of(make, SHAPE))
