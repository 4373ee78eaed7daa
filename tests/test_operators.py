"""The operators against loops that spell out their definition, and storage without effect on any of them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwq import numerics, operators

Array = Any


def _naive(x: Array, weight: Array, zero: int, strides: Any, padding: Any, dilation: Any, groups: int) -> Array:
    """Convolution by its definition, in Python's integers."""
    count, height, width, _ = x.shape
    out_channels, kernel_h, kernel_w, group_in = weight.shape
    top, left, bottom, right = padding
    out_h = (height + top + bottom - (kernel_h - 1) * dilation[0] - 1) // strides[0] + 1
    out_w = (width + left + right - (kernel_w - 1) * dilation[1] - 1) // strides[1] + 1
    out = np.zeros((count, out_h, out_w, out_channels), np.int64)
    for n, i, j, o in np.ndindex(out.shape):
        first = o // (out_channels // groups) * group_in
        for a, b, c in np.ndindex(weight.shape[1:]):
            row, column = i * strides[0] - top + a * dilation[0], j * strides[1] - left + b * dilation[1]
            if 0 <= row < height and 0 <= column < width:
                out[n, i, j, o] += (int(x[n, row, column, first + c]) - zero) * int(weight[o, a, b, c])
    return out.astype(np.int32)


@st.composite
def _convolutions(draw: st.DrawFn) -> dict[str, Any]:
    pick = lambda lo, hi: draw(st.integers(lo, hi))  # noqa: E731
    groups, kernel, dilation = pick(1, 3), (pick(1, 3), pick(1, 3)), (pick(1, 2), pick(1, 2))
    padding = tuple(pick(0, 2) for _ in range(4))
    rng = np.random.default_rng(pick(0, 2**32 - 1))
    size = [(k - 1) * d + 1 + pick(0, 3) for k, d in zip(kernel, dilation, strict=True)]
    group_in, group_out = pick(1, 3), pick(1, 2)
    return {
        "x": rng.integers(-128, 128, (pick(1, 2), *size, groups * group_in)).astype(np.int8),
        "weight": rng.integers(-127, 128, (groups * group_out, *kernel, group_in)).astype(np.int8),
        "zero_point": pick(-128, 127),
        "strides": (pick(1, 3), pick(1, 3)),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }


@settings(max_examples=60)
@given(_convolutions())
def test_convolution_is_its_definition_in_any_storage(case: dict[str, Any]) -> None:
    x, weight, zero = case.pop("x"), case.pop("weight"), case.pop("zero_point")
    got = operators.conv2d(x, weight, zero_point=zero, **case)
    assert got.dtype == np.int32
    assert np.array_equal(got, _naive(x, weight, zero, *case.values()))
    stored = (x.astype(int) + 128).astype(np.uint8)
    assert np.array_equal(operators.conv2d(stored, weight, zero_point=zero + 128, **case), got)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 31, 33])
def test_depthwise_and_dense_are_special_convolutions(size: int, rng: np.random.Generator) -> None:
    x = rng.integers(-128, 128, (2, size, 5, 6)).astype(np.int8)
    weight = rng.integers(-127, 128, (6, 3, 2, 1)).astype(np.int8)
    bias = rng.integers(-1000, 1000, 6).astype(np.int32)
    how: dict[str, Any] = {"strides": (2, 1), "padding": (1, 0, 2, 1), "dilation": (1, 2)}
    got = operators.depthwise_conv2d(x, weight, zero_point=3, bias=bias, **how)
    assert np.array_equal(got, operators.conv2d(x, weight, zero_point=3, bias=bias, groups=6, **how))
    flat, matrix = x.reshape(2, -1), rng.integers(-127, 128, (4, size * 30)).astype(np.int8)
    got = operators.dense(flat, matrix, zero_point=-9)
    one = operators.conv2d(flat[:, None, None, :], matrix[:, None, None, :], zero_point=-9)
    assert np.array_equal(got, one[:, 0, 0, :])


def test_blocks_do_not_show(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rng.integers(-128, 128, (2, 9, 9, 4)).astype(np.int8)
    weight = rng.integers(-127, 128, (6, 3, 3, 2)).astype(np.int8)
    whole = operators.conv2d(x, weight, zero_point=5, padding=(1, 1, 1, 1), groups=2)
    monkeypatch.setattr(operators, "_BLOCK", 1)
    assert np.array_equal(operators.conv2d(x, weight, zero_point=5, padding=(1, 1, 1, 1), groups=2), whole)


def test_accumulator_wraps() -> None:
    x, weight = np.full((1, 2), 127, np.int8), np.full((1, 2), 127, np.int8)
    bias = np.array([2**31 - 1], np.int32)
    assert operators.dense(x, weight, zero_point=0, bias=bias)[0, 0] == -(2**31) + 2 * 127 * 127 - 1


@given(st.integers(0, 2**32 - 1), st.floats(2.0**-7, 4.0, width=32), st.floats(2.0**-7, 4.0, width=32))
def test_add_and_multiply_are_within_half_a_step_in_any_storage(seed: int, m_a: float, m_b: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-128, 128, (1, 3, 3, 4)).astype(np.int8) for _ in range(2))
    zeros = [int(zero) for zero in rng.integers(-128, 128, 3)]
    channel = b[:, :1, :1, :]
    total = operators.add(a, b, zeros, (m_a, m_b), zeros[2], 127)
    product = operators.multiply(a, channel, zeros, m_a / 64, -128, 127)
    exact = (a.astype(int) - zeros[0]) * m_a + (b.astype(int) - zeros[1]) * m_b + zeros[2]
    # Values reach 255 * 4 * 2 = 2^11 with float32 roundings of 2^-24 of that each.
    assert np.abs(total - np.clip(exact, zeros[2], 127)).max() <= 0.5 + 2.0**-11
    exact = (a.astype(int) - zeros[0]) * (channel.astype(int) - zeros[1]) * (m_a / 64) + zeros[2]
    assert np.abs(product - np.clip(exact, -128, 127)).max() <= 0.5 + 2.0**-10
    ua, ub, uc = ((q.astype(int) + 128).astype(np.uint8) for q in (a, b, channel))
    shifted = [zero + 128 for zero in zeros]
    stored = operators.add(ua, ub, shifted, (m_a, m_b), shifted[2], 255)
    assert stored.dtype == np.uint8
    assert np.array_equal(stored.astype(int) - 128, total)
    stored = operators.multiply(ua, uc, shifted, m_a / 64, 0, 255)
    assert np.array_equal(stored.astype(int) - 128, product)


@pytest.mark.parametrize("include_pad", [False, True])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
def test_average_pool_is_the_mean_rounded(
    include_pad: bool, dilation: tuple[int, int], rng: np.random.Generator
) -> None:
    x = rng.integers(-128, 128, (2, 7, 8, 3)).astype(np.int8)
    how: dict[str, Any] = {"kernel": (3, 2), "strides": (2, 1), "padding": (1, 0, 1, 1), "dilation": dilation}
    multiplier = operators.pool_multiplier(0.5, x.shape, include_pad=include_pad, **how)
    got = operators.avg_pool2d(x, multiplier, (-4, 9), -128, 127, **how)
    ones = np.ones((1, 3, 2, 1))
    inside = np.pad(np.ones((1, 7, 8, 1)), ((0, 0), (1, 1), (0, 1), (0, 0)), constant_values=float(include_pad))
    taps = operators.correlate(inside, ones, strides=(2, 1), dilation=dilation)
    sums = [
        operators.correlate(x[..., c : c + 1] + 4.0, ones, **{k: v for k, v in how.items() if k != "kernel"})
        for c in range(3)
    ]
    exact = np.clip(np.concatenate(sums, axis=3) / taps * 0.5 + 9, -128, 127)
    assert np.abs(got - exact).max() <= 0.5 + 2.0**-14  # values below 2^8, two float32 roundings
    stored = operators.avg_pool2d((x.astype(int) + 128).astype(np.uint8), multiplier, (124, 137), 0, 255, **how)
    assert np.array_equal(stored.astype(int) - 128, got)


def test_global_average_pool_of_a_constant_is_that_constant() -> None:
    x = np.full((1, 7, 7, 2), 33, np.int8)
    how: dict[str, Any] = {"kernel": (7, 7), "strides": (1, 1), "padding": (0, 0, 0, 0)}
    multiplier = operators.pool_multiplier(1.0, x.shape, **how)
    assert operators.avg_pool2d(x, multiplier, (-128, -128), -128, 127, **how).tolist() == [[[[33, 33]]]]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float32])
def test_max_pool_leaves_padding_out(dtype: Any, rng: np.random.Generator) -> None:
    x = rng.integers(0, 100, (1, 5, 5, 2)).astype(dtype)
    got = operators.max_pool2d(x, kernel=(3, 3), strides=(2, 2), padding=(1, 1, 1, 1))
    assert got.dtype == dtype
    for i, j in itertools.product(range(3), range(3)):
        window = x[:, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2]
        assert np.array_equal(got[:, i, j], window.max(axis=(1, 2)))


def test_max_pool_is_the_same_before_and_after_quantization(rng: np.random.Generator) -> None:
    x, q = rng.normal(size=(1, 6, 6, 2)).astype(np.float32), numerics.choose_qparams(-3.0, 3.0)
    how: dict[str, Any] = {"kernel": (2, 2), "strides": (2, 2), "padding": (0, 1, 0, 1)}
    before = operators.max_pool2d(numerics.quantize(x, q), **how)
    assert np.array_equal(before, numerics.quantize(operators.max_pool2d(x, **how), q))


def test_pad_and_resize_copy(rng: np.random.Generator) -> None:
    x = rng.integers(-128, 128, (1, 2, 3, 2)).astype(np.int8)
    padded = operators.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), -7)
    assert padded.shape == (1, 3, 5, 2)
    assert padded.dtype == np.int8
    assert (padded[:, 0] == -7).all()
    assert np.array_equal(padded[:, 1:, :3], x)
    larger = operators.resize_nearest(x, (0, 0, 1), (2, 1, 0, 0))
    assert larger.shape == (1, 3, 4, 2)
    assert np.array_equal(larger[0, 2, 1], x[0, 1, 1])


@pytest.mark.parametrize("coordinates", operators.COORDINATES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(("old", "new"), [((5, 7), (10, 21)), ((9, 6), (4, 3)), ((7, 4), (12, 5)), ((1, 5), (3, 1))])
def test_linear_resizing_is_within_one_of_float(
    old: tuple[int, int], new: tuple[int, int], dtype: Any, coordinates: str, rng: np.random.Generator
) -> None:
    """Each weight is off by 2^-12 at most, of neighbours that differ by 255; then comes the rounding by a half."""
    x = rng.integers(0, 256, (2, *old, 3)).astype(np.uint8).view(dtype)
    (rows, down), (columns, right) = (
        operators.linear_sources(a, b, coordinates) for a, b in zip(old, new, strict=True)
    )
    exact = operators.resize_linear(x.astype(np.float64), rows, down, columns, right)
    weights = [numerics.resize_weights(down), numerics.resize_weights(right)]
    got = operators.resize_linear(x, rows, weights[0], columns, weights[1])
    assert got.dtype == dtype
    assert got.shape == exact.shape == (2, *new, 3)
    assert np.abs(got - exact).max() <= 0.5 + 2 * 255 * 2.0**-12 + 1e-4
    stored = (x.view(np.uint8) ^ 128).view(np.int8 if dtype == np.uint8 else np.uint8)
    other = operators.resize_linear(stored, rows, weights[0], columns, weights[1])
    assert np.array_equal(got.view(np.uint8) ^ 128, other.view(np.uint8)), "the same bits in either storage"


def test_linear_resizing_rounds_halves_up_and_keeps_what_is_constant() -> None:
    half = operators.linear_sources(2, 4, "asymmetric")
    weights = numerics.resize_weights(half[1])
    assert half[0].tolist() == [0, 0, 1, 1]
    assert weights.tolist() == [0, 1024, 0, 0], "nothing lies behind the last"
    x = np.array([-3, -2, -3, -2], np.int8).reshape(1, 2, 2, 1)
    assert operators.resize_linear(x, half[0], weights, half[0], weights)[0, 0, :, 0].tolist() == [-3, -2, -2, -2]
    for value in (-128, 127):
        x = np.full((1, 2, 2, 1), value, np.int8)
        assert (operators.resize_linear(x, half[0], weights, half[0], weights) == value).all()


def test_places_by_each_transformation() -> None:
    places = {name: operators.resize_places(3, 5, np.float64(5 / 3), name).tolist() for name in operators.COORDINATES}
    assert places["align_corners"] == pytest.approx([0, 0.5, 1, 1.5, 2])
    assert places["asymmetric"] == pytest.approx([0, 0.6, 1.2, 1.8, 2.4])
    assert places["half_pixel"] == places["pytorch_half_pixel"] == pytest.approx([-0.2, 0.4, 1, 1.6, 2.2])
    assert operators.resize_places(3, 1, np.float64(1 / 3), "pytorch_half_pixel") == 0
    with pytest.raises(NotImplementedError, match="tf_crop_and_resize"):
        operators.resize_places(3, 5, np.float64(5 / 3), "tf_crop_and_resize")
