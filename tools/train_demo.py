"""Trains the network that ships as hwq/data/digits.onnx, and writes it with its pictures.

Needed only to retrain, and no part of the package. In an environment of its own, from the project's root:

    pip install torch scikit-learn onnx && python -m tools.train_demo

The seed fixes the split, the first weights and every batch; training again on the same machine with the same versions
gives the same two files. Takes about a minute on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from hwq.demo import prepare

SEED = 2011
TEST, CALIBRATION = 500, 128
EPOCHS, BATCH = 60, 64


class ConvNorm(nn.Module):
    """conv -> batch norm -> activation ("relu", "relu6" or "none")."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: str = "relu"):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x))
        return {"relu": functional.relu, "relu6": functional.relu6, "none": nn.Identity()}[self.act](x)


class Residual(nn.Module):
    """relu(conv2(conv1(x)) + shortcut(x)); the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, 3, stride)
        self.conv2 = ConvNorm(outputs, outputs, 3, act="none")
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, act="none") if stride > 1 or inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.conv2(self.conv1(x)) + (x if self.shortcut is None else self.shortcut(x)))


class Separable(nn.Module):
    """depthwise 3x3, then pointwise, each with relu6."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = ConvNorm(inputs, inputs, 3, stride, groups=inputs, act="relu6")
        self.pointwise = ConvNorm(inputs, outputs, 1, act="relu6")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise(self.depthwise(x))


class Inverted(nn.Module):
    """x + project(depthwise(expand(x))), the projection linear, as in MobileNetV2 (arXiv:1801.04381)."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        self.expand = ConvNorm(channels, expanded, 1, act="relu6")
        self.depthwise = ConvNorm(expanded, expanded, 3, groups=expanded, act="relu6")
        self.project = ConvNorm(expanded, channels, 1, act="none")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.project(self.depthwise(self.expand(x)))


class Digits(nn.Module):
    """(N, 1, 16, 16) in [0, 1] -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 16, 3)
        self.block1 = Residual(16, 16, 1)
        self.block2 = Residual(16, 32, 2)
        self.block3 = Separable(32, 48, 2)
        self.block4 = Inverted(48, 96)
        self.classifier = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block4(self.block3(self.block2(self.block1(self.stem(x)))))
        return self.classifier(x.mean(dim=(2, 3)))


class Export:
    """The ONNX nodes and initializers written so far. Written by hand, so that node names are the network's own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: torch.Tensor | float) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, output: str | None = None, **attributes: object) -> str:
        output = output or f"{name}.out"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def conv_norm(self, module: ConvNorm, x: str, name: str) -> str:
        conv, bn = module.conv, module.bn
        kernel, pad = conv.kernel_size[0], int(conv.padding[0])
        weight = self.constant(f"{name}.weight", conv.weight.detach())
        x = self.node("Conv", [x, weight], name, kernel_shape=[kernel] * 2, strides=list(conv.stride), pads=[pad] * 4,
                      group=conv.groups)  # fmt: skip
        terms = {"scale": bn.weight, "shift": bn.bias, "mean": bn.running_mean, "var": bn.running_var}
        names = [self.constant(f"{name}.bn.{key}", value.detach()) for key, value in terms.items() if value is not None]
        x = self.node("BatchNormalization", [x, *names], f"{name}.bn", epsilon=bn.eps)
        if module.act == "relu":
            return self.node("Relu", [x], f"{name}.relu")
        if module.act == "relu6":
            low, high = self.constant(f"{name}.lo", 0.0), self.constant(f"{name}.hi", 6.0)
            return self.node("Clip", [x, low, high], f"{name}.relu6")
        return x

    def residual(self, module: Residual, x: str, name: str) -> str:
        inner = self.conv_norm(module.conv1, x, f"{name}.conv1")
        inner = self.conv_norm(module.conv2, inner, f"{name}.conv2")
        shortcut = x if module.shortcut is None else self.conv_norm(module.shortcut, x, f"{name}.shortcut")
        return self.node("Relu", [self.node("Add", [inner, shortcut], f"{name}.add")], f"{name}.relu")

    def inverted(self, module: Inverted, x: str, name: str) -> str:
        inner = self.conv_norm(module.expand, x, f"{name}.expand")
        inner = self.conv_norm(module.depthwise, inner, f"{name}.depthwise")
        return self.node("Add", [x, self.conv_norm(module.project, inner, f"{name}.project")], f"{name}.add")


def to_onnx(net: Digits) -> onnx.ModelProto:
    """The network in opset 13 with a free batch dimension N, batch norms unfused."""
    out = Export()
    x = out.conv_norm(net.stem, "image", "stem")
    x = out.residual(net.block1, x, "block1")
    x = out.residual(net.block2, x, "block2")
    x = out.conv_norm(net.block3.depthwise, x, "block3.depthwise")
    x = out.conv_norm(net.block3.pointwise, x, "block3.pointwise")
    x = out.inverted(net.block4, x, "block4")
    x = out.node("Flatten", [out.node("GlobalAveragePool", [x], "pool")], "flatten", axis=1)
    weight = out.constant("classifier.weight", net.classifier.weight.detach())
    bias = out.constant("classifier.bias", net.classifier.bias.detach())
    out.node("Gemm", [x, weight, bias], "classifier", "logits", transB=1)
    graph = helper.make_graph(
        out.nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        out.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="hwq")
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model


def jitter(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each picture turned by up to 9 degrees, scaled by up to 8% and moved by up to 1.5 of its 16 pixels."""
    count = len(x)
    draw = torch.rand(count, 4, generator=generator) * 2 - 1
    angle, scale = draw[:, 0] * 0.16, 1 + draw[:, 1] * 0.08
    rows = torch.stack([scale * angle.cos(), -scale * angle.sin(), draw[:, 2] * 0.19,
                        scale * angle.sin(), scale * angle.cos(), draw[:, 3] * 0.19], dim=1)  # fmt: skip
    grid = functional.affine_grid(rows.view(count, 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def train(pictures: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> Digits:
    """Trains on (N, 8, 8) pictures with AdamW and a one-cycle rate."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    x, y = torch.from_numpy(prepare(pictures)), torch.from_numpy(labels)
    net = Digits().train()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=EPOCHS * steps)
    for epoch in range(EPOCHS):
        order, total = torch.randperm(len(x), generator=generator), 0.0
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            loss = functional.cross_entropy(net(jitter(x[batch], generator)), y[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() / steps
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1} of {EPOCHS}: loss {total:.4f}", flush=True)
    return net.eval()


def main() -> None:
    """Trains, prints the accuracy on the test pictures, and writes digits.onnx and digits.npz."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("hwq/data"))
    folder = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    pictures, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(pictures))
    test, calibration, rest = order[:TEST], order[TEST : TEST + CALIBRATION], order[TEST + CALIBRATION :]
    net = train(pictures[rest], labels[rest])
    with torch.no_grad():
        correct = (net(torch.from_numpy(prepare(pictures[test]))).argmax(1).numpy() == labels[test]).sum()
    print(f"{correct} of {TEST} test pictures right ({100 * correct / TEST:.1f}%)")
    print(f"{sum(value.numel() for value in net.parameters())} parameters, trained on {len(rest)} pictures")
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(to_onnx(net), folder / "digits.onnx")
    np.savez_compressed(folder / "digits.npz", calibration=pictures[calibration], test=pictures[test],
                        test_labels=labels[test].astype(np.uint8))  # fmt: skip
    print(", ".join(f"{path.name}: {path.stat().st_size} bytes" for path in sorted(folder.glob("digits.*"))))


if __name__ == "__main__":
    main()
