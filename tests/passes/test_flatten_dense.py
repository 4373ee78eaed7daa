"""Dense layers over tensors of any rank."""

from __future__ import annotations

import numpy as np
from relax_cases import assert_left_alone, assert_pass
from tvm.script import ir as I
from tvm.script import relax as R

from hwq.passes.flatten_dense import FlattenDense

W = np.random.default_rng(0).standard_normal((5, 7)).astype("float32")


def test_leading_axes_become_one() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 5), "float32"), y: R.Tensor((5,), "float32")):
            with R.dataflow():
                lv = R.matmul(x, R.const(W))
                gv = R.matmul(y, R.const(W))
                R.output(lv, gv)
            return (lv, gv)

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 5), "float32"), y: R.Tensor((5,), "float32")):
            with R.dataflow():
                lv = R.reshape(x, [6, 5])
                lv1 = R.matmul(lv, R.const(W))
                lv2 = R.reshape(lv1, [2, 3, 7])
                lv3 = R.reshape(y, [1, 5])
                lv4 = R.matmul(lv3, R.const(W))
                gv = R.reshape(lv4, [7])
                R.output(lv2, gv)
            return (lv2, gv)

    assert_pass(FlattenDense(), Before, Expected)


def test_matrices_and_computed_factors_are_left_alone() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 5), "float32"), y: R.Tensor((2, 3, 5), "float32"), z: R.Tensor((2, 5, 4), "float32")):
            with R.dataflow():
                lv = R.matmul(x, R.const(W))
                lv1 = R.matmul(y, z)
                lv2 = R.matmul(y, R.const(W[None]))
                R.output(lv, lv1, lv2)
            return (lv, lv1, lv2)

    assert_left_alone(FlattenDense(), Before)
