"""Weights with a scale for each group of inputs: no worse than one for all, their sums in the order that is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hwq import group_scales, numerics

# (weight's shape, group): whole groups, a smaller last one, one group only, a single input, a 1x1 convolution.
CASES = [((7, 128), 64), ((16, 130), 64), ((17, 33), 64), ((3, 1), 8), ((5, 1, 1, 24), 16)]


@pytest.mark.parametrize(("shape", "group"), CASES)
def test_each_weight_is_within_half_a_step_of_its_group(shape: Any, group: int, rng: np.random.Generator) -> None:
    weight = rng.standard_normal(shape).astype(np.float32)
    q, scale = group_scales.quantize_weight(weight, 4, group)
    groups = group_scales.group_count(weight[0].size, group)
    assert (q.shape, q.dtype, scale.shape, scale.dtype) == (weight.shape, np.int8, (shape[0], groups), np.float32)
    assert -8 <= q.min()
    assert q.max() <= 7
    steps = np.repeat(scale, group, axis=1)[:, : weight[0].size].reshape(shape)
    inside = (q > -8) & (q < 7)
    error = np.abs(group_scales.dequantize_weight(q, scale, group) - weight)
    assert (error <= steps * (0.5 + 1e-5))[inside].all()


def test_smaller_groups_lose_less(rng: np.random.Generator) -> None:
    """With one scale a channel the worst; some inputs are large, as where a network leans on a few of them."""
    weight = (rng.standard_normal((24, 256)) * np.repeat(rng.uniform(0.1, 3.0, 16), 16)).astype(np.float32)
    q, scale = numerics.quantize_weight(weight, 4)
    losses = [np.square(numerics.dequantize_weight(q, scale) - weight).sum()]
    for group in (256, 64, 16):
        found = group_scales.dequantize_weight(*group_scales.quantize_weight(weight, 4, group), group)
        losses.append(np.square(found - weight).sum())
    assert losses[0] == losses[1]
    assert losses[1] > losses[2] > losses[3]


@pytest.mark.parametrize(("shape", "group"), CASES[:4])
def test_product_is_the_layer_in_steps_of_its_output(shape: Any, group: int, rng: np.random.Generator) -> None:
    """With zero point and bias in ``start``: within the rounding of one fma a group, one sum, and the start itself."""
    q = rng.integers(-8, 8, shape).astype(np.int8)
    groups = group_scales.group_count(shape[1], group)
    multiplier = rng.uniform(0.01, 0.02, (shape[0], groups)).astype(np.float32)
    bias, zero = rng.uniform(-5, 5, shape[0]), 131
    x = rng.integers(0, 256, (2, 3, shape[1])).astype(np.uint8)
    start = group_scales.start_values(bias, q, multiplier, zero, group)
    found = group_scales.product(x, q, multiplier, start, group)
    real = q * np.repeat(multiplier.astype(np.float64), group, axis=1)[:, : shape[1]]
    expected = (x.astype(np.float64) - zero) @ real.T + bias
    sizes = x.astype(np.float64) @ np.abs(real).T + zero * np.abs(real).sum(axis=1) + np.abs(bias)
    assert (found.dtype, found.shape) == (np.float32, (2, 3, shape[0]))
    assert (np.abs(found - expected) <= (groups + 2) * 2.0**-24 * sizes).all()


def test_groups_are_added_in_their_order() -> None:
    """2^24 + 1 is no float32: what comes after the large sum is lost, what comes before is not."""
    q, x = np.ones((1, 3), np.int8), np.array([[1, 1, 1]], np.uint8)
    large = float(1 << 24)
    for order, expected in (((large, 1, 1), large), ((1, 1, large), large + 2)):
        found = group_scales.product(x, q, np.array([order], np.float32), np.zeros(1), 1)
        assert found[0, 0] == expected


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 40])
def test_scales_lie_in_lanes(channels: int, rng: np.random.Generator) -> None:
    multiplier = rng.standard_normal((channels, 3)).astype(np.float32)
    laid = group_scales.in_lanes(multiplier)
    assert laid.shape == (-(-channels // 16), 3, 16)
    assert np.count_nonzero(laid) == multiplier.size
    np.testing.assert_array_equal(group_scales.out_of_lanes(laid, channels), multiplier)
