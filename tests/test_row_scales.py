"""The numbers of activations with a scale for each row, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from hwq import group_scales, row_scales


@pytest.mark.parametrize("storage", ["int8", "uint8"])
def test_no_value_is_off_by_more_than_half_a_step(storage: str, rng: np.random.Generator) -> None:
    x = (rng.standard_normal((3, 40, 65)) * 10.0 ** rng.uniform(-26, 26, (3, 40, 1))).astype(np.float32)
    scale = row_scales.row_scale(x)
    q = row_scales.quantize_rows(x, scale, storage)
    assert (q.shape, q.dtype) == (x.shape, storage)
    real = (q.astype(np.float64) - (128 if storage == "uint8" else 0)) * scale.reshape(3, 40, 1)
    # Half a step, and the roundings of 1 / 127, 1 / s and their products: 127 steps times 4 of 2^-24.
    assert np.all(np.abs(real - x) <= scale.reshape(3, 40, 1) * (0.5 + 127 * 4 * 2.0**-24))
    assert np.all(np.abs(q.astype(np.int32) - (128 if storage == "uint8" else 0)).max(axis=-1) == 127)


def test_rows_without_a_scale_are_zero() -> None:
    x = np.array([[0, 0], [1e-38, -1e-40], [np.float32(127 * 2.0**-99), 0]], np.float32)
    scale = row_scales.row_scale(x)
    assert (scale > 0).tolist() == [False, False, True]
    assert row_scales.quantize_rows(x, scale, "int8").tolist() == [[0, 0], [0, 0], [127, 0]]


@pytest.mark.parametrize("group", [None, 64])
def test_storage_does_not_show(group: int | None, rng: np.random.Generator) -> None:
    """Products on q and q + 128 agree: exactly where sums are integers, else to the rounding of what is taken back."""
    x = rng.standard_normal((5, 130)).astype(np.float32)
    scale, bias = row_scales.row_scale(x), rng.standard_normal(7).astype(np.float32)
    q = rng.integers(-8, 8, (7, 130)).astype(np.int8)
    factors = rng.uniform(0.5, 1.5, (7,) if group is None else (7, 3)).astype(np.float32)
    found = []
    for storage, offset in (("int8", 0), ("uint8", 128)):
        rows = row_scales.quantize_rows(x, scale, storage)
        start = row_scales.start_values(q, factors, offset, group)
        assert start.dtype == (np.int32 if group is None else np.float32)
        found.append(row_scales.product(rows, scale, q, start, factors, bias, group))
    real = q * (factors[:, None] if group is None else np.repeat(factors, 64, axis=1)[:, :130])
    exact = (row_scales.quantize_rows(x, scale, "int8") * scale[:, None].astype(np.float64)) @ real.T + bias
    if group is None:
        np.testing.assert_array_equal(*found)
    # Sums of 128 * 8 * 130 at most, in steps of the scales, six roundings of them.
    worst = 6 * 2.0**-24 * 256 * 8 * 130 * 1.5 * scale.max()
    for value in found:
        assert np.abs(value - exact).max() <= worst
    assert group is None or group_scales.group_count(130, group) == 3
