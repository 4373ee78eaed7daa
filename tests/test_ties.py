"""Tensors that share a scale."""

from __future__ import annotations

import numpy as np
import tiny
from onnx_nets import network, node, same_as_onnxruntime, weights

from hwq.assignment import Tie
from hwq.graph import Graph, Layer
from hwq.model import load
from hwq.ties import passing_units, projections, tied_tensors, with_float_residuals


def test_every_float_tensor_is_in_one_group() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="a"),
        node("Conv", ["x", "w"], ["b"], name="b"),
        node("Concat", ["a", "b"], ["c"], axis=1, name="c"),
        node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], name="p"),
        node("Resize", ["p", "", "s"], ["r"], mode="linear", name="r"),
        node("Conv", ["r", "v"], ["d"], name="d"),
        node("AveragePool", ["d"], ["y"], kernel_shape=[2, 2], name="y"),
        node("ArgMax", ["d"], ["i"], axis=1, name="i"),
    ]
    consts = {"w": weights(4, 4, 1, 1), "v": weights(4, 8, 1, 1), "s": np.array([1, 1, 2, 2], np.float32)}
    model = same_as_onnxruntime(network(nodes, (1, 4, 5, 5), consts=consts, dtypes={"i": 7}))
    groups = tied_tensors(model.graph)
    assert frozenset({"a", "b", "c", "p", "r"}) in groups
    assert frozenset({"d"}) in groups
    assert frozenset({"y"}) in groups
    assert passing_units(model.graph) == (Tie(passing=("c", "p", "r"), neighbours=("a", "b", "d")),)
    members = [name for group in groups for name in group]
    assert len(members) == len(set(members))
    assert set(members) == {name for name, dtype in model.graph.dtypes.items() if dtype == "float32"}


def test_order_is_that_of_the_graph() -> None:
    graph = load(network([node("Relu", ["x"], ["a"]), node("Flatten", ["a"], ["y"])])).graph
    assert [sorted(group) for group in tied_tensors(graph)] == [["x"], ["a", "y"]]


def streams(norm: str = "layer_norm") -> tuple[Graph, dict[str, Layer]]:
    """Two dense layers that add to a stream, which a norm or something else reads, and one whose output is read by a
    dense layer."""
    shapes = dict.fromkeys(("x", "a", "n", "b", "c", "y"), (4, 8))
    constants = (np.ones(8, np.float32),) * 2
    layers = [
        tiny.dense("x", "a", (8, 8), rows=4, residual="x"),
        tiny.layer(norm, ["a"], "n", shapes, attrs={"epsilon": 1e-5}, constants=constants),
        tiny.dense("n", "b", (8, 8), rows=4, residual="a"),
        tiny.dense("b", "c", (8, 8), rows=4, residual="n"),
        tiny.layer("layer_norm", ["c"], "y", shapes, attrs={"epsilon": 1e-5}, constants=constants),
    ]
    graph = with_float_residuals(tiny.graph(layers, ["x"], ["y"]))
    return graph, {layer.name: layer for layer in graph.layers}


def test_a_stream_that_no_layer_reads_in_int8_stays_float() -> None:
    _, layers = streams()
    assert {name for name, layer in layers.items() if layer.float_residual} == {"c"}, "b is read by a dense layer"
    assert layers["c"].int8_tensors == ("b",)
    assert layers["b"].int8_tensors == ("n", "a", "b")


def test_the_tensor_a_stream_adds_to_is_read_in_float() -> None:
    shapes = dict.fromkeys(("x", "n", "y", "z"), (4, 8))
    constants = (np.ones(8, np.float32),) * 2
    norm = tiny.layer("layer_norm", ["x"], "n", shapes, attrs={"epsilon": 1e-5}, constants=constants)
    layers = [norm, tiny.dense("n", "y", (8, 8), rows=4, residual="x"), tiny.layer("reshape", ["y"], "z", shapes)]
    layers.append(tiny.dense("n", "w", (8, 8), rows=4, residual="y"))
    graph = with_float_residuals(tiny.graph(layers, ["x"], ["z", "w"]))
    assert [layer.name for layer in graph.layers if layer.float_residual] == ["y", "w"]
    assert not any(layer.float_residual for layer in with_float_residuals(tiny.net()).layers), "of convolutions none"


def test_projections_of_one_tensor_for_one_attention_go_together() -> None:
    shapes = dict.fromkeys(("x", "m", "q", "r", "k", "v", "y", "o"), (1, 4, 8))
    cos = (np.ones((4, 4), np.float32), np.zeros((4, 4), np.float32))

    def projected(source: str, output: str) -> Layer:
        weight = np.eye(8, dtype=np.float32)
        return tiny.layer("dense", [source], output, shapes, weight=weight)

    layers = [
        projected("x", "q"),
        tiny.layer("rope", ["q"], "r", shapes, attrs={"heads": 2, "style": "half"}, constants=cos),
        projected("x", "k"),
        projected("m", "v"),
        tiny.layer("attention", ["r", "k", "v"], "y", shapes, attrs={"heads": 2, "kv_heads": 2}),
        projected("y", "o"),
    ]
    graph = tiny.graph(layers, ["x", "m"], ["o"])
    assert projections(graph) == (("q", "k"),), "v reads another tensor, o is behind"
