"""Reshapes behind elementwise operators."""

from __future__ import annotations

import numpy as np
from relax_cases import assert_left_alone, assert_pass
from tvm.script import ir as I
from tvm.script import relax as R

from hwq.passes.sink_reshape import SinkReshape

B = np.arange(4, dtype="float32")


def test_bias_activation_and_sum_come_before_the_reshape() -> None:
    row, plane = B.reshape(4, 1), B.reshape(1, 4, 1, 1)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4, 1, 5), "float32"), y: R.Tensor((2, 4, 1, 5), "float32")):
            with R.dataflow():
                lv = R.reshape(x, [2, 4, 5])
                lv1 = R.add(lv, R.const(row))
                lv2 = R.reshape(y, [2, 4, 5])
                lv3 = R.add(lv1, lv2)
                lv4 = R.multiply(lv3, R.const(2.0, "float32"))
                gv = R.clip(lv4, R.prim_value(0.0), R.prim_value(6.0))
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 4, 1, 5), "float32"), y: R.Tensor((2, 4, 1, 5), "float32")):
            with R.dataflow():
                lv = R.add(x, R.const(plane))
                lv1 = R.add(lv, y)
                lv2 = R.multiply(lv1, R.const(2.0, "float32"))
                lv3 = R.clip(lv2, R.prim_value(0.0), R.prim_value(6.0))
                gv = R.reshape(lv3, [2, 4, 5])
                R.output(gv)
            return gv

    assert_pass(SinkReshape(), Before, Expected)


def test_a_constant_without_its_axis_and_tensors_of_other_shapes_are_left_alone() -> None:
    table = np.ones((2, 4, 5), "float32")

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 20), "float32"), y: R.Tensor((8, 5), "float32"), z: R.Tensor((2, 4, 5), "float32")):
            with R.dataflow():
                lv = R.reshape(x, [2, 4, 5])
                lv1 = R.add(lv, R.const(B.reshape(4, 1)))
                lv2 = R.reshape(y, [2, 4, 5])
                lv3 = R.add(lv, lv2)
                lv4 = R.multiply(lv2, R.const(table))
                lv5 = R.multiply(lv2, z)
                R.output(lv1, lv3, lv4, lv5)
            return (lv1, lv3, lv4, lv5)

    assert_left_alone(SinkReshape(), Before)


W = np.random.default_rng(1).standard_normal((4, 4)).astype("float32")


def test_a_residual_is_read_in_the_dense_layers_shape() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((6, 4), "float32"), y: R.Tensor((2, 3, 4), "float32")):
            with R.dataflow():
                lv = R.matmul(x, R.const(W))
                lv1 = R.add(lv, R.const(B))
                lv2 = R.reshape(lv1, [2, 3, 4])
                gv = R.add(y, lv2)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((6, 4), "float32"), y: R.Tensor((2, 3, 4), "float32")):
            with R.dataflow():
                lv = R.matmul(x, R.const(W))
                lv1 = R.add(lv, R.const(B))
                lv2 = R.reshape(y, [6, 4])
                lv3 = R.add(lv2, lv1)
                gv = R.reshape(lv3, [2, 3, 4])
                R.output(gv)
            return gv

    assert_pass(SinkReshape(), Before, Expected)


def test_sums_that_are_no_residual_are_left_alone() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((6, 4), "float32"), y: R.Tensor((2, 3, 4), "float32"), z: R.Tensor((4,), "float32")):
            with R.dataflow():
                lv = R.matmul(x, R.const(W))
                lv1 = R.reshape(lv, [2, 3, 4])
                lv2 = R.add(lv1, z)  # another shape
                lv3 = R.multiply(lv1, y)  # no sum
                lv4 = R.reshape(x, [2, 3, 4])
                lv5 = R.add(lv4, y)  # no dense layer
                R.output(lv2, lv3, lv5)
            return (lv2, lv3, lv5)

    assert_left_alone(SinkReshape(), Before)
