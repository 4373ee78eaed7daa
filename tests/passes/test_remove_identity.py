"""What does nothing is dropped."""

from __future__ import annotations

import numpy as np
import tvm
from relax_cases import assert_left_alone, assert_pass
from tvm.script import ir as I
from tvm.script import relax as R

from hwq.passes.remove_identity import RemoveIdentity

ZEROS, ONES = np.zeros((3, 1, 1), "float32"), np.ones((1, 3, 1, 1), "float32")


def test_all_that_does_nothing_is_dropped() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3, 4, 4), "float32")):
            with R.dataflow():
                lv = R.nn.dropout(x, 0.5)
                lv1 = lv[0]
                lv2 = R.reshape(lv1, [1, 3, 4, 4])
                lv3 = R.permute_dims(lv2, [0, 1, 2, 3])
                lv4 = R.nn.pad(lv3, [0, 0, 0, 0, 0, 0, 0, 0])
                lv5 = R.strided_slice(lv4, [1], [0], [3], [1])
                lv6 = R.add(lv5, R.const(ZEROS))
                lv7 = R.multiply(lv6, R.const(ONES))
                lv8 = R.concat([lv7], 1)
                lv9 = R.nn.max_pool2d(lv8, [1, 1])
                lv10 = R.clip(lv9, R.prim_value(float("-inf")), R.prim_value(float("inf")))
                lv11 = R.astype(lv10, "float32")
                gv = R.nn.relu(lv11)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 3, 4, 4), "float32")):
            with R.dataflow():
                gv = R.nn.relu(x)
                R.output(gv)
            return gv

    assert_pass(RemoveIdentity(), Before, Expected, numbers=False)  # a dropout has no kernel to compare with


def test_changes_of_shape_become_one_reshape() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3, 4, 1), "float32")):
            with R.dataflow():
                lv = R.squeeze(x, [3])
                lv1 = R.expand_dims(lv, [1])
                lv2 = R.permute_dims(lv1, [1, 0, 2, 3])
                gv = R.reshape(lv2, [12])
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 3, 4, 1), "float32")):
            with R.dataflow():
                gv = R.reshape(x, [12])
                R.output(gv)
            return gv

    assert_pass(RemoveIdentity(), Before, Expected)


def test_what_changes_anything_is_left_alone() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3, 4, 4), "float32")):
            with R.dataflow():
                lv = R.add(x, R.const(np.zeros((2, 3, 4, 4), "float32")))  # spreads x over a batch of 2
                lv1 = R.strided_slice(lv, [3], [3], [-5], [-1])  # turns x around
                lv2 = R.permute_dims(lv1, [0, 1, 3, 2])
                lv3 = R.nn.max_pool2d(lv2, [1, 1], padding=[1, 1, 0, 0])
                lv4 = R.clip(lv3, R.prim_value(0.0), R.prim_value(float("inf")))
                gv = R.astype(lv4, "float16")
                R.output(gv)
            return gv

    assert_left_alone(RemoveIdentity(), Before)


def test_the_mask_of_a_dropout_keeps_it() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                lv = R.nn.dropout(x, 0.5)
                gv = lv[1]
                R.output(gv)
            return gv

    assert_left_alone(RemoveIdentity(), Before)
    assert isinstance(Before, tvm.IRModule)
