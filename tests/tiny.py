"""Small hand-made graphs for tests of the flow, and a NumPy interpreter of lowered programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hwq import reference
from hwq.graph import Activation, Graph, Layer, Shape
from hwq.lower import Program
from hwq.numerics import QParams, choose_qparams

Array = np.ndarray[Any, Any]
WINDOW = {"strides": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1)}


def layer(op: str, inputs: Sequence[str], output: str, shapes: Mapping[str, Shape], **fields: Any) -> Layer:
    """A layer called as its output, the shapes of its tensors looked up."""
    return Layer(
        name=output,
        op=op,
        inputs=tuple(inputs),
        output=output,
        input_shapes=tuple(shapes[name] for name in inputs),
        output_shape=shapes[output],
        **fields,
    )


def graph(layers: Sequence[Layer], inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
    """All in float32, the shapes taken from the layers."""
    shapes: dict[str, Shape] = {}
    for one in layers:
        shapes |= dict(zip(one.inputs, one.input_shapes, strict=True))
        shapes[one.output] = one.output_shape
    dtypes = dict.fromkeys(shapes, "float32")
    return Graph(inputs=tuple(inputs), outputs=tuple(outputs), shapes=shapes, dtypes=dtypes, layers=tuple(layers))


def alone(one: Layer) -> Graph:
    """The graph of one layer."""
    return graph([one], tuple(dict.fromkeys(one.inputs)), [one.output])


def conv(
    x: str,
    output: str,
    channels: tuple[int, int],
    *,
    kernel: int = 3,
    size: tuple[int, int] = (6, 5),
    activation: Activation | None = None,
    residual: str | None = None,
    bias: bool = True,
    seed: int = 1,
) -> Layer:
    """A convolution of stride 1 that keeps the size, weights random."""
    rng = np.random.default_rng(seed)
    ins, outs = channels
    pad = kernel // 2
    shapes = {x: (1, *size, ins), output: (1, *size, outs)} | ({residual: (1, *size, outs)} if residual else {})
    return layer(
        "conv2d",
        (x, residual) if residual else (x,),
        output,
        shapes,
        attrs=WINDOW | {"kernel": (kernel, kernel), "padding": (pad, pad, pad, pad), "groups": 1},
        weight=(rng.standard_normal((outs, kernel, kernel, ins)) / np.sqrt(kernel * kernel * ins)).astype(np.float32),
        bias=rng.standard_normal(outs).astype(np.float32) if bias else None,
        activation=activation or Activation(),
        residual=residual is not None,
    )


def depthwise(x: str, output: str, channels: int, *, size: tuple[int, int] = (6, 5), seed: int = 2) -> Layer:
    """A 3 x 3 depthwise convolution of stride 1 with ReLU6."""
    rng = np.random.default_rng(seed)
    shapes = {x: (1, *size, channels), output: (1, *size, channels)}
    return layer(
        "depthwise_conv2d",
        (x,),
        output,
        shapes,
        attrs=WINDOW | {"kernel": (3, 3), "groups": channels},
        weight=rng.standard_normal((channels, 3, 3, 1)).astype(np.float32),
        bias=rng.standard_normal(channels).astype(np.float32),
        activation=Activation(kind="clip", lo=0.0, hi=6.0),
    )


def pooled(x: str, output: str, channels: int, *, size: tuple[int, int] = (6, 5)) -> Layer:
    """The average over all of the picture, as (N, 1, 1, C)."""
    attrs = {"kernel": size, "strides": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "count_include_pad": False}
    return layer("avg_pool2d", (x,), output, {x: (1, *size, channels), output: (1, 1, 1, channels)}, attrs=attrs)


def flat(x: str, output: str, channels: int) -> Layer:
    return layer("reshape", (x,), output, {x: (1, 1, 1, channels), output: (1, channels)})


def dense(
    x: str,
    output: str,
    channels: tuple[int, int],
    *,
    rows: int = 1,
    residual: str | None = None,
    activation: Activation | None = None,
    seed: int = 3,
) -> Layer:
    rng = np.random.default_rng(seed)
    return layer(
        "dense",
        (x, residual) if residual else (x,),
        output,
        {x: (rows, channels[0]), output: (rows, channels[1])} | ({residual: (rows, channels[1])} if residual else {}),
        activation=activation or Activation(),
        residual=residual is not None,
        weight=rng.standard_normal((channels[1], channels[0])).astype(np.float32),
        bias=rng.standard_normal(channels[1]).astype(np.float32),
    )


def net() -> Graph:
    """Eight layers with what matters: a residual, a table activation, a depthwise, pooling, a view, a float end."""
    relu = Activation(kind="relu")
    layers = [
        conv("x", "stem", (3, 8), activation=relu),
        conv("stem", "left", (8, 8), activation=Activation(kind="hard_swish"), seed=4),
        conv("left", "join", (8, 8), activation=relu, residual="stem", seed=5),
        depthwise("join", "depth", 8),
        pooled("depth", "pool", 8),
        flat("pool", "flat", 8),
        dense("flat", "logits", (8, 5)),
    ]
    return graph(layers, ["x"], ["logits"])


def ranges(tensors: Mapping[str, Array]) -> dict[str, QParams]:
    """int8 parameters of tensors by their extremes."""
    return {name: choose_qparams(float(value.min()), float(value.max())) for name, value in tensors.items()}


def interpret(program: Program, inputs: Mapping[str, Array], storage: str) -> dict[str, Array]:
    """Every value of ``program``, by ``hwq.reference``: what right kernels would give."""
    values = dict(inputs)
    for step in program.steps:
        shape, dtype = program.values[step.output]
        args = [values[name] for name in step.inputs]
        if step.workload is None:
            values[step.output] = args[0].reshape(shape)
            continue
        values[step.output] = reference.evaluate(step.workload, [*args, *step.constants], storage)
        assert values[step.output].dtype == dtype, step.name
        assert values[step.output].shape == shape, step.name
    return values


def with_types(plain: Graph, **dtypes: str) -> Graph:
    """``plain`` with other types for some tensors."""
    return replace(plain, dtypes={**plain.dtypes, **dtypes})
