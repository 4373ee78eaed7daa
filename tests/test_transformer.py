"""The operators of transformers in NumPy against the same written in loops, or in torch's words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hwq import transformer

RNG = np.random.default_rng(5)


def test_attention_in_loops() -> None:
    heads, kv_heads, dim, dim_v = 4, 2, 3, 5
    q, k, v = (RNG.normal(size=shape) for shape in ((2, 6, 12), (2, 7, 6), (2, 7, 10)))
    bias = RNG.normal(size=(1, 4, 6, 1))
    found = transformer.attention(q, k, v, bias, heads=heads, kv_heads=kv_heads, scale=0.3, causal=True)
    for b, h, i in np.ndindex(2, heads, 6):
        g = h // 2
        query = q[b, i, h * dim : (h + 1) * dim]
        keys = k[b, : i + 2, g * dim : (g + 1) * dim]  # one more key than queries
        weights = np.exp(keys @ query * 0.3 + bias[0, h, i])
        values = v[b, : i + 2, g * dim_v : (g + 1) * dim_v]
        expected = weights @ values / weights.sum()
        np.testing.assert_allclose(found[b, i, h * dim_v : (h + 1) * dim_v], expected, rtol=1e-12)


def test_a_cut_is_the_attention_of_the_shorter_tensors() -> None:
    q, k, v = (RNG.normal(size=(1, 6, 4)) for _ in range(3))
    short = transformer.attention(q[:, :2], k[:, :5], v[:, :5], heads=2, kv_heads=2, scale=1.0, causal=True)
    k[:, 5:], v[:, 5:] = np.inf, np.inf
    cut = transformer.attention(q, k, v, heads=2, kv_heads=2, scale=1.0, causal=True, span=(2, 5))
    np.testing.assert_allclose(cut[:, :2], short, rtol=1e-12)
    assert np.isfinite(cut).all()


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_rope_turns_pairs(style: str) -> None:
    """With cos and sin of one angle a pair, lengths are kept, and a quarter turn moves x0 to x1."""
    x = RNG.normal(size=(1, 3, 8))
    angles = np.repeat([[0.1, 0.7]], 3, axis=0)
    both = np.concatenate([angles, angles], 1) if style == "half" else np.repeat(angles, 2, axis=1)
    found = transformer.rope(x, np.cos(both), np.sin(both), heads=2, style=style)
    np.testing.assert_allclose(np.square(found).sum(), np.square(x).sum(), rtol=1e-12)
    one = np.zeros((1, 1, 4))
    one[..., 0] = 1.0
    quarter = transformer.rope(one, np.zeros((1, 4)), np.ones((1, 4)), heads=1, style=style)
    assert quarter.tolist() == [[[0, 0, 1, 0] if style == "half" else [0, 1, 0, 0]]]


def test_rms_norm() -> None:
    x = np.array([[3.0, 4.0]])
    found = transformer.rms_norm(x, np.array([2.0, 1.0]), epsilon=0.5)
    np.testing.assert_allclose(found, [[6 / math.sqrt(13), 4 / math.sqrt(13)]])


def test_gather_wraps_once_then_clamps() -> None:
    table = np.arange(4.0)[:, None]
    ids = np.array([[0, 3, -1], [-4, -5, 99]])
    assert transformer.gather(ids, table)[..., 0].tolist() == [[0, 3, 3], [0, 0, 3]]
