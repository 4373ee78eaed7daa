"""Ridge: scores of single units corrected by the losses of whole assignments, in closed form.

An assignment's loss is taken to be the sum of its units' scores; scores measured one by one are right about that up to
a common factor and some deviation, since errors meet in common. So the scores are theta ~ N(c s, v s mean(s)), with s
the isolated ones and c one number for all: a deviation's variance grows with the score, as that of counts does. What is
fitted is the ratio of an assignment's loss to the sum of its isolated scores, so that every assignment's relative
error weighs the same. The strength of the prior is the largest that predicts assignments left out nearly as well as
the best does: what the samples have of their own is the same in all assignments, and leaving some of these out cannot
tell it from the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

# How strongly deviations are held back, as a part of what an assignment's features amount to.
STRENGTHS = tuple(10.0**power for power in np.arange(-2.0, 4.1, 0.5))
# Assignments are left out in so many parts, to find the strength and to judge the fit.
FOLDS = 8
# A prior that misses this much more than the best is as good: on pictures of mobilenetv2 that were not among the
# samples, the best ranked worse than isolated scores did.
TRUSTED = 1.25
# No score is so small, as a part of their mean, that it could not be wrong.
FLOOR = 1e-3
# No unit loses less in company than this part of what it loses alone: fits that say so are noise, and what looks for
# the least sum finds them. In resnet32's front, with scores free to go to a thousandth, plans lost up to 80 times what
# was predicted; with this part up to 6 times, ranked at 0.98 for 0.87, and lost 0.6 of it at the same latency.
SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """scores (U,): the corrected ones, at least SHARE of the isolated. pairs (E,): the factors of what neighbours
    amount to where they meet, of either sign. strength: how strongly the prior held."""

    scores: Vector
    pairs: Vector
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Of predictions: the part of the variance they explain (R^2), and their rank correlation (Spearman's rho)."""

    r2: float
    spearman: float


def fit(units: Vector, pairs: Vector, losses: Vector, prior: Vector, least: Vector | float = -2.0) -> Fit:
    """Scores from the ``losses`` (P,) of P assignments.

    units (P, U): 1 for the units that an assignment has, of which each must have some; prior (U,): their isolated
    scores, at least one above 0. pairs (P, E): what neighbours' errors amount to where they meet, or no columns at all.
    least: no factor of a pair is below it, (E,) or one for all; twice a cosine is never below -2.
    """
    strength = _strength(units, pairs, losses, prior)
    scores, coefficients = _solve(units, pairs, losses, prior, [strength])
    factors = np.maximum(coefficients[:, 0], least)
    return Fit(scores=np.maximum(scores[:, 0], SHARE * prior), pairs=factors, strength=strength)


def predict(found: Fit, units: Vector, pairs: Vector) -> Vector:
    """The losses (P,) that a fit gives assignments."""
    return np.asarray(units @ found.scores + pairs @ found.pairs)


def held_out(units: Vector, pairs: Vector, losses: Vector, prior: Vector, least: Vector | float = -2.0) -> Vector:
    """The loss (P,) of each assignment as fits to the others, of the other folds, predict it."""
    found = np.zeros(len(units))
    for out in _folds(len(units)):
        rest = ~out
        found[out] = predict(fit(units[rest], pairs[rest], losses[rest], prior, least), units[out], pairs[out])
    return found


def quality(predicted: Vector, losses: Vector) -> Quality:
    """How well ``predicted`` (P,) are ``losses`` (P,)."""
    spread = float(np.square(losses - losses.mean()).sum())
    missed = float(np.square(losses - predicted).sum())
    return Quality(
        r2=1.0 - missed / spread if spread > 0 else float(missed == 0.0), spearman=spearman(predicted, losses)
    )


def spearman(one: Vector, other: Vector) -> float:
    """Spearman's rank correlation; 0 where either is constant."""
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float(a @ b) / length if length > 0 else 0.0


def _ranks(values: Vector) -> Vector:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[inverse])


def _folds(count: int) -> list[npt.NDArray[np.bool_]]:
    parts = min(FOLDS, count)
    return [np.arange(count) % parts == part for part in range(parts)]


def _strength(units: Vector, pairs: Vector, losses: Vector, prior: Vector) -> float:
    """The largest strength whose fits to most assignments predict the others, by relative error, nearly best."""
    sums = units @ prior
    missed = np.zeros(len(STRENGTHS))
    for out in _folds(len(units)):
        rest = ~out
        scores, coefficients = _solve(units[rest], pairs[rest], losses[rest], prior, STRENGTHS)
        got = units[out] @ scores + pairs[out] @ coefficients
        missed += np.square((got - losses[out, None]) / sums[out, None]).sum(axis=0)
    return float(STRENGTHS[int(np.flatnonzero(missed <= TRUSTED * missed.min()).max())])


def _solve(
    units: Vector, pairs: Vector, losses: Vector, prior: Vector, strengths: Sequence[float]
) -> tuple[Vector, Vector]:
    """(scores (U, T), coefficients of pairs (E, T)) at each of T strengths, by the dual form: P x P, however many units
    there are, and decomposed once."""
    floor = FLOOR * float(prior.mean())
    deviation = np.sqrt(np.maximum(prior, floor) * float(prior.mean()))
    sums = (units @ prior)[:, None]
    features = np.concatenate([units * deviation / sums, pairs / sums], axis=1)
    ratios = losses / sums[:, 0]
    middle = features.mean(axis=0)
    centred = features - middle
    values, vectors = np.linalg.eigh(centred @ centred.T)
    held = np.array(strengths) * max(float(values.mean()), float(np.finfo(np.float64).tiny))
    along = (vectors.T @ (ratios - ratios.mean()))[:, None] / (np.maximum(values, 0.0)[:, None] + held)
    weights = centred.T @ (vectors @ along)
    factors = ratios.mean() - middle @ weights
    return prior[:, None] * factors + weights[: len(prior)] * deviation[:, None], weights[len(prior) :]
