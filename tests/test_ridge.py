"""Ridge: scores that rank wrongly are mended by whole assignments, and right ones are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from hwq import ridge
from hwq.ridge import Vector


def made(rng: np.random.Generator, plans: int, layers: int = 20) -> Vector:
    """(P, 2 layers): each layer in one of two schemes or, in a third of the cases, neither."""
    picks = rng.integers(3, size=(plans, layers))
    return np.concatenate([picks == 1, picks == 2], axis=1).astype(np.float64)


def none(units: Vector) -> Vector:
    return np.zeros((len(units), 0))


def test_scores_that_mis_rank_by_construction_are_mended(rng: np.random.Generator) -> None:
    """The isolated scores of half of the layers are 4 times what they add in company, the others' a quarter."""
    truth = rng.uniform(0.5, 2.0, 40)
    prior = truth * np.where(rng.permutation(40) < 20, 4.0, 0.25)
    units, unseen = made(rng, 64), made(rng, 200)
    losses = units @ truth * (1 + 0.01 * rng.standard_normal(64))
    found = ridge.fit(units, none(units), losses, prior)
    before = ridge.quality(unseen @ prior, unseen @ truth)
    after = ridge.quality(ridge.predict(found, unseen, none(unseen)), unseen @ truth)
    assert before.spearman < 0.65
    assert after.spearman > 0.95
    assert before.r2 < 0 < 0.9 < after.r2
    held = ridge.quality(ridge.held_out(units, none(units), losses, prior), losses)
    assert abs(held.r2 - after.r2) < 0.15, "what the fit says of itself holds of assignments that it has not seen"


def test_right_scores_stay_but_for_a_common_factor(rng: np.random.Generator) -> None:
    prior = rng.uniform(0.1, 2.0, 40)
    units = made(rng, 64)
    losses = 0.7 * units @ prior * (1 + 0.05 * rng.standard_normal(64))
    found = ridge.fit(units, none(units), losses, prior)
    assert found.scores == pytest.approx(0.7 * prior, rel=0.2, abs=0.02)
    few = ridge.fit(units[:16], none(units[:16]), losses[:16], prior)
    assert ridge.spearman(units @ few.scores, units @ prior) > 0.95, "few assignments leave the prior as it is"


def test_units_never_run_take_the_common_factor(rng: np.random.Generator) -> None:
    prior = rng.uniform(0.5, 2.0, 40)
    units = made(rng, 64)
    units[:, 7] = 0.0
    found = ridge.fit(units, none(units), 0.5 * units @ prior, prior)
    assert found.scores[7] == pytest.approx(0.5 * prior[7], rel=0.05)


def test_no_score_is_next_to_nothing_whatever_the_losses_say(rng: np.random.Generator) -> None:
    prior = rng.uniform(0.5, 2.0, 40)
    units = made(rng, 64)
    truth = prior * np.where(np.arange(40) % 2, 1.0, -1.0)
    found = ridge.fit(units, none(units), np.maximum(units @ truth, 0.0), prior)
    assert np.all(found.scores >= ridge.SHARE * prior)


def test_factors_of_pairs_keep_their_bounds(rng: np.random.Generator) -> None:
    prior, units = np.full(20, 1.0), made(rng, 96, layers=10)
    pairs = units[:, :-1] * units[:, 1:]
    losses = units @ prior - pairs @ np.full(19, 0.6)
    assert ridge.fit(units, pairs, losses, prior).pairs.min() < -0.3
    assert ridge.fit(units, pairs, losses, prior, np.full(19, -0.3)).pairs.min() == -0.3


def test_pairs_explain_what_sums_cannot(rng: np.random.Generator) -> None:
    prior = np.full(20, 1.0)
    units = (rng.random((96, 20)) < 0.5).astype(np.float64)
    units[:, 0] = 1.0
    pairs = units[:, :-1] * units[:, 1:]
    losses = units @ prior + pairs @ np.where(np.arange(19) % 3 == 0, 2.0, -0.3)
    alone = ridge.quality(ridge.held_out(units, none(units), losses, prior), losses)
    both = ridge.quality(ridge.held_out(units, pairs, losses, prior), losses)
    assert alone.r2 < 0.9 < both.r2
    assert ridge.fit(units, pairs, losses, prior).pairs[0] > 0.8


def test_the_same_again(rng: np.random.Generator) -> None:
    prior, units = rng.uniform(0.5, 2.0, 40), made(rng, 32)
    losses = units @ prior
    one, other = (ridge.fit(units, none(units), losses, prior) for _ in range(2))
    assert np.array_equal(one.scores, other.scores)
    assert one.strength == other.strength == ridge.STRENGTHS[-1], "exact scores are trusted most"


def test_ranks() -> None:
    values = np.array([3.0, 1.0, 2.0, 2.0])
    assert ridge.spearman(values, values**3) == pytest.approx(1.0)
    assert ridge.spearman(values, -values) == pytest.approx(-1.0)
    assert ridge.spearman(values, np.ones(4)) == 0.0
    assert ridge.spearman(values, np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(-0.316227766016838), "SciPy's"
    assert ridge.quality(values, values) == ridge.Quality(r2=1.0, spearman=pytest.approx(1.0))
