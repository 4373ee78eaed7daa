"""Integer weights: ranges, scales a channel, biases that fit int32, and the correction of what rounding adds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference as floats
import tiny

from hwq import numerics
from hwq.errors import HwqError
from hwq.graph import Layer
from hwq.numerics import QParams
from hwq.quantize import mean_error, quantize_layer, quantize_weights, read_rounding, write_rounding

SOURCE = QParams(scale=0.02, zero_point=-128)
LAYERS = {
    "conv": tiny.conv("x", "y", (6, 8)),
    "grouped": replace(
        tiny.conv("x", "y", (6, 8)),
        attrs=tiny.WINDOW | {"groups": 2},
        weight=np.random.default_rng(5).standard_normal((8, 3, 3, 3)).astype(np.float32),
    ),
    "depthwise": tiny.depthwise("x", "y", 8),
    "dense": tiny.dense("x", "y", (30, 8)),
}


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_within_half_a_step_and_in_range(name: str, scheme: str) -> None:
    layer = LAYERS[name]
    assert layer.weight is not None
    found = quantize_layer(layer, scheme, SOURCE)
    least, most = (-127, 127) if scheme == "w8a8" else (-8, 7)
    assert found.values.dtype == np.int8
    assert found.values.shape == layer.weight.shape
    assert found.scale.shape == found.bias.shape == (8,)
    assert least <= found.values.min()
    assert found.values.max() <= most
    scale = found.scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
    error = np.abs(found.values * scale - layer.weight)
    inside = (found.values > least) & (found.values < most)
    assert (error <= scale * (0.5 + 1e-5))[inside].all()
    if scheme == "w8a8":
        assert (np.abs(found.values.reshape(8, -1)).max(axis=1) == 127).all(), "the range is used in every channel"


def test_groups_have_their_own_scales_and_one_bias(rng: np.random.Generator) -> None:
    layer = tiny.dense("x", "y", (130, 8))
    assert layer.weight is not None
    assert layer.bias is not None
    mean = rng.uniform(0.0, 3.0, 130)
    plain, corrected = (quantize_layer(layer, "w4a8_g64", SOURCE, given) for given in (None, mean.tolist()))
    assert (plain.scale.shape, plain.bias.shape, plain.group_size) == ((8, 3), (8,), 64)
    exact = layer.weight.astype(np.float64) @ mean + layer.bias
    for found, most in ((plain, np.inf), (corrected, 1e-5)):
        assert np.abs(found.real().astype(np.float64) @ mean + found.bias - exact).max() < most
    one = quantize_layer(layer, "w4a8", SOURCE)
    assert np.square(plain.real() - layer.weight).sum() < np.square(one.real() - layer.weight).sum()


def test_bias_of_a_channel_of_tiny_weights_stays_exact() -> None:
    """The scale grows so that bias / (s_x * s_w) fits an int32 accumulator."""
    plain = tiny.conv("x", "y", (4, 3))
    assert plain.weight is not None
    weight = plain.weight * np.array([1e-9, 1.0, 1.0], np.float32)[:, None, None, None]
    layer = replace(plain, weight=weight, bias=np.array([3.0, -2.0, 0.0], np.float32))
    found = quantize_layer(layer, "w8a8", SOURCE)
    steps = SOURCE.scale * found.scale.astype(np.float64)
    back = numerics.quantize_bias(found.bias, SOURCE.scale, found.scale) * steps
    np.testing.assert_allclose(back, layer.bias, rtol=0, atol=float(steps.max()))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("name", LAYERS)
def test_correction_takes_back_the_mean_error(name: str, scheme: str, rng: np.random.Generator) -> None:
    """With inputs that are constant over the picture (and no rim) the layer's mean output is exact again."""
    layer = LAYERS[name]
    assert layer.weight is not None
    assert layer.bias is not None
    channels = layer.input_shapes[0][-1]
    mean = rng.uniform(0.0, 3.0, channels)
    exact = _on_constant(layer, layer.weight, layer.bias, mean)
    plain, corrected = quantize_layer(layer, scheme, SOURCE), quantize_layer(layer, scheme, SOURCE, mean.tolist())
    np.testing.assert_array_equal(plain.values, corrected.values)
    np.testing.assert_array_equal(plain.bias, layer.bias)
    rounded = numerics.dequantize_weight(plain.values, plain.scale)
    before = np.abs(_on_constant(layer, rounded, plain.bias, mean) - exact)
    after = np.abs(_on_constant(layer, rounded, corrected.bias, mean) - exact)
    assert before.max() > 1e-3
    assert after.max() < 1e-5  # float32 sums of some hundred products below 10


def _on_constant(layer: Layer, weight: Any, bias: Any, mean: Any) -> Any:
    """The layer without activation and rim on an input that holds ``mean`` everywhere: its output channels (O,)."""
    if layer.op == "dense":
        shapes: dict[str, Any] = {}
        x = mean[None]
    else:
        shapes = {"input_shapes": ((1, 3, 3, len(mean)),), "output_shape": (1, 1, 1, len(bias))}
        shapes["attrs"] = {**layer.attrs, "padding": (0, 0, 0, 0)}
        x = np.broadcast_to(mean, (1, 3, 3, len(mean)))
    bare = replace(layer, weight=weight, bias=bias, activation=type(layer.activation)(), **shapes)
    return floats.run_layer(bare, [x.astype(np.float64)]).reshape(-1)


def test_a_layer_without_bias_gets_the_correction_alone() -> None:
    layer = tiny.conv("x", "y", (4, 3), bias=False)
    assert layer.weight is not None
    mean = [1.0, 0.5, 0.0, -2.0]
    found = quantize_layer(layer, "w4a8", SOURCE, mean)
    error = layer.weight - numerics.dequantize_weight(found.values, found.scale)
    np.testing.assert_allclose(found.bias, np.einsum("ohwi,i->o", error, mean), rtol=1e-4, atol=1e-6)
    assert not quantize_layer(layer, "w4a8", SOURCE).bias.any()


def test_mean_error_of_groups_reads_its_own_channels() -> None:
    error = np.zeros((4, 1, 1, 2), np.float32)
    error[3, 0, 0, 1] = 1.0  # group 1, its second input: channel 3
    mean = [1.0, 2.0, 4.0, 8.0]
    np.testing.assert_array_equal(mean_error(LAYERS["grouped"], error, mean), [0, 0, 0, 8])
    depth = np.array([1.0, 2.0], np.float32).reshape(2, 1, 1, 1)
    np.testing.assert_array_equal(mean_error(LAYERS["depthwise"], depth, [3.0, 5.0]), [3, 10])


def test_every_integer_candidate_is_quantized_once() -> None:
    plain = tiny.net()
    candidates = {layer.name: ("f32", "w8a8") for layer in plain.layers}
    candidates["join"] = ("f32", "w8a8", "w4a8")
    candidates["depth"] = ("f32",)
    seen: list[tuple[int, int]] = []
    params = dict.fromkeys(plain.shapes, SOURCE)
    means = {"stem": tuple([0.5] * 8)}
    found = quantize_weights(plain, candidates, params, means, lambda *at: seen.append(at))
    expected = {("stem", "w8a8"), ("left", "w8a8"), ("join", "w8a8"), ("join", "w4a8"), ("logits", "w8a8")}
    assert found.keys() == expected
    assert seen == [(done, 5) for done in (1, 2, 3, 4, 5)]
    layers = {layer.name: layer for layer in plain.layers}
    assert not np.array_equal(found["left", "w8a8"].bias, layers["left"].bias), "its input has a mean"
    np.testing.assert_array_equal(found["join", "w8a8"].bias, layers["join"].bias)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a8_g64"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_rounding_comes_back_from_its_text(name: str, scheme: str, rng: np.random.Generator) -> None:
    """Whatever the integers and the scales; the weights are theirs, and the bias takes back their mean error."""
    layer = LAYERS[name]
    assert layer.weight is not None
    plain = quantize_layer(layer, scheme, SOURCE)
    least, most = (-127, 127) if scheme == "w8a8" else (-8, 7)
    for values in (plain.values, rng.integers(least, most + 1, plain.values.shape).astype(np.int8)):
        scale = (plain.scale * rng.uniform(0.5, 2.0, plain.scale.shape)).astype(np.float32)
        text = write_rounding(layer, scheme, values, scale)
        again = read_rounding(layer, scheme, text)
        np.testing.assert_array_equal(again[0], values)
        np.testing.assert_array_equal(again[1], scale)
        mean = [0.5] * layer.input_shapes[0][-1]
        found = quantize_layer(layer, scheme, SOURCE, mean, text)
        np.testing.assert_array_equal(found.values, values)
        assert found.group_size == plain.group_size
        shift = mean_error(layer, layer.weight - found.real(), mean)
        assert layer.bias is not None
        np.testing.assert_array_equal(found.bias, (layer.bias.astype(np.float64) + shift).astype(np.float32))


def test_the_nearest_integers_take_almost_nothing() -> None:
    layer = tiny.dense("x", "y", (4096, 8))
    plain = quantize_layer(layer, "w4a8", SOURCE)
    assert len(write_rounding(layer, "w4a8", plain.values, plain.scale)) < 400


def test_a_damaged_rounding_is_refused() -> None:
    layer = LAYERS["conv"]
    plain = quantize_layer(layer, "w4a8", SOURCE)
    text = write_rounding(layer, "w4a8", plain.values, plain.scale)
    negative = write_rounding(layer, "w4a8", plain.values, -plain.scale)
    other = write_rounding(LAYERS["dense"], "w4a8", np.zeros((8, 30), np.int8), plain.scale)
    for bad in (text[:-8], "?" + text[1:], "abc", other, negative):
        with pytest.raises(HwqError, match="the rounding of layer 'y' in w4a8 is damaged") as caught:
            read_rounding(layer, "w4a8", bad)
        assert caught.value.code == "plan-invalid"
