"""Channels last throughout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from relax_cases import assert_left_alone, assert_pass, assert_same_numbers
from tvm import IRModule, relax
from tvm.script import ir as I
from tvm.script import relax as R

from hwq import relax_tools as rt
from hwq.passes.recognize_activations import RecognizeActivations
from hwq.passes.remove_identity import RemoveIdentity
from hwq.passes.simplify_layout import SimplifyLayout
from hwq.passes.to_nhwc import ToNHWC

RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 2, 3, 3)).astype("float32")
B = RNG.standard_normal((1, 4, 1, 1)).astype("float32")
W_LAST, B_LAST = np.ascontiguousarray(W.transpose(0, 2, 3, 1)), B.reshape(1, 1, 1, 4)


def test_transposes_remain_at_the_border_only() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 6, 5), "float32")):
            with R.dataflow():
                lv = R.nn.conv2d(x, R.const(W), padding=[1, 1, 1, 1])
                lv1 = R.add(lv, R.const(B))
                lv2 = R.nn.relu(lv1)
                gv = R.nn.max_pool2d(lv2, [2, 2], strides=[2, 2])
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 2, 6, 5), "float32")):
            with R.dataflow():
                lv = R.permute_dims(x, [0, 2, 3, 1])
                lv1 = R.nn.conv2d(
                    lv,
                    R.const(W_LAST),
                    padding=[1, 1, 1, 1],
                    data_layout="NHWC",
                    kernel_layout="OHWI",
                    out_layout="NHWC",
                )
                lv2 = R.add(lv1, R.const(B_LAST))
                lv3 = R.nn.relu(lv2)
                lv4 = R.nn.max_pool2d(lv3, [2, 2], strides=[2, 2], layout="NHWC", out_layout="NHWC")
                gv = R.permute_dims(lv4, [0, 3, 1, 2])
                R.output(gv)
            return gv

    assert_pass(ToNHWC(), Before, Expected)


def _around(make: Any, shape: tuple[int, ...] = (1, 2, 6, 5)) -> IRModule:
    """A module in which ``make`` stands between two convolutions, or behind one where its result is not 4-d."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit(make(builder.emit(relax.op.nn.conv2d(x, rt.const(W)))))
            if len(rt.shape_of(out)) == 4:
                weight = RNG.standard_normal((3, rt.shape_of(out)[1], 1, 1)).astype("float32")
                out = builder.emit(relax.op.nn.conv2d(out, rt.const(weight)))
            out = builder.emit_output(out)
        builder.emit_func_output(out)
    return builder.get()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: relax.op.nn.avg_pool2d(x, (2, 2), padding=(1, 0, 0, 1)),
        lambda x: relax.op.concat([x, rt.const(np.ones((1, 2, 4, 3), "float32")), x], 1),
        lambda x: relax.op.strided_slice(x, [1, -1], [1, 0], [3, 2]),
        lambda x: relax.op.nn.pad(x, [0, 0, 1, 0, 2, 0, 0, 3], "constant", 1.5),
        lambda x: relax.op.nn.softmax(x, 1),
        lambda x: relax.op.nn.log_softmax(x, -1),
        lambda x: relax.op.take(x, rt.const(np.array([0, 0, 1])), 3, "clip"),
        lambda x: relax.op.mean(x, [2, 3], True),
        lambda x: relax.op.max(x, [-1, 2], True),
        lambda x: relax.op.sum(x, [1], True),
        lambda x: relax.op.clip(x, -1.0, 1.0),
        lambda x: relax.op.multiply(rt.const(B), x),
        lambda x: relax.op.add(x, rt.const(B.reshape(4, 1, 1))),
        lambda x: relax.op.divide(x, relax.const(2.0, "float32")),
        lambda x: relax.op.multiply(x, rt.const(RNG.standard_normal((4, 3)).astype("float32"))),
        lambda x: relax.op.image.resize2d(x, (8, 6), roi=[0.0] * 4, method="linear"),
        lambda x: relax.op.nn.prelu(x, rt.const(B.reshape(4)), 1),
        lambda x: relax.op.astype(x, "float32"),
    ],
)
def test_operators_between_convolutions(make: Any) -> None:
    before = _around(make)
    after = RemoveIdentity()(ToNHWC()(before))
    names = [rt.op_name(value) for _, value in rt.bindings_of(after)]
    assert "permute_dims" not in names[1:-1]
    assert names[0] == "permute_dims"
    assert_same_numbers(before, after)


def test_a_mean_that_drops_its_axes_and_a_network_transpose() -> None:
    for make in (lambda x: relax.op.mean(x, [2, 3]), lambda x: relax.op.permute_dims(x, [0, 2, 3, 1])):
        before = _around(make)
        after = RemoveIdentity()(ToNHWC()(before))
        assert_same_numbers(before, after)
    names = [rt.op_name(value) for _, value in rt.bindings_of(ToNHWC()(_around(lambda x: relax.op.mean(x, [2, 3]))))]
    assert names == ["permute_dims", "nn.conv2d", "mean", "reshape"]


def test_a_named_activation_and_a_shuffle_of_channels() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 6, 5), "float32")):
            with R.dataflow():
                lv = R.nn.conv2d(x, R.const(W))
                lv1 = R.add(lv, R.const(3.0, "float32"))
                lv2 = R.clip(lv1, R.prim_value(0.0), R.prim_value(6.0))
                lv3 = R.divide(lv2, R.const(6.0, "float32"))
                lv4 = R.multiply(lv, lv3)
                lv5 = R.reshape(lv4, [1, 2, 2, 4, 3])
                lv6 = R.permute_dims(lv5, [0, 2, 1, 3, 4])
                lv7 = R.reshape(lv6, [1, 4, 4, 3])
                gv = R.nn.max_pool2d(lv7, [2, 2])
                R.output(gv)
            return gv

    after = SimplifyLayout()(ToNHWC()(RecognizeActivations()(Before)))
    names = [rt.op_name(value) for _, value in rt.bindings_of(after)]
    assert names == [
        "permute_dims",
        "nn.conv2d",
        "",
        "reshape",
        "permute_dims",
        "reshape",
        "nn.max_pool2d",
        "permute_dims",
    ]
    assert_same_numbers(Before, after)


def test_an_unknown_operator_keeps_its_order() -> None:
    before = _around(lambda x: relax.op.cumsum(x, 1))
    after = ToNHWC()(before)
    names = [rt.op_name(value) for _, value in rt.bindings_of(after)]
    assert names == ["permute_dims", "nn.conv2d", "permute_dims", "cumsum", "permute_dims", "nn.conv2d", "permute_dims"]
    assert_same_numbers(before, after)


def test_without_planes_nothing_moves() -> None:
    @I.ir_module
    class Matrix:
        @R.function
        def main(x: R.Tensor((2, 3), "float32"), y: R.Tensor((1, 2, 3, 3), "float32")):
            with R.dataflow():
                lv = R.nn.relu(x)
                gv = R.nn.relu(y)
                R.output(lv, gv)
            return (lv, gv)

    @I.ir_module
    class ComputedWeights:
        @R.function
        def main(x: R.Tensor((1, 2, 5, 5), "float32"), w: R.Tensor((4, 2, 3, 3), "float32")):
            with R.dataflow():
                gv = R.nn.conv2d(x, w)
                R.output(gv)
            return gv

    assert_left_alone(ToNHWC(), Matrix)
    assert_left_alone(ToNHWC(), ComputedWeights)
