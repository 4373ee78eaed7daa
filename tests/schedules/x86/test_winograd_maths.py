"""The transforms are those of the paper, within the bounds that the kernels rely on, and exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hwq.schedules.x86.winograd_maths import (
    CENTRED,
    INVERSE_OF_9,
    KERNEL,
    ONE,
    SHIFTS,
    STEPS,
    TILE,
    WINDOW,
    input_rows,
    output_rows,
    weight_rows,
)


def matrix(rows: Any, size: int) -> Any:
    """The matrix of a transform of ``size`` values."""
    return np.array(rows(list(np.eye(size, dtype=np.int64))))


G, B, A = matrix(weight_rows, KERNEL), matrix(input_rows, WINDOW), matrix(output_rows, WINDOW)


def test_one_dimension_is_three_times_a_power_of_two_times_the_correlation() -> None:
    """For unit vectors d and g: by linearity for all."""
    for i in range(WINDOW):
        for k in range(KERNEL):
            found = A @ ((G @ np.eye(KERNEL, dtype=np.int64)[k]) * (B @ np.eye(WINDOW, dtype=np.int64)[i]))
            np.testing.assert_array_equal(found, [3 << SHIFTS[o] if o + k == i else 0 for o in range(TILE)])


def test_transformed_weights_and_inputs_have_16_bits() -> None:
    """Exact, by the sums of absolute values; inputs are bytes, whose positive and negative parts count apart."""
    weights = np.abs(G).sum(1)
    assert np.max(np.outer(weights, weights)) * 128 <= 32767
    product = np.einsum("ik,jl->ijkl", B, B)
    for least, most in ((0, 255), (-128, 127)):
        top = (np.maximum(product, 0) * most + np.minimum(product, 0) * least).sum((2, 3))
        bottom = (np.maximum(product, 0) * least + np.minimum(product, 0) * most).sum((2, 3))
        assert np.max(top) <= 32767
        assert np.min(bottom) >= -32768


def test_centring_is_one_subtraction() -> None:
    ones = np.outer(B.sum(1), B.sum(1))
    assert ones[CENTRED] == ONE
    assert np.count_nonzero(ones) == 1
    assert np.sum(np.abs(G[CENTRED[0]])) == abs(np.sum(G[CENTRED[0]])) == KERNEL


@pytest.mark.parametrize(("kind", "size"), [("int8", 127), ("int4", 8)])
def test_sums_of_a_chunk_fit(kind: str, size: int) -> None:
    """|Y| < 2^(31 - shift), the next longer chunk's not: the bound is the tightest there is."""
    room = 2 ** (31 - 2 * max(SHIFTS))
    assert 128 * size * KERNEL**2 * 2 * STEPS[kind] < room <= 128 * size * KERNEL**2 * 2 * (STEPS[kind] + 1)


@pytest.mark.parametrize("value", [0, 1, -1, 2**25 - 1, -(2**25), 12345678])
def test_division_is_exact(value: int) -> None:
    for shift in (2 * SHIFTS[0], 2 * SHIFTS[-1]):
        wrapped = np.array([(9 * value << shift) & 0xFFFFFFFF], np.uint32) * np.uint32(INVERSE_OF_9)
        assert int(wrapped.view(np.int32)[0] >> shift) == value


def test_two_dimensions_equal_the_correlation(rng: np.random.Generator) -> None:
    d, g = rng.integers(0, 256, (WINDOW, WINDOW)), rng.integers(-127, 128, (KERNEL, KERNEL))
    sums = A @ ((G @ g @ G.T) * (B @ d @ B.T)) @ A.T
    direct = [[np.sum(d[y : y + 3, x : x + 3] * g) for x in range(TILE)] for y in range(TILE)]
    np.testing.assert_array_equal(sums // 9 >> np.add.outer(SHIFTS, SHIFTS), direct)
