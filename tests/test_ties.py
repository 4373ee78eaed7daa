"""Tensors that share a scale."""

from __future__ import annotations

import numpy as np
from onnx_nets import network, node, same_as_onnxruntime, weights

from hwq.assignment import Tie
from hwq.model import load
from hwq.ties import passing_units, tied_tensors


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
