"""Activations in steps of their groups: near enough to floats to be called so, and the same whatever stands around."""

from __future__ import annotations

import numpy as np
import pytest

from hwq import group_scales, weight_only


def _problem(rng: np.random.Generator, inputs: int, outliers: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = rng.standard_normal((5, inputs)).astype(np.float32)
    if outliers:
        x[:, rng.integers(0, inputs, 3)] *= 1000
    q = rng.integers(-8, 8, (9, inputs)).astype(np.int8)
    return x, q, rng.uniform(0.5, 1.5, (9, -(-inputs // 128))).astype(np.float32)


def _real(x: np.ndarray, q: np.ndarray, multiplier: np.ndarray) -> np.ndarray:
    return np.asarray(x.astype(np.float64) @ group_scales.dequantize_weight(q, multiplier, 128).astype(np.float64).T)


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("inputs", [1, 7, 128, 129, 300, 1024])
def test_is_within_the_bound_of_the_real_product(inputs: int, outliers: bool, rng: np.random.Generator) -> None:
    x, q, multiplier = _problem(rng, inputs, outliers)
    error = np.abs(weight_only.product(x, q, multiplier, 128) - _real(x, q, multiplier))
    assert np.all(error <= weight_only.error_bound(x, q, multiplier, 128))


def test_the_bound_is_no_wider_than_need_be(rng: np.random.Generator) -> None:
    """With weights of one sign, and activations half a step off, the error comes near it."""
    x = np.full((1, 128), 0.5, np.float32)
    x[0, 0] = 32767.0  # a step is 1, and ties go to the even side
    q, multiplier = np.full((1, 128), 7, np.int8), np.ones((1, 1), np.float32)
    error = float(np.abs(weight_only.product(x, q, multiplier, 128) - _real(x, q, multiplier))[0, 0])
    assert error > 0.8 * weight_only.error_bound(x, q, multiplier, 128)[0, 0]


@pytest.mark.parametrize("outliers", [False, True])
def test_is_nearer_than_float16(outliers: bool, rng: np.random.Generator) -> None:
    x, q, multiplier = _problem(rng, 1024, outliers)
    real = _real(x, q, multiplier)
    half = _real(x.astype(np.float16).astype(np.float32), q, multiplier)
    found = weight_only.product(x, q, multiplier, 128)
    assert np.square(found - real).sum() < np.square(half - real).sum()


def test_steps_reach_the_largest_and_no_further(rng: np.random.Generator) -> None:
    x = (rng.standard_normal((200, 256)) * 10.0 ** rng.integers(-25, 25, (200, 1))).astype(np.float32)
    steps = weight_only.steps_of(x, 128)
    whole = weight_only.in_steps(x, steps, 128)
    assert np.abs(whole).max(axis=-1).tolist() == [[32767, 32767]] * 200
    assert np.all(
        np.abs(whole.reshape(200, 256) * np.repeat(steps, 128, axis=1).astype(np.float64) - x)
        <= 0.51 * np.repeat(steps, 128, axis=1)
    )


def test_zeros_have_no_step() -> None:
    x = np.zeros((2, 200), np.float32)
    x[1] = 1e-38
    assert not weight_only.steps_of(x, 128).any()
    assert not weight_only.product(x, np.ones((3, 200), np.int8), np.ones((3, 2), np.float32), 128).any()
