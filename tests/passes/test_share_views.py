"""Views and masks that are made more than once."""

from __future__ import annotations

import numpy as np
from relax_cases import assert_left_alone, assert_pass
from tvm.script import ir as I
from tvm.script import relax as R

from hwq.passes.share_views import ShareViews

W = np.random.default_rng(1).standard_normal((4, 3)).astype("float32")


def test_the_second_of_two_reads_the_first() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4), "float32")):
            with R.dataflow():
                lv = R.reshape(x, [6, 4])
                lv1 = R.matmul(lv, R.const(W))
                lv2 = R.reshape(x, [6, 4])
                lv3 = R.matmul(lv2, R.const(W))
                lv4 = R.less(x, R.const(0.0, "float32"))
                lv5 = R.where(lv4, R.const(1.0, "float32"), x)
                lv6 = R.less(x, R.const(0.0, "float32"))
                lv7 = R.where(lv6, R.const(1.0, "float32"), x)
                gv = R.multiply(lv5, lv7)
                gv1 = R.add(lv1, lv3)
                R.output(gv, gv1)
            return (gv, gv1)

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 4), "float32")):
            with R.dataflow():
                lv = R.reshape(x, [6, 4])
                lv1 = R.matmul(lv, R.const(W))
                lv3 = R.matmul(lv, R.const(W))
                lv4 = R.less(x, R.const(0.0, "float32"))
                lv5 = R.where(lv4, R.const(1.0, "float32"), x)
                gv = R.multiply(lv5, lv5)
                gv1 = R.add(lv1, lv3)
                R.output(gv, gv1)
            return (gv, gv1)

    assert_pass(ShareViews(), Before, Expected)


def test_what_differs_in_shape_axes_type_or_number_is_left_alone() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 3), "float32")):
            with R.dataflow():
                a = R.reshape(x, [9])
                b = R.reshape(x, [9, 1])
                c = R.permute_dims(x, [1, 0])
                d = R.permute_dims(c, [1, 0])
                e = R.add(x, R.const(1.0, "float32"))
                f = R.add(x, R.const(2.0, "float32"))
                g = R.astype(x, "int32")
                h = R.astype(x, "int64")
                R.output(a, b, c, d, e, f, g, h)
            return (a, b, c, d, e, f, g, h)

    assert_left_alone(ShareViews(), Before)
