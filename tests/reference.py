"""A float32 interpreter of ``hwq.graph.Graph`` in plain NumPy, for tests: right rather than fast.

``run_graph`` evaluates every layer and returns every tensor, in NHWC where the graph has it so. "float" layers run
their PrimFunc, compiled without a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from numpy.lib.stride_tricks import sliding_window_view

from hwq import transformer
from hwq.graph import Activation, Graph, Layer

Array = np.ndarray[Any, Any]


def run_graph(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Every tensor of ``graph``, by name; ``inputs`` by the names in ``graph.inputs``."""
    tensors = {name: np.asarray(inputs[name]) for name in graph.inputs}
    for layer in graph.layers:
        out = run_layer(layer, [tensors[name] for name in layer.inputs], graph.dtypes[layer.output])
        assert out.shape == layer.output_shape, f"{layer.name}: {out.shape}, not {layer.output_shape}"
        assert out.dtype == graph.dtypes[layer.output], f"{layer.name}: {out.dtype}"
        tensors[layer.output] = out
    return tensors


def run_layer(layer: Layer, args: list[Array], dtype: str = "float32") -> Array:
    """One layer's output."""
    assert [arg.shape for arg in args] == list(layer.input_shapes), f"{layer.name}: {[arg.shape for arg in args]}"
    if layer.op == "float":
        return _run_func(layer, args, dtype)
    residual = args.pop() if layer.residual else None
    out = _OPS[layer.op](layer, *args)
    if layer.bias is not None:
        out = out + layer.bias
    if residual is not None:
        out = out + residual
    return activate(layer.activation, out)


def activate(act: Activation, x: Array) -> Array:
    """The activation on float32."""
    if act.kind == "none":
        return x
    sigmoid = 1 / (1 + np.exp(-x.astype(np.float64)))
    forms = {
        "relu": lambda: np.maximum(x, 0),
        "clip": lambda: np.clip(x, act.lo, act.hi),
        "leaky_relu": lambda: np.where(x < 0, x * act.alpha, x),
        "hard_sigmoid": lambda: np.clip(x * act.alpha + act.beta, 0, 1),
        "hard_swish": lambda: x * np.clip(x + 3, 0, 6) / 6,
        "sigmoid": lambda: sigmoid,
        "silu": lambda: x * sigmoid,
        "tanh": lambda: np.tanh(x),
        "gelu_tanh": lambda: (
            x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.astype(np.float64) ** 3)))
        ),
        "gelu": lambda: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    }
    return np.asarray(forms[act.kind](), np.float32)


def _windows(layer: Layer, x: Array, kernel: tuple[int, int], fill: float) -> Array:
    """(N, OH, OW, C, KH, KW): what each output position sees."""
    top, left, bottom, right = layer.attrs["padding"]
    (dh, dw), (sh, sw) = layer.attrs["dilation"], layer.attrs["strides"]
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    span = ((kernel[0] - 1) * dh + 1, (kernel[1] - 1) * dw + 1)
    return sliding_window_view(padded, span, axis=(1, 2))[:, ::sh, ::sw, :, ::dh, ::dw]


def _conv2d(layer: Layer, x: Array) -> Array:
    assert layer.weight is not None
    out_channels, kh, kw, _ = layer.weight.shape
    groups = layer.attrs["groups"]
    seen = _windows(layer, x, (kh, kw), 0.0)
    parts = [
        np.tensordot(part, weight, axes=([3, 4, 5], [3, 1, 2]))
        for part, weight in zip(np.split(seen, groups, axis=3), np.split(layer.weight, groups, axis=0), strict=True)
    ]
    return np.concatenate(parts, axis=3).reshape(*seen.shape[:3], out_channels)


def _depthwise(layer: Layer, x: Array) -> Array:
    assert layer.weight is not None
    weight = layer.weight[..., 0]
    return np.asarray(np.einsum("nhwckl,ckl->nhwc", _windows(layer, x, weight.shape[1:], 0.0), weight), np.float32)


def _avg_pool(layer: Layer, x: Array) -> Array:
    kernel = layer.attrs["kernel"]
    total = _windows(layer, x, kernel, 0.0).sum(axis=(4, 5))
    ones = np.ones_like(x[:1, :, :, :1])
    count = (
        kernel[0] * kernel[1]
        if layer.attrs["count_include_pad"]
        else _windows(layer, ones, kernel, 0.0).sum(axis=(4, 5))
    )
    return np.asarray(total / count, np.float32)


def _resize_linear(layer: Layer, x: Array) -> Array:
    """By a matrix of weights an axis."""
    for axis, (first, weight) in ((1, layer.constants[:2]), (2, layer.constants[2:])):
        matrix = np.zeros((layer.output_shape[axis], layer.input_shapes[0][axis]))
        for row, (at, share) in enumerate(zip(first, weight, strict=True)):
            matrix[row, at] += 1 - share
            matrix[row, min(at + 1, matrix.shape[1] - 1)] += share
        x = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    return np.asarray(x, np.float32)


def _softmax(layer: Layer, x: Array) -> Array:
    e = np.exp(x - x.max(axis=layer.attrs["axis"], keepdims=True))
    return e / e.sum(axis=layer.attrs["axis"], keepdims=True)


def _layer_norm(layer: Layer, x: Array) -> Array:
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + layer.attrs["epsilon"])
    scale, bias = layer.constants
    return np.asarray(centred / deviation * scale + bias, np.float32)


def _attention(layer: Layer, *args: Array) -> Array:
    attrs = {key: layer.attrs[key] for key in ("heads", "kv_heads", "scale", "causal")}
    tensors = [value.astype(np.float64) for value in (*args, *layer.constants)]
    return transformer.attention(*tensors, **attrs).astype(np.float32)


def _rms_norm(layer: Layer, x: Array) -> Array:
    found = transformer.rms_norm(x.astype(np.float64), layer.constants[0], epsilon=layer.attrs["epsilon"])
    return found.astype(np.float32)


def _rope(layer: Layer, x: Array) -> Array:
    cos, sin = layer.constants
    return transformer.rope(x, cos, sin, heads=layer.attrs["heads"], style=layer.attrs["style"])


def _slice(layer: Layer, x: Array) -> Array:
    return x[
        tuple(slice(*cut) for cut in zip(layer.attrs["begin"], layer.attrs["end"], layer.attrs["strides"], strict=True))
    ]


def _run_func(layer: Layer, args: list[Array], dtype: str) -> Array:
    lib = tvm.compile(tvm.IRModule({"main": layer.func.with_attr("global_symbol", "main")}), target={"kind": "llvm"})
    out = tvm.runtime.empty(layer.output_shape, dtype)
    lib["main"](*(tvm.runtime.tensor(np.asarray(arg, order="C")) for arg in (*args, *layer.constants)), out)
    return np.asarray(out.numpy())


_OPS: Mapping[str, Any] = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise,
    "dense": lambda layer, x: x @ layer.weight.T,
    "max_pool2d": lambda layer, x: _windows(layer, x, layer.attrs["kernel"], -np.inf).max(axis=(4, 5)),
    "avg_pool2d": _avg_pool,
    "add": lambda _, a, b: a + b,
    "multiply": lambda _, a, b: a * b,
    "concat": lambda layer, *args: np.concatenate(args, axis=layer.attrs["axis"]),
    "pad": lambda layer, x: np.pad(x, layer.attrs["pads"], constant_values=layer.attrs["value"]),
    "slice": _slice,
    "reshape": lambda layer, x: x.reshape(layer.output_shape),
    "resize_nearest": lambda layer, x: x[:, list(layer.attrs["map_h"])][:, :, list(layer.attrs["map_w"])],
    "resize_linear": _resize_linear,
    "unary": lambda _, x: x,
    "softmax": _softmax,
    "reduce": lambda layer, x: getattr(x, layer.attrs["kind"])(axis=layer.attrs["axes"]).reshape(layer.output_shape),
    "layer_norm": _layer_norm,
    "attention": _attention,
    "rms_norm": _rms_norm,
    "rope": _rope,
    "gather": lambda layer, ids: transformer.gather(ids, layer.weight),
    "transpose": lambda layer, x: np.ascontiguousarray(x.transpose(layer.attrs["axes"])),
}
