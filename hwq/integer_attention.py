"""The numbers of attention on int8 in NumPy: what every integer kernel of it equals, bit for bit.

q, k and v are quantized per tensor, in any storage, zero points in the same. Scores are whole numbers, exact; a row's
shares are bytes, p = rint(255 * 2^d), where d is the distance to the row's largest score in powers of two; their sum
and their products with the values are whole numbers again. Floats in between are float32 with explicit fused products.
A row that sees no key, or only keys that -inf masks, has no shares, and its outputs are 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq import numerics
from hwq.numerics import Array, Floats
from hwq.transformer import split_heads

# 1.5 * 2^23: added to a float below 2^22 it leaves that one's nearest whole number in the low bits.
ROUNDER = np.float32(12582912.0)
# 2^f = 1 + f * p(f) for |f| <= 1/2 within 1.6e-7 of it, in float32 with fused products: fitted by Lawson's weights.
POWER = (
    1.326472731307149e-3,
    9.671512991189957e-3,
    5.550733581185341e-2,
    2.4022242426872253e-1,
    6.931470036506653e-1,
    1.0,
)
# Below this power of two a share is 0, exactly.
LEAST_POWER = np.float32(-126.0)
# 1 / ln(2).
LOG2_E = 1.4426950408889634
# A share of 1.
WHOLE_SHARE = np.float32(255.0)
# A score and its parts, of at most so many products of bytes, are whole numbers that float32 holds.
MOST_DEPTH = 128
# A row's sums of shares, 0 to 255, times values, 255 from their zero point at most, of so many keys are int32.
MOST_KEYS = (2**31 - 1) // 255**2


def takes(depth: int, width: int, scale: float, keys: int) -> bool:
    """Whether heads of ``depth`` and ``width`` have an integer form on ``keys`` keys, with the scores' ``scale``."""
    return depth % 16 == 0 and width % 16 == 0 and depth <= MOST_DEPTH and scale > 0 and keys <= MOST_KEYS


def counts(bias: Sequence[int] | None) -> bool:
    """Whether a bias of this shape (four axes) changes shares: one that is the same for all keys does not."""
    return bias is not None and bias[3] > 1


def power(distance: Array, factor: float) -> Floats:
    """2^(distance * factor) of float32 values of at most about 0; below LEAST_POWER, and of -inf, exactly 0."""
    distance, scale = distance.astype(np.float32), np.float32(factor)
    with np.errstate(over="ignore"):
        there = distance * scale >= LEAST_POWER
    known = np.where(there, distance, np.float32(0))
    whole = numerics.fma32(known, scale, ROUNDER)
    rest = numerics.fma32(known, scale, ROUNDER - whole)
    value = np.full_like(known, POWER[0])
    for coefficient in POWER[1:]:
        value = numerics.fma32(value, rest, np.float32(coefficient))
    count = whole.view(np.int32) - ROUNDER.view(np.int32)
    return np.where(there, np.ldexp(value, count), np.float32(0)).astype(np.float32)


def attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None,
    zeros: tuple[int, int, int],
    floats: tuple[float, float],
    *,
    heads: int,
    kv_heads: int,
    causal: bool = False,
    span: tuple[int, int] | None = None,
) -> Floats:
    """The outputs in steps of the output's scale, float32 (B, S, H * E), as ``transformer.attention`` shapes them;
    queries beyond those of the span give 0 (kernels do not write them).

    zeros: the zero points of q, k and v. floats: what a step of a score is (the scales of q, of k and of attention, and
    LOG2_E where there is no bias, so that it is in powers of two), and what a step of v is, in steps of the output.
    """
    n, t = (q.shape[1], k.shape[1]) if span is None else span
    group = heads // kv_heads
    a = split_heads(numerics.centre(q[:, :n], zeros[0]), heads).astype(np.int64)
    b, c = (
        np.repeat(split_heads(numerics.centre(x[:, :t], zero), kv_heads), group, axis=1).astype(np.int64)
        for x, zero in ((k, zeros[1]), (v, zeros[2]))
    )
    scores = (a @ b.transpose(0, 1, 3, 2)).astype(np.float32)
    step = float(np.float32(floats[0]))
    if bias is not None and counts(bias.shape):
        scores = numerics.fma32(scores, np.float32(step), np.broadcast_to(bias[:, :, :n, :t], scores.shape))
        step = LOG2_E
    if causal:
        scores = np.where(np.arange(t) <= np.arange(n)[:, None] + t - n, scores, np.float32(-np.inf))
    with np.errstate(invalid="ignore"):  # of a row that is -inf, whose powers are 0
        distance = scores - scores.max(axis=-1, keepdims=True)
    shares = numerics.fma32(power(distance, step), WHOLE_SHARE, ROUNDER)
    bytes_ = (shares.view(np.int32) - ROUNDER.view(np.int32)).astype(np.int64)
    sums = bytes_ @ c
    assert np.abs(sums).max() < 2**31, f"sums of {t} keys are no int32"
    found = sums.astype(np.float32)
    total = np.maximum(bytes_.sum(axis=-1, keepdims=True), 1).astype(np.float32)
    values = found * (np.float32(floats[1]) / total)
    out = np.zeros((*q.shape[:2], heads * values.shape[-1]), np.float32)
    out[:, :n] = values.transpose(0, 2, 1, 3).reshape(len(q), n, -1)
    return out
