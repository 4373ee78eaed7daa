"""Flattening before a dense layer permutes the weights."""

from __future__ import annotations

import numpy as np
from relax_cases import assert_left_alone, assert_pass
from tvm.script import ir as I
from tvm.script import relax as R

from hwq.passes.fold_transpose import FoldTranspose

W = np.random.default_rng(0).standard_normal((24, 3)).astype("float32")  # rows in the order (c=4, h=2, w=3)
W_LAST = np.ascontiguousarray(W.reshape(4, 6, 3).transpose(1, 0, 2).reshape(24, 3))


def test_the_weights_are_permuted() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 2, 3, 4), "float32")):
            with R.dataflow():
                lv = R.permute_dims(x, [0, 3, 1, 2])
                lv1 = R.reshape(lv, [2, 24])
                lv2 = R.nn.relu(lv1)
                gv = R.matmul(lv2, R.const(W))
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 2, 3, 4), "float32")):
            with R.dataflow():
                lv = R.reshape(x, [2, 24])
                lv1 = R.nn.relu(lv)
                gv = R.matmul(lv1, R.const(W_LAST))
                R.output(gv)
            return gv

    assert_pass(FoldTranspose(), Before, Expected)


def test_another_reader_or_another_shape_is_left_alone() -> None:
    @I.ir_module
    class Readers:
        @R.function
        def main(x: R.Tensor((2, 2, 3, 4), "float32")):
            with R.dataflow():
                lv = R.permute_dims(x, [0, 3, 1, 2])
                lv1 = R.reshape(lv, [2, 24])
                lv2 = R.matmul(lv1, R.const(W))
                gv = R.sum(lv1, [1])
                R.output(lv2, gv)
            return (lv2, gv)

    @I.ir_module
    class Rows:
        @R.function
        def main(x: R.Tensor((2, 6, 1, 8), "float32")):
            with R.dataflow():
                lv = R.permute_dims(x, [0, 3, 1, 2])
                lv1 = R.reshape(lv, [4, 24])
                gv = R.matmul(lv1, R.const(W))
                R.output(gv)
            return gv

    assert_left_alone(FoldTranspose(), Readers)
    assert_left_alone(FoldTranspose(), Rows)
