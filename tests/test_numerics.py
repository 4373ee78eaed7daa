"""The formats and the rounding: 0 exact, errors within half a step, fused arithmetic exact, storage without effect."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwq import numerics
from hwq.errors import HwqError
from hwq.graph import Activation
from hwq.numerics import QParams
from hwq.scheme import QType

INT8 = QType(bits=8)
# The float32 scale, its reciprocal and the product with it are each off by at most 2^-24 of a value of at most 255
# steps, and so is the way back: together less than 1e-4 of a step.
ROUNDING = 1e-4

bounds = st.floats(-1e6, 1e6, allow_subnormal=False)
float32s = st.floats(-(2.0**60), 2.0**60, width=32)


@given(bounds, bounds, st.booleans())
def test_range_is_covered_within_half_a_step_and_zero_is_exact(a: float, b: float, symmetric: bool) -> None:
    lo, hi = min(a, b), max(a, b)
    q = numerics.choose_qparams(lo, hi, symmetric=symmetric)
    values = np.linspace(lo, hi, 257, dtype=np.float32)
    got = numerics.dequantize(numerics.quantize(values, q), q)
    if lo == hi == 0.0:
        assert q == QParams(scale=1.0)
    assert np.abs(got.astype(np.float64) - values).max() <= q.scale * (0.5 + ROUNDING)
    assert numerics.dequantize(numerics.quantize(np.zeros(1), q), q)[0] == 0.0
    assert INT8.qmin <= q.zero_point <= INT8.qmax
    assert q.zero_point == 0 or not symmetric
    assert np.float32(q.scale) == q.scale


def test_one_sided_ranges_use_every_level() -> None:
    assert numerics.choose_qparams(0.0, 6.0).zero_point == -128
    assert numerics.choose_qparams(3.0, 6.0) == numerics.choose_qparams(0.0, 6.0)  # widened to 0
    assert numerics.choose_qparams(-6.0, 0.0).zero_point == 127


@pytest.mark.parametrize(("lo", "hi"), [(math.nan, 1.0), (0.0, math.inf), (1.0, 0.0), (-1e300, 1e300)])
def test_impossible_range_is_refused(lo: float, hi: float) -> None:
    with pytest.raises(HwqError, match="accepted") as caught:
        numerics.choose_qparams(lo, hi)
    assert caught.value.code == "range-invalid"


def test_tiny_range_keeps_a_finite_reciprocal() -> None:
    q = numerics.choose_qparams(0.0, 1e-44)
    assert np.isfinite(np.float32(1.0 / q.scale))


def test_values_beyond_the_range_saturate() -> None:
    q = QParams(scale=0.5, zero_point=3)
    x = np.array([-np.inf, -1e30, 1e30, np.inf])
    assert numerics.quantize(x, q).tolist() == [-128, -128, 127, 127]
    assert numerics.quantize(x, q, offset=128).tolist() == [0, 0, 255, 255]
    assert numerics.quantize(x, q, QType(bits=4)).tolist() == [-8, -8, 7, 7]


def test_ties_round_to_even() -> None:
    q = QParams(scale=1.0)
    assert numerics.quantize(np.array([-1.5, -0.5, 0.5, 1.5, 2.5]), q).tolist() == [-2, 0, 0, 2, 2]


def test_storage_offset_cancels(rng: np.random.Generator) -> None:
    x, q = rng.normal(size=1000).astype(np.float32), QParams(scale=0.02, zero_point=-17)
    plain, stored = numerics.quantize(x, q), numerics.quantize(x, q, offset=128)
    assert stored.dtype == np.uint8
    assert np.array_equal(plain.astype(int) + 128, stored)
    assert np.array_equal(numerics.dequantize(plain, q), numerics.dequantize(stored, q, offset=128))


# Weights


@pytest.mark.parametrize(("bits", "search"), [(8, True), (4, False)])
def test_weight_error_is_within_half_a_step(bits: int, search: bool, rng: np.random.Generator) -> None:
    weight = (rng.normal(size=(16, 3, 3, 8)) * rng.lognormal(0, 3, (16, 1, 1, 1))).astype(np.float32)
    q, scale = numerics.quantize_weight(weight, bits, search=search)
    assert q.dtype == np.int8
    assert q.shape == weight.shape
    error = np.abs(numerics.dequantize_weight(q, scale) - weight).reshape(16, -1).max(axis=1)
    assert (error <= scale * (0.5 + ROUNDING)).all()
    assert np.abs(q.astype(int)).max() == (127 if bits == 8 else 7)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["normal", "laplace", "uniform", "tiny"]))
def test_searched_int4_is_never_worse_than_plain(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    draw = {"normal": rng.normal, "laplace": rng.laplace, "uniform": rng.uniform, "tiny": rng.standard_cauchy}[kind]
    weight = (draw(size=(5, 23)) * (1e-6 if kind == "tiny" else 1.0)).astype(np.float32)
    errors = []
    for search in (True, False):
        q, scale = numerics.quantize_weight(weight, 4, search=search)
        assert q.min() >= -8
        assert q.max() <= 7
        errors.append(np.square(numerics.dequantize_weight(q, scale).astype(np.float64) - weight).sum(axis=1))
    # Both errors are sums of float32 differences: equal scales may differ by their rounding, a part in 2^20 here.
    assert (errors[0] <= errors[1] * (1 + 2.0**-20)).all()


def test_searched_int4_is_clearly_better_on_bell_shaped_weights(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(8, 4096)).astype(np.float32)
    quality = [
        numerics.sqnr_db(weight, numerics.dequantize_weight(*numerics.quantize_weight(weight, 4, search=search)))
        for search in (True, False)
    ]
    assert quality[0] > quality[1] + 2.0  # the literature's gain of clipping at about 2.6 sigma instead of 4


@pytest.mark.parametrize("bits", [4, 8])
def test_finer_granularity_is_never_worse(bits: int, rng: np.random.Generator) -> None:
    weight = (rng.normal(size=(32, 64)) * rng.lognormal(0, 1, (32, 1))).astype(np.float32)
    channel, scale = numerics.quantize_weight(weight, bits, search=False)
    tensor, one = numerics.quantize_weight(weight.reshape(1, -1), bits, search=False)
    assert (scale <= one).all()  # so the bound of half a step is never worse
    per_channel = np.square(numerics.dequantize_weight(channel, scale) - weight).sum()
    assert per_channel <= np.square(numerics.dequantize_weight(tensor, one).reshape(32, 64) - weight).sum()


def test_channel_of_zeros_and_least_scale() -> None:
    weight = np.array([[0.0, 0.0], [1e-30, -2e-30], [1.0, -0.5]], np.float32)
    q, scale = numerics.quantize_weight(weight, 8)
    assert scale[0] == 1.0
    assert q.tolist() == [[0, 0], [64, -127], [127, -64]]
    bias = np.array([0.25, 3.0, 1.0], np.float32)
    least = numerics.least_weight_scale(bias, 0.1)
    _, scale = numerics.quantize_weight(weight, 8, least_scale=least)
    integer = numerics.quantize_bias(bias, 0.1, scale)
    assert np.abs(integer).max() <= numerics.BIAS_LIMIT
    # Within half a step of the accumulator's scale, or a float32 rounding of the scale.
    assert np.abs(integer * (0.1 * scale.astype(np.float64)) - bias).max() <= max(0.05 * scale.max(), 3 * 2.0**-23)


def test_bias_without_room_saturates() -> None:
    assert numerics.quantize_bias(np.array([1.0]), 1e-6, np.array([1e-6])).tolist() == [numerics.BIAS_LIMIT]


@given(st.integers(-128, 255), st.integers(0, 2**32 - 1))
def test_folded_zero_point_gives_the_same_accumulator(zero_point: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    u, weight = rng.integers(0, 256, 50), rng.integers(-127, 128, (4, 50))
    bias = rng.integers(-(2**31), 2**31, 4).astype(np.int32)
    folded = numerics.fold_zero_point(bias, weight, zero_point)
    direct = (weight @ (u - zero_point) + bias).astype(np.int32)
    assert np.array_equal((weight @ u + folded).astype(np.int32), direct)


# Requantization


def _round32(exact: Fraction) -> np.float32:
    """The float32 nearest to ``exact``, ties to an even significand, by comparing neighbours."""
    start = np.float32(float(exact))
    near = [np.nextafter(start, np.float32(-np.inf)), start, np.nextafter(start, np.float32(np.inf))]
    return min(near, key=lambda f: (abs(Fraction(float(f)) - exact), int(f.view(np.uint32)) & 1))


@given(float32s, float32s, float32s)
def test_fma_is_rounded_once(a: float, b: float, c: float) -> None:
    assert numerics.fma32(a, b, c) == _round32(Fraction(a) * Fraction(b) + Fraction(c))


@given(float32s, float32s, st.integers(-2, 2), st.sampled_from([0.5, 1.0, 2.0**-24, 2.0**-25, 2.0**30]))
def test_fma_is_rounded_once_near_cancellation_and_ties(a: float, b: float, ulps: int, size: float) -> None:
    product = np.float32(a * 2.0**-30) * np.float32(b)
    c = np.float32(-product * np.float32(size) + ulps * np.spacing(product))
    assert numerics.fma32(a * 2.0**-30, b, c) == _round32(Fraction(a) / 2**30 * Fraction(b) + Fraction(float(c)))


def test_fma_differs_from_two_roundings() -> None:
    # Just below the tie between c and its even neighbour: float64 drops what is missing, and its tie then rounds up.
    a, b = np.float32(2.0**-12 * (1 + 2.0**-23)), np.float32(2.0**-12 * (1 - 2.0**-23))
    c = np.float32(1 + 2.0**-23)
    assert numerics.fma32(a, b, c) == c
    assert np.float32(np.float64(a) * np.float64(b) + np.float64(c)) == np.nextafter(c, np.float32(2))


def _requantize_one(acc: int, m: float, zp: int, lo: int, hi: int, r: tuple[int, int, float] | None) -> int:
    """The contract in exact arithmetic, one value at a time."""
    v = _round32(Fraction(float(_round32(Fraction(acc)))) * Fraction(m))
    if r is not None:
        v = _round32(Fraction(r[0] - r[1]) * Fraction(r[2]) + Fraction(float(v)))
    return min(max(round(Fraction(float(v))), lo - zp), hi - zp) + zp


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.floats(2.0**-40, 1.0, width=32),
    st.integers(-128, 127),
    st.booleans(),
    st.tuples(st.integers(-128, 127), st.integers(-128, 127), st.floats(2.0**-10, 64.0, width=32)),
    st.booleans(),
)
def test_requantize_is_the_formula(
    acc: int, m: float, zp: int, relu: bool, r: tuple[int, int, float], residual: bool
) -> None:
    lo = zp if relu else -128
    arguments = (
        {"residual": np.array([r[0]]), "residual_zero_point": r[1], "residual_multiplier": r[2]} if residual else {}
    )
    got = numerics.requantize(np.array([acc], np.int32), m, zp, lo, 127, **arguments)
    assert got.dtype == np.int8
    assert got[0] == _requantize_one(acc, m, zp, lo, 127, r if residual else None)
    if residual:
        arguments |= {"residual": np.array([r[0] + 128]), "residual_zero_point": r[1] + 128}
    stored = numerics.requantize(np.array([acc], np.int32), m, zp + 128, lo + 128, 255, dtype=np.uint8, **arguments)
    assert int(stored[0]) - 128 == got[0]


def test_multiplier_is_per_channel() -> None:
    acc = np.full((2, 3), 100, np.int32)
    got = numerics.requantize(acc, np.array([0.01, 0.1, 1.0], np.float32), 0, -128, 127)
    assert got.tolist() == [[1, 10, 100]] * 2


# Activations, tables and measures

EXPECTED = {
    "none": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "clip": lambda x: min(max(x, -0.5), 2.0),
    "leaky_relu": lambda x: x if x > 0 else 0.1 * x,
    "hard_sigmoid": lambda x: min(max(0.1 * x + 0.5, 0.0), 1.0),
    "hard_swish": lambda x: x * min(max(x + 3.0, 0.0), 6.0) / 6.0,
    "sigmoid": lambda x: 1.0 / (1.0 + math.exp(-x)),
    "silu": lambda x: x / (1.0 + math.exp(-x)),
    "tanh": math.tanh,
    "gelu": lambda x: 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0))),
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
}


def _activation(kind: str) -> Activation:
    return Activation(kind=kind, lo=-0.5, hi=2.0, alpha=0.1, beta=0.5)


@pytest.mark.parametrize("kind", sorted(EXPECTED))
def test_activation_is_its_formula(kind: str) -> None:
    x = np.linspace(-8.0, 8.0, 201)
    for dtype, tolerance in ((np.float64, 1e-14), (np.float32, 1e-6)):  # some roundings of values of at most 8
        got = numerics.activate(_activation(kind), x.astype(dtype))
        assert got.dtype == dtype
        assert got == pytest.approx([EXPECTED[kind](v) for v in x], abs=8 * tolerance)


@pytest.mark.parametrize("kind", sorted(EXPECTED))
def test_table_is_the_function_quantized(kind: str) -> None:
    source, target = numerics.choose_qparams(-6.0, 6.0), numerics.choose_qparams(-0.5, 5.0)
    table = numerics.make_table(lambda x: numerics.activate(_activation(kind), x), source, target)
    q = np.arange(-128, 128)
    exact = np.array([EXPECTED[kind](float(v)) for v in (q - source.zero_point) * source.scale])
    reached = np.clip(exact, (-128 - target.zero_point) * target.scale, (127 - target.zero_point) * target.scale)
    assert np.abs((table.astype(int) - target.zero_point) * target.scale - reached).max() <= target.scale * (
        0.5 + ROUNDING
    )
    bytes_held = q.astype(np.int8)
    in_place = numerics.lookup(bytes_held, numerics.store_table(table, 0))
    stored = numerics.lookup((q + 128).astype(np.uint8), numerics.store_table(table, 128))
    assert np.array_equal(in_place, table)
    assert np.array_equal(stored.astype(int) - 128, table)


def test_sigmoid_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        got = numerics.activate(Activation(kind="sigmoid"), np.array([-1e4, 1e4], np.float32))
    assert got.tolist() == [0.0, 1.0]


def test_sqnr_counts_decibels() -> None:
    x = np.ones(10)
    assert numerics.sqnr_db(x, x * 0.9) == pytest.approx(20.0)
    assert numerics.sqnr_db(x, x) == math.inf
    assert numerics.sqnr_db(x * 0, x) == -math.inf


# bfloat16


@given(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False))
def test_bf16_is_the_nearest_and_ties_go_to_even(value: float) -> None:
    """Of the two bfloat16 numbers around a float32 (its upper half, and one more) the nearer; else the even one."""
    x = np.float32(value)
    below = int(np.array(x).view(np.uint32)) >> 16
    around = np.array([below, below + 1], np.uint16)
    ends = [Fraction(float(end)) for end in numerics.from_bf16(around)]
    far = [abs(Fraction(float(x)) - end) for end in ends]
    nearest = below % 2 if far[0] == far[1] else int(far[1] < far[0])
    assert numerics.to_bf16(np.array(x)) == around[nearest]
    assert abs(float(numerics.round_bf16(np.array(x))) - value) <= abs(value) * 2.0**-8


@given(st.integers(0, 0xFFFF))
def test_bf16_values_stay_as_they_are(bits: int) -> None:
    value = numerics.from_bf16(np.array([bits], np.uint16))
    if np.isnan(value[0]):
        assert np.isnan(numerics.round_bf16(value)[0])
    else:
        assert numerics.to_bf16(value)[0] == bits


def test_bf16_at_its_ends() -> None:
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(numerics.round_bf16(nans)).all()
    inf, most = np.float32(np.inf), np.finfo(np.float32).max
    np.testing.assert_array_equal(numerics.round_bf16(np.array([inf, -inf, most, -most])), [inf, -inf, inf, -inf])
    largest = np.float32(2.0**127 * (2 - 2.0**-7))  # what is less than half a step beyond it is still finite
    half = np.float32(2.0**127 * 2.0**-8)
    np.testing.assert_array_equal(numerics.round_bf16(np.array([largest, largest + half * np.float32(0.99)])), largest)
    least = np.float32(2.0**-133)  # bfloat16's least number, a denormal: half of it ties to 0, more rounds up
    tiny = np.array([least / 2, least * np.float32(0.51)])
    np.testing.assert_array_equal(numerics.round_bf16(tiny), [0, least])
    assert np.signbit(numerics.round_bf16(np.array([-0.0])))[0]
