"""The benchmarks' networks: shapes and layer counts of the papers, numbers in range, all in a form that hwq takes."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import NETWORKS, build

import hwq

# Parameters in millions, as the papers (or the reference models' own files) state them.
MILLIONS = {
    "resnet50": 25.6, "resnet18": 11.7, "mobilenetv2": 3.5, "efficientnet-lite0": 4.7, "squeezenet": 1.24,
    "resnet8": 0.078, "dscnn": 0.024, "vww": 0.22, "autoencoder": 0.27,
}  # fmt: skip
LAYERS = {
    "resnet50": {"conv2d": 53, "max_pool2d": 1, "avg_pool2d": 1, "dense": 1},
    "resnet18": {"conv2d": 20, "max_pool2d": 1, "avg_pool2d": 1, "dense": 1},
    "mobilenetv2": {"conv2d": 35, "depthwise_conv2d": 17, "avg_pool2d": 1, "dense": 1},
    "efficientnet-lite0": {"conv2d": 33, "depthwise_conv2d": 16, "avg_pool2d": 1, "dense": 1},
    "squeezenet": {"conv2d": 26, "max_pool2d": 3, "concat": 8, "avg_pool2d": 1},
    "resnet8": {"conv2d": 9, "avg_pool2d": 1, "dense": 1},
    "dscnn": {"conv2d": 5, "depthwise_conv2d": 4, "avg_pool2d": 1, "dense": 1},
    "vww": {"conv2d": 14, "depthwise_conv2d": 13, "avg_pool2d": 1, "dense": 1},
    "autoencoder": {"dense": 10},
}
SMALL = ("resnet8", "dscnn", "vww", "autoencoder")


def _parameters(proto: onnx.ModelProto) -> int:
    return sum(math.prod(tensor.dims) for tensor in proto.graph.initializer)


def test_every_network_is_checked_here() -> None:
    assert set(NETWORKS) == set(MILLIONS) == set(LAYERS)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_layers_of_its_paper(name: str, tmp_path: Path) -> None:
    proto = build(name)
    assert _parameters(proto) / 1e6 == pytest.approx(MILLIONS[name], rel=0.03)
    onnx.save(proto, tmp_path / "net.onnx")
    counts = Counter(layer.op for layer in hwq.load(tmp_path / "net.onnx").graph.layers)
    assert {op: count for op, count in counts.items() if op not in ("reshape", "transpose")} == LAYERS[name]


def test_the_same_seed_gives_the_same_network() -> None:
    assert build("dscnn").SerializeToString() == build("dscnn").SerializeToString()
    assert build("dscnn", seed=1) != build("dscnn")


@pytest.mark.parametrize("name", SMALL)
def test_activations_stay_in_range(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    proto = build(name)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(node.output[0]) for node in proto.graph.node)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((4, *NETWORKS[name].sample)).astype(np.float32)
    for node, value in zip(proto.graph.node, session.run(None, {"input": x}), strict=True):
        assert 0.05 < value.std() < 20, f"{node.name} has a deviation of {value.std()}"
