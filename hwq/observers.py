"""Observers: from a stream of values, in bounded memory, to the range that an integer format is to cover.

One ``Histogram`` a tensor is the whole state, 64 kB, however many samples come. Its bins are 2^k wide with edges at
multiples of 2^k, so that growing (two bins become one) and merging are exact: the result depends on the values seen,
not on their order or on how they were split into batches. ``range_of`` then judges it by one of OBSERVERS:

- minmax: everything seen;
- percentile: all but the fraction 1 - PERCENTILE at each end (arXiv:2004.09602, section 4);
- mse: least squared error of the quantized values (arXiv:1810.05723, but searched, not by a fitted density);
- entropy: least Kullback-Leibler divergence of the quantized distribution from the one seen (Migacz, "8-bit inference
  with TensorRT", GTC 2017), here with both ends of an asymmetric range free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.errors import HwqError
from hwq.scheme import QType

OBSERVERS = ("minmax", "percentile", "mse", "entropy")
BINS = 8192
PERCENTILE = 0.9999

Vector = npt.NDArray[np.float64]

# Values below 2^_LEAST share the bins at 0: their reciprocal widths would leave float32.
_LEAST = -100
# Elements taken at a time: temporaries stay in cache.
_CHUNK = 1 << 16
# Searched ranges: both ends shrunk together by _SHRINK^0, ^1, ..., then each end alone, in turns.
_SHRINK = 0.97
_STEPS = 64
_REFINE = 6
_ROUNDS = 8
# The entropy search goes no narrower than this many bins a level: below, a level is no coarser than the histogram.
_BINS_PER_LEVEL = 2


@dataclass(slots=True, kw_only=True)
class Histogram:
    """Streaming statistics of one tensor: counts[i + BINS / 2] values lie in [i * w, (i + 1) * w), w being 2^exponent.

    low and high are the exact extremes (inf and -inf before the first value); zeros counts values that are exactly 0.
    """

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    exponent: int = _LEAST
    low: float = math.inf
    high: float = -math.inf
    zeros: int = 0

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def update(self, values: npt.NDArray[Any], what: str = "the values to be observed hold") -> None:
        """Count ``values`` of any shape, as float32. Raises HwqError "values-not-finite" for NaN or infinities, of
        which ``what`` says whose they are."""
        flat = np.asarray(values, np.float32).reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            found = "NaN" if math.isnan(low) or math.isnan(high) else "an infinity"
            raise HwqError("values-not-finite", f"{what} {found}; accepted: finite numbers")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(math.frexp(max(-low, high))[1] - (BINS // 2).bit_length() + 1)
        inverse = np.float32(math.ldexp(1.0, -self.exponent))
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK]
            index = np.floor(chunk * inverse).astype(np.intp)  # exact: the width is a power of two
            index += BINS // 2
            self.counts += np.bincount(index, minlength=BINS)
            self.zeros += chunk.size - int(np.count_nonzero(chunk))

    def merge(self, other: Histogram) -> None:
        """Add what ``other`` has seen, as if it had been seen here; ``other`` is unchanged."""
        other = other.copy()
        self._grow(other.exponent)
        other._grow(self.exponent)
        self.counts += other.counts
        self.zeros += other.zeros
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def copy(self) -> Histogram:
        return Histogram(
            counts=self.counts.copy(), exponent=self.exponent, low=self.low, high=self.high, zeros=self.zeros
        )

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The whole state as arrays, for ``np.savez``."""
        return {
            "counts": self.counts,
            "state": np.array([self.exponent, self.zeros], np.int64),
            "extremes": np.array([self.low, self.high]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Histogram:
        """The inverse of ``to_arrays``."""
        exponent, zeros = (int(value) for value in arrays["state"])
        low, high = (float(value) for value in arrays["extremes"])
        return cls(counts=np.array(arrays["counts"], np.int64), exponent=exponent, low=low, high=high, zeros=zeros)

    def _grow(self, exponent: int) -> None:
        """Widen the bins to 2^exponent, if they are narrower: pairs join, and the middle half holds them all."""
        quarter = BINS // 4
        while self.exponent < exponent:
            if not self.counts.any():
                self.exponent = exponent
                return
            joined = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[quarter : 3 * quarter] = joined
            self.exponent += 1


def range_of(histogram: Histogram, observer: str, qtype: QType) -> tuple[float, float]:
    """The range (lo, hi) that ``qtype`` is to cover, asymmetric, 0 inside; (0, 0) if only zeros were seen.

    Raises HwqError "observer-unknown" for a name that is not in OBSERVERS, "calibration-empty" for an empty histogram.
    """
    if observer not in OBSERVERS:
        raise HwqError("observer-unknown", f"observer {observer!r} is not known; accepted: {', '.join(OBSERVERS)}")
    if histogram.low > histogram.high:
        raise HwqError("calibration-empty", "no values were observed; accepted: at least one calibration sample")
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if observer == "minmax" or low == high:
        return low, high
    if observer == "percentile":
        return _percentile(histogram, low, high)
    score = _mse(histogram, qtype) if observer == "mse" else _divergence(histogram, qtype)
    return _search(low, high, score)


def _percentile(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    """The quantiles 1 - PERCENTILE and PERCENTILE, linear within a bin, widened to 0."""
    edges = (np.arange(BINS + 1) - BINS // 2) * math.ldexp(1.0, histogram.exponent)
    below = np.concatenate([[0], np.cumsum(histogram.counts)]) / histogram.total
    tail = 1.0 - PERCENTILE
    first, last = int(np.searchsorted(below, tail, "right")) - 1, int(np.searchsorted(below, PERCENTILE, "left"))
    lo = float(np.interp(tail, below[first : first + 2], edges[first : first + 2]))
    hi = float(np.interp(PERCENTILE, below[last - 1 : last + 1], edges[last - 1 : last + 1]))
    return min(max(lo, low), 0.0), max(min(hi, high), 0.0)


Score = Callable[[Vector, Vector], Vector]


def _search(low: float, high: float, score: Score) -> tuple[float, float]:
    """The (lo, hi) within [low, high] of least ``score``: both ends together, then each alone; the widest of equals."""
    factors = _SHRINK ** np.arange(float(_STEPS))
    best = int(np.argmin(score(low * factors, high * factors)))
    lo, hi = float(low * factors[best]), float(high * factors[best])
    for step in (2.0, 0.5):
        nearby = _SHRINK ** (step * np.arange(-_REFINE, _REFINE + 1.0))
        for _ in range(_ROUNDS):
            before = lo, hi
            if high > 0.0:
                tops = np.minimum(hi * nearby, high)
                hi = float(tops[int(np.argmin(score(np.full_like(tops, lo), tops)))])
            if low < 0.0:
                bottoms = np.maximum(lo * nearby, low)
                lo = float(bottoms[int(np.argmin(score(bottoms, np.full_like(bottoms, hi))))])
            if before == (lo, hi):
                break
    return lo, hi


def _filled(histogram: Histogram) -> tuple[Vector, Vector]:
    """Centres and counts of the bins that hold something other than exact zeros, which every format represents."""
    counts = histogram.counts.copy()
    counts[BINS // 2] -= histogram.zeros
    centres: Vector = (np.arange(BINS, dtype=np.float64) - BINS // 2 + 0.5) * math.ldexp(1.0, histogram.exponent)
    keep = counts > 0
    return centres[keep], counts[keep].astype(np.float64)


def _levels(centres: Vector, lo: float, hi: float, qtype: QType) -> tuple[Vector, float]:
    """The integer level, less the zero point, of each centre, and the step, for the range (lo, hi)."""
    scale = (hi - lo) / (qtype.qmax - qtype.qmin)
    zero = round(qtype.qmin - lo / scale)
    return np.clip(np.rint(centres / scale), qtype.qmin - zero, qtype.qmax - zero), scale


def _mse(histogram: Histogram, qtype: QType) -> Score:
    centres, counts = _filled(histogram)

    def score(los: Vector, his: Vector) -> Vector:
        errors = np.empty(len(los))
        for i, (lo, hi) in enumerate(zip(los, his, strict=True)):
            level, scale = _levels(centres, lo, hi, qtype)
            errors[i] = np.square(level * scale - centres) @ counts
        return errors

    return score


def _divergence(histogram: Histogram, qtype: QType) -> Score:
    """KL(P || Q): P the counts with outliers moved into the end bins; Q those without, each level's spread evenly.

    Bins of P that Q leaves empty (ends full of outliers) count with a small share of Q, so the divergence stays finite.
    """
    centres, counts = _filled(histogram)
    narrowest = _BINS_PER_LEVEL * (qtype.qmax - qtype.qmin) * math.ldexp(1.0, histogram.exponent)
    tiny = 1e-4

    def score(los: Vector, his: Vector) -> Vector:
        found = np.full(len(los), np.inf)
        for i, (lo, hi) in enumerate(zip(los, his, strict=True)):
            first, last = np.searchsorted(centres, lo, "left"), np.searchsorted(centres, hi, "right")
            if first >= last or hi - lo < narrowest:
                continue
            inner = counts[first:last]
            seen = inner.copy()
            seen[0] += counts[:first].sum()
            seen[-1] += counts[last:].sum()
            level, _ = _levels(centres[first:last], lo, hi, qtype)
            group = (level - level[0]).astype(np.intp)
            spread = (np.bincount(group, inner) / np.maximum(np.bincount(group), 1))[group]
            p, q = seen / seen.sum(), np.maximum(spread / spread.sum(), tiny / len(inner))
            found[i] = float(p @ np.log(p / q))
        return found

    return score
