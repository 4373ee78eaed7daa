"""Observers: the histogram depends on what was seen and nothing else; each observer finds what it says it looks for."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwq import numerics, observers
from hwq.errors import HwqError
from hwq.observers import OBSERVERS, Histogram, range_of
from hwq.scheme import QType

INT8 = QType(bits=8)


def _of(*arrays: np.ndarray) -> Histogram:
    histogram = Histogram()
    for array in arrays:
        histogram.update(array)
    return histogram


def _same(a: Histogram, b: Histogram) -> bool:
    state = (a.exponent, a.low, a.high, a.zeros) == (b.exponent, b.low, b.high, b.zeros)
    return state and np.array_equal(a.counts, b.counts)


def _error(x: np.ndarray, lo: float, hi: float) -> float:
    q = numerics.choose_qparams(lo, hi)
    return float(np.square(numerics.dequantize(numerics.quantize(x, q), q).astype(np.float64) - x).sum())


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(-60, 60), min_size=1, max_size=5))
def test_order_and_batches_do_not_matter(seed: int, magnitudes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    parts = [(rng.normal(size=rng.integers(1, 50)) * 2.0**m).astype(np.float32) for m in magnitudes]
    whole = _of(np.concatenate(parts))
    assert _same(_of(*parts), whole)
    assert _same(_of(*reversed(parts)), whole)
    merged = _of(parts[0])
    for part in parts[1:]:
        other = _of(part)
        before = other.copy()
        merged.merge(other)
        assert _same(other, before)
    assert _same(merged, whole)
    assert whole.total == sum(part.size for part in parts)


def test_bins_hold_what_they_say(rng: np.random.Generator) -> None:
    x = np.concatenate([rng.normal(size=3000), [0.0] * 7, [-4.0, 3.999]]).astype(np.float32)
    histogram = _of(x[:10], x[10:].reshape(1, -1))
    width = 2.0**histogram.exponent
    edges = (np.arange(observers.BINS + 1) - observers.BINS // 2) * width
    for i in np.flatnonzero(histogram.counts):
        assert histogram.counts[i] == ((x >= edges[i]) & (x < edges[i + 1])).sum()
    assert histogram.total == x.size
    assert (histogram.low, histogram.high, histogram.zeros) == (-4.0, float(np.float32(3.999)), 7)
    assert np.ptp(np.flatnonzero(histogram.counts)) > observers.BINS // 4  # no coarser than it must be


def test_memory_is_bounded(rng: np.random.Generator) -> None:
    histogram = Histogram()
    for m in range(-100, 100, 10):
        histogram.update((rng.normal(size=100) * 2.0**m).astype(np.float32))
        assert histogram.counts.nbytes == 8 * observers.BINS == 1 << 16


def test_extreme_and_empty_values() -> None:
    largest = np.finfo(np.float32).max
    histogram = _of(np.array([], np.float32), np.array([1e-45, -1e-45, 1e-38, 1.0, -largest, largest], np.float32))
    assert histogram.total == 6
    assert histogram.high == float(largest)
    assert _of(np.array([1, 2, 3])).high == 3.0


@pytest.mark.parametrize(("value", "named"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_values_that_are_not_finite_are_refused(value: float, named: str) -> None:
    histogram = _of(np.ones(3))
    before = histogram.copy()
    with pytest.raises(HwqError, match=named) as caught:
        histogram.update(np.array([1.0, value, 2.0]))
    assert caught.value.code == "values-not-finite"
    assert _same(histogram, before)


def test_state_survives_a_file(rng: np.random.Generator) -> None:
    x = rng.normal(size=1000)
    histogram, blob = _of(x[:300]), io.BytesIO()
    np.savez(blob, **histogram.to_arrays())
    blob.seek(0)
    with np.load(blob) as pack:
        back = Histogram.from_arrays(pack)
    back.update(x[300:])
    assert _same(back, _of(x))
    assert _same(Histogram.from_arrays(Histogram().to_arrays()), Histogram())


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize(
    ("make", "one_sided"),
    [
        (lambda r: r.normal(size=20000), False),
        (lambda r: np.maximum(r.normal(size=20000), 0), True),
        (lambda r: r.uniform(2.0, 3.0, 20000), True),
        (lambda r: r.standard_t(3, 20000) * 1e-4, False),
        (lambda r: np.array([-1e-3, 5.0]), False),
    ],
)
def test_range_is_inside_what_was_seen_and_holds_zero(
    observer: str, make: Callable[[np.random.Generator], np.ndarray], one_sided: bool, rng: np.random.Generator
) -> None:
    x = make(rng).astype(np.float32)
    lo, hi = range_of(_of(x), observer, INT8)
    assert min(float(x.min()), 0.0) <= lo <= 0.0 < hi <= float(x.max())
    assert lo == 0.0 or not one_sided
    numerics.choose_qparams(lo, hi)


def test_minmax_is_exact(rng: np.random.Generator) -> None:
    x = rng.normal(size=1000).astype(np.float32)
    assert range_of(_of(x), "minmax", INT8) == (float(x.min()), float(x.max()))


def test_percentile_leaves_out_its_share(rng: np.random.Generator) -> None:
    x = np.concatenate([rng.normal(size=200_000), [1000.0]]).astype(np.float32)
    histogram = _of(x)
    lo, hi = range_of(histogram, "percentile", INT8)
    width = 2.0**histogram.exponent
    for found, share in ((lo, 1 - observers.PERCENTILE), (hi, observers.PERCENTILE)):
        # The quantile is right to a bin, and interpolation does not make it worse.
        assert abs(found - np.quantile(x, share)) <= width


@pytest.mark.parametrize("shape", ["normal", "relu", "laplace", "student", "uniform", "skewed"])
def test_mse_is_near_the_best_range_on_a_grid(shape: str, rng: np.random.Generator) -> None:
    size = 20000
    x = {
        "normal": lambda: rng.normal(size=size),
        "relu": lambda: np.maximum(rng.normal(size=size), 0),
        "laplace": lambda: rng.laplace(size=size),
        "student": lambda: rng.standard_t(3, size),
        "uniform": lambda: rng.uniform(-1, 3, size),
        "skewed": lambda: rng.exponential(size=size) - 0.3,
    }[shape]().astype(np.float32)
    low, high = min(float(x.min()), 0.0), float(x.max())
    lo, hi = range_of(_of(x), "mse", INT8)
    factors = np.linspace(0.15, 1.0, 25)
    grid = min(_error(x, low * a, high * b) for a in (factors if low < 0 else [1.0]) for b in factors)
    # The search judges bins, not values, and moves one end at a time: it may miss the best by a few percent.
    assert _error(x, lo, hi) <= 1.05 * grid
    assert _error(x, lo, hi) <= 1.001 * _error(x, low, high)


def test_searching_observers_cut_outliers_off(rng: np.random.Generator) -> None:
    x = np.concatenate([rng.normal(size=400_000), [60.0]]).astype(np.float32)
    histogram = _of(x)
    full = numerics.sqnr_db(x[:-1], _through(x[:-1], range_of(histogram, "minmax", INT8)))
    for observer in ("mse", "entropy", "percentile"):
        lo, hi = range_of(histogram, observer, INT8)
        assert hi < 40.0
        # Values but the outlier are served better; a step half as large is 6 dB.
        assert numerics.sqnr_db(x[:-1], _through(x[:-1], (lo, hi))) > full + 3.0


def _through(x: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    q = numerics.choose_qparams(*bounds)
    return numerics.dequantize(numerics.quantize(x, q), q)


def test_entropy_keeps_a_uniform_range(rng: np.random.Generator) -> None:
    x = rng.uniform(-1, 3, 100_000).astype(np.float32)
    lo, hi = range_of(_of(x), "entropy", INT8)
    # Cutting anything off a flat density makes a spike at the end. Two bins of 2^-10 of slack.
    assert lo <= -1 + 2.0**-9
    assert hi >= 3 - 2.0**-9


def test_exact_zeros_do_not_pull_the_range(rng: np.random.Generator) -> None:
    x = np.abs(rng.normal(size=20000)).astype(np.float32)
    for observer in ("mse", "entropy"):
        assert range_of(_of(x, np.zeros(80000)), observer, INT8) == range_of(_of(x), observer, INT8)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_degenerate_histograms(observer: str) -> None:
    assert range_of(_of(np.zeros(5)), observer, INT8) == (0.0, 0.0)
    lo, hi = range_of(_of(np.full(5, 2.5)), observer, INT8)
    assert lo == 0.0
    # One value: any range up to it will do that represents it (mse, entropy), give or take a bin.
    assert hi == pytest.approx(2.5, rel=2.0**-10) or _error(np.full(5, 2.5, np.float32), lo, hi) < 5 * (2.5 / 255) ** 2
    with pytest.raises(HwqError) as caught:
        range_of(Histogram(), observer, INT8)
    assert caught.value.code == "calibration-empty"


def test_unknown_observer_is_refused() -> None:
    with pytest.raises(HwqError, match="minmax, percentile, mse, entropy") as caught:
        range_of(_of(np.ones(1)), "max", INT8)
    assert caught.value.code == "observer-unknown"


def test_other_widths_are_searched_too(rng: np.random.Generator) -> None:
    x = rng.normal(size=50_000).astype(np.float32)
    _, hi4 = range_of(_of(x), "mse", QType(bits=4))
    _, hi8 = range_of(_of(x), "mse", INT8)
    assert 2.0 < hi4 < hi8 <= float(x.max())  # fewer levels cut more: about 2.6 sigma against 4
    assert math.isfinite(hi8)
