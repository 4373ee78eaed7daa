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
                lv2 = R.matmul(y, R.const(np.stack([W, W])))
                R.output(lv, lv1, lv2)
            return (lv, lv1, lv2)

    assert_left_alone(FlattenDense(), Before)


def test_axes_of_one_and_the_left_side() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 5), "float32"), y: R.Tensor((2, 7, 3), "float32"), z: R.Tensor((7,), "float32")):
            with R.dataflow():
                lv = R.matmul(x, R.const(W[None]))
                lv1 = R.matmul(R.const(W), y)
                gv = R.matmul(R.const(W), z)
                R.output(lv, lv1, gv)
            return (lv, lv1, gv)

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 5), "float32"), y: R.Tensor((2, 7, 3), "float32"), z: R.Tensor((7,), "float32")):
            with R.dataflow():
                lv = R.reshape(x, [6, 5])
                lv1 = R.matmul(lv, R.const(W))
                lv2 = R.reshape(lv1, [2, 3, 7])
                lv3 = R.permute_dims(y, [0, 2, 1])
                lv4 = R.reshape(lv3, [6, 7])
                lv5 = R.matmul(lv4, R.const(W.T))
                lv6 = R.reshape(lv5, [2, 3, 5])
                lv7 = R.permute_dims(lv6, [0, 2, 1])
                lv8 = R.reshape(lv7, [2, 5, 3])
                lv9 = R.reshape(z, [1, 7])
                lv10 = R.matmul(lv9, R.const(W.T))
                lv11 = R.reshape(lv10, [5])
                gv = R.reshape(lv11, [5])
                R.output(lv2, lv8, gv)
            return (lv2, lv8, gv)

    assert_pass(FlattenDense(), Before, Expected)


def test_rows_of_numbers_are_left_alone() -> None:
    """Angles, the products of positions with frequencies: no layer, which integers would spoil."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 1), "float32"), y: R.Tensor((2, 1, 3), "float32")):
            with R.dataflow():
                lv = R.matmul(x, R.const(W[:1][None]))
                gv = R.matmul(R.const(W[:, :1][None]), y)
                R.output(lv, gv)
            return (lv, gv)

    assert_left_alone(FlattenDense(), Before)
