"""Small language models with made-up weights, as graphs of layers: what tests of decoding go through."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import tiny
from tvm import te

from hwq.graph import Activation, Graph, Layer, Shape
from hwq.model import Model, TensorSpec

VOCABULARY = 29
WIDTH = 24
HEADS, KV_HEADS = 4, 2
HIDDEN = 40


class _Writer:
    """Layers one after the other, each called as what it writes."""

    def __init__(self, tokens: int, seed: int) -> None:
        self.tokens = tokens
        self.rng = np.random.default_rng(seed)
        self.shapes: dict[str, Shape] = {"ids": (1, tokens)}
        self.layers: list[Layer] = []

    def layer(self, op: str, inputs: tuple[str, ...], output: str, shape: Shape, **fields: Any) -> str:
        self.shapes[output] = shape
        self.layers.append(tiny.layer(op, inputs, output, self.shapes, **fields))
        return output

    def weights(self, *shape: int) -> np.ndarray:
        return (self.rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def dense(self, x: str, output: str, width: int, residual: str | None = None, **fields: Any) -> str:
        """(1, T, C) through a product of matrices, which sees (T, C)."""
        columns = self.shapes[x][-1]
        flat = [self.layer("reshape", (x,), f"{output}:flat", (self.tokens, columns))]
        if residual is not None:
            flat.append(self.layer("reshape", (residual,), f"{output}:residual", (self.tokens, width)))
        weight = self.weights(width, columns)
        rows = self.layer(
            "dense",
            tuple(flat),
            f"{output}:rows",
            (self.tokens, width),
            weight=weight,
            residual=residual is not None,
            **fields,
        )
        return self.layer("reshape", (rows,), output, (1, self.tokens, width))

    def norm(self, x: str, output: str) -> str:
        scale = (1 + 0.1 * self.rng.standard_normal(WIDTH)).astype(np.float32)
        return self.layer("rms_norm", (x,), output, self.shapes[x], constants=(scale,), attrs={"epsilon": 1e-5})


def model_of(graph: Graph, name: str = "language") -> Model:
    """A model of a graph whose input is token ids."""
    (ids,) = graph.inputs
    digest = hashlib.sha256(f"{name} {graph.shapes}".encode())
    for one in graph.layers:
        for array in (*one.constants, *([] if one.weight is None else [one.weight])):
            digest.update(array.tobytes())
    specs = {key: TensorSpec(name=key, shape=graph.shapes[key], dtype=graph.dtypes[key]) for key in graph.shapes}
    return Model(
        name=name,
        graph=graph,
        fingerprint=digest.hexdigest(),
        inputs=(specs[ids],),
        outputs=tuple(specs[key] for key in graph.outputs),
    )


def turns(tokens: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The cosines and sines (tokens, dim) of rotary positions, for halves."""
    angles = np.outer(np.arange(tokens), 100.0 ** (-np.arange(dim // 2) / (dim // 2)))
    both = np.concatenate([angles, angles], axis=1)
    return np.cos(both).astype(np.float32), np.sin(both).astype(np.float32)


def llama(tokens: int = 12, blocks: int = 2, seed: int = 0) -> Model:
    """Grouped-query attention with rotary positions, RMS norms, SwiGLU; no biases."""
    w = _Writer(tokens, seed)
    shape = (1, tokens, WIDTH)
    dim = WIDTH // HEADS
    table = w.weights(VOCABULARY, WIDTH) * np.float32(4)
    attrs: Mapping[str, Any] = {"ids": "int64", "rows": VOCABULARY}
    x = w.layer("gather", ("ids",), "embedding", shape, weight=table, attrs=attrs)
    for i in range(blocks):
        normed = w.norm(x, f"{i}.norm")
        q, k, v = (
            w.dense(normed, f"{i}.{name}", heads * dim)
            for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        )
        q, k = (
            w.layer(
                "rope",
                (one,),
                f"{one}.turned",
                w.shapes[one],
                constants=turns(tokens, dim),
                attrs={"heads": heads, "style": "half"},
            )
            for one, heads in ((q, HEADS), (k, KV_HEADS))
        )
        seen = w.layer(
            "attention",
            (q, k, v),
            f"{i}.attention",
            shape,
            attrs={"heads": HEADS, "kv_heads": KV_HEADS, "scale": dim**-0.5, "causal": True},
        )
        x = w.dense(seen, f"{i}.o", WIDTH, residual=x)
        normed = w.norm(x, f"{i}.norm2")
        gate = w.dense(normed, f"{i}.gate", HIDDEN, activation=Activation(kind="silu"))
        up = w.dense(normed, f"{i}.up", HIDDEN)
        both = w.layer("multiply", (gate, up), f"{i}.both", (1, tokens, HIDDEN))
        x = w.dense(both, f"{i}.down", WIDTH, residual=x)
    logits = w.dense(w.norm(x, "norm"), "logits", VOCABULARY)
    graph = tiny.graph(w.layers, ("ids",), [logits])
    return model_of(replace(graph, dtypes={**graph.dtypes, "ids": "int64"}), f"llama-{blocks}-{seed}")


def positions(tokens: int = 9, seed: int = 1, **attention: Any) -> Model:
    """One block in the way of GPT-2: learned positions, layer norms, GELU; biases of the attention as asked."""
    w = _Writer(tokens, seed)
    shape = (1, tokens, WIDTH)
    attrs: Mapping[str, Any] = {"ids": "int64", "rows": VOCABULARY}
    x = w.layer("gather", ("ids",), "embedding", shape, weight=w.weights(VOCABULARY, WIDTH), attrs=attrs)
    table = w.weights(1, tokens, WIDTH)
    x = w.layer("float", (x,), "positions", shape, constants=(table,), attrs={"operator": "add"}, func=added(shape))
    scale, bias = 1 + 0.1 * w.weights(2, WIDTH)
    normed = w.layer("layer_norm", (x,), "norm", shape, constants=(scale, bias), attrs={"epsilon": 1e-5})
    q, k, v = (w.dense(normed, name, WIDTH) for name in "qkv")
    attrs = {"heads": HEADS, "kv_heads": HEADS, "scale": 0.4, "causal": True}
    seen = w.layer("attention", (q, k, v), "attention", shape, **{"attrs": attrs, **attention})
    x = w.dense(seen, "o", WIDTH, residual=x)
    x = w.dense(w.dense(x, "up", HIDDEN, activation=Activation(kind="gelu")), "down", WIDTH, residual=x)
    graph = tiny.graph(w.layers, ("ids",), [w.dense(x, "logits", VOCABULARY)])
    return model_of(replace(graph, dtypes={**graph.dtypes, "ids": "int64"}), f"positions-{seed}")


def added(shape: Shape) -> Any:
    """The function of a "float" layer that adds a constant."""
    x, constant = (te.placeholder(shape, "float32", name) for name in ("x", "constant"))
    return te.create_prim_func([x, constant, te.compute(shape, lambda *i: x[i] + constant[i], "sum")])
