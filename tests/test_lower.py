"""Lowering: every number a step takes, held against the same layer computed in logical int8 from primary numbers.

The expected side knows scales, zero points, integer weights and the layer's definition, and no ``Step``; the found side
is the reference run on the step's own arguments, in the target's storage. Where inputs, weights and biases lie on their
grids the result is held against real arithmetic too, to half a step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny

from hwq import numerics, operators, reference
from hwq.graph import Activation, Layer
from hwq.lower import lower, writes_float
from hwq.numerics import QParams
from hwq.quantize import IntegerWeights, quantize_layer
from hwq.target import Target

Array = np.ndarray[Any, Any]

STORAGES = {"uint8": Target.load("x86-avx512-vnni"), "int8": Target.load("arm-cortex-a76")}
NONE, RELU = Activation(), Activation(kind="relu")
RELU6 = Activation(kind="clip", lo=0.0, hi=6.0)
INSIDE = Activation(kind="clip", lo=-0.7, hi=0.9)
SWISH = Activation(kind="hard_swish")
# Scales and zero points without any symmetry that could hide one taken for another.
X, R, Y, PRE = (
    QParams(scale=float(np.float32(scale)), zero_point=zero)
    for scale, zero in ((0.037, -21), (0.052, 17), (0.061, -39), (0.044, 9))
)


@pytest.fixture(params=sorted(STORAGES))
def target(request: pytest.FixtureRequest) -> Target:
    """A machine that stores activations as uint8, and one that stores them as int8."""
    found = STORAGES[request.param]
    assert found.activation_storage == request.param
    return found


def stored(q: Array, target: Target) -> Array:
    """Logical int8 values as the target holds them."""
    return (q.astype(np.int32) + target.activation_offset).astype(target.activation_storage)


def logical(value: Array, target: Target) -> Array:
    return (value.astype(np.int32) - target.activation_offset).astype(np.int8)


def random_q(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(-128, 128, shape).astype(np.int8)


def params_of(layer: Layer) -> dict[str, QParams]:
    """X and R for the inputs, Y for the output, PRE in front of a table."""
    return {**dict(zip(layer.inputs, (X, R), strict=False)), layer.output: Y, f"{layer.name}:pre": PRE}


def weights_of(layer: Layer, scheme: str) -> IntegerWeights:
    """With a bias that is not the layer's own: it takes back what rounding these weights adds."""
    return quantize_layer(layer, scheme, X, np.linspace(-0.5, 1.0, layer.input_shapes[0][-1]).tolist())


def integer_step(layer: Layer, inputs: list[Array], target: Target, scheme: str = "w8a8", **options: Any) -> Array:
    """The layer's own step, lowered and run by the reference: its output as it is stored."""
    weights = {} if layer.weight is None else {(layer.name, scheme): weights_of(layer, scheme)}
    program = lower(tiny.alone(layer), {layer.name: scheme}, params_of(layer), weights, target, 1, **options)
    (step,) = [one for one in program.steps if one.name == layer.name]
    assert step.workload is not None
    args = [*(stored(q, target) for q in inputs), *step.constants]
    out = reference.evaluate(step.workload, args, target.activation_storage)
    assert (out.shape, str(out.dtype)) == program.values[step.output]
    return out


def clamp_of(activation: Activation, q: QParams) -> tuple[int, int]:
    """The activation's clamp in integers of ``q``, by its definition."""
    lo = {"relu": 0.0, "clip": activation.lo}.get(activation.kind, -np.inf)
    hi = activation.hi if activation.kind == "clip" else np.inf
    least, most = (np.clip(np.rint(bound / q.scale) + q.zero_point, -128, 127) for bound in (lo, hi))
    return int(least), int(most)


def accumulators(layer: Layer, weights: IntegerWeights, x: Array) -> Array:
    """int32 sums of (x - zero point) * weight with the bias at scale s_x * s_w, without any folding."""
    bias = np.rint(weights.bias.astype(np.float64) / (X.scale * weights.scale.astype(np.float64))).astype(np.int32)
    if layer.op == "dense":
        return operators.dense(x, weights.values, zero_point=X.zero_point, bias=bias)
    keys = ("strides", "padding", "dilation", *(("groups",) if layer.op == "conv2d" else ()))
    attrs = {key: layer.attrs[key] for key in keys}
    run = operators.conv2d if layer.op == "conv2d" else operators.depthwise_conv2d
    return run(x, weights.values, zero_point=X.zero_point, bias=bias, **attrs)


def expected_anchor(layer: Layer, scheme: str, x: Array, r: Array | None) -> Array:
    """The layer in logical int8, from primary numbers."""
    weights = weights_of(layer, scheme)
    table = not layer.activation.clamps
    out = PRE if table else Y
    lo, hi = (-128, 127) if table else clamp_of(layer.activation, Y)
    q = numerics.requantize(
        accumulators(layer, weights, x),
        (np.float64(X.scale) * weights.scale / out.scale).astype(np.float32),
        out.zero_point,
        lo,
        hi,
        residual=r,
        residual_zero_point=R.zero_point,
        residual_multiplier=float(np.float32(R.scale / out.scale)),
    )
    if not table:
        return q
    real = (q.astype(np.float64) - PRE.zero_point) * PRE.scale
    swished = real * np.clip(real + 3, 0, 6) / 6
    return np.clip(np.rint(swished / Y.scale) + Y.zero_point, -128, 127).astype(np.int8)


ANCHOR_CASES = {
    "none": tiny.conv("x", "y", (5, 7)),
    "no bias": tiny.conv("x", "y", (5, 7), bias=False),
    "relu": tiny.conv("x", "y", (5, 7), activation=RELU),
    "relu6": tiny.conv("x", "y", (5, 7), activation=RELU6),
    "clip inside": tiny.conv("x", "y", (5, 7), activation=INSIDE),
    "residual": tiny.conv("x", "y", (5, 7), residual="r"),
    "residual relu": tiny.conv("x", "y", (5, 7), activation=RELU, residual="r"),
    "table": tiny.conv("x", "y", (5, 7), activation=SWISH),
    "table residual": tiny.conv("x", "y", (5, 7), activation=SWISH, residual="r"),
    "1x1": tiny.conv("x", "y", (5, 7), kernel=1, activation=RELU),
    "depthwise": tiny.depthwise("x", "y", 5),
    "dense": tiny.dense("x", "y", (11, 6)),
}


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("case", ANCHOR_CASES)
def test_anchor_equals_int8_arithmetic(case: str, scheme: str, target: Target, rng: np.random.Generator) -> None:
    layer = ANCHOR_CASES[case]
    inputs = [random_q(rng, shape) for shape in layer.input_shapes]
    found = integer_step(layer, inputs, target, scheme, direct=False)
    expected = expected_anchor(layer, scheme, inputs[0], inputs[1] if layer.residual else None)
    assert len(np.unique(expected)) > min(10, expected.size // 2), "a test whose outputs all clamp shows nothing"
    np.testing.assert_array_equal(logical(found, target), expected)


@pytest.mark.parametrize("residual", ["", "r"])
@pytest.mark.parametrize("direct", [False, True])
def test_groups_of_inputs_are_real_arithmetic(
    direct: bool, residual: str, target: Target, rng: np.random.Generator
) -> None:
    """The layer's own value, of the inputs and weights that the integers stand for: to half a step where it is rounded,
    and to what float32 loses: three fmas, a rounded start, two sums, of values below 2000 steps."""
    layer = tiny.dense("x", "y", (130, 6))
    assert layer.weight is not None
    layer = replace(layer, weight=layer.weight * np.float32(0.1))
    if residual:
        layer = replace(layer, inputs=("x", "r"), input_shapes=(*layer.input_shapes, layer.output_shape), residual=True)
    weights = weights_of(layer, "w4a8_g64")
    assert weights.scale.shape == (6, 3)
    inputs = [random_q(rng, shape) for shape in layer.input_shapes]
    found = integer_step(layer, inputs, target, "w4a8_g64", direct=direct)
    expected = numerics.dequantize(inputs[0], X).astype(np.float64) @ weights.real().T + weights.bias
    if residual:
        expected = expected + numerics.dequantize(inputs[1], R)
    if direct:
        np.testing.assert_allclose(found, expected, rtol=0, atol=2000 * Y.scale * 8 * 2.0**-24)
    else:
        steps = np.clip(expected / Y.scale + Y.zero_point, -128, 127)
        assert np.abs(logical(found, target) - steps).max() <= 0.5 + 2000 * 8 * 2.0**-24
        assert len(np.unique(logical(found, target))) > 3


def test_which_layers_write_float_themselves() -> None:
    able = {name for name, layer in ANCHOR_CASES.items() if writes_float(layer)}
    assert able == {name for name, layer in ANCHOR_CASES.items() if layer.activation.clamps} - {"depthwise"}


@pytest.mark.parametrize("case", [name for name, layer in ANCHOR_CASES.items() if writes_float(layer)])
def test_direct_float_output(case: str, target: Target, rng: np.random.Generator) -> None:
    """Nobody wants int8: the kernel writes float32, clamped by the activation's own bounds."""
    layer = ANCHOR_CASES[case]
    inputs = [random_q(rng, shape) for shape in layer.input_shapes]
    found = integer_step(layer, inputs, target)
    weights = weights_of(layer, "w8a8")
    real = accumulators(layer, weights, inputs[0]) * (X.scale * weights.scale.astype(np.float64))
    if layer.residual:
        real = real + (inputs[1].astype(np.float64) - R.zero_point) * R.scale
    real = numerics.activate(layer.activation, real)
    assert found.dtype == np.float32
    # Three float32 roundings: of the sum (below 2^24, so none), the multiplier, the product, the fused addition.
    np.testing.assert_allclose(found, real, rtol=0, atol=3 * 2**-24 * float(np.abs(real).max() + 30))


@pytest.mark.parametrize("activation", [NONE, RELU, RELU6, INSIDE], ids=lambda one: f"{one.kind}{one.lo}")
def test_anchor_is_within_half_a_step_of_real_arithmetic(
    activation: Activation, target: Target, rng: np.random.Generator
) -> None:
    """Weights and bias on their grids (each channel holds a 127): only the output is rounded."""
    plain = tiny.conv("x", "y", (4, 6), kernel=1, activation=activation, residual="r")
    scale = rng.uniform(0.5, 2.0, 6).astype(np.float32) * np.float32(2**-9)
    q = rng.integers(-127, 128, (6, 1, 1, 4))
    q[:, 0, 0, 0] = 127
    weight = (q * scale[:, None, None, None]).astype(np.float32)
    bias = (rng.integers(-900, 900, 6) * np.float64(X.scale) * scale).astype(np.float32)
    layer = replace(plain, weight=weight, bias=bias)
    inputs = [random_q(rng, shape) for shape in layer.input_shapes]
    real = [(one.astype(np.float64) - p.zero_point) * p.scale for one, p in zip(inputs, (X, R), strict=True)]
    exact = real[0] @ weight.reshape(6, 4).T.astype(np.float64) + bias + real[1]
    inside = (np.array([-128, 127]) - Y.zero_point) * Y.scale
    exact = np.clip(numerics.activate(activation, exact), *inside)
    found = (logical(integer_step(layer, inputs, target, direct=False), target) - np.float64(Y.zero_point)) * Y.scale
    # Half a step of rounding; the clamp's own bounds are rounded to the grid by another half at most.
    edge = 0.5 if activation.kind == "clip" else 0.0
    assert np.abs(found - exact).max() <= (0.5 + edge + 1e-4) * Y.scale


@pytest.mark.parametrize("activation", [NONE, RELU, INSIDE], ids=lambda one: one.kind)
def test_add(activation: Activation, target: Target, rng: np.random.Generator) -> None:
    shape = (1, 3, 4, 5)
    layer = tiny.layer("add", ("a", "b"), "y", dict.fromkeys("aby", shape), activation=activation)
    a, b = random_q(rng, shape), random_q(rng, shape)
    lo, hi = clamp_of(activation, Y)
    multipliers = (float(np.float32(X.scale / Y.scale)), float(np.float32(R.scale / Y.scale)))
    expected = operators.add(a, b, (X.zero_point, R.zero_point, Y.zero_point), multipliers, lo, hi)
    np.testing.assert_array_equal(logical(integer_step(layer, [a, b], target), target), expected)
    real = (a - np.float64(X.zero_point)) * X.scale + (b - np.float64(R.zero_point)) * R.scale
    real = np.clip(numerics.activate(activation, real), *((np.array([-128, 127]) - Y.zero_point) * Y.scale))
    assert np.abs((expected - np.float64(Y.zero_point)) * Y.scale - real).max() <= 1.001 * Y.scale


@pytest.mark.parametrize("b_shape", [(1, 3, 4, 5), (1, 1, 1, 5)], ids=["equal", "broadcast"])
def test_multiply(b_shape: tuple[int, ...], target: Target, rng: np.random.Generator) -> None:
    shapes = {"a": (1, 3, 4, 5), "b": b_shape, "y": (1, 3, 4, 5)}
    layer = tiny.layer("multiply", ("a", "b"), "y", shapes)
    a, b = random_q(rng, shapes["a"]), random_q(rng, b_shape)
    multiplier = float(np.float32(X.scale * R.scale / Y.scale))
    expected = operators.multiply(a, b, (X.zero_point, R.zero_point, Y.zero_point), multiplier, -128, 127)
    np.testing.assert_array_equal(logical(integer_step(layer, [a, b], target), target), expected)
    real = (a - np.float64(X.zero_point)) * X.scale * (b - np.float64(R.zero_point)) * R.scale
    real = np.clip(real, *((np.array([-128, 127]) - Y.zero_point) * Y.scale))
    assert np.abs((expected - np.float64(Y.zero_point)) * Y.scale - real).max() <= 0.501 * Y.scale


POOLS = {
    "global": ((1, 6, 5, 3), (1, 1, 1, 3), {"kernel": (6, 5), "strides": (1, 1), "padding": (0, 0, 0, 0)}, False),
    "rim counted": ((1, 6, 5, 3), (1, 3, 3, 3), {"kernel": (3, 3), "strides": (2, 2), "padding": (1, 1, 1, 1)}, True),
    "rim left out": ((1, 6, 5, 3), (1, 3, 3, 3), {"kernel": (3, 3), "strides": (2, 2), "padding": (1, 1, 1, 1)}, False),
    "one side": ((1, 6, 6, 3), (1, 3, 3, 3), {"kernel": (3, 3), "strides": (2, 2), "padding": (0, 0, 1, 1)}, False),
}


@pytest.mark.parametrize("case", POOLS)
def test_average_pool(case: str, target: Target, rng: np.random.Generator) -> None:
    """Against the mean over each window's real taps, written out."""
    x_shape, y_shape, window, counted = POOLS[case]
    attrs = {**window, "dilation": (1, 1), "count_include_pad": counted}
    layer = tiny.layer("avg_pool2d", ("x",), "y", {"x": x_shape, "y": y_shape}, attrs=attrs)
    x = random_q(rng, x_shape)
    real = (x.astype(np.float64) - X.zero_point) * X.scale
    (kh, kw), (sh, sw), (top, left, _, _) = window["kernel"], window["strides"], window["padding"]
    means = np.empty(y_shape)
    for row in range(y_shape[1]):
        for column in range(y_shape[2]):
            rows = slice(max(row * sh - top, 0), row * sh - top + kh)
            columns = slice(max(column * sw - left, 0), column * sw - left + kw)
            taps = real[:, rows, columns]
            count = kh * kw if counted else taps.shape[1] * taps.shape[2]
            means[:, row, column] = taps.sum(axis=(1, 2)) / count
    exact = np.clip(means / Y.scale + Y.zero_point, -128, 127)
    found = logical(integer_step(layer, [x], target), target).astype(np.float64)
    assert np.abs(found - exact).max() <= 0.5 + 1e-4


def test_pad_holds_the_value_and_keeps_the_rest(target: Target, rng: np.random.Generator) -> None:
    attrs = {"pads": ((0, 0), (1, 2), (0, 1), (2, 0)), "value": 0.5}
    layer = tiny.layer("pad", ("x",), "y", {"x": (1, 3, 4, 2), "y": (1, 6, 5, 4)}, attrs=attrs)
    x = random_q(rng, (1, 3, 4, 2))
    program = lower(tiny.alone(layer), {"y": "w8a8"}, {"x": X, "y": X}, {}, target, 1)
    (step,) = [one for one in program.steps if one.name == "y"]
    assert step.workload is not None
    args = [stored(x, target), *step.constants]
    found = logical(reference.evaluate(step.workload, args, target.activation_storage), target)
    fill = round(0.5 / X.scale) + X.zero_point
    np.testing.assert_array_equal(found, np.pad(x, attrs["pads"], constant_values=fill))


@pytest.mark.parametrize("kind", ["sigmoid", "leaky_relu", "hard_sigmoid", "relu"])
def test_unary_is_its_function_of_every_value(kind: str, target: Target) -> None:
    activation = Activation(kind=kind, alpha=0.2, beta=0.5)
    layer = tiny.layer("unary", ("x",), "y", {"x": (1, 256), "y": (1, 256)}, activation=activation)
    x = np.arange(-128, 128).astype(np.int8)[None]
    real = (x.astype(np.float64) - X.zero_point) * X.scale
    functions = {
        "sigmoid": 1 / (1 + np.exp(-real)),
        "leaky_relu": np.where(real < 0, 0.2 * real, real),
        "hard_sigmoid": np.clip(0.2 * real + 0.5, 0, 1),
        "relu": np.maximum(real, 0),
    }
    exact = np.clip(functions[kind] / Y.scale + Y.zero_point, -128, 127)
    found = logical(integer_step(layer, [x], target), target)
    assert np.abs(found - exact).max() <= 0.5 + 1e-9
