"""Broadcasts behind elementwise operators."""

from __future__ import annotations

import numpy as np
from relax_cases import assert_left_alone, assert_pass
from tvm.script import ir as I
from tvm.script import relax as R

from hwq.passes.sink_broadcast import SinkBroadcast

LEAST = np.array(-1e4, "float32")


def test_a_mask_keeps_its_shape() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(m: R.Tensor((2, 1, 1, 5), "float32"), s: R.Tensor((2, 3, 4, 5), "float32")):
            with R.dataflow():
                lv = R.broadcast_to(m, [2, 1, 4, 5])
                lv1 = R.subtract(R.const(1.0, "float32"), lv)
                lv2 = R.multiply(lv1, R.const(LEAST))
                lv3 = R.nn.softmax(lv2)
                gv = R.add(s, lv2)
                R.output(lv3, gv)
            return (lv3, gv)

    @I.ir_module
    class Expected:
        @R.function
        def main(m: R.Tensor((2, 1, 1, 5), "float32"), s: R.Tensor((2, 3, 4, 5), "float32")):
            with R.dataflow():
                lv = R.subtract(R.const(1.0, "float32"), m)
                lv1 = R.multiply(lv, R.const(LEAST))
                lv2 = R.broadcast_to(lv1, [2, 1, 4, 5])
                lv3 = R.nn.softmax(lv2)
                gv = R.add(s, lv1)
                R.output(lv3, gv)
            return (lv3, gv)

    assert_pass(SinkBroadcast(), Before, Expected)


def test_choices_and_ranks_that_grow() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(m: R.Tensor((5,), "float32"), n: R.Tensor((4, 1), "float32")):
            with R.dataflow():
                lv = R.broadcast_to(m, [2, 4, 5])
                lv1 = R.broadcast_to(n, [2, 4, 5])
                lv2 = R.less(lv, lv1)
                gv = R.where(lv2, lv, R.const(0.0, "float32"))
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(m: R.Tensor((5,), "float32"), n: R.Tensor((4, 1), "float32")):
            with R.dataflow():
                lv = R.less(m, n)
                lv1 = R.where(lv, m, R.const(0.0, "float32"))
                gv = R.broadcast_to(lv1, [2, 4, 5])
                R.output(gv)
            return gv

    assert_pass(SinkBroadcast(), Before, Expected)


def test_what_is_no_elementwise_operator_is_left_alone() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(m: R.Tensor((1, 5), "float32"), n: R.Tensor((5, 4), "float32")):
            with R.dataflow():
                lv = R.broadcast_to(m, [3, 5])
                lv1 = R.matmul(lv, n)
                gv = R.add(lv1, R.const(1.0, "float32"))
                R.output(gv)
            return gv

    assert_left_alone(SinkBroadcast(), Before)
