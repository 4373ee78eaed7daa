"""Products and sums by constants go into convolutions and dense layers."""

from __future__ import annotations

import numpy as np
import pytest
from relax_cases import assert_left_alone, assert_pass
from tvm.script import ir as I
from tvm.script import relax as R

from hwq.passes.fold_scale import FoldScale

RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 2, 3, 3)).astype("float32")
# Powers of two scale float32 weights without rounding, so that Expected holds the very same constants.
S = np.array([0.5, 2.0, 4.0, 1.0], "float32").reshape(1, 4, 1, 1)
T = np.array([1.0, 2.0, 3.0, 4.0], "float32").reshape(1, 4, 1, 1)
S2, T2 = np.array([2.0, 0.25], "float32").reshape(1, 2, 1, 1), np.array([1.0, -2.0], "float32").reshape(1, 2, 1, 1)
M = RNG.integers(-4, 5, (3, 5)).astype("float32")


def test_behind_a_convolution() -> None:
    scaled = W * S.reshape(4, 1, 1, 1)
    shift = T * S + T

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 5, 5), "float32")):
            with R.dataflow():
                lv = R.nn.conv2d(x, R.const(W), padding=[1, 1, 1, 1])
                lv1 = R.add(lv, R.const(T))
                lv2 = R.multiply(R.const(S), lv1)
                gv = R.add(lv2, R.const(T))
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 2, 5, 5), "float32")):
            with R.dataflow():
                lv = R.nn.conv2d(x, R.const(scaled), padding=[1, 1, 1, 1])
                gv = R.add(lv, R.const(shift))
                R.output(gv)
            return gv

    assert_pass(FoldScale(), Before, Expected)


def test_before_a_convolution_without_padding() -> None:
    scaled = W * S2.reshape(1, 2, 1, 1)
    shift = (W.astype("float64") * T2.reshape(1, 2, 1, 1)).sum((1, 2, 3)).astype("float32").reshape(1, 4, 1, 1)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 5, 5), "float32")):
            with R.dataflow():
                lv = R.multiply(x, R.const(S2))
                lv1 = R.add(lv, R.const(T2))
                gv = R.nn.conv2d(lv1, R.const(W))
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 2, 5, 5), "float32")):
            with R.dataflow():
                lv = R.nn.conv2d(x, R.const(scaled))
                gv = R.add(lv, R.const(shift))
                R.output(gv)
            return gv

    assert_pass(FoldScale(), Before, Expected)


def test_before_a_padded_convolution_only_the_product() -> None:
    scaled = W * S2.reshape(1, 2, 1, 1)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 5, 5), "float32")):
            with R.dataflow():
                lv = R.add(x, R.const(T2))
                lv1 = R.multiply(lv, R.const(S2))
                gv = R.nn.conv2d(lv1, R.const(W), padding=[1, 1, 1, 1])
                R.output(gv)
            return gv

    @I.ir_module
    class Product:
        @R.function
        def main(x: R.Tensor((1, 2, 5, 5), "float32")):
            with R.dataflow():
                lv = R.multiply(x, R.const(S2))
                gv = R.nn.conv2d(lv, R.const(W), padding=[1, 1, 1, 1])
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 2, 5, 5), "float32")):
            with R.dataflow():
                gv = R.nn.conv2d(x, R.const(scaled), padding=[1, 1, 1, 1])
                R.output(gv)
            return gv

    assert_pass(FoldScale(), Product, Expected)
    after = FoldScale()(Before)
    assert "R.add(" in after.script()


def test_a_grouped_convolution_takes_each_group_its_own() -> None:
    weight = RNG.standard_normal((6, 2, 1, 1)).astype("float32")
    scaled = weight * np.repeat(S.reshape(2, 2), 3, axis=0).reshape(6, 2, 1, 1)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 5, 5), "float32")):
            with R.dataflow():
                lv = R.multiply(x, R.const(S))
                gv = R.nn.conv2d(lv, R.const(weight), groups=2)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4, 5, 5), "float32")):
            with R.dataflow():
                gv = R.nn.conv2d(x, R.const(scaled), groups=2)
                R.output(gv)
            return gv

    assert_pass(FoldScale(), Before, Expected)


def test_around_a_dense_layer() -> None:
    before, after = np.array([0.5, 2.0, 1.0], "float32"), np.array([[1.0, 2.0, 4.0, 0.5, 1.0]], "float32")
    weight = M * before.reshape(3, 1) * after
    shift = (M * after).sum(0, keepdims=True)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                lv = R.multiply(x, R.const(before))
                lv1 = R.subtract(lv, R.const(-1.0, "float32"))
                lv2 = R.matmul(lv1, R.const(M))
                gv = R.multiply(lv2, R.const(after))
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                lv = R.matmul(x, R.const(weight))
                gv = R.add(lv, R.const(shift))
                R.output(gv)
            return gv

    assert_pass(FoldScale(), Before, Expected)


def test_a_division_is_a_product() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 5, 5), "float32")):
            with R.dataflow():
                lv = R.divide(x, R.const(4.0, "float32"))
                lv1 = R.subtract(R.const(1.0, "float32"), lv)
                gv = R.nn.relu(lv1)
                R.output(gv)
            return gv

    quarter, one = np.full((1, 2, 1, 1), -0.25, "float32"), np.array(1.0, "float32")

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 2, 5, 5), "float32")):
            with R.dataflow():
                lv = R.multiply(x, R.const(quarter))
                lv1 = R.add(lv, R.const(one))
                gv = R.nn.relu(lv1)
                R.output(gv)
            return gv

    assert_pass(FoldScale(), Before, Expected)


@pytest.mark.parametrize("case", ["two readers", "whole tensor", "grows", "between two tensors"])
def test_left_alone(case: str) -> None:
    plane, batch = np.ones((1, 4, 5, 5), "float32") * 2, np.ones((2, 4, 1, 1), "float32")

    @I.ir_module
    class TwoReaders:
        @R.function
        def main(x: R.Tensor((1, 2, 7, 7), "float32")):
            with R.dataflow():
                lv = R.nn.conv2d(x, R.const(W))
                lv1 = R.multiply(lv, R.const(S))
                gv = R.add(lv, lv1)
                R.output(gv)
            return gv

    @I.ir_module
    class WholeTensor:
        @R.function
        def main(x: R.Tensor((1, 2, 7, 7), "float32")):
            with R.dataflow():
                lv = R.nn.conv2d(x, R.const(W))
                gv = R.multiply(lv, R.const(plane))
                R.output(gv)
            return gv

    @I.ir_module
    class Grows:
        @R.function
        def main(x: R.Tensor((1, 2, 7, 7), "float32")):
            with R.dataflow():
                lv = R.nn.conv2d(x, R.const(W))
                gv = R.multiply(lv, R.const(batch))
                R.output(gv)
            return gv

    @I.ir_module
    class BetweenTensors:
        @R.function
        def main(x: R.Tensor((1, 2, 7, 7), "float32"), s: R.Tensor((1, 4, 1, 1), "float32")):
            with R.dataflow():
                lv = R.nn.conv2d(x, R.const(W))
                gv = R.multiply(lv, s)
                R.output(gv)
            return gv

    cases = {
        "two readers": TwoReaders,
        "whole tensor": WholeTensor,
        "grows": Grows,
        "between two tensors": BetweenTensors,
    }
    assert_left_alone(FoldScale(), cases[case])


def test_constants_of_any_axes_that_are_added_one_after_another_are_one() -> None:
    places, kind = RNG.integers(-4, 5, (5, 4)).astype("float32"), RNG.integers(-4, 5, (1, 1, 4)).astype("float32")
    both = places + kind

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 5, 4), "float32")):
            with R.dataflow():
                lv = R.add(x, R.const(kind))
                gv = R.add(lv, R.const(places))
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 5, 4), "float32")):
            with R.dataflow():
                gv = R.add(x, R.const(both))
                R.output(gv)
            return gv

    assert_pass(FoldScale(), Before, Expected)
