"""Explicit padding goes into its reader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from relax_cases import assert_left_alone, assert_pass
from tvm import IRModule, relax
from tvm.script import ir as I
from tvm.script import relax as R

from hwq import relax_tools as rt
from hwq.passes.fold_padding import FoldPadding

W = np.random.default_rng(0).standard_normal((4, 2, 3, 3)).astype("float32")
PAD = [0, 0, 0, 0, 1, 2, 0, 1]


def test_before_a_convolution() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 5, 5), "float32")):
            with R.dataflow():
                lv = R.nn.pad(x, [0, 0, 0, 0, 1, 2, 0, 1])
                gv = R.nn.conv2d(lv, R.const(W), strides=[2, 1], padding=[1, 0, 0, 0])
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 2, 5, 5), "float32")):
            with R.dataflow():
                gv = R.nn.conv2d(x, R.const(W), strides=[2, 1], padding=[2, 0, 2, 1])
                R.output(gv)
            return gv

    assert_pass(FoldPadding(), Before, Expected)


def _padded(
    reader: Any, value: float = 0.0, widths: list[int] = PAD, *, relu: bool = False, twice: bool = False
) -> IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 2, 5, 5), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            data = builder.emit(relax.op.nn.relu(x)) if relu else x
            pad = builder.emit(relax.op.nn.pad(data, widths, "constant", value))
            out = builder.emit(reader(pad))
            outs = [builder.emit_output(out), *([builder.emit_output(pad)] if twice else [])]
        builder.emit_func_output(relax.Tuple(outs) if twice else outs[0])
    return builder.get()


def _pool(op: str, **attrs: Any) -> Any:
    return lambda data: getattr(relax.op.nn, op)(data, (3, 3), **attrs)


INF = float("-inf")


@pytest.mark.parametrize(
    ("reader", "value", "relu", "padding", "counts"),
    [
        (_pool("max_pool2d"), INF, False, (1, 0, 2, 1), None),
        (_pool("max_pool2d", strides=(2, 2)), 0.0, True, (1, 0, 2, 1), None),
        (_pool("avg_pool2d", count_include_pad=True), 0.0, False, (1, 0, 2, 1), True),
        (_pool("avg_pool2d", count_include_pad=False), 0.0, False, (1, 0, 2, 1), True),
        (_pool("avg_pool2d", count_include_pad=True, padding=(0, 1, 0, 1)), 0.0, False, (1, 1, 2, 2), True),
    ],
)
def test_before_a_pool(reader: Any, value: float, relu: bool, padding: tuple[int, ...], counts: bool | None) -> None:
    after = FoldPadding()(_padded(reader, value, relu=relu))
    pool = rt.bindings_of(after)[-1][1]
    assert rt.ints(pool.attrs.padding) == padding
    assert counts is None or pool.attrs.count_include_pad == counts
    assert_pass(FoldPadding(), _padded(reader, value, relu=relu), after)
    assert "nn.pad" not in [rt.op_name(item) for _, item in rt.bindings_of(after)]


@pytest.mark.parametrize(
    "before",
    [
        _padded(lambda x: relax.op.nn.conv2d(x, rt.const(W)), 1.0),
        _padded(lambda x: relax.op.nn.conv2d(x, rt.const(W[:, :1].repeat(3, 1))), widths=[0, 0, 0, 1, 0, 0, 0, 0]),
        _padded(lambda x: relax.op.nn.conv2d(x, rt.const(W)), twice=True),
        _padded(_pool("max_pool2d"), 0.0),
        _padded(_pool("max_pool2d"), 1.0, relu=True),
        _padded(_pool("max_pool2d"), INF, [0, 0, 0, 0, 3, 0, 0, 0]),
        _padded(_pool("avg_pool2d", padding=(1, 1, 1, 1), count_include_pad=False)),
        _padded(_pool("avg_pool2d", count_include_pad=True), 1.0),
    ],
    ids=[
        "value",
        "channels",
        "two readers",
        "negative input",
        "above 0",
        "empty window",
        "own padding",
        "average of 1",
    ],
)
def test_left_alone(before: IRModule) -> None:
    assert_left_alone(FoldPadding(), before)
