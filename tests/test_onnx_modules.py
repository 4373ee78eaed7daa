"""The modules that torch.onnx's exporter notes at its nodes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_nets import network, node, weights

from hwq.model import load
from hwq.onnx_modules import module_paths


def noted(item: onnx.NodeProto, *scopes: str) -> onnx.NodeProto:
    entry = item.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", repr(list(scopes))
    return item


def test_files_without_notes_are_left_alone() -> None:
    assert module_paths(network([node("Relu", ["x"], ["y"])]).graph) is None


@pytest.mark.parametrize("value", ["[", "1", "['only']", "[1, 2]", "__import__('os')"])
def test_a_note_that_is_none_is_passed_over(value: str) -> None:
    bad = node("Relu", ["x"], ["y"])
    entry = bad.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", value
    assert module_paths(network([bad]).graph) is None


def test_layers_bear_the_names_of_modules() -> None:
    """The convolution stands where the exporter folded a batch norm into it, and the split has no note."""
    nodes = [
        noted(node("Conv", ["x", "block.conv.weight", "b"], ["h"]), "", "block", "block.bn", "_native_batch_norm_1"),
        node("Split", ["h"], ["left", "right"], axis=1),
        noted(node("Sigmoid", ["left"], ["gate"]), "", "block", "block.act", "silu"),
        noted(node("Mul", ["gate", "right"], ["product"]), "", "block", "mul"),
        noted(node("Add", ["product", "right"], ["y"]), "", "add"),
    ]
    proto = network(nodes, consts={"block.conv.weight": weights(8, 8, 1, 1), "b": np.zeros(8, np.float32)})
    assert module_paths(proto.graph) == ["block.conv", "block.act", "block.act", "block", ""]
    names = [layer.name for layer in load(proto).graph.layers if layer.op not in ("transpose", "slice")]
    assert names == ["block.conv", "block.act", "block.multiply", "add"]
