"""Networks with made-up weights, for benchmarks: their shapes are real, their answers mean nothing.

A network is a table: one row (block, arguments...) for each of its blocks, in order; the blocks are below it. Weights
are He-initialized, batch norms are unfused and close to what training leaves, and a residual branch ends with a small
gain, so that activations stay in range from the first layer to the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One network: the shape of a sample, its blocks, and the activation behind every batch norm."""

    sample: tuple[int, ...]
    rows: tuple[Row, ...]
    activation: str = "Relu"
    paper: str = ""


def _stages(block: str, stages: tuple[tuple[int, int, int], ...]) -> tuple[Row, ...]:
    """Residual blocks of (width, count, stride of the first)."""
    return tuple((block, width, stride if i == 0 else 1) for width, count, stride in stages for i in range(count))


def _inverted(stages: tuple[tuple[int, int, int, int, int], ...]) -> tuple[Row, ...]:
    """Inverted residuals of (expansion, width, count, stride of the first, kernel)."""
    return tuple(
        ("inverted", expand, width, stride if i == 0 else 1, kernel)
        for expand, width, count, stride, kernel in stages
        for i in range(count)
    )


RESNET_STEM: tuple[Row, ...] = (("conv", 64, (7, 7), 2), ("pool", 1))
NETWORKS = {
    "resnet50": Architecture(  # strides in the 3x3
        sample=(3, 224, 224),
        rows=(
            *RESNET_STEM,
            *_stages("bottleneck", ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))),
            ("mean",),
            ("dense", 1000),
        ),
        paper="arXiv:1512.03385",
    ),
    "resnet18": Architecture(
        sample=(3, 224, 224),
        rows=(
            *RESNET_STEM,
            *_stages("basic", ((64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2))),
            ("mean",),
            ("dense", 1000),
        ),
        paper="arXiv:1512.03385",
    ),
    "mobilenetv2": Architecture(
        sample=(3, 224, 224),
        rows=(
            ("conv", 32, (3, 3), 2),
            *_inverted(
                (
                    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3)),
                    *((6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)),
                )
            ),
            ("conv", 1280, (1, 1), 1),
            ("mean",),
            ("dense", 1000),
        ),
        activation="Relu6",
        paper="arXiv:1801.04381",
    ),
    "efficientnet-lite0": Architecture(  # EfficientNet-B0 with ReLU6 and without squeeze-excitation
        sample=(3, 224, 224),
        rows=(
            ("conv", 32, (3, 3), 2),
            *_inverted(
                (
                    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)),
                    *((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
                )
            ),
            ("conv", 1280, (1, 1), 1),
            ("mean",),
            ("dense", 1000),
        ),
        activation="Relu6",
        paper="arXiv:1905.11946",
    ),
    "squeezenet": Architecture(  # version 1.1
        sample=(3, 224, 224),
        rows=(
            *(("plain", 64, (3, 3), 2, 0), ("pool", 0), ("fire", 16, 64), ("fire", 16, 64), ("pool", 0)),
            *(("fire", 32, 128), ("fire", 32, 128), ("pool", 0)),
            *(("fire", 48, 192), ("fire", 48, 192), ("fire", 64, 256), ("fire", 64, 256)),
            *(("plain", 1000, (1, 1), 1, 0), ("mean",)),
        ),
        paper="arXiv:1602.07360",
    ),
    "resnet8": Architecture(  # MLPerf Tiny, image classification
        sample=(3, 32, 32),
        rows=(
            ("conv", 16, (3, 3), 1),
            *_stages("basic", ((16, 1, 1), (32, 1, 2), (64, 1, 2))),
            ("mean",),
            ("dense", 10),
        ),
        paper="arXiv:2106.07597",
    ),
    "dscnn": Architecture(  # MLPerf Tiny, keyword spotting
        sample=(1, 49, 10),
        rows=(("conv", 64, (10, 4), 2), *(("separable", 64, 1),) * 4, ("mean",), ("dense", 12)),
        paper="arXiv:2106.07597",
    ),
    "vww": Architecture(  # MLPerf Tiny, visual wake words: MobileNetV1 of width 0.25
        sample=(3, 96, 96),
        rows=(
            ("conv", 8, (3, 3), 2),
            *(("separable", 16, 1), ("separable", 32, 2), ("separable", 32, 1), ("separable", 64, 2)),
            *(("separable", 64, 1), ("separable", 128, 2), *(("separable", 128, 1),) * 5),
            *(("separable", 256, 2), ("separable", 256, 1), ("mean",), ("dense", 2)),
        ),
        paper="arXiv:2106.07597",
    ),
    "autoencoder": Architecture(  # MLPerf Tiny, anomaly detection
        sample=(640,),
        rows=(*(("dense_norm", 128),) * 4, ("dense_norm", 8), *(("dense_norm", 128),) * 4, ("dense", 640)),
        paper="arXiv:2106.07597",
    ),
}


@dataclass(slots=True)
class _Builder:
    """Nodes and weights so far, and the channels of every tensor."""

    rng: np.random.Generator
    activation: str
    channels: dict[str, int]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def tensor(self, name: str, values: NDArray[np.floating]) -> str:
        self.tensors.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, channels: int | None = None, **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attrs))
        self.channels[f"{name}_out"] = self.channels[inputs[0]] if channels is None else channels
        return f"{name}_out"

    def conv(
        self, x: str, name: str, out: int, kernel: tuple[int, int], stride: int = 1, *, groups: int = 1,
        same: bool = True, bias: bool = False,
    ) -> str:  # fmt: skip
        """A convolution; ``same`` keeps the size but for the stride, with the odd row and column of padding last."""
        depth = self.channels[x] // groups
        std = np.sqrt(2.0 / (depth * kernel[0] * kernel[1]))
        inputs = [x, self.tensor(f"{name}.weight", self.rng.normal(0.0, std, (out, depth, *kernel)))]
        if bias:
            inputs.append(self.tensor(f"{name}.bias", self.rng.normal(0.0, 0.1, out)))
        pads = [(k - 1) // 2 for k in kernel] + [k // 2 for k in kernel] if same else [0] * 4
        return self.node(
            "Conv", inputs, name, out, kernel_shape=list(kernel), strides=[stride] * 2, pads=pads, dilations=[1, 1],
            group=groups,
        )  # fmt: skip

    def norm(self, x: str, name: str, gain: float = 1.0) -> str:
        out = self.channels[x]
        parameters = {
            "weight": gain * self.rng.uniform(0.8, 1.2, out), "bias": self.rng.normal(0.0, 0.1, out),
            "running_mean": self.rng.normal(0.0, 0.1, out), "running_var": self.rng.uniform(0.8, 1.2, out),
        }  # fmt: skip
        names = [self.tensor(f"{name}.{key}", values) for key, values in parameters.items()]
        return self.node("BatchNormalization", [x, *names], name, epsilon=1e-5)

    def act(self, x: str, name: str) -> str:
        if self.activation == "Relu6":
            ends = [self.tensor(f"{name}.{key}", np.array(value)) for key, value in (("low", 0.0), ("high", 6.0))]
            return self.node("Clip", [x, *ends], name)
        return self.node("Relu", [x], name)

    def conv_norm(
        self, x: str, name: str, out: int, kernel: tuple[int, int], stride: int = 1, groups: int = 1, gain: float = 1.0
    ) -> str:
        return self.norm(self.conv(x, f"{name}.conv", out, kernel, stride, groups=groups), f"{name}.bn", gain)

    def dense(self, x: str, name: str, out: int) -> str:
        depth = self.channels[x]
        weight = self.tensor(f"{name}.weight", self.rng.normal(0.0, np.sqrt(2.0 / depth), (out, depth)))
        bias = self.tensor(f"{name}.bias", self.rng.normal(0.0, 0.01, out))
        return self.node("Gemm", [x, weight, bias], name, out, transB=1)


# The blocks: (builder, input, name, the row's arguments...) to the output.


def _conv(net: _Builder, x: str, name: str, out: int, kernel: tuple[int, int], stride: int, groups: int = 1) -> str:
    return net.act(net.conv_norm(x, name, out, kernel, stride, groups), f"{name}.act")


def _plain(net: _Builder, x: str, name: str, out: int, kernel: tuple[int, int], stride: int, same: bool = True) -> str:
    """A convolution with bias and activation, without a batch norm."""
    return net.act(net.conv(x, f"{name}.conv", out, kernel, stride, same=same, bias=True), f"{name}.act")


def _pool(net: _Builder, x: str, name: str, pad: int) -> str:
    return net.node("MaxPool", [x], name, kernel_shape=[3, 3], strides=[2, 2], pads=[pad] * 4)


def _mean(net: _Builder, x: str, name: str) -> str:
    return net.node("Flatten", [net.node("GlobalAveragePool", [x], f"{name}.pool")], name)


def _dense_norm(net: _Builder, x: str, name: str, out: int) -> str:
    return net.act(net.norm(net.dense(x, f"{name}.dense", out), f"{name}.bn"), f"{name}.act")


def _residual(net: _Builder, x: str, y: str, name: str, stride: int) -> str:
    """The sum with the shortcut, which is a convolution where the shape changes, and its activation."""
    if stride != 1 or net.channels[x] != net.channels[y]:
        x = net.conv_norm(x, f"{name}.shortcut", net.channels[y], (1, 1), stride, gain=0.7)
    return net.act(net.node("Add", [y, x], f"{name}.add"), f"{name}.act")


def _basic(net: _Builder, x: str, name: str, width: int, stride: int) -> str:
    y = _conv(net, x, f"{name}.1", width, (3, 3), stride)
    return _residual(net, x, net.conv_norm(y, f"{name}.2", width, (3, 3), gain=0.3), name, stride)


def _bottleneck(net: _Builder, x: str, name: str, width: int, stride: int) -> str:
    y = _conv(net, x, f"{name}.1", width, (1, 1), 1)
    y = _conv(net, y, f"{name}.2", width, (3, 3), stride)
    return _residual(net, x, net.conv_norm(y, f"{name}.3", 4 * width, (1, 1), gain=0.3), name, stride)


def _inverted_residual(net: _Builder, x: str, name: str, expand: int, width: int, stride: int, kernel: int) -> str:
    wide = expand * net.channels[x]
    y = x if expand == 1 else _conv(net, x, f"{name}.expand", wide, (1, 1), 1)
    y = _conv(net, y, f"{name}.depthwise", wide, (kernel, kernel), stride, wide)
    kept = stride == 1 and net.channels[x] == width
    y = net.conv_norm(y, f"{name}.project", width, (1, 1), gain=0.5 if kept else 1.0)
    return net.node("Add", [y, x], f"{name}.add") if kept else y


def _separable(net: _Builder, x: str, name: str, out: int, stride: int) -> str:
    channels = net.channels[x]
    y = _conv(net, x, f"{name}.depthwise", channels, (3, 3), stride, channels)
    return _conv(net, y, f"{name}.pointwise", out, (1, 1), 1)


def _fire(net: _Builder, x: str, name: str, squeeze: int, expand: int) -> str:
    x = _plain(net, x, f"{name}.squeeze", squeeze, (1, 1), 1)
    sides = [_plain(net, x, f"{name}.expand{k}", expand, (k, k), 1) for k in (1, 3)]
    return net.node("Concat", sides, f"{name}.concat", 2 * expand, axis=1)


BLOCKS: dict[str, Callable[..., str]] = {
    "conv": _conv, "plain": _plain, "pool": _pool, "mean": _mean, "dense": _Builder.dense, "dense_norm": _dense_norm,
    "basic": _basic, "bottleneck": _bottleneck, "inverted": _inverted_residual, "separable": _separable, "fire": _fire,
}  # fmt: skip


def build(name: str, seed: int = 0) -> onnx.ModelProto:
    """The network called ``name`` in NETWORKS: "input" (N, *sample) to one output (N, classes)."""
    shape = NETWORKS[name]
    net = _Builder(np.random.default_rng(seed), shape.activation, {"input": shape.sample[0]})
    x = "input"
    for i, (block, *arguments) in enumerate(shape.rows):
        x = BLOCKS[block](net, x, f"{block}{i}", *arguments)
    graph = helper.make_graph(
        net.nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *shape.sample])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", net.channels[x]])],
        net.tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="hwq")
