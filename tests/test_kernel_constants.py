"""The numbers that kernels take: what they are where there is nothing but the layer and its weights to make them of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny

from hwq import group_scales
from hwq.kernel_constants import kernel_constants
from hwq.quantize import quantize_layer


@pytest.mark.parametrize("offset", [0, 128])
def test_a_dynamic_layer_needs_no_ranges(offset: int) -> None:
    layer = tiny.dense("x", "y", (70, 5), rows=3)
    weights = quantize_layer(layer, "w8a8_dyn", None)
    constants, weight = kernel_constants(layer, "w8a8_dyn", {}, {("y", "w8a8_dyn"): weights}, offset, True)
    assert weight == 0
    values, start, multiplier, bias = constants
    assert start.dtype == np.int32
    np.testing.assert_array_equal(start, -offset * values.sum(axis=1, dtype=np.int64))
    np.testing.assert_array_equal(multiplier, weights.scale)
    np.testing.assert_array_equal(bias, layer.bias)


def test_groups_have_their_scales_in_lanes_and_a_float_start() -> None:
    layer = tiny.dense("x", "y", (70, 5), rows=3)
    weights = quantize_layer(layer, "w4a8_g64_dyn", None)
    constants, _ = kernel_constants(layer, "w4a8_g64_dyn", {}, {("y", "w4a8_g64_dyn"): weights}, 128, True)
    values, start, multiplier, _ = constants
    np.testing.assert_array_equal(group_scales.out_of_lanes(multiplier, 5), weights.scale)
    real = weights.real().sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(start, -128 * real, rtol=1e-5)
    assert values.shape == (5, 70)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8_g64"])
def test_a_float_residual_has_no_zero_point_and_needs_no_range(scheme: str) -> None:
    layer = replace(tiny.dense("x", "y", (70, 5), rows=3, residual="r"), float_residual=True)
    params = tiny.ranges({"x": np.array([-1.0, 2.0])})
    weights = {("y", scheme): quantize_layer(layer, scheme, params["x"])}
    (_, _, multiplier, ints, floats), _ = kernel_constants(layer, scheme, params, weights, 128, True)
    assert ints[1] == 128, "stored, no zero point at all"
    assert floats[0] == 0.0, "no multiplier of it either"
    scale = weights["y", scheme].scale
    steps = multiplier if scheme == "w8a8" else group_scales.out_of_lanes(multiplier, 5)
    np.testing.assert_allclose(steps, params["x"].scale * scale, rtol=1e-6)
