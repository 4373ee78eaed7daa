"""The operators of transformers in NumPy: attention, rope, rms_norm and gather, as ``hwq.graph.Layer`` describes them.

The reference of their kernels. All compute in float64, or whatever type their arguments have; heads lie side by side in
the last axis of a tensor, so that the outputs of dense layers are read as they are.
"""

from __future__ import annotations

import numpy as np

from hwq.numerics import Array


def split_heads(x: Array, heads: int) -> Array:
    """(B, S, H * D) as (B, H, S, D)."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool = False,
    span: tuple[int, int] | None = None,
) -> Array:
    """softmax(scale * q k^T + bias) v for each head.

    q: (B, S, H * D), k: (B, T, G * D), v: (B, T, G * E), result: (B, S, H * E). bias: 4-d, each axis 1 or that of (B,
    H, S, T). span: (n, t), how many queries are computed and how many keys exist; causal: query i sees key j where
    j <= i + t - n. Queries beyond n give 0 (kernels do not write them). A query
    that sees no key gives NaN.
    """
    n, t = (q.shape[1], k.shape[1]) if span is None else span
    qs = split_heads(q[:, :n], heads)
    ks, vs = (np.repeat(split_heads(x[:, :t], kv_heads), heads // kv_heads, axis=1) for x in (k, v))
    scores = qs @ ks.transpose(0, 1, 3, 2) * scale
    if bias is not None:
        scores = scores + bias[:, :, :n, :t]
    if causal:
        scores = np.where(np.arange(t) <= np.arange(n)[:, None] + t - n, scores, -np.inf)
    with np.errstate(invalid="ignore"):
        power = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out = power / power.sum(axis=-1, keepdims=True) @ vs
    whole = np.zeros((*q.shape[:2], heads * out.shape[-1]), out.dtype)
    whole[:, :n] = out.transpose(0, 2, 1, 3).reshape(len(q), n, -1)
    return whole


def rotated(x: Array, style: str) -> Array:
    """x (..., D) turned by a right angle: "half": concat(-x[D / 2:], x[:D / 2]); "interleaved": (-x1, x0) in pairs."""
    if style == "half":
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([-second, first], axis=-1)
    assert style == "interleaved", style
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    return np.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)


def rope(x: Array, cos: Array, sin: Array, *, heads: int, style: str) -> Array:
    """x * cos + rotated(x) * sin in each head of each position: x (B, S, H * D), cos and sin (S, D)."""
    apart = x.reshape(*x.shape[:2], heads, -1)
    return np.asarray(apart * cos[:, None] + rotated(apart, style) * sin[:, None]).reshape(x.shape)


def rms_norm(x: Array, scale: Array, *, epsilon: float) -> Array:
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis; scale (C,)."""
    return np.asarray(x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + epsilon) * scale)


def gather(ids: Array, weight: Array) -> Array:
    """Rows of ``weight`` (V, C) by whole numbers of any shape: wrapped once where negative, then clamped."""
    count = len(weight)
    return np.asarray(weight[np.clip(np.where(ids < 0, ids + count, ids), 0, count - 1)])
