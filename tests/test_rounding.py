"""Rounding by output error: every way beats rounding to nearest there, and stays within its format."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from hwq import rounding
from hwq.rounding import Doubles

SIZES = [(1, 8, 1), (1, 5, 7), (1, 16, 33), (2, 6, 64), (12, 1, 9), (1, 4, 127)]


def problem(shape: tuple[int, int, int], seed: int = 0, rank: int | None = None) -> tuple[Doubles, Doubles]:
    """Random weights (G, R, K) and the second moment of correlated inputs: a few hidden causes and a little noise."""
    groups, _, count = shape
    rng = np.random.default_rng(seed)
    hidden = rank or max(1, count // 4)
    rows = rng.standard_normal((groups, 400, hidden)) @ rng.standard_normal((groups, hidden, count))
    rows += 0.3 * rng.standard_normal(rows.shape)
    return rng.standard_normal(shape), rows.transpose(0, 2, 1) @ rows / 400


def plain_scale(w: Doubles, bits: int) -> Doubles:
    return np.asarray(np.abs(w).max(axis=2, keepdims=True) / rounding.bounds(bits)[1])


def error(w: Doubles, q: Doubles, scale: Doubles, h: Doubles) -> Doubles:
    """Written out, one output channel at a time."""
    away = w - q * scale
    return np.array([[e @ h[g] @ e for e in away[g]] for g in range(len(w))])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SIZES)
def test_integers_are_of_the_format(shape: tuple[int, int, int], bits: int) -> None:
    w, h = problem(shape)
    scale = plain_scale(w, bits) * 0.7  # so that some are clipped
    start = rounding.nearest(w, scale, bits)
    low, high = rounding.bounds(bits)
    for q in (
        start,
        rounding.gptq(w, h, scale, bits),
        rounding.adaround(w, h, scale, bits),
        rounding.descend(start, w, h, scale, bits),
    ):
        assert q.shape == w.shape
        np.testing.assert_array_equal(q, np.rint(q))
        assert low <= q.min()
        assert q.max() <= high


@pytest.mark.parametrize("shape", [(1, 16, 33), (2, 6, 64), (1, 4, 127)])
def test_each_way_beats_nearest_on_output_error_and_loses_on_weight_error(shape: tuple[int, int, int]) -> None:
    w, h = problem(shape)
    scale = plain_scale(w, 4)
    ways = {
        "nearest": rounding.nearest(w, scale, 4),
        "gptq": rounding.gptq(w, h, scale, 4),
        "adaround": rounding.adaround(w, h, scale, 4),
    }
    ways["descend"] = rounding.descend(ways["gptq"], w, h, scale, 4)
    outputs = {way: float(error(w, q, scale, h).sum()) for way, q in ways.items()}
    weights = {way: float(np.square(w - q * scale).sum()) for way, q in ways.items()}
    assert outputs["descend"] <= outputs["gptq"] < 0.5 * outputs["nearest"], outputs
    assert outputs["adaround"] < 0.5 * outputs["nearest"], outputs
    assert all(weights["nearest"] < weights[way] for way in ("gptq", "adaround", "descend")), weights


@given(seed=st.integers(0, 10**6), shape=st.sampled_from(SIZES), bits=st.sampled_from([4, 8]), rank=st.integers(1, 4))
@settings(max_examples=40)
def test_descent_never_raises_any_channels_error(seed: int, shape: tuple[int, int, int], bits: int, rank: int) -> None:
    w, h = problem(shape, seed, rank)
    scale = plain_scale(w, bits)
    start = rounding.nearest(w, scale, bits)
    before = error(w, start, scale, h)
    slack = 1e-9 * error(w, 0 * start, scale, h) + 1e-12  # sums of float64
    for q in (rounding.adaround(w, h, scale, bits), rounding.descend(start, w, h, scale, bits)):
        assert (error(w, q, scale, h) <= before + slack).all()


def test_adaround_goes_up_or_down_only() -> None:
    w, h = problem((1, 16, 33))
    scale = plain_scale(w, 4)
    q = rounding.adaround(w, h, scale, 4)
    assert (np.abs(q - np.clip(w / scale, -8, 7)) <= 1 + 1e-12).all()
    assert (q != rounding.nearest(w, scale, 4)).any()


def test_descent_finds_the_best_of_all_roundings_where_inputs_are_few() -> None:
    """Three inputs have 8 roundings up or down; no single flip, up or down, is left that helps."""
    w, h = problem((1, 30, 3), seed=3)
    scale = plain_scale(w, 4)
    q = rounding.adaround(w, h, scale, 4)
    low = np.clip(np.floor(w / scale), -8, 7)
    reached = error(w, q, scale, h)
    for at in range(3):
        other = q.copy()
        other[:, :, at] = np.clip(2 * low[:, :, at] + 1 - q[:, :, at], -8, 7)
        assert (error(w, other, scale, h) >= reached - 1e-12).all()


def test_independent_inputs_are_rounded_to_nearest() -> None:
    """Without correlation nothing can be passed on: GPTQ and descent change nothing."""
    w, _ = problem((2, 6, 40))
    h = np.stack([np.diag(np.linspace(0.1, 3.0, 40))] * 2)
    scale = plain_scale(w, 4)
    start = rounding.nearest(w, scale, 4)
    np.testing.assert_array_equal(rounding.gptq(w, h, scale, 4), start)
    np.testing.assert_array_equal(rounding.descend(start, w, h, scale, 4), start)


def test_passing_is_the_textbook_factor() -> None:
    """U' U = h^-1 in the order of power, by NumPy's own inverse and Cholesky."""
    _, h = problem((2, 1, 20))
    h = rounding.damped(h, 0.01)
    found = rounding.passing(h)
    for group in range(2):
        order = found.order[group]
        power = np.diag(h[group])[order]
        assert (np.diff(power) <= 0).all()
        upper = np.linalg.cholesky(np.linalg.inv(h[group][np.ix_(order, order)])).T
        np.testing.assert_allclose(found.share[group], upper / np.diag(upper)[:, None], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("least", [-0.5, -3.0, -1e3])
def test_a_moment_that_is_not_positive_definite_is_damped_until_it_is(least: float) -> None:
    """Groups beside it are left as they are."""
    w, h = problem((2, 4, 6))
    alone = rounding.gptq(w[1:], h[1:], plain_scale(w[1:], 4), 4)
    h[0] = np.diag([1.0, 1.0, 1.0, 1.0, 1.0, least])
    found = rounding.gptq(w, h, plain_scale(w, 4), 4)
    np.testing.assert_array_equal(found[0], rounding.nearest(w, plain_scale(w, 4), 4)[0], "no correlation")
    np.testing.assert_array_equal(found[1:], alone)


def test_where_no_damping_helps_rounding_is_to_nearest() -> None:
    w, _ = problem((1, 4, 2))
    h = np.array([[[1.0, 1e3], [1e3, 1.0]]])
    found = rounding.gptq(w, h, plain_scale(w, 8), 8)
    np.testing.assert_array_equal(found, rounding.nearest(w, plain_scale(w, 8), 8))


@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_that_never_vary_do_no_harm(bits: int) -> None:
    w, h = problem((3, 4, 9))
    h[:, 2] = h[:, :, 2] = 0.0
    h[1] = 0.0
    scale = plain_scale(w, bits)
    start = rounding.nearest(w, scale, bits)
    for q in (rounding.gptq(w, h, scale, bits), rounding.adaround(w, h, scale, bits)):
        assert np.isfinite(q).all()
        np.testing.assert_array_equal(q[:, :, 2], start[:, :, 2])
        np.testing.assert_array_equal(q[1], start[1])


@pytest.mark.parametrize("blocks", [1, 3])
def test_fitted_scales_are_no_worse_and_not_below_the_floor(blocks: int) -> None:
    w, h = problem((2, 6, 48))
    scale = np.repeat(plain_scale(w, 4), blocks, axis=2)
    size = 20 if blocks == 3 else None  # the last block has 8
    q = rounding.nearest(w, rounding.spread(scale, 48, size), 4)
    floor = np.zeros_like(scale)
    fitted = rounding.fit_scale(q, w, h, scale, floor, size)
    before, after = (error(w, q, rounding.spread(one, 48, size), h) for one in (scale, fitted))
    assert (after <= before + 1e-12).all()
    assert after.sum() < before.sum()
    high = scale * 1.5
    np.testing.assert_array_equal(rounding.fit_scale(q, w, h, scale, high, size) >= high, True)
    if blocks == 1:  # least squares: no scale near by is better
        for factor in (0.999, 1.001):
            assert (error(w, q, fitted * factor, h) >= after - 1e-12).all()


def test_a_block_without_weights_keeps_its_scale() -> None:
    w, h = problem((1, 2, 8))
    w[0, 1] = 0.0
    scale = np.ones((1, 2, 1))
    assert rounding.fit_scale(np.zeros_like(w), w, h, scale, np.zeros_like(scale)).tolist() == scale.tolist()


def test_scales_of_blocks_are_spread_to_their_inputs() -> None:
    scale = np.array([[[1.0, 2.0, 3.0]]])
    assert rounding.spread(scale, 7, 3).tolist() == [[[1, 1, 1, 2, 2, 2, 3]]]
