"""Layers and ties: the plain form of a prepared network that every later stage works on.

A ``Graph`` is a list of layers in execution order. A layer is an anchor operator with its fused epilogue (bias,
residual add, activation), or one operator without weights. Every 4-d tensor is NHWC. Nothing here knows a target.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]

# Operators with weights: y = activation(anchor(x, weight) + bias [+ residual]).
ANCHORS = ("conv2d", "depthwise_conv2d", "dense")
# Operators with weights that plans choose a width for: ``ANCHORS``, and gather, which reads rows of a table.
WEIGHTED = (*ANCHORS, "gather")
# Operators whose output values are values of their inputs (or the constant 0), or in linear resizing lie between them:
# all their tensors share one scale.
PASS_THROUGH = ("max_pool2d", "concat", "pad", "slice", "reshape", "resize_nearest", "resize_linear")
# Operators without weights that have integer kernels of their own and requantize.
INTEGER_OPS = (*PASS_THROUGH, "avg_pool2d", "add", "multiply", "unary")
# What transformers are made of beside dense layers: float32 tensors enter and leave.
TRANSFORMER_OPS = ("attention", "rms_norm", "rope", "gather")
# The input of a network that goes token by token: int32 (2,), (n, t), the last n of the t tokens that there are by now.
SPAN = "@span"
# Where a mask says -infinity, this is added: less than any score, and still finite if a few masks come together.
LEAST = -1e30
# What writes rows of a tensor that lives across calls, and leaves the others alone.
STATE_OPS = ("append", "append_int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """The function at the end of an epilogue.

    kind: "none", "relu", "clip" (to [lo, hi]; ReLU6 is clip to [0, 6]), "leaky_relu" (slope ``alpha`` below 0),
    "hard_swish", "hard_sigmoid" (clip(alpha * x + beta, 0, 1)), "sigmoid", "silu", "tanh", "gelu" (by erf), "gelu_tanh"
    (GELU in the form x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))).
    """

    kind: str = "none"
    lo: float = -math.inf
    hi: float = math.inf
    alpha: float = 0.0
    beta: float = 0.0

    @property
    def clamps(self) -> bool:
        """Whether the integer form is a clamp (none, relu, clip); otherwise it is a 256-entry table."""
        return self.kind in ("none", "relu", "clip")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """One unit of choice.

    op: an anchor, an integer operator, "transpose" (at the network's border; inside only where a network itself moves
    axes), "softmax", "layer_norm" (over the last axis; constants: scale and bias), or "float": any other operator,
    carried as the scheduled-by-us PrimFunc ``func`` called with (inputs..., constants..., output). inputs: tensor
    names, the residual (if ``residual``) last. weight: (O, KH, KW, I / groups) for convolutions, depthwise (C, KH, KW,
    1), dense (O, I); bias (O,). attrs: conv and pool: strides (2), padding (top, left, bottom, right), dilation (2),
    groups, kernel (2), count_include_pad; concat: axis; pad: pads ((before, after), ...) and value; slice: begin, end,
    strides; transpose: axes; resize_nearest: map_h, map_w (source index for each output row and column); resize_linear:
    none (constants: ``operators.linear_sources`` of rows, then columns); softmax: axis; layer_norm: epsilon; reshape:
    none; float: operator (its name, for reports); reduce: kind ("sum", "mean", "max") and axes, which lie beside each
    other, behind axes of length 1. float_residual: of a dense layer whose output nothing reads in int8, see
    ``hwq.ties.with_float_residuals``: its residual and its output are float32 in every scheme.

    Of transformers (``hwq.transformer`` is their arithmetic):
    attention: inputs q (B, S, H * D), k (B, T, G * D), v (B, T, G * E), and perhaps bias, 4-d, each axis 1 or that of
    (B, H, S, T); a bias that is constant is the only one of ``constants`` instead, its shape the attribute "bias".
    Output (B, S, H * E): softmax(scale * q k^T + bias) v for each head, heads side by side in the last axis, query head
    h with key and value head h // (H // G). attrs: heads (H), kv_heads (G), scale, causal (query i sees key j where
    j <= i + T - S). With attribute cut (True, else absent) one more input, the last: span, int32 (2,), (n, t): only
    the first n queries are computed (the others' outputs are not written), only the first t keys exist, and causal
    means j <= i + t - n.
    rms_norm: x / sqrt(mean(x^2) + epsilon) * scale over the last axis; constants: scale (C,); attrs: epsilon.
    rope: x (B, S, H * D); constants: cos, sin, (S, D) each; attrs: heads (H), style, "half" (rotate(x) is concat(-x[D /
    2:], x[:D / 2])) or "interleaved" (pairs (x0, x1) become (-x1, x0)): x * cos[s] + rotate(x) * sin[s] for each head.
    gather: ids of any shape, weight (V, C); output (*ids.shape, C); attrs: ids, their type ("int64" or "int32"),
    and rows (V). Ids outside of [0, V) are wrapped once where negative, then clamped: nothing is read outside of it.
    Token by token (``hwq.decoder``): "append" (1, n, C), SPAN -> a cache (1, length, C) that lives across calls, its
    rows from t - n on written; "rows_at" SPAN -> (n, C) in any shape, the rows from t - n on of its constant (rows,
    width); attrs rows, width. With caches of int8: "append_int8" x (1, n, C), the scales (n * G,) of its heads, SPAN ->
    int8 (1, length, C); "attention_cache" q (1, 1, H * D), keys int8, their scales (1, length, G), values, their
    scales, [bias], SPAN -> (1, 1, H * E), attrs as attention's; "row_scale" (rows, C) -> (rows,): ``row_scales``.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    output: str
    input_shapes: tuple[Shape, ...]
    output_shape: Shape
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weight: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    bias: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    activation: Activation = field(default_factory=Activation)
    residual: bool = False
    float_residual: bool = False
    func: Any = field(default=None, repr=False)
    constants: tuple[npt.NDArray[Any], ...] = field(default=(), repr=False)

    @property
    def int8_tensors(self) -> tuple[str, ...]:
        """The tensors that may be int8 where the layer is in an integer scheme: what it reads, and writes."""
        return self.inputs[:1] if self.float_residual else (*self.int8_inputs, self.output)

    @property
    def int8_inputs(self) -> tuple[str, ...]:
        """The inputs that are int8 in an integer scheme: of attention q, k and v alone; not a residual in float."""
        count = 3 if self.op == "attention" else len(self.inputs) - self.float_residual
        return self.inputs[:count]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """A prepared network. inputs and outputs name tensors, in the order in which the network's caller gives and gets
    them; their shapes are the caller's (NCHW where the model was), since a "transpose" layer stands between."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    layers: tuple[Layer, ...]


@functools.lru_cache(maxsize=16)
def data_tensors(graph: Graph) -> frozenset[str]:
    """The float32 tensors that a float input or a layer with weights went into.

    What is left is made of whole numbers and constants, as masks are: often one value on all samples, and then all at
    once another, which no range of integers holds.
    """
    found = {name for name in graph.inputs if graph.dtypes[name] == "float32"}
    for layer in graph.layers:
        if layer.op in WEIGHTED or found & set(layer.inputs):
            found.add(layer.output)
    return frozenset(name for name in found if graph.dtypes[name] == "float32")


def words_of(graph: Graph) -> int:
    """Of a language model its words: the outputs of the dense layer that writes the first output, where the first input
    that is looked up is so in a table of as many rows. 0 of any other network, whose outputs are no words, however many
    they are."""
    makers = {layer.output: layer for layer in graph.layers}
    last = makers.get(graph.outputs[0])
    while last is not None and last.op in _AFTER and len(last.inputs) == 1:
        last = makers.get(last.inputs[0])
    if last is None or last.op != "dense" or last.residual or last.weight is None:
        return 0
    tables = _tables(graph)
    first = next((name for name in graph.inputs if name in tables), "")
    return len(last.weight) if len(last.weight) in tables.get(first, ()) else 0


# What may stand between a language model's last dense layer and its output: norms, which hidden states end in, may not.
_AFTER = ("reshape", "transpose", "slice", "softmax", "unary", "float")


def _tables(graph: Graph) -> dict[str, set[int]]:
    """input -> the rows of the tables that it, or whole numbers made of it, is looked up in."""
    made_of = {name: {name} for name in graph.inputs}
    found: dict[str, set[int]] = {}
    for layer in graph.layers:
        names = {name for tensor in layer.inputs for name in made_of.get(tensor, ())}
        if layer.op == "gather":
            for name in names:
                found.setdefault(name, set()).add(layer.attrs["rows"])
        elif "int" in graph.dtypes[layer.output]:
            made_of[layer.output] = names
    return found


def table_rows(graph: Graph) -> dict[str, int]:
    """Of the inputs that a gather takes its rows by, as they are or reshaped, how many rows there are to be had."""
    source = {name: name for name in graph.inputs}
    found: dict[str, int] = {}
    for layer in graph.layers:
        name = source.get(layer.inputs[0]) if layer.inputs else None
        if name is not None and layer.op == "reshape":
            source[layer.output] = name
        elif name is not None and layer.op == "gather":
            found[name] = min(layer.attrs["rows"], found.get(name, layer.attrs["rows"]))
    return found
