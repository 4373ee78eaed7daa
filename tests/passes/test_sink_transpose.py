"""Transposes behind dense layers."""

from __future__ import annotations

import numpy as np
from relax_cases import assert_left_alone, assert_pass
from tvm.script import ir as I
from tvm.script import relax as R

from hwq.passes.sink_transpose import SinkTranspose

W = np.random.default_rng(1).standard_normal((4, 5)).astype("float32")
B = np.arange(5, dtype="float32")


def test_dense_layer_and_bias_come_first() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4), "float32")):
            with R.dataflow():
                lv = R.permute_dims(x, [1, 0, 2])
                lv1 = R.matmul(lv, R.const(W))
                gv = R.add(R.const(B), lv1)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 4), "float32")):
            with R.dataflow():
                lv = R.matmul(x, R.const(W))
                lv1 = R.add(R.const(B), lv)
                gv = R.permute_dims(lv1, [1, 0, 2])
                R.output(gv)
            return gv

    assert_pass(SinkTranspose(), Before, Expected)


def test_other_axes_other_sums_and_other_products_are_left_alone() -> None:
    rows = np.ones((3, 1, 1), "float32")

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4), "float32"), y: R.Tensor((3, 4, 5), "float32")):
            with R.dataflow():
                a = R.permute_dims(x, [1, 0, 2])
                b = R.add(a, R.const(rows))
                c = R.add(a, R.const(1.0, "float32"))
                d = R.matmul(a, y)
                e = R.permute_dims(x, [1, 2, 0])
                f = R.matmul(e, R.const(np.ones((2, 3), "float32")))
                R.output(b, c, d, f)
            return (b, c, d, f)

    assert_left_alone(SinkTranspose(), Before)
