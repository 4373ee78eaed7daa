"""Operators without layers of their own, against ONNX Runtime: they run in float, and the model says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx_nets import network, node, ops, same_as_onnxruntime, weights

F = np.float32


def _i(*values: int) -> Any:
    return np.array(values, np.int64)


@pytest.mark.parametrize("opset", [11, 18])
def test_a_layer_norm_in_pieces_is_one_layer(opset: int) -> None:
    """As torch writes it before opset 17."""
    consts = {"g": weights(5), "b": weights(5, seed=2)}
    model = same_as_onnxruntime(_norm_in_pieces([], -1, (2, 7, 5), consts, opset))
    assert ops(model) == ["layer_norm"]
    assert model.float_ops == {"layer_norm": 1}


@pytest.mark.parametrize("between", [True, False])
def test_a_norm_over_channels_is_one_over_the_last_axis(between: bool) -> None:
    consts = {"w": weights(12, 8, 1, 1), "g": weights(12, 1, 1), "b": weights(12, 1, 1, seed=2)}
    proto = _norm_in_pieces([node("Conv", ["x0", "w"], ["x"])], 1, (1, 8, 6, 5), consts, 13)
    if between:
        proto.graph.node.append(node("Conv", ["y", "k"], ["z"]))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weights(4, 12, 1, 1), "k"))
        proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, (1, 4, 6, 5)))
    model = same_as_onnxruntime(proto)
    assert ops(model) == ["transpose", "conv2d", "layer_norm", *(["conv2d"] if between else []), "transpose"]


def _norm_in_pieces(
    before: list[onnx.NodeProto], axis: int, shape: tuple[int, ...], consts: dict[str, Any], opset: int
) -> onnx.ModelProto:
    """A layer norm of x over an axis, g and b its scale and bias."""
    consts = consts | {"two": F(2), "e": F(1e-5)} | ({"i": _i(axis)} if opset >= 18 else {})
    mean: dict[str, Any] = {"axes": [axis]} if opset < 18 else {}
    axes = ["i"] if opset >= 18 else []
    nodes = [
        *before,
        node("ReduceMean", ["x", *axes], ["m"], **mean),
        node("Sub", ["x", "m"], ["d"]),
        node("Pow", ["d", "two"], ["p"]),
        node("ReduceMean", ["p", *axes], ["v"], **mean),
        node("Add", ["v", "e"], ["a"]),
        node("Sqrt", ["a"], ["s"]),
        node("Div", ["d", "s"], ["n"]),
        node("Mul", ["n", "g"], ["q"]),
        node("Add", ["q", "b"], ["y"]),
    ]
    return network(nodes, inputs={"x0" if before else "x": shape}, consts=consts, opset=opset)


@pytest.mark.parametrize(
    ("op", "attrs", "opset", "layer"),
    [
        ("Softmax", {"axis": 1}, 13, "softmax"),
        ("Softmax", {}, 11, None),
        ("LogSoftmax", {}, 13, "float"),
        ("Exp", {}, 13, "float"),
        ("LpPool", {"kernel_shape": [2, 2]}, 13, None),
        ("InstanceNormalization", {}, 13, None),
        ("LRN", {"size": 3}, 13, "float"),
        ("DepthToSpace", {"blocksize": 2}, 13, None),
        ("TopK", {"axis": 1}, 11, None),
        ("ArgMax", {"axis": 1}, 13, "float"),
        ("Cast", {"to": onnx.TensorProto.INT32}, 13, "float"),
        ("PRelu", {}, 13, "float"),
        ("Where", {}, 13, None),
        ("ReduceMean", {"keepdims": 0}, 18, None),
        ("ReduceSum", {"keepdims": 1}, 13, "float"),
        ("Expand", {}, 13, "float"),
        ("Tile", {}, 13, "float"),
        ("Pow", {}, 13, "float"),
        ("LayerNormalization", {}, 17, "layer_norm"),
        ("LayerNormalization", {"axis": 2}, 17, "float"),
        ("GatherND", {}, 13, "float"),
        ("Einsum", {"equation": "nchw->nc"}, 13, None),
        ("CumSum", {}, 14, "float"),
        ("GridSample", {}, 16, None),
        ("Erf", {}, 13, "float"),
    ],
)
def test_other_operators_run_in_float(op: str, attrs: dict[str, Any], opset: int, layer: str | None) -> None:
    shape = (6, 5) if "axis" in attrs else (5,)  # of what a layer norm is over
    extra: dict[str, Any] = {
        "InstanceNormalization": {"a": weights(8), "b": weights(8)},
        "TopK": {"k": _i(3)},
        "PRelu": {"a": weights(8, 1, 1)},
        "ReduceMean": {"a": _i(2, 3)},
        "ReduceSum": {"a": _i(1)},
        "Expand": {"s": _i(3, 8, 6, 5)},
        "Tile": {"r": _i(1, 2, 1, 1)},
        "Pow": {"e": F(2)},
        "LayerNormalization": {"g": weights(*shape), "b": weights(*shape)},
        "GatherND": {"i": np.array([[0, 1], [0, 7]])},
        "CumSum": {"a": np.int64(1)},
        "GridSample": {"g": np.clip(weights(1, 3, 3, 2), -1, 1)},
        "Where": {"m": weights(1, 8, 6, 5) > 0, "v": F(1)},
    }.get(op, {})
    inputs = ["m", "x", "v"] if op == "Where" else ["x", *extra]
    outputs = ["y", "i"] if op == "TopK" else ["y"]
    dtypes = {
        "i": onnx.TensorProto.INT64,
        **({"y": attrs["to"]} if op == "Cast" else {"y": onnx.TensorProto.INT64} if op == "ArgMax" else {}),
    }
    proto = network([node(op, inputs, outputs, **attrs)], consts=extra, dtypes=dtypes, opset=opset)
    model = same_as_onnxruntime(proto)
    assert layer is None or layer in ops(model)
