"""Networks with made-up weights, for benchmarks: their shapes are real, their answers mean nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

RESNET50_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # (width, blocks, stride of the first)


@dataclass(slots=True)
class _Builder:
    """Nodes and weights so far. Weights are He-initialized, batch norms close to what training leaves."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def tensor(self, name: str, values: NDArray[np.floating]) -> str:
        self.tensors.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attrs: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attrs))
        return f"{name}_out"

    def conv_bn(self, x: str, name: str, shape: tuple[int, int, int], *, stride: int = 1, gain: float = 1.0) -> str:
        """(in, out, kernel) convolution with padding for the same size, and its batch norm, unfused."""
        channels, out, kernel = shape
        std = np.sqrt(2.0 / (channels * kernel * kernel))
        weight = self.tensor(f"{name}.weight", self.rng.normal(0.0, std, (out, channels, kernel, kernel)))
        pad = kernel // 2
        x = self.node(
            "Conv", [x, weight], name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, dilations=[1, 1]
        )
        norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
        parameters = {
            "weight": gain * self.rng.uniform(0.8, 1.2, out), "bias": self.rng.normal(0.0, 0.1, out),
            "running_mean": self.rng.normal(0.0, 0.1, out), "running_var": self.rng.uniform(0.8, 1.2, out),
        }  # fmt: skip
        names = [self.tensor(f"{norm}.{key}", values) for key, values in parameters.items()]
        return self.node("BatchNormalization", [x, *names], norm, epsilon=1e-5)

    def bottleneck(self, x: str, name: str, channels: int, width: int, stride: int) -> str:
        """One residual block: 1x1, 3x3, 1x1 and the shortcut, which is a convolution where the shape changes."""
        y = self.node("Relu", [self.conv_bn(x, f"{name}.conv1", (channels, width, 1))], f"{name}.relu1")
        y = self.node("Relu", [self.conv_bn(y, f"{name}.conv2", (width, width, 3), stride=stride)], f"{name}.relu2")
        # A small last gain keeps the sum of 16 blocks in range, as training does.
        y = self.conv_bn(y, f"{name}.conv3", (width, 4 * width, 1), gain=0.3)
        if stride != 1 or channels != 4 * width:
            x = self.conv_bn(x, f"{name}.downsample.0", (channels, 4 * width, 1), stride=stride, gain=0.7)
        return self.node("Relu", [self.node("Add", [y, x], f"{name}.add")], f"{name}.relu3")


def resnet50(seed: int = 0, *, size: int = 224, classes: int = 1000) -> onnx.ModelProto:
    """ResNet-50 (arXiv:1512.03385, strides in the 3x3): "input" (N, 3, size, size) to "logits" (N, classes)."""
    net = _Builder(np.random.default_rng(seed))
    x = net.node("Relu", [net.conv_bn("input", "conv1", (3, 64, 7), stride=2)], "relu1")
    x = net.node("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (width, blocks, stride) in enumerate(RESNET50_STAGES, start=1):
        for block in range(blocks):
            x = net.bottleneck(x, f"layer{stage}.{block}", channels, width, stride if block == 0 else 1)
            channels = 4 * width
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "avgpool")], "flatten")
    weight = net.tensor("fc.weight", net.rng.normal(0.0, np.sqrt(1.0 / channels), (classes, channels)))
    bias = net.tensor("fc.bias", net.rng.normal(0.0, 0.01, classes))
    net.nodes.append(helper.make_node("Gemm", [x, weight, bias], ["logits"], name="fc", transB=1))
    graph = helper.make_graph(
        net.nodes,
        "resnet50",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        net.tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="hwq")
