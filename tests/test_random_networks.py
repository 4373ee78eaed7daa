"""Random networks of the operators that hwq has layers for, against ONNX Runtime: what no single test thinks of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_nets import Array, network, node, same_as_onnxruntime

Shape = tuple[int, ...]


@dataclass(slots=True)
class _Net:
    """A network in the making: ``live`` are the tensors so far."""

    rng: np.random.Generator
    shapes: dict[str, Shape]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    consts: dict[str, Array] = field(default_factory=dict)

    def weight(self, *shape: int) -> str:
        return self.const((self.rng.standard_normal(shape) * 0.5).astype(np.float32))

    def positive(self, *shape: int) -> str:
        return self.const(np.abs(self.rng.standard_normal(shape)).astype(np.float32) + np.float32(0.5))

    def const(self, array: Any) -> str:
        self.consts[f"k{len(self.consts)}"] = np.asarray(array)
        return f"k{len(self.consts) - 1}"

    def add(self, op: str, inputs: list[str], shape: Shape, **attrs: Any) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(node(op, inputs, [out], name=f"{op}_{len(self.nodes)}", **attrs))
        self.shapes[out] = shape
        return out

    def pick(self, *items: Any) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def like(self, shape: Shape, axes: slice = slice(None)) -> list[str]:
        """The tensors that agree with ``shape`` along ``axes`` and in rank."""
        return [name for name, other in self.shapes.items() if len(other) == len(shape) and other[axes] == shape[axes]]


def _window(net: _Net, s: Shape) -> tuple[list[int], list[int], list[int], Shape]:
    """(kernel, pads, strides, output plane) of a window that fits."""
    kernel = [int(net.rng.integers(1, min(4, dim + 1))) for dim in s[2:]]
    pads = [int(net.rng.integers(0, 2)) if size > 1 else 0 for size in kernel * 2]
    strides = [int(net.rng.integers(1, 3)) for _ in kernel]
    out = tuple((s[2 + i] + pads[i] + pads[2 + i] - kernel[i]) // strides[i] + 1 for i in range(2))
    return kernel, pads, strides, out


def _conv(net: _Net, x: str, s: Shape) -> None:
    kernel, pads, strides, out = _window(net, s)
    groups = net.pick(1, s[1], *([2] if s[1] % 2 == 0 else []))
    channels = groups * int(net.rng.integers(1, 4))
    inputs = [x, net.weight(channels, s[1] // groups, *kernel), *net.pick([], [net.weight(channels)])]
    net.add("Conv", inputs, (s[0], channels, *out), pads=pads, strides=strides, group=groups)


def _pool(net: _Net, x: str, s: Shape) -> None:
    kernel, pads, strides, out = _window(net, s)
    op = net.pick("MaxPool", "AveragePool")
    extra = {"count_include_pad": int(net.rng.integers(2))} if op == "AveragePool" else {}
    net.add(op, [x], (*s[:2], *out), kernel_shape=kernel, pads=pads, strides=strides, **extra)


def _batch_norm(net: _Net, x: str, s: Shape) -> None:
    c = s[1]
    net.add("BatchNormalization", [x, net.weight(c), net.weight(c), net.weight(c), net.positive(c)], s)


def _activation(net: _Net, x: str, s: Shape) -> None:
    op = net.pick("Relu", "Clip", "Sigmoid", "HardSigmoid", "Tanh", "LeakyRelu", "HardSwish", "Mul", "Elu")
    limits = [net.const(np.float32(net.pick(0, -1))), net.const(np.float32(6))] if op == "Clip" else []
    net.add(op, [x, net.add("Sigmoid", [x], s)] if op == "Mul" else [x, *limits], s)


def _two(net: _Net, x: str, s: Shape) -> None:
    net.add(net.pick("Add", "Add", "Mul"), [x, net.pick(*net.like(s))], s)


def _with_constant(net: _Net, x: str, s: Shape) -> None:
    spread = net.pick((), (s[-1],), *([(1, s[1], 1, 1), (s[1], 1, 1)] if len(s) == 4 else []))
    op = net.pick("Add", "Sub", "Mul", "Div")
    inputs = [x, net.positive(*spread)]
    net.add(op, inputs[::-1] if op != "Div" and net.rng.random() < 0.3 else inputs, s)


def _concat(net: _Net, x: str, s: Shape) -> None:
    other = net.pick(*[name for name in net.like(s) if net.shapes[name][2:] == s[2:] and net.shapes[name][0] == s[0]])
    net.add("Concat", [x, other], (s[0], s[1] + net.shapes[other][1], *s[2:]), axis=net.pick(1, -3))


def _cut(net: _Net, x: str, s: Shape) -> None:
    axis = int(net.rng.integers(1, 4))
    begin = int(net.rng.integers(0, s[axis]))
    end = int(net.rng.integers(begin + 1, s[axis] + 1))
    inputs = [x, *(net.const(np.array([value])) for value in (begin, end, axis))]
    net.add("Slice", inputs, (*s[:axis], end - begin, *s[axis + 1 :]))


def _pad(net: _Net, x: str, s: Shape) -> None:
    pads = [0, net.pick(0, 1), *net.rng.integers(0, 3, 2).tolist(), 0, 0, *net.rng.integers(0, 3, 2).tolist()]
    inputs = [x, net.const(np.array(pads)), net.const(np.float32(net.pick(0, 0, 1.5)))]
    net.add("Pad", inputs, tuple(dim + pads[i] + pads[4 + i] for i, dim in enumerate(s)))


def _gate(net: _Net, x: str, s: Shape) -> None:
    small = (*s[:2], 1, 1)
    pooled = net.add("GlobalAveragePool", [x], small)
    gate = net.add("HardSigmoid", [net.add("Conv", [pooled, net.weight(s[1], s[1], 1, 1)], small)], small)
    net.add("Mul", net.pick([x, gate], [gate, x]), s)


def _upsample(net: _Net, x: str, s: Shape) -> None:
    if max(s[2:]) < 8:
        inputs = [x, "", net.const(np.array([1, 1, 2, 2], np.float32))]
        attrs = {"mode": net.pick("nearest", "linear"), "coordinate_transformation_mode": "asymmetric"}
        net.add("Resize", inputs, (*s[:2], 2 * s[2], 2 * s[3]), nearest_mode="floor", **attrs)


def _dense(net: _Net, x: str, s: Shape) -> None:
    out, flip = int(net.rng.integers(1, 9)), int(net.rng.integers(2))
    if len(s) == 2:
        weight = net.weight(out, s[1]) if flip else net.weight(s[1], out)
        net.add("Gemm", [x, weight, net.weight(out)], (s[0], out), transB=flip, alpha=net.pick(1.0, 0.5))
    else:
        net.add("MatMul", [x, net.weight(s[-1], out)], (*s[:-1], out))


def _move(net: _Net, x: str, s: Shape) -> None:
    axes = [int(axis) for axis in net.rng.permutation(len(s))]
    net.add("Transpose", [x], tuple(s[axis] for axis in axes), perm=axes)


def _reshape(net: _Net, x: str, s: Shape) -> None:
    shapes = [(s[0], int(np.prod(s[1:]))), *([(*s[:-2], s[-2] * s[-1])] if len(s) > 2 else [])]
    shapes += [(s[0], 2, s[1] // 2, *s[2:])] if s[1] % 2 == 0 and len(s) < 5 else []
    shape = net.pick(*shapes)
    net.add("Reshape", [x, net.const(np.array(shape))], shape)


_ANY: tuple[Callable[[_Net, str, Shape], None], ...] = (
    _activation,
    _two,
    _with_constant,
    _dense,
    _move,
    _reshape,
    _batch_norm,
)
_PLANES = (_conv, _conv, _conv, _conv, _pool, _concat, _cut, _pad, _gate, _upsample)


def random_network(seed: int) -> onnx.ModelProto:
    """4 to 13 operators, each on one of the last four tensors."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 3)), int(rng.choice([1, 2, 4, 8])), *(int(rng.integers(3, 9)) for _ in range(2)))
    net = _Net(rng, {"x": shape})
    size = int(rng.integers(4, 14))
    while len(net.nodes) < size:
        x = net.pick(*list(net.shapes)[-4:])
        s = net.shapes[x]
        net.pick(*_ANY, *(_PLANES * 2 if len(s) == 4 else ()))(net, x, s)
    read = {name for item in net.nodes for name in item.input}
    made = [name for item in net.nodes for name in item.output]
    outputs = [name for name in made if name not in read] + [net.pick(*made)]
    return network(net.nodes, shape, consts=net.consts, outputs=list(dict.fromkeys(outputs)), opset=14)


@pytest.mark.parametrize("seed", range(40))
def test_a_random_network(seed: int) -> None:
    # Up to a dozen layers in a row, each with the rounding of its own sums.
    same_as_onnxruntime(random_network(seed), scale=1.0, tolerance=1e-4)
