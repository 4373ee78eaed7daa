"""Batch norm as one product and one sum by constants."""

from __future__ import annotations

import numpy as np
from relax_cases import assert_left_alone, assert_pass
from tvm.script import ir as I
from tvm.script import relax as R

from hwq.passes.fold_batch_norm import FoldBatchNorm

GAMMA, BETA = np.array([1.0, 2.0], "float32"), np.array([0.5, -1.0], "float32")
MEAN, VAR = np.array([3.0, 0.0], "float32"), np.array([3.0, 0.0], "float32")
# With epsilon 1 the deviations are 2 and 1: scale = gamma / deviation, shift = beta - mean * scale.
SCALE, SHIFT = np.array([0.5, 2.0], "float32"), np.array([-1.0, -1.0], "float32")


def test_batch_norm_becomes_a_product_and_a_sum() -> None:
    scale, shift = SCALE.reshape(1, 2, 1, 1), SHIFT.reshape(1, 2, 1, 1)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 3, 3), "float32")):
            with R.dataflow():
                lv = R.nn.batch_norm(
                    x, R.const(GAMMA), R.const(BETA), R.const(MEAN), R.const(VAR), axis=1, epsilon=1.0, training=False
                )
                gv = lv[0]
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 2, 3, 3), "float32")):
            with R.dataflow():
                lv = R.multiply(x, R.const(scale))
                gv = R.add(lv, R.const(shift))
                R.output(gv)
            return gv

    assert_pass(FoldBatchNorm(), Before, Expected)


def test_the_channel_axis_of_a_matrix_is_its_last() -> None:
    scale, shift = SCALE.reshape(1, 2), SHIFT.reshape(1, 2)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4, 2), "float32")):
            with R.dataflow():
                lv = R.nn.batch_norm(
                    x, R.const(GAMMA), R.const(BETA), R.const(MEAN), R.const(VAR), axis=1, epsilon=1.0, training=False
                )
                gv = lv[0]
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((4, 2), "float32")):
            with R.dataflow():
                lv = R.multiply(x, R.const(scale))
                gv = R.add(lv, R.const(shift))
                R.output(gv)
            return gv

    assert_pass(FoldBatchNorm(), Before, Expected)


def test_training_and_parameters_that_are_computed_are_left_alone() -> None:
    @I.ir_module
    class Training:
        @R.function
        def main(x: R.Tensor((1, 2, 3, 3), "float32")):
            with R.dataflow():
                lv = R.nn.batch_norm(
                    x, R.const(GAMMA), R.const(BETA), R.const(MEAN), R.const(VAR), axis=1, epsilon=1.0, training=True
                )
                gv = lv[0]
                R.output(gv)
            return gv

    @I.ir_module
    class Computed:
        @R.function
        def main(x: R.Tensor((1, 2, 3, 3), "float32"), gamma: R.Tensor((2,), "float32")):
            with R.dataflow():
                lv = R.nn.batch_norm(
                    x, gamma, R.const(BETA), R.const(MEAN), R.const(VAR), axis=1, epsilon=1.0, training=False
                )
                gv = lv[0]
                R.output(gv)
            return gv

    assert_left_alone(FoldBatchNorm(), Training)
    assert_left_alone(FoldBatchNorm(), Computed)
