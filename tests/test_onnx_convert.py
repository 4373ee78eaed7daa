"""Every operator that hwq writes itself or has layers for, against ONNX Runtime, through the whole of hwq.load."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_nets import network, node, ops, same_as_onnxruntime, weights

F = np.float32


def _i(*values: int) -> Any:
    return np.array(values, np.int64)


@pytest.mark.parametrize("opset", [8, 11, 13, 21])
@pytest.mark.parametrize(
    ("shape", "attrs"),
    [
        ((4, 8, 1, 1), {}),
        ((4, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((4, 8, 3, 3), {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
        ((4, 8, 3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((4, 8, 2, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2], "dilations": [1, 1]}),
        ((4, 8, 3, 3), {"auto_pad": "VALID"}),
        ((4, 8, 2, 2), {"dilations": [2, 3], "pads": [1, 2, 0, 1]}),
        ((6, 4, 3, 3), {"group": 2}),
        ((8, 1, 3, 3), {"group": 8, "pads": [1, 1, 1, 1]}),
        ((16, 1, 3, 3), {"group": 8}),
    ],
)
def test_conv(shape: tuple[int, ...], attrs: dict[str, Any], opset: int) -> None:
    consts = {"w": weights(*shape), "b": weights(shape[0])}
    model = same_as_onnxruntime(
        network([node("Conv", ["x", "w", "b"], ["y"], name="c", **attrs)], consts=consts, opset=opset)
    )
    layer = model.graph.layers[1]
    assert ops(model)[0] == ops(model)[-1] == "transpose"
    assert len(ops(model)) == 3
    assert layer.name == "c"
    assert layer.op == ("depthwise_conv2d" if shape[:2] == (8, 1) else "conv2d")
    assert layer.weight is not None
    assert layer.weight.shape == (shape[0], shape[2], shape[3], shape[1])
    assert model.float_ops == {}


def test_conv1d_is_a_convolution_of_height_one() -> None:
    consts = {"w": weights(4, 8, 3), "b": weights(4)}
    model = same_as_onnxruntime(
        network([node("Conv", ["x", "w", "b"], ["y"], pads=[1, 0], strides=[2])], (1, 8, 9), consts=consts)
    )
    assert "conv2d" in ops(model)
    assert model.float_ops == {}


def test_conv3d_and_transposed_conv_stay_in_float() -> None:
    model = same_as_onnxruntime(
        network([node("Conv", ["x", "w"], ["y"])], (1, 2, 4, 4, 4), consts={"w": weights(3, 2, 2, 2, 2)})
    )
    assert model.float_ops == {"conv3d": 1}
    model = same_as_onnxruntime(
        network([node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])], consts={"w": weights(8, 3, 2, 2)})
    )
    assert model.float_ops == {"conv2d_transpose": 1}


BOTH_POOLS: list[dict[str, Any]] = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 1]},
    {"kernel_shape": [3, 2], "pads": [0, 1, 2, 0]},
    {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"},
]
LATER_POOLS: list[dict[str, Any]] = [
    {"kernel_shape": [2, 3], "strides": [3, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
]


@pytest.mark.parametrize(
    ("op", "attrs", "opset"),
    [
        *((op, attrs, opset) for op in ("MaxPool", "AveragePool") for attrs in BOTH_POOLS for opset in (8, 13)),
        *((op, attrs, 11) for op in ("MaxPool", "AveragePool") for attrs in LATER_POOLS),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, 8),
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2], "pads": [1, 1, 0, 1]}, 13),
    ],
)
def test_pool(op: str, attrs: dict[str, Any], opset: int) -> None:
    model = same_as_onnxruntime(network([node(op, ["x"], ["y"], **attrs)], opset=opset))
    assert ops(model) == ["transpose", {"MaxPool": "max_pool2d", "AveragePool": "avg_pool2d"}[op], "transpose"]


def test_a_dilated_average_stays_in_float() -> None:
    net = network([node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2])], opset=19)
    assert same_as_onnxruntime(net).float_ops == {"avg_pool2d": 1}


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
def test_a_pool_over_one_axis_is_one_of_height_one(op: str) -> None:
    attrs = {} if "Global" in op else {"kernel_shape": [3], "pads": [1, 0], "strides": [2]}
    nodes = [node("Conv", ["x", "w"], ["h"]), node(op, ["h"], ["p"], **attrs), node("Conv", ["p", "v"], ["y"])]
    model = same_as_onnxruntime(network(nodes, (2, 4, 9), consts={"w": weights(8, 4, 1), "v": weights(3, 8, 1)}))
    pool = "max_pool2d" if "Max" in op else "avg_pool2d"
    assert [name for name in ops(model) if name not in ("reshape", "transpose")] == ["conv2d", pool, "conv2d"]
    assert model.float_ops == {}


def test_average_pool_that_counts_padding_beyond_its_edge() -> None:
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1}
    same_as_onnxruntime(network([node("AveragePool", ["x"], ["y"], **attrs)], (1, 8, 6, 5)))


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(
    ("op", "attrs", "layer"),
    [
        ("GlobalAveragePool", {}, "avg_pool2d"),
        ("GlobalMaxPool", {}, "max_pool2d"),
        ("ReduceMean", {"axes": [2, 3]}, "avg_pool2d"),
        ("ReduceMean", {"axes": [-1, -2]}, "avg_pool2d"),
        ("ReduceMax", {"axes": [2, 3]}, "max_pool2d"),
        ("ReduceMean", {"axes": [1]}, "float"),
        ("ReduceSum", {"axes": [2, 3]}, "float"),
    ],
)
def test_global_pool(op: str, attrs: dict[str, Any], layer: str, keepdims: int) -> None:
    extra = {**attrs, "keepdims": keepdims} if attrs else {}
    model = same_as_onnxruntime(
        network(
            [node(op, ["r"], ["y"], **extra), node("Conv", ["x", "w"], ["r"])][::-1],
            consts={"w": weights(4, 8, 1, 1)},
            opset=11,
        )
    )
    assert ops(model)[:3] == ["transpose", "conv2d", layer]
    assert set(ops(model)[3:]) <= {"reshape"} or layer == "float"


@pytest.mark.parametrize(
    ("attrs", "consts"),
    [
        ({}, {"w": weights(12, 7), "b": weights(7)}),
        ({"transB": 1}, {"w": weights(7, 12), "b": weights(1, 7)}),
        ({"transB": 1, "alpha": 0.5, "beta": 2.0}, {"w": weights(7, 12), "b": weights(7)}),
        ({"beta": 3.0}, {"w": weights(12, 7), "b": weights(1)}),
        ({}, {"w": weights(12, 7)}),
    ],
)
def test_gemm(attrs: dict[str, Any], consts: dict[str, Any]) -> None:
    model = same_as_onnxruntime(network([node("Gemm", ["x", *consts], ["y"], **attrs)], (3, 12), consts=consts))
    assert ops(model) == ["dense"]
    assert model.graph.layers[0].weight is not None
    assert model.graph.layers[0].weight.shape == (7, 12)


def test_gemm_of_a_transposed_input_and_of_two_tensors() -> None:
    model = same_as_onnxruntime(
        network([node("Gemm", ["x", "w"], ["y"], transA=1)], (12, 3), consts={"w": weights(12, 7)})
    )
    assert ops(model) == ["transpose", "dense"]
    model = same_as_onnxruntime(
        network([node("Gemm", ["x", "w", "c"], ["y"], beta=0.5)], inputs={"x": (3, 4), "w": (4, 5), "c": (3, 5)})
    )
    assert model.float_ops["matmul"] == 1


@pytest.mark.parametrize("shape", [(3, 12), (2, 3, 12), (12,)])
def test_matmul_by_a_constant(shape: tuple[int, ...]) -> None:
    model = same_as_onnxruntime(
        network(
            [node("MatMul", ["x", "w"], ["h"]), node("Add", ["b", "h"], ["y"])],
            shape,
            consts={"w": weights(12, 7), "b": weights(7)},
        )
    )
    assert ops(model)[0] == ("dense" if len(shape) == 2 else ops(model)[0])


@pytest.mark.parametrize(
    ("pads", "mode", "value"),
    [
        ([0, 0, 1, 2, 0, 0, 0, 1], "constant", 0.5),
        ([0, 1, 0, 0, 0, 2, 0, 0], "constant", None),
        ([0, 0, -1, 1, 0, 0, 0, -2], "constant", 0.0),
        ([0, 0, 1, 2, 0, 0, 0, 1], "reflect", None),
        ([0, 0, 1, 1, 0, 0, 1, 1], "edge", None),
    ],
)
@pytest.mark.parametrize("opset", [8, 13, 18])
def test_pad(pads: list[int], mode: str, value: float | None, opset: int) -> None:
    attrs: dict[str, Any] = {"mode": mode}
    consts: dict[str, Any] = {}
    if opset < 11:
        attrs |= {"pads": pads, **({} if value is None else {"value": value})}
    else:
        consts = {"p": _i(*pads), **({} if value is None else {"v": F(value)})}
    first = node("Conv", ["x", "w"], ["h"])
    model = same_as_onnxruntime(
        network(
            [first, node("Pad", ["h", *consts], ["y"], **attrs)],
            consts={**consts, "w": weights(4, 8, 1, 1)},
            opset=opset,
        )
    )
    assert ("pad" in ops(model)) == (mode == "constant")


def test_pad_along_named_axes() -> None:
    consts = {"p": _i(1, 2), "v": F(1), "a": _i(-1)}
    assert ops(same_as_onnxruntime(network([node("Pad", ["x", *consts], ["y"])], consts=consts, opset=18))) == ["pad"]


@pytest.mark.parametrize(
    ("op", "consts", "attrs", "opset"),
    [
        ("Reshape", {"s": _i(0, -1)}, {}, 13),
        ("Reshape", {"s": _i(1, 2, -1, 5)}, {}, 8),
        ("Reshape", {"s": _i(-1)}, {"allowzero": 1}, 14),
        ("Flatten", {}, {}, 13),
        ("Flatten", {}, {"axis": -2}, 13),
        ("Flatten", {}, {"axis": 0}, 8),
        ("Squeeze", {}, {"axes": [0]}, 11),
        ("Squeeze", {"a": _i(0)}, {}, 13),
        ("Squeeze", {}, {}, 13),
        ("Unsqueeze", {}, {"axes": [0, 5]}, 11),
        ("Unsqueeze", {"a": _i(-1, 1)}, {}, 13),
    ],
)
def test_reshape(op: str, consts: dict[str, Any], attrs: dict[str, Any], opset: int) -> None:
    model = same_as_onnxruntime(network([node(op, ["x", *consts], ["y"], **attrs)], consts=consts, opset=opset))
    assert ops(model) == ["reshape"]


@pytest.mark.parametrize(
    ("op", "consts", "attrs", "opset"),
    [
        ("Slice", {}, {"starts": [1, 0], "ends": [3, -1], "axes": [1, 3]}, 9),
        ("Slice", {"s": _i(0, 1), "e": _i(2**40, 5), "a": _i(3, 2), "t": _i(2, 3)}, {}, 13),
        ("Slice", {"s": _i(0, 2), "e": _i(1, 5)}, {}, 10),
        ("Slice", {"s": _i(-1), "e": _i(-(2**40)), "a": _i(3), "t": _i(-2)}, {}, 13),
    ],
)
def test_slice(op: str, consts: dict[str, Any], attrs: dict[str, Any], opset: int) -> None:
    first = node("Conv", ["x", "w"], ["h"])
    model = same_as_onnxruntime(
        network(
            [first, node(op, ["h", *consts], ["y"], **attrs)], consts={**consts, "w": weights(4, 8, 1, 1)}, opset=opset
        )
    )
    assert ("slice" in ops(model)) == (-1 not in consts.get("s", ()))


@pytest.mark.parametrize(
    ("consts", "attrs", "opset"),
    [
        ({}, {"axis": 1, "split": [2, 6]}, 11),
        ({"s": _i(1, 7)}, {"axis": -3}, 13),
        ({}, {"axis": 2}, 11),
        ({}, {"axis": 2, "num_outputs": 2}, 18),
    ],
)
def test_split_is_slices(consts: dict[str, Any], attrs: dict[str, Any], opset: int) -> None:
    nodes = [node("Split", ["x", *consts], ["a", "b"], **attrs), node("Relu", ["a"], ["c"])]
    assert ops(same_as_onnxruntime(network(nodes, consts=consts, opset=opset))) == ["slice", "slice", "unary"]


@pytest.mark.parametrize(
    ("index", "axis", "wanted"),
    [
        (np.int64(-1), 1, ["slice", "reshape"]),
        (_i(1, 2), -2, ["slice"]),
        (_i(3), 1, ["slice"]),
        (_i(0, 5, -2), 2, ["resize_nearest"]),
        (np.array([[0, 1], [2, 3]]), 1, ["float"]),
    ],
)
def test_gather_by_constants(index: Any, axis: int, wanted: list[str]) -> None:
    model = same_as_onnxruntime(network([node("Gather", ["x", "i"], ["y"], axis=axis)], consts={"i": index}))
    assert ops(model) == wanted


def test_an_embedding() -> None:
    inputs = {"i": (2, 5)}
    net = network([node("Gather", ["t", "i"], ["y"])], inputs=inputs, consts={"t": weights(4, 3)}, dtypes={"i": 7})
    assert ops(same_as_onnxruntime(net)) == ["gather"]


@pytest.mark.parametrize("mode", ["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("nearest", ["round_prefer_floor", "floor", "ceil"])
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_resize_nearest(mode: str, nearest: str, by: str) -> None:
    consts: dict[str, Any] = {"w": weights(4, 8, 1, 1)}
    consts |= {"s": np.array([1, 1, 2, 1.6], F)} if by == "scales" else {"z": _i(1, 4, 9, 5)}
    inputs = ["h", "", "s"] if by == "scales" else ["h", "", "", "z"]
    resize = node("Resize", inputs, ["y"], mode="nearest", nearest_mode=nearest, coordinate_transformation_mode=mode)
    model = same_as_onnxruntime(network([node("Conv", ["x", "w"], ["h"]), resize], consts=consts))
    assert ops(model) == ["transpose", "conv2d", "resize_nearest", "transpose"]


@pytest.mark.parametrize(("op", "opset"), [("Upsample", 8), ("Upsample", 9), ("Resize", 10)])
def test_upsample(op: str, opset: int) -> None:
    scales = [1.0, 1.0, 2.0, 3.0]
    consts = {} if opset == 8 else {"s": np.array(scales, F)}
    attrs = {"scales": scales} if opset == 8 else {}
    model = same_as_onnxruntime(
        network([node(op, ["x", *consts], ["y"], mode="nearest", **attrs)], consts=consts, opset=opset)
    )
    assert ops(model) == ["transpose", "resize_nearest", "transpose"]


@pytest.mark.parametrize(("op", "opset"), [("Upsample", 8), ("Upsample", 9), ("Resize", 10), ("Resize", 13)])
def test_linear_resize(op: str, opset: int) -> None:
    scales = [1.0, 1.0, 2.0, 3.0]
    consts = {} if opset == 8 else {"s": np.array(scales, F)}
    inputs = ["x", "", "s"] if opset == 13 else ["x", *consts]
    attrs = {"scales": scales} if opset == 8 else {}
    model = same_as_onnxruntime(network([node(op, inputs, ["y"], mode="linear", **attrs)], consts=consts, opset=opset))
    assert ops(model) == ["transpose", "resize_linear", "transpose"]
    assert model.float_ops == {}


@pytest.mark.parametrize("mode", ["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("to", [(12, 15), (9, 8), (3, 2), (1, 5)])
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_linear_resize_by_each_transformation(mode: str, to: tuple[int, int], by: str) -> None:
    scales = np.array([1, 1, to[0] / 6, to[1] / 5], F)
    inputs, consts = (["x", "", "s"], {"s": scales}) if by == "scales" else (["x", "", "", "z"], {"z": _i(1, 8, *to)})
    resize = node("Resize", inputs, ["y"], mode="linear", coordinate_transformation_mode=mode)
    model = same_as_onnxruntime(network([resize], consts=consts))
    assert ops(model) == ["transpose", "resize_linear", "transpose"]


@pytest.mark.parametrize("op", ["Sum", "Max", "Min", "Mean"])
def test_many_inputs(op: str) -> None:
    inputs = {"x": (1, 4, 3), "b": (1, 4, 3), "c": (1, 4, 3)}
    same_as_onnxruntime(network([node(op, list(inputs), ["y"])], inputs=inputs))


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("Relu", "relu"),
        ("Sigmoid", "sigmoid"),
        ("Tanh", "tanh"),
        ("HardSigmoid", "hard_sigmoid"),
        ("HardSwish", "hard_swish"),
        ("LeakyRelu", "leaky_relu"),
        ("Gelu", "gelu"),
    ],
)
def test_activation_alone_and_fused(op: str, kind: str) -> None:
    opset = 20 if op == "Gelu" else 14
    model = same_as_onnxruntime(network([node(op, ["x"], ["y"])], (2, 7), opset=opset))
    assert [(layer.op, layer.activation.kind) for layer in model.graph.layers] == [("unary", kind)]
    nodes = [node("Conv", ["x", "w"], ["h"]), node(op, ["h"], ["y"])]
    model = same_as_onnxruntime(network(nodes, consts={"w": weights(4, 8, 1, 1)}, opset=opset))
    assert [layer.activation.kind for layer in model.graph.layers] == ["none", kind, "none"]


@pytest.mark.parametrize(
    ("consts", "attrs", "opset", "kind"),
    [
        ({}, {"min": 0.0, "max": 6.0}, 8, "clip"),
        ({"lo": F(-1), "hi": np.array([2], F)}, {}, 13, "clip"),
        ({"lo": F(0)}, {}, 11, "relu"),
    ],
)
def test_clip(consts: dict[str, Any], attrs: dict[str, Any], opset: int, kind: str) -> None:
    model = same_as_onnxruntime(network([node("Clip", ["x", *consts], ["y"], **attrs)], consts=consts, opset=opset))
    assert [layer.activation.kind for layer in model.graph.layers] == [kind]


def test_a_tile_is_an_operator_that_passes_know() -> None:
    consts = {"n": np.array([1, 2, 1, 3], np.int64)}
    model = same_as_onnxruntime(network([node("Tile", ["x", "n"], ["y"])], consts=consts))
    assert [layer.attrs.get("operator") for layer in model.graph.layers] == ["tile"]
