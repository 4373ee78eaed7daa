"""Anchors with their epilogues, names, and what stays a layer of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_nets import network, node, ops, same_as_onnxruntime, weights
from relax_cases import run
from tvm.script import ir as I
from tvm.script import relax as R

from hwq.graph import Layer
from hwq.layers import find_layers
from hwq.model import Model, load

W1, W3 = weights(8, 8, 1, 1), weights(8, 8, 3, 3)


def _conv(source: str, out: str, weight: str = "w", **attrs: Any) -> Any:
    return node("Conv", [source, weight], [out], name=f"conv_{out}", **attrs)


def _layer(model: Model, name: str) -> Layer:
    return next(layer for layer in model.graph.layers if layer.name == name)


def _model(*nodes: Any, **options: Any) -> Model:
    consts = {"w": W1, "w3": W3, "b": weights(8), **options.pop("consts", {})}
    return same_as_onnxruntime(network(list(nodes), consts=consts, **options))


def test_bias_residual_and_activation_are_one_layer() -> None:
    model = _model(
        _conv("x", "a"), node("Conv", ["a", "w3", "b"], ["c"], name="second", pads=[1, 1, 1, 1]),
        node("Add", ["a", "c"], ["s"]), node("Relu", ["s"], ["y"]),
    )  # fmt: skip
    assert ops(model) == ["transpose", "conv2d", "conv2d", "transpose"]
    second = _layer(model, "second")
    assert second.inputs == ("conv_a", "conv_a")
    assert second.residual
    assert second.activation.kind == "relu"
    np.testing.assert_array_equal(second.bias, weights(8))


def test_of_two_anchors_the_later_takes_the_other() -> None:
    model = _model(_conv("x", "a"), _conv("x", "c", "w"), node("Add", ["c", "a"], ["y"]))
    assert _layer(model, "conv_c").inputs[1] == "conv_a"
    assert not _layer(model, "conv_a").residual


def test_the_anchor_waits_for_a_later_residual() -> None:
    model = _model(
        _conv("x", "a"), _conv("x", "c"), node("Relu", ["c"], ["r"]), node("MaxPool", ["r"], ["m"], kernel_shape=[1, 2],
        pads=[0, 0, 0, 1]), node("Add", ["a", "m"], ["y"]),
    )  # fmt: skip
    names = [layer.name for layer in model.graph.layers]
    assert _layer(model, "conv_a").residual
    assert names.index("conv_a") > names.index(_layer(model, "conv_a").inputs[1])


def test_an_anchor_read_twice_keeps_its_own_output() -> None:
    model = _model(_conv("x", "a"), node("Relu", ["a"], ["r"]), node("Add", ["a", "r"], ["y"]))
    assert ops(model) == ["transpose", "conv2d", "unary", "add", "transpose"]
    model = _model(_conv("x", "a"), node("Relu", ["a"], ["y"]), outputs=["a", "y"])
    assert _layer(model, "conv_a").activation.kind == "none"


def test_an_activation_before_the_sum_stays_before_it() -> None:
    model = _model(
        _conv("x", "a"),
        node("Relu", ["a"], ["r"]),
        _conv("x", "c"),
        node("Relu", ["c"], ["q"]),
        node("Add", ["r", "q"], ["y"]),
    )
    assert ops(model) == ["transpose", "conv2d", "conv2d", "add", "transpose"]


def test_a_clamp_ends_an_addition_and_a_table_does_not() -> None:
    for op, wanted in (("Relu", ["add"]), ("Sigmoid", ["add", "unary"])):
        model = _model(
            _conv("x", "a"), node("Relu", ["a"], ["r"]), _conv("r", "c"), node("Relu", ["c"], ["q"]),
            node("Add", ["r", "q"], ["s"]), node(op, ["s"], ["y"]),
        )  # fmt: skip
        assert ops(model)[3:-1] == wanted


def test_a_tensor_added_to_itself() -> None:
    assert "add" in ops(_model(_conv("x", "a"), node("Add", ["a", "a"], ["y"])))


def test_squeeze_and_excitation() -> None:
    model = _model(
        _conv("x", "a"), node("GlobalAveragePool", ["a"], ["p"]), _conv("p", "g"), node("HardSigmoid", ["g"], ["h"]),
        node("Mul", ["h", "a"], ["y"]),
    )  # fmt: skip
    assert ops(model) == ["transpose", "conv2d", "avg_pool2d", "conv2d", "multiply", "transpose"]
    assert [len(shape) for shape in model.graph.layers[4].input_shapes] == [4, 4]
    assert model.graph.layers[4].input_shapes[1] == (1, 1, 1, 8)


def test_one_number_a_channel_is_a_depthwise_layer() -> None:
    consts = {"m": weights(1, 8, 1, 1), "n": weights(8, 1, 1)}
    model = _model(
        node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2]), node("Mul", ["p", "m"], ["q"], name="scale"), node("Add",
        ["q", "n"], ["r"]), node("Relu", ["r"], ["s"]), node("MaxPool", ["s"], ["y"], kernel_shape=[2, 2]),
        consts=consts,
    )  # fmt: skip
    assert ops(model)[2] == "depthwise_conv2d"
    layer = _layer(model, "scale")
    assert layer.weight is not None
    assert (layer.weight.shape, layer.activation.kind) == ((8, 1, 1, 1), "relu")
    np.testing.assert_array_equal(layer.bias, consts["n"].reshape(-1))


def test_batch_norm_before_a_padded_convolution() -> None:
    consts = {"g": weights(8), "s": weights(8), "m": weights(8), "v": np.abs(weights(8)) + 0.5}
    norm = node("BatchNormalization", ["p", "g", "s", "m", "v"], ["n"], name="norm")
    pool = node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2])
    model = _model(pool, norm, node("Relu", ["n"], ["r"]), _conv("r", "y", "w3", pads=[1, 1, 1, 1]), consts=consts)
    assert ops(model) == ["transpose", "max_pool2d", "depthwise_conv2d", "conv2d", "transpose"]
    model = _model(pool, norm, _conv("n", "y", "w3"), consts=consts)
    assert ops(model) == ["transpose", "max_pool2d", "conv2d", "transpose"]


def test_flatten_into_a_dense_layer_moves_no_tensor() -> None:
    model = _model(
        _conv("x", "a"),
        node("Flatten", ["a"], ["f"]),
        node("Gemm", ["f", "d"], ["y"], name="fc"),
        consts={"d": weights(240, 3)},
    )
    assert ops(model) == ["transpose", "conv2d", "reshape", "dense"]
    assert _layer(model, "fc").activation.kind == "none"


def test_a_detector_head_needs_no_transpose() -> None:
    shape = {"s": np.array([1, -1, 2], np.int64), "t": np.array([1, 2, -1], np.int64)}
    model = _model(
        _conv("x", "a"),
        node("Transpose", ["a"], ["t1"], perm=[0, 2, 3, 1]),
        node("Reshape", ["t1", "s"], ["y"]),
        consts=shape,
    )
    assert ops(model) == ["transpose", "conv2d", "reshape"]
    model = _model(
        _conv("x", "a"), node("Reshape", ["a", "u"], ["r"]), node("Transpose", ["r"], ["y"], perm=[0, 2, 1]),
        consts={"u": np.array([1, 8, -1], np.int64)},
    )  # fmt: skip
    assert ops(model) == ["transpose", "conv2d", "reshape"]


def test_names_are_those_of_the_nodes_and_unique() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Conv", ["a", "w"], ["c"], name="twin"),
        node("Conv", ["c", "w"], ["y"], name="twin"),
    ]
    model = load(network(nodes, consts={"w": W1}))  # ONNX Runtime refuses two nodes of one name
    names = [layer.name for layer in model.graph.layers]
    assert names == ["x:transpose", "a", "twin", "twin:2", "twin:2:transpose"]
    assert len(set(names)) == len(names)


def test_a_layer_called_like_an_input() -> None:
    model = _model(node("Conv", ["x", "w"], ["y"], name="x"))
    assert len({*model.graph.inputs, *(layer.output for layer in model.graph.layers)}) == 4


def test_outputs_may_repeat_and_be_inputs() -> None:
    model = same_as_onnxruntime(
        network(
            [node("Identity", ["x"], ["y"]), node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["z"])],
            outputs=["y", "a", "z"],
        )
    )
    assert model.graph.outputs == ("x", "a", "a")
    assert [spec.name for spec in model.outputs] == ["y", "a", "z"]


def test_several_outputs_of_a_float_operator() -> None:
    model = same_as_onnxruntime(
        network([node("TopK", ["x", "k"], ["v", "i"], axis=1)], consts={"k": np.array([2], np.int64)}, dtypes={"i": 7})
    )
    assert ops(model).count("float") >= 2
    assert {model.graph.dtypes[name] for name in model.graph.outputs} == {"float32", "int64"}


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_types_stay_in_float(dtype: str) -> None:
    kind = {"float16": 10, "float64": 11}[dtype]
    net = network([node("Relu", ["x"], ["y"])], dtypes={"x": kind, "y": kind})
    assert ops(same_as_onnxruntime(net)) == ["float"]


def test_a_module_without_onnx() -> None:
    w = np.ascontiguousarray(W1.transpose(0, 2, 3, 1))

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((1, 5, 5, 8), "float32")):
            with R.dataflow():
                lv = R.nn.conv2d(x, R.const(w), data_layout="NHWC", kernel_layout="OHWI")
                lv1 = R.split(lv, 2, axis=3)
                lv2 = lv1[1]
                gv = R.nn.relu(lv2)
                R.output(gv)
            return gv

    graph = find_layers(Module)
    assert [layer.op for layer in graph.layers] == ["conv2d", "float", "float", "unary"]
    from reference import run_graph

    x = (np.random.default_rng(0).standard_normal((1, 5, 5, 8)) * 3).astype("float32")
    np.testing.assert_allclose(run_graph(graph, {"x": x})[graph.outputs[0]], run(Module)[0], rtol=1e-5, atol=1e-5)


def test_masks_and_scores_are_no_pictures() -> None:
    """A number times a 4-d tensor is a depthwise convolution of pictures only."""
    shape = {"s": np.array([1, 1, 8, 6], np.int64)}
    mask = [node("Reshape", ["x", "s"], ["r"]), node("Softmax", ["r"], ["t"]), node("Mul", ["t", "n"], ["y"])]
    model = _model(*mask, x=(8, 6), consts={**shape, "n": np.float32(-1e4)})
    assert ops(model) == ["reshape", "softmax", "float"]
    scores = [node("MatMul", ["x", "x"], ["p"]), node("Mul", ["p", "n"], ["y"])]
    assert ops(_model(*scores, x=(1, 2, 6, 6), consts={"n": np.float32(0.5)})) == ["float", "float"]


def test_a_reshape_of_whole_numbers_is_a_view() -> None:
    net = network(
        [node("Reshape", ["x", "s"], ["r"]), node("Cast", ["r"], ["y"], to=1)],
        x=(2, 6), consts={"s": np.array([3, 4], np.int64)}, dtypes={"x": 7},
    )  # fmt: skip
    model = same_as_onnxruntime(net)
    assert ops(model) == ["reshape", "float"]
    assert model.graph.dtypes[model.graph.layers[0].output] == "int64"
