"""Rounding weights by what it does to a layer's output, not to the weights: pure maths, NumPy and SciPy only.

With e the error of one output channel's weights and H the second moment of its inputs' columns (about their mean where
the bias takes the mean back), the squared error of the output is e H e' on average. Here are ways to integers q, with
e = w - q * scale, that make it small:

- ``nearest``: each weight for itself;
- ``gptq``: one input after the other; what its rounding did wrong is spread over those not yet rounded
  (arXiv:2210.17323, algorithm 1: Cholesky form, damping, in blocks; the inputs of most power first);
- ``adaround``: each weight up or down (arXiv:2004.10568, eq. 20). The paper relaxes that to a sigmoid and runs Adam
  (eq. 21 to 25); here coordinate descent flips one weight at a time to its exact best, so the error never rises;
- ``descend``: the same descent with all integers of the format open (arXiv:2309.01885, algorithm 1), from any start.

``fit_scale`` then gives the scales of least error for the integers found. Everything is batched over G, the groups of
a grouped convolution (depthwise: one a channel): w (G, R, K) for R output channels of K inputs each, h (G, K, K), scale
broadcastable to w. Integers come as float64 of w's shape. Used by ``hwq.correct``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

Doubles = npt.NDArray[np.float64]

# Inputs taken together: what they do to the others is one matrix product.
BLOCK = 32
# Of the mean power of the inputs, added to each: the paper's.
DAMP = 0.01
# Added as well, one after the other, where that is not enough for a factor to exist.
MORE_DAMPS = (0.1, 1.0, 10.0)
SWEEPS = 4


def bounds(bits: int) -> tuple[int, int]:
    """The least and the greatest integer weight."""
    assert bits in (4, 8), bits
    return (-127, 127) if bits == 8 else (-8, 7)


def power_of(h: Doubles) -> Doubles:
    """The power of each input: the diagonals of h (G, K, K) as (G, K)."""
    return np.asarray(np.diagonal(h, axis1=1, axis2=2))


def damped(h: Doubles, damp: float) -> Doubles:
    """``h`` with ``damp`` of the inputs' mean power added to each; 1 where there is none at all."""
    mean = power_of(h).mean(axis=1)[:, None, None]
    return np.asarray(h + np.where(mean > 0, damp * mean, 1.0) * np.eye(h.shape[-1]))


def quadratic(error: Doubles, h: Doubles) -> Doubles:
    """e h e' of each output channel: error (G, R, K), h (G, K, K) -> (G, R)."""
    return np.asarray(((error @ h) * error).sum(axis=2))


def nearest(w: Doubles, scale: Doubles, bits: int) -> Doubles:
    """clamp(rint(w / scale))."""
    return np.clip(np.rint(w / scale), *bounds(bits))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passing:
    """How GPTQ passes errors on. order (G, K): the inputs, those of most power first. share (G, K, K), in that order:
    row j says how much of the error of input j each later input takes back."""

    order: npt.NDArray[np.intp]
    share: Doubles


def passing(h: Doubles) -> Passing:
    """The rows, divided by their diagonal, of the upper triangular U with U' U = inverse of ``h``, inputs reordered.

    Of a group that is not positive definite, by errors of its sums, more is added to the diagonal; where none of
    ``MORE_DAMPS`` helps, nothing is passed on, and rounding is to nearest.
    """
    order = np.argsort(-power_of(h), axis=1, kind="stable")
    backward = order[:, ::-1]
    mixed = np.take_along_axis(np.take_along_axis(h, backward[:, :, None], axis=1), backward[:, None], axis=2)
    # With the inputs in reverse, h = L L'; U is the inverse of L, reversed again.
    share = np.empty_like(mixed)
    for group, one in enumerate(mixed):
        lower = _factor(one)
        upper, failed = lapack.dtrtri(lower, lower=1)
        assert failed == 0
        upper = upper[::-1, ::-1]
        share[group] = upper / np.diagonal(upper)[:, None]
    return Passing(order=order, share=share)


def _factor(h: Doubles) -> Doubles:
    """The lower triangular L with L L' = ``h`` (K, K), damped where it has none; the unit matrix where that is of no
    use."""
    for damp in (0.0, *MORE_DAMPS):
        with contextlib.suppress(np.linalg.LinAlgError):
            return np.linalg.cholesky(h + damp * np.abs(np.diagonal(h)).mean() * np.eye(len(h)) if damp else h)
    return np.eye(len(h))


def gptq(w: Doubles, h: Doubles, scale: Doubles, bits: int, *, damp: float = DAMP) -> Doubles:
    """Integers (G, R, K) for ``w``, each input's rounding error passed on to the inputs after it."""
    return gptq_with(passing(damped(h, damp)), w, scale, bits)


def gptq_with(passed: Passing, w: Doubles, scale: Doubles, bits: int) -> Doubles:
    """``gptq`` for an ``h`` that was factored already."""
    lo, hi = bounds(bits)
    count = w.shape[-1]
    order, share = passed.order, passed.share
    rest, steps = (
        np.ascontiguousarray(np.take_along_axis(values, order[:, None], axis=2).transpose(0, 2, 1))
        for values in (w, np.broadcast_to(scale, w.shape))
    )  # (G, K, R): an input's weights side by side
    q = np.empty_like(rest)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        missed = np.empty_like(rest[:, start:stop])
        for j in range(start, stop):
            q[:, j] = np.clip(np.rint(rest[:, j] / steps[:, j]), lo, hi)
            error = rest[:, j] - q[:, j] * steps[:, j]
            rest[:, j + 1 : stop] -= share[:, j, j + 1 : stop, None] * error[:, None]
            missed[:, j - start] = error
        rest[:, stop:] -= share[:, start:stop, stop:].transpose(0, 2, 1) @ missed
    back = np.argsort(order, axis=1)
    return np.take_along_axis(q.transpose(0, 2, 1), back[:, None], axis=2)


def adaround(w: Doubles, h: Doubles, scale: Doubles, bits: int, *, sweeps: int = SWEEPS) -> Doubles:
    """Integers (G, R, K), each of the two next to w / scale, the error never above that of ``nearest``."""
    low = np.floor(w / scale)
    lo, hi = (np.clip(bound, *bounds(bits)) for bound in (low, low + 1))
    return _descend(nearest(w, scale, bits), w, h, scale, lo, hi, sweeps)


def descend(q: Doubles, w: Doubles, h: Doubles, scale: Doubles, bits: int, *, sweeps: int = SWEEPS) -> Doubles:
    """Integers (G, R, K) of an error at most that of ``q``: each input in turn at its best while the others stay."""
    lo, hi = (np.full_like(w, bound) for bound in bounds(bits))
    return _descend(q, w, h, scale, lo, hi, sweeps)


def _descend(q: Doubles, w: Doubles, h: Doubles, scale: Doubles, lo: Doubles, hi: Doubles, sweeps: int) -> Doubles:
    """Coordinate descent within [lo, hi] until a sweep changes nothing. Blocks only delay what later inputs hear."""
    count = w.shape[-1]
    steps = np.broadcast_to(scale, w.shape)
    slope = np.ascontiguousarray(((w - q * steps) @ h).transpose(0, 2, 1))
    q, steps, lo, hi = (np.ascontiguousarray(values.transpose(0, 2, 1)) for values in (q, steps, lo, hi))  # (G, K, R)
    # An input that never varies has no slope either: it stays.
    pull = 1.0 / (np.maximum(power_of(h), np.finfo(np.float32).tiny)[:, :, None] * steps)
    for _ in range(sweeps):
        changed = False
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            moved = np.zeros_like(slope[:, start:stop])
            for j in range(start, stop):
                wanted = np.clip(q[:, j] + np.rint(slope[:, j] * pull[:, j]), lo[:, j], hi[:, j])
                step = (wanted - q[:, j]) * steps[:, j]
                if not step.any():
                    continue
                q[:, j], moved[:, j - start] = wanted, step
                slope[:, start:stop] -= h[:, j, start:stop, None] * step[:, None]
            if moved.any():
                changed = True
                slope[:, :start] -= h[:, :start, start:stop] @ moved
                slope[:, stop:] -= h[:, stop:, start:stop] @ moved
        if not changed:
            break
    return q.transpose(0, 2, 1)


def fit_scale(
    q: Doubles, w: Doubles, h: Doubles, scale: Doubles, floor: Doubles, size: int | None = None, sweeps: int = 4
) -> Doubles:
    """The scales of least error for these integers, from ``scale``, one at a time to its best; each keeps its sign, and
    none is of a size below ``floor``.

    All (G, R, S), ``size`` neighbouring inputs sharing one (all of them if None): with one scale a channel that is its
    least squares. A block without weights keeps its scale.
    """
    count = w.shape[-1]
    size, scale = size or count, scale.copy()
    sign = np.where(scale < 0, -1.0, 1.0)
    error = w - q * spread(scale, count, size)
    for _ in range(sweeps if scale.shape[-1] > 1 else 1):
        for i in range(scale.shape[-1]):
            part = slice(i * size, (i + 1) * size)
            mine = q[:, :, part]
            down = (mine * (error @ h[:, :, part])).sum(axis=2)
            stiff = quadratic(mine, h[:, part, part])
            better = scale[:, :, i] + np.where(stiff > 0, down / np.where(stiff > 0, stiff, 1), 0)
            better = sign[:, :, i] * np.maximum(sign[:, :, i] * better, floor[:, :, i])
            error[:, :, part] += mine * (scale[:, :, i] - better)[:, :, None]
            scale[:, :, i] = better
    return scale


def spread(scale: Doubles, count: int, size: int | None = None) -> Doubles:
    """(G, R, S), a scale for each ``size`` inputs (all if None) -> (G, R, count), one for each input."""
    return np.repeat(scale, size or count, axis=-1)[..., :count]
