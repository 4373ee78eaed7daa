"""The table between Relax calls and layers; networks of them are in test_onnx_convert.py and test_layers.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import IRModule, relax

from hwq import relax_tools as rt
from hwq.layer_ops import activation_of, channel_values, layer_of

X = relax.Var("x", relax.TensorType((1, 4, 6, 8), "float32"))
Y = relax.Var("y", relax.TensorType((1, 1, 1, 8), "float32"))
EIGHT = rt.const(np.arange(8, dtype="float32"))
SCOPE = rt.Scope()
op = relax.op


def _layer(call: rt.Expr) -> Any:
    value = SCOPE.definition(SCOPE.emit(call))
    return layer_of(IRModule(), value, "it", {X: "x", Y: "y"})


@pytest.mark.parametrize(
    ("call", "name", "attrs"),
    [
        (op.mean(X, [1, -2], True), "avg_pool2d", {"kernel": (4, 6), "strides": (1, 1)}),
        (op.max(X, [1, 2], True), "max_pool2d", {"kernel": (4, 6), "padding": (0, 0, 0, 0)}),
        (
            op.nn.pad(X, [0, 0, 1, 2, 0, 0, 3, 0], "constant", 2.0),
            "pad",
            {"pads": ((0, 0), (1, 2), (0, 0), (3, 0)), "value": 2.0},
        ),
        (
            op.strided_slice(X, [1], [-2], [100]),
            "slice",
            {"begin": (0, 2, 0, 0), "end": (1, 4, 6, 8), "strides": (1, 1, 1, 1)},
        ),
        (op.concat([X, X], -1), "concat", {"axis": 3}),
        (op.take(X, rt.const(np.array([3, 0])), 1), "resize_nearest", {"map_h": (3, 0), "map_w": (0, 1, 2, 3, 4, 5)}),
        (op.image.resize2d(X, (8, 9), layout="NHWC"), "resize_linear", {}),
        (op.nn.softmax(X, -1), "softmax", {"axis": 3}),
        (op.nn.layer_norm(X, EIGHT, EIGHT, [-1], 0.5), "layer_norm", {"epsilon": 0.5}),
        (op.permute_dims(X), "transpose", {"axes": (3, 2, 1, 0)}),
        (op.multiply(Y, X), "multiply", {}),
        (op.add(X, X), "add", {}),
        (
            op.nn.avg_pool2d(X, (2, 2), padding=(0, 1, 0, 1), layout="NHWC"),
            "avg_pool2d",
            {"padding": (0, 1, 0, 1), "count_include_pad": False},
        ),
    ],
)
def test_what_is_a_layer(call: rt.Expr, name: str, attrs: dict[str, Any]) -> None:
    layer = _layer(call)
    assert layer.op == name
    assert {key: layer.attrs[key] for key in attrs} == attrs
    assert layer.input_shapes[0] == (1, 4, 6, 8)


@pytest.mark.parametrize(
    "call",
    [
        op.mean(X, [1], True),
        op.mean(X, [1, 2], False),
        op.nn.pad(X, [0, 0, 1, 1, 1, 1, 0, 0], "reflect"),
        op.nn.pad(X, [0, 0, 1, 1, 1, 1, 0, 0], "constant", float("-inf")),
        op.strided_slice(X, [1], [3], [0], [-1]),
        op.concat([X, rt.const(np.ones((1, 4, 6, 8), "float32"))], 0),
        op.take(X, rt.const(np.array([3, 0])), 3),
        op.take(X, rt.const(np.array([4])), 1),
        op.add(X, Y),
        op.multiply(X, rt.const(np.float32(-3.4e38))),
        op.image.resize2d(X, (8, 9), layout="NHWC", method="cubic"),
        op.image.resize2d(X, (8, 9)),
        op.image.resize2d(X, (8, 9), layout="NHWC", coordinate_transformation_mode="tf_crop_and_resize"),
        op.nn.layer_norm(X, EIGHT, relax.Var("b", relax.TensorType((8,), "float32")), [-1]),
        op.nn.layer_norm(X, *[rt.const(np.ones((6, 8), "float32"))] * 2, [2, 3]),
        op.exp(X),
        op.nn.max_pool2d(X, (2, 2)),
        op.nn.max_pool2d(X, (3, 3), ceil_mode=True, layout="NHWC"),
        op.nn.avg_pool2d(X, (2, 2), dilation=(2, 2), layout="NHWC"),
        op.astype(X, "float16"),
    ],
)
def test_what_is_none(call: rt.Expr) -> None:
    assert _layer(call) is None


def test_activations() -> None:
    mod = IRModule()
    found = [
        activation_of(mod, call)
        for call in (op.nn.relu6(X), op.clip(X, -1.0, 2.0), op.nn.leakyrelu(X, 0.5), op.tanh(X), op.exp(X))
    ]
    kinds = [None if item is None else (item.kind, item.lo, item.hi, item.alpha) for item in found]
    inf = float("inf")
    assert kinds == [
        ("clip", 0, 6, 0),
        ("clip", -1, 2, 0),
        ("leaky_relu", -inf, inf, 0.5),
        ("tanh", -inf, inf, 0),
        None,
    ]


@pytest.mark.parametrize(
    ("shape", "good"),
    [((), True), ((1,), True), ((8,), True), ((1, 1, 8), True), ((6, 1), False), ((6, 8), False), ((1,) * 5, False)],
)
def test_channel_values(shape: tuple[int, ...], good: bool) -> None:
    found = channel_values(rt.const(np.full(shape, 2.0, "float32")), (1, 4, 6, 8))
    assert (found is not None) == good
    assert found is None or found.tolist() == [2.0] * 8
