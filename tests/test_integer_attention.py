"""Attention on int8 in NumPy: near the float one, its powers near 2^x, and what is masked exactly nothing."""

from __future__ import annotations

import numpy as np
import pytest

from hwq import integer_attention, numerics, transformer
from hwq.numerics import QParams


def test_power_is_near() -> None:
    x = -np.linspace(0, 87, 20001).astype(np.float32)
    found = integer_attention.power(x, integer_attention.LOG2_E)
    factor = np.float64(np.float32(integer_attention.LOG2_E))
    assert np.abs(found / np.exp2(x.astype(np.float64) * factor) - 1).max() < 2e-7
    assert found[0] == 1.0
    assert not integer_attention.power(np.array([-88, -1e9, -3e38, -np.inf], np.float32), 1.5).any()


def _quantized(x: np.ndarray) -> tuple[np.ndarray, QParams]:
    q = numerics.choose_qparams(float(x.min()), float(x.max()))
    return numerics.quantize(x, q), q


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_is_near_the_float_one(causal: bool, biased: bool, rng: np.random.Generator) -> None:
    """The shares are whole 255ths of the largest: each off by 1/510 of it, the sum of n by n/510 at most, and the
    average of values by twice that of their size; beside it half a step of v. What q and k lose is in both.
    """
    heads, kv_heads, depth = 4, 2, 32
    q, k, v = (rng.standard_normal((2, 9, count * depth)).astype(np.float32) for count in (heads, kv_heads, kv_heads))
    bias = rng.standard_normal((1, heads, 9, 9)).astype(np.float32) if biased else None
    (a, qa), (b, qb), (c, qc) = (_quantized(x) for x in (q, k, v))
    scale = depth**-0.5
    step = qa.scale * qb.scale * scale * (1.0 if biased else integer_attention.LOG2_E)
    zeros = qa.zero_point, qb.zero_point, qc.zero_point
    found = integer_attention.attention(
        a, b, c, bias, zeros, (step, qc.scale), heads=heads, kv_heads=kv_heads, causal=causal
    )
    exact = [numerics.dequantize(*pair).astype(np.float64) for pair in ((a, qa), (b, qb), (c, qc))]
    expected = transformer.attention(*exact, bias, heads=heads, kv_heads=kv_heads, scale=scale, causal=causal)
    assert np.abs(found - expected).max() <= 2 * 9 / 510 * np.abs(exact[2]).max()
    assert np.abs(found - expected).max() > 0


def test_storage_does_not_matter(rng: np.random.Generator) -> None:
    """uint8 with zero points 128 higher gives the same bits; so do keys that a span or -inf leaves out."""
    values = [rng.integers(-128, 128, (1, 7, 32)).astype(np.int8) for _ in range(3)]
    stored = [(x.astype(np.int32) + 128).astype(np.uint8) for x in values]
    steps = (1e-4, 0.1)
    plain = integer_attention.attention(*values, None, (3, -5, 9), steps, heads=2, kv_heads=2)
    np.testing.assert_array_equal(
        integer_attention.attention(*stored, None, (131, 123, 137), steps, heads=2, kv_heads=2), plain
    )
    more = [np.pad(x, ((0, 0), (0, 5), (0, 0)), constant_values=77) for x in values]
    cut = integer_attention.attention(*more, None, (3, -5, 9), steps, heads=2, kv_heads=2, span=(7, 7))
    np.testing.assert_array_equal(cut[:, :7], plain)


@pytest.mark.parametrize(("value", "zero"), [(255, 0), (0, 255)])
def test_the_most_keys_it_takes(value: int, zero: int) -> None:
    """All keys alike, so that each share is 255, and every value as far from its zero point as bytes are."""
    keys, alike = integer_attention.MOST_KEYS, {"heads": 1, "kv_heads": 1}

    def found(count: int) -> np.ndarray:
        q, k = np.ones((1, 1, 16), np.uint8), np.ones((1, count, 16), np.uint8)
        v = np.full((1, count, 16), value, np.uint8)
        return integer_attention.attention(q, k, v, None, (0, 0, zero), (1e-4, 1.0), **alike)

    np.testing.assert_allclose(found(keys), value - zero, rtol=1e-6)
    with pytest.raises(AssertionError, match="no int32"):
        found(keys + 1)


def test_a_row_without_keys_is_nothing(rng: np.random.Generator) -> None:
    q, k, v = (rng.integers(0, 256, (1, 4, 16)).astype(np.uint8) for _ in range(3))
    bias = np.zeros((1, 1, 4, 4), np.float32)
    bias[:, :, 2] = -np.inf
    found = integer_attention.attention(q, k, v, bias, (120, 131, 125), (1e-4, 0.1), heads=1, kv_heads=1)
    assert not found[:, 2].any()
    assert found[:, [0, 1, 3]].all(axis=(0, 2)).any()
    assert np.isfinite(found).all()


def test_what_it_takes() -> None:
    most = integer_attention.MOST_KEYS
    assert integer_attention.takes(32, 80, 0.1, most)
    for each in ((8, 16, 0.1, 1), (16, 8, 0.1, 1), (144, 16, 0.1, 1), (16, 16, 0.0, 1), (16, 16, 0.1, most + 1)):
        assert not integer_attention.takes(*each)
    assert integer_attention.counts((1, 1, 1, 2))
    assert not integer_attention.counts((2, 2, 2, 1))
    assert not integer_attention.counts(None)
