"""The rewriting that every pass stands on."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import ir, relax
from tvm.script import ir as I
from tvm.script import relax as R

from hwq import relax_tools as rt


@I.ir_module
class Chain:
    @R.function
    def main(x: R.Tensor((2, 3), "float32")):
        with R.dataflow():
            lv = R.nn.relu(x)
            lv1 = R.exp(lv)
            lv2 = R.sqrt(lv)  # noqa: F841
            gv = R.add(lv1, lv1)
            R.output(gv)
        return gv


def test_a_rule_that_never_applies_returns_the_very_module() -> None:
    assert rt.rewrite(Chain, lambda value, scope: None).same_as(Chain)


def test_a_rule_sees_what_came_before_and_who_reads_it() -> None:
    seen = {}

    def rule(value: rt.Expr, scope: rt.Scope) -> None:
        data = value.args[0]
        seen[rt.op_name(value)] = (
            rt.op_name(scope.definition(data)),
            scope.readers[data],
            scope.sole_reader(data, "nn.relu"),
        )

    rt.rewrite(Chain, rule)
    assert {key: value[:2] for key, value in seen.items()} == {
        "nn.relu": ("", 1), "exp": ("nn.relu", 2), "sqrt": ("nn.relu", 2), "add": ("exp", 2),
    }  # fmt: skip
    assert all(value[2] is None for value in seen.values())


def test_a_value_may_become_a_value_a_variable_or_a_constant() -> None:
    def rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
        return {"nn.relu": lambda: value.args[0], "exp": lambda: relax.op.tanh(value.args[0])}.get(
            rt.op_name(value), lambda: None
        )()

    after = rt.rewrite(Chain, rule)
    relax.analysis.well_formed(after)
    assert [rt.op_name(value) for _, value in rt.bindings_of(after)] == ["tanh", "add"]  # the root was read by nothing
    zero = rt.const(np.zeros((2, 3), np.float32))
    after = rt.rewrite(Chain, lambda value, _: zero if rt.op_name(value) == "exp" else None)
    assert all(rt.is_const(arg) for arg in rt.bindings_of(after)[0][1].args)


def test_a_rule_without_rest_is_found() -> None:
    with pytest.raises(AssertionError, match="rest"):
        rt.rewrite(Chain, lambda value, _: relax.op.exp(value.args[0]) if rt.op_name(value) == "exp" else None)


def test_origins_live_through_a_rewriting_and_do_not_count_as_difference() -> None:
    def name_it(value: rt.Expr, _: rt.Scope) -> rt.Expr | None:
        return rt.with_origin(value, "block.1/conv") if rt.op_name(value) == "exp" and not rt.origin(value) else None

    named = rt.rewrite(Chain, name_it)
    assert [rt.origin(value) for _, value in rt.bindings_of(Chain)] == [
        ""
    ] * 4  # the parser's own spans are not taken for names
    same = rt.rewrite(Chain, lambda value, _: value if rt.op_name(value) == "exp" else None, repeat=False)
    tvm.ir.assert_structural_equal(named, same)
    again = rt.rewrite(named, lambda value, _: relax.op.multiply(*value.args) if rt.op_name(value) == "add" else None)
    assert [rt.origin(value) for _, value in rt.bindings_of(again)] == ["", "block.1/conv", ""]
    assert rt.with_origin(again["main"].params[0], "x").same_as(again["main"].params[0])


def test_tuples_are_seen_through() -> None:
    @I.ir_module
    class Pair:
        @R.function
        def main(x: R.Tensor((2, 4), "float32")):
            with R.dataflow():
                lv = R.split(x, 2, axis=1)
                lv1 = lv[0]
                lv2 = lv[1]
                gv = R.concat((lv2, lv1), 1)
                R.output(gv, lv1)
            return (gv, lv1)

    after = rt.rewrite(
        Pair,
        lambda value, _: (
            relax.op.concat(list(value.args[0].fields), 0)
            if rt.op_name(value) == "concat" and value.attrs.axis == 1
            else None
        ),
    )
    relax.analysis.well_formed(after)
    assert rt.count_uses(after)[rt.bindings_of(after)[1][0]] == 2
    pair = relax.Tuple([after["main"].params[0]] * 2)
    assert rt.substitute(relax.TupleGetItem(relax.Var("t", pair.ty), 1), {}).index == 1


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int8", "bool", "float16"])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_constants_keep_their_values_types_and_shapes(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    found = rt.value_of(rt.const(array))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)
    assert rt.scalar_of(rt.const(array)) == (None if array.size > 1 else 0.0)


def test_shapes_that_are_not_known_are_told() -> None:
    free = relax.Var("x", relax.TensorType([tvm.tirx.Var("n", "int64"), 3], "float32"))
    for expr in (free, relax.Var("y", relax.TensorType(dtype="float32", ndim=2)), relax.Var("z", relax.TupleType([]))):
        with pytest.raises(rt.NotStaticError):
            rt.shape_of(expr)
    assert rt.op_name(free) == ""
    assert rt.scalar_of(free) is None
    assert isinstance(rt.first_of((lambda *_: None, lambda value, _: value), free, rt.Scope()), ir.Var)
