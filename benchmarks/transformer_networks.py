"""Transformers with made-up weights, for benchmarks: their shapes are real, their answers mean nothing.

``encoder`` is a BERT of any size, as exporters write it; ``decoder`` a LLaMA: RMSNorm, rotary positions, grouped-query
attention, SwiGLU. ``decoder_step`` is the same network for one token, with the keys and values of the tokens before it
as inputs: what is given to peers, who have no other way to go token by token from an ONNX file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
# What is added to the score of a key that is not to be seen.
HIDDEN = -10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A transformer's dimensions. kv_heads: heads of keys and values, as many as heads where 0."""

    layers: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    kv_heads: int = 0
    paper: str = ""

    @property
    def head(self) -> int:
        return self.width // self.heads

    @property
    def groups(self) -> int:
        return self.kv_heads or self.heads


BERT_BASE = Size(layers=12, width=768, heads=12, inner=3072, vocabulary=30522, paper="arXiv:1810.04805")
MINILM = Size(layers=6, width=384, heads=12, inner=1536, vocabulary=30522, paper="arXiv:2002.10957")
# TinyLlama's layers (arXiv:2401.02385), eight of its 22, and few words: what is measured is the layers.
LLAMA_STACK = Size(layers=8, width=2048, heads=32, inner=5632, vocabulary=4096, kv_heads=4, paper="arXiv:2401.02385")


@dataclass(slots=True, kw_only=True)
class _Writer:
    """Nodes and weights as they are written."""

    rng: np.random.Generator
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    known: set[str] = field(default_factory=set)

    def op(self, kind: str, inputs: Sequence[str], name: str = "", **attrs: Any) -> str:
        name = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attrs))
        return name

    def const(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.known:
            self.known.add(name)
            self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def number(self, value: float) -> str:
        return self.const(f"number {value}", np.array(value, np.float32))

    def ints(self, *values: int) -> str:
        return self.const(f"ints {values}", np.array(values, np.int64))

    def random(self, name: str, *shape: int, gain: float = 1.0) -> str:
        """Normal weights whose products with normal inputs are of ``gain``; the first axis is summed over."""
        values = self.rng.standard_normal(shape, np.float32)
        values *= np.float32(gain / math.sqrt(shape[0]))
        return self.const(name, values)

    def dense(self, x: str, name: str, inputs: int, outputs: int, *, bias: bool, gain: float = 1.0) -> str:
        product = self.op("MatMul", [x, self.random(f"{name}.weight", inputs, outputs, gain=gain)], f"{name}.matmul")
        if not bias:
            return product
        return self.op("Add", [product, self.random(f"{name}.bias", outputs, gain=0.1)], name)

    def split(self, x: str, heads: int, head: int, name: str, order: Sequence[int] = (0, 2, 1, 3)) -> str:
        """(B, S, heads * head) with the heads in front."""
        return self.op("Transpose", [self.op("Reshape", [x, self.ints(0, 0, heads, head)])], name, perm=list(order))

    def merged(self, x: str, width: int, name: str) -> str:
        return self.op("Reshape", [self.op("Transpose", [x], perm=[0, 2, 1, 3]), self.ints(0, 0, width)], name)

    def model(self, inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "network", inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _ids(name: str, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, INT64, shape)


def _floats(name: str, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def encoder(size: Size, tokens: int, seed: int = 0) -> onnx.ModelProto:
    """input_ids, attention_mask (1, tokens) -> last_hidden_state (1, tokens, width)."""
    w = _Writer(rng=np.random.default_rng(seed))
    table = w.random("embeddings.weight", size.vocabulary, size.width, gain=math.sqrt(size.vocabulary))
    positions = w.random("positions", tokens, size.width, gain=0.1 * math.sqrt(tokens))
    x = w.op("Add", [w.op("Gather", [table, "input_ids"], "embeddings", axis=0), positions])
    x = _layer_norm(w, x, size, "embeddings.norm")
    # As BERT's exporters write it, axis by axis: ONNX Runtime's optimizer fuses no other attention.
    shown = w.op("Unsqueeze", [w.op("Unsqueeze", ["attention_mask", w.ints(1)]), w.ints(2)])
    shown = w.op("Cast", [shown], to=FLOAT)
    mask = w.op("Mul", [w.op("Sub", [w.number(1.0), shown]), w.number(HIDDEN)], "mask")
    for i in range(size.layers):
        at = f"layer.{i}"
        q, k, v = (
            w.dense(x, f"{at}.{which}", size.width, size.width, bias=True) for which in ("query", "key", "value")
        )
        q, v = (w.split(it, size.heads, size.head, f"{it}.heads") for it in (q, v))
        k = w.split(k, size.heads, size.head, f"{k}.heads", (0, 2, 3, 1))
        scores = w.op("Div", [w.op("MatMul", [q, k], f"{at}.scores"), w.number(math.sqrt(size.head))])
        shares = w.op("Softmax", [w.op("Add", [scores, mask])], f"{at}.softmax", axis=-1)
        seen = w.merged(w.op("MatMul", [shares, v], f"{at}.context"), size.width, f"{at}.merged")
        out = w.dense(seen, f"{at}.out", size.width, size.width, bias=True, gain=0.5)
        x = _layer_norm(w, w.op("Add", [out, x]), size, f"{at}.norm1")
        h = w.dense(x, f"{at}.up", size.width, size.inner, bias=True)
        erf = w.op("Erf", [w.op("Div", [h, w.number(math.sqrt(2.0))])])
        half = w.op("Mul", [w.op("Mul", [h, w.op("Add", [erf, w.number(1.0)])]), w.number(0.5)], f"{at}.gelu")
        out = w.dense(half, f"{at}.down", size.inner, size.width, bias=True, gain=0.5)
        x = _layer_norm(w, w.op("Add", [out, x]), size, f"{at}.norm2")
    w.op("Identity", [x], "last_hidden_state")
    inputs = [_ids("input_ids", 1, tokens), _ids("attention_mask", 1, tokens)]
    return w.model(inputs, [_floats("last_hidden_state", 1, tokens, size.width)])


def _layer_norm(w: _Writer, x: str, size: Size, name: str) -> str:
    scale = w.const(f"{name}.scale", 1 + 0.1 * w.rng.standard_normal(size.width, np.float32))
    shift = w.const(f"{name}.shift", 0.1 * w.rng.standard_normal(size.width, np.float32))
    return w.op("LayerNormalization", [x, scale, shift], name, axis=-1, epsilon=1e-12)


def decoder(size: Size, tokens: int, seed: int = 0) -> onnx.ModelProto:
    """tokens (1, tokens) -> logits (1, tokens, vocabulary); each sees those before it."""
    w = _Writer(rng=np.random.default_rng(seed))
    causal = w.const("causal", np.triu(np.full((tokens, tokens), HIDDEN, np.float32), 1)[None, None])
    cos, sin = _angles(size, tokens)
    turn = (w.const("cos", cos), w.const("sin", sin))

    def attend(at: str, q: str, k: str, v: str) -> str:
        return _attention(w, size, at, q, k, v, causal)

    _stack(w, size, turn, attend)
    return w.model([_ids("tokens", 1, tokens)], [_floats("logits", 1, tokens, size.vocabulary)])


def decoder_step(size: Size, past: int, seed: int = 0) -> onnx.ModelProto:
    """One token: tokens (1, 1), cos and sin of its position (1, head), of each layer the keys and values of ``past``
    tokens (1, kv_heads, past, head) -> logits (1, 1, vocabulary), and each layer's new key and value.
    """
    w = _Writer(rng=np.random.default_rng(seed))
    inputs = [_ids("tokens", 1, 1), _floats("cos", 1, size.head), _floats("sin", 1, size.head)]
    outputs = [_floats("logits", 1, 1, size.vocabulary)]

    def attend(at: str, q: str, k: str, v: str) -> str:
        both = []
        for which, new in (("keys", k), ("values", v)):
            inputs.append(_floats(f"{at}.{which}", 1, size.groups, past, size.head))
            outputs.append(_floats(w.op("Identity", [new], f"{at}.{which}.new"), 1, size.groups, 1, size.head))
            both.append(w.op("Concat", [f"{at}.{which}", new], axis=2))
        return _attention(w, size, at, q, *both, None)

    _stack(w, size, ("cos", "sin"), attend)
    return w.model(inputs, outputs)


def _angles(size: Size, tokens: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin (tokens, head) of rotary positions: arXiv:2104.09864, equation 15, halves beside each other."""
    rates = 10000.0 ** -(np.arange(0, size.head, 2) / size.head)
    angles = np.outer(np.arange(tokens), np.concatenate([rates, rates]))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _stack(w: _Writer, size: Size, turn: tuple[str, str], attend: Any) -> None:
    """The decoder from "tokens" to "logits"; attend(at, q, k, v): its attention."""
    table = w.random("embeddings.weight", size.vocabulary, size.width, gain=math.sqrt(size.vocabulary))
    x = w.op("Gather", [table, "tokens"], "embeddings", axis=0)
    kv = size.groups * size.head
    for i in range(size.layers):
        at = f"layer.{i}"
        h = _rms_norm(w, x, size, f"{at}.norm1")
        q = w.split(w.dense(h, f"{at}.query", size.width, size.width, bias=False), size.heads, size.head, f"{at}.q")
        k, v = (
            w.split(
                w.dense(h, f"{at}.{which}", size.width, kv, bias=False), size.groups, size.head, f"{at}.{which}.heads"
            )
            for which in ("key", "value")
        )
        q, k = (_turned(w, it, size, turn, f"{it}.turned") for it in (q, k))
        out = w.dense(attend(at, q, k, v), f"{at}.out", size.width, size.width, bias=False, gain=0.5)
        x = w.op("Add", [x, out])
        h = _rms_norm(w, x, size, f"{at}.norm2")
        gate, up = (w.dense(h, f"{at}.{which}", size.width, size.inner, bias=False) for which in ("gate", "up"))
        open_ = w.op("Mul", [gate, w.op("Sigmoid", [gate])])
        out = w.dense(w.op("Mul", [open_, up]), f"{at}.down", size.inner, size.width, bias=False, gain=0.5)
        x = w.op("Add", [x, out])
    h = _rms_norm(w, x, size, "norm")
    w.op("Identity", [w.dense(h, "head", size.width, size.vocabulary, bias=False)], "logits")


def _rms_norm(w: _Writer, x: str, size: Size, name: str) -> str:
    scale = w.const(f"{name}.scale", 1 + 0.1 * w.rng.standard_normal(size.width, np.float32))
    mean = w.op("ReduceMean", [w.op("Mul", [x, x])], axes=[-1], keepdims=1)
    root = w.op("Sqrt", [w.op("Add", [mean, w.number(1e-5)])])
    return w.op("Mul", [w.op("Div", [x, root]), scale], name)


def _turned(w: _Writer, x: str, size: Size, turn: tuple[str, str], name: str) -> str:
    half = size.head // 2
    low, high = (
        w.op("Slice", [x, w.ints(begin), w.ints(end), w.ints(3)]) for begin, end in ((0, half), (half, size.head))
    )
    around = w.op("Concat", [w.op("Neg", [high]), low], axis=3)
    return w.op("Add", [w.op("Mul", [x, turn[0]]), w.op("Mul", [around, turn[1]])], name)


def _attention(w: _Writer, size: Size, at: str, q: str, k: str, v: str, mask: str | None) -> str:
    k, v = (_repeated(w, it, size) for it in (k, v))
    scores = w.op("MatMul", [q, w.op("Transpose", [k], perm=[0, 1, 3, 2])], f"{at}.scores")
    scores = w.op("Mul", [scores, w.number(1.0 / math.sqrt(size.head))])
    scores = scores if mask is None else w.op("Add", [scores, mask])
    shares = w.op("Softmax", [scores], f"{at}.softmax", axis=-1)
    return w.merged(w.op("MatMul", [shares, v], f"{at}.context"), size.width, f"{at}.merged")


def _repeated(w: _Writer, x: str, size: Size) -> str:
    """Each head of keys or values as often as there are query heads for it."""
    times = size.heads // size.groups
    if times == 1:
        return x
    wide = w.op("Concat", [w.op("Unsqueeze", [x, w.ints(2)])] * times, axis=2)
    return w.op("Reshape", [wide, w.ints(0, size.heads, -1, size.head)])
