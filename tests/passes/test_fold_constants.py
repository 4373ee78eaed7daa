"""Operators on constants are evaluated."""

from __future__ import annotations

import numpy as np
import pytest
from relax_cases import assert_left_alone, assert_pass
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from hwq import relax_tools as rt
from hwq.passes.fold_constants import FoldConstants

B = np.arange(6, dtype="float32")


def test_a_chain_on_a_constant_is_one_constant() -> None:
    folded = (B.reshape(3, 2).T * 2)[None]

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 3), "float32")):
            with R.dataflow():
                lv = R.reshape(R.const(B), [3, 2])
                lv1 = R.permute_dims(lv, [1, 0])
                lv2 = R.multiply(lv1, R.const(2.0, "float32"))
                lv3 = R.expand_dims(lv2, [0])
                gv = R.add(x, lv3)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 2, 3), "float32")):
            with R.dataflow():
                gv = R.add(x, R.const(folded))
                R.output(gv)
            return gv

    assert_pass(FoldConstants(), Before, Expected)


def test_the_shape_of_a_tensor_is_a_constant() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                lv = R.shape_of(x)
                lv1: R.Tensor((2,), "int64") = R.shape_to_tensor(lv)
                lv2 = R.astype(lv1, "float32")
                lv3 = R.take(lv2, R.const(np.array([0, 1, 1])), axis=0)
                gv = R.multiply(x, lv3)
                R.output(gv)
            return gv

    after = FoldConstants()(Before)
    assert [rt.op_name(value) for _, value in rt.bindings_of(after)] == ["multiply"]
    np.testing.assert_array_equal(rt.value_of(rt.bindings_of(after)[0][1].args[1]), [2, 3, 3])


@pytest.mark.parametrize(
    "op", ["add", "subtract", "divide", "maximum", "minimum", "sqrt", "negative", "exp", "abs", "nn.relu"]
)
def test_values_are_those_of_numpy(op: str) -> None:
    rng = np.random.default_rng(0)
    arrays = [
        rng.uniform(0.5, 2.0, (2, 3)).astype("float32")
        for _ in range(1 if op in ("sqrt", "negative", "exp", "abs", "nn.relu") else 2)
    ]
    make = relax.op.nn.relu if op == "nn.relu" else getattr(relax.op, op)
    params = [relax.Var(f"p{i}", relax.TensorType((2, 3), "float32")) for i in range(len(arrays))]

    builder = relax.BlockBuilder()
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(relax.op.add(params[0], builder.emit(make(*map(rt.const, arrays)))))
        builder.emit_func_output(out)
    folded = rt.bindings_of(FoldConstants()(builder.get()))
    assert [rt.op_name(value) for _, value in folded] == ["add"]
    numpy = {"nn.relu": lambda x: np.maximum(x, 0)}.get(op) or getattr(np, op)
    np.testing.assert_array_equal(rt.value_of(folded[0][1].args[1]), numpy(*arrays))


def test_an_operator_without_a_numpy_form_is_left_alone() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((6,), "float32")):
            with R.dataflow():
                lv = R.erf(R.const(B))
                lv1 = R.cumsum(R.const(B), axis=0, exclusive=True)
                lv2 = R.add(lv, lv1)
                gv = R.add(x, lv2)
                R.output(gv)
            return gv

    assert_left_alone(FoldConstants(), Before)


def test_what_is_made_of_numbers_and_parts_of_a_split_are_constants() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                lv = R.split(R.const(B), 2, axis=0)
                lv1 = lv[1]
                lv2 = R.arange(0, 2, 1, dtype="float32")
                lv3 = R.expand_dims(R.cos(lv2), [1])
                lv4 = R.multiply(lv3, lv1)
                gv = R.add(x, lv4)
                R.output(gv)
            return gv

    table = np.cos(np.arange(2, dtype="float32"))[:, None] * B[3:]

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                gv = R.add(x, R.const(table))
                R.output(gv)
            return gv

    assert_pass(FoldConstants(), Before, Expected)
