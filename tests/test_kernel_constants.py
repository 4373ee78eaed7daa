"""The numbers that kernels take: what they are where there is nothing but the layer and its weights to make them of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny

from hwq import group_scales, integer_attention, reference
from hwq.graph import Layer, Shape
from hwq.kernel_constants import kernel_constants
from hwq.lower import legal_schemes, lower
from hwq.numerics import QParams
from hwq.quantize import quantize_layer
from hwq.scheme import parse_schemes
from hwq.target import Target


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


@pytest.mark.parametrize("bias", [None, (1, 1, 1, 9), (1, 1, 7, 1)])
@pytest.mark.parametrize("direct", [True, False])
def test_attention(bias: Shape | None, direct: bool, rng: np.random.Generator) -> None:
    """In int8 are q, k and v; the bias and the span stay what they are. The numbers are those of the arithmetic that
    knows scales and zero points alone, in logical int8."""
    shapes = ((1, 7, 64), (1, 9, 32), (1, 9, 32), *([] if bias is None else [bias]))
    names = ("q", "k", "v", "bias")[: len(shapes)]
    layer = Layer(
        name="a", op="attention", inputs=names, output="y", input_shapes=shapes, output_shape=(1, 7, 64),
        attrs={"heads": 4, "kv_heads": 2, "scale": 0.3, "causal": False},
    )  # fmt: skip
    steps = {"q": (0.02, 5), "k": (0.03, -7), "v": (0.04, 11), "y": (0.01, -3)}
    qparams = {name: QParams(scale=scale, zero_point=zero) for name, (scale, zero) in steps.items()}
    target = Target.load("x86-avx512-vnni")
    program = lower(tiny.alone(layer), {"a": "w8a8"}, qparams, {}, target, 1, direct=direct)
    (step,) = [one for one in program.steps if one.name == "a"]
    assert step.inputs == ("q@int8", "k@int8", "v@int8", "bias")[: len(shapes)]
    assert program.values[step.output] == ((1, 7, 64), "float32" if direct else "uint8")
    values = [rng.integers(-128, 128, shape).astype(np.int8) for shape in shapes[:3]]
    biases = [rng.standard_normal(shape).astype(np.float32) for shape in shapes[3:]]
    assert step.workload is not None
    stored = [(value.astype(np.int32) + 128).astype(np.uint8) for value in values]
    found = reference.evaluate(step.workload, [*stored, *biases, *step.constants])
    score = 0.02 * 0.03 * 0.3 * (1.0 if bias is not None and bias[3] > 1 else np.log2(np.e))
    expected = integer_attention.attention(
        *values,
        biases[0] if biases else None,
        (5, -7, 11),
        (score, 0.04 / (1 if direct else 0.01)),
        heads=4,
        kv_heads=2,
    )
    if not direct:
        expected = np.clip(np.rint(expected) - 3, -128, 127) + 128
    np.testing.assert_array_equal(found, expected)


def test_attention_of_odd_heads_is_float() -> None:
    target, every = Target.load("x86-avx512-vnni"), parse_schemes(None)
    for depth, able in ((32, ("f32", "w8a8")), (8, ("f32",))):
        shape = (1, 7, 2 * depth)
        layer = Layer(
            name="a", op="attention", inputs=("q", "k", "v"), output="y", input_shapes=(shape,) * 3, output_shape=shape,
            attrs={"heads": 2, "kv_heads": 2, "scale": 0.3, "causal": False},
        )  # fmt: skip
        assert legal_schemes(tiny.alone(layer), layer, target, every) == able
