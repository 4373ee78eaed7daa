"""The program against brute force, conversions included; larger budgets no worse; impossible ones say by how much."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from assign_problems import candidate, dynamic_problem, everything_of, random_problem

from hwq.assign import assign, closest, forced, near, pareto
from hwq.assignment import QUANTITIES, Border, Limits, Pair, Problem, Solution, conversion_s, evaluate, prune, within
from hwq.errors import HwqError

TIE = 2e-6  # assign's own tie of 1e-6, and as much for the quantity behind it


def _limits(everything: list[Solution], shares: tuple[float | None, ...]) -> Limits:
    """Limits at a share of the way from the least to the most of each quantity; None leaves it free."""
    bounds = {}
    for name, share in zip(QUANTITIES, shares, strict=True):
        values = [getattr(one, name) for one in everything]
        bounds[name] = None if share is None else min(values) + share * (max(values) - min(values))
    return Limits(**bounds)


@pytest.mark.parametrize("seed", range(200))
def test_answer_is_that_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    check_answer(random_problem(seed, int(rng.integers(2, 6))), rng)


@pytest.mark.parametrize("seed", range(60))
def test_so_it_is_with_rows_and_layers_that_are_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    check_answer(dynamic_problem(seed, int(rng.integers(2, 5))), rng)


def check_answer(problem: Problem, rng: np.random.Generator) -> None:
    """``assign`` within random limits gives the best of all assignments."""
    everything = everything_of(problem)
    limits = _limits(everything, tuple(None if rng.random() < 0.6 else rng.random() for _ in QUANTITIES))
    allowed = [one for one in everything if within(one, limits)]
    if not allowed:
        with pytest.raises(HwqError, match="no assignment meets the budget"):
            assign(problem, limits)
        return
    got = assign(problem, limits)
    assert within(got, limits)
    assert got == evaluate(problem, got.schemes)
    order = [name for name in QUANTITIES if getattr(limits, name) is None] or ["latency_s"]
    for name in order:
        best = min(getattr(one, name) for one in allowed)
        bound = best + TIE * abs(best)
        assert getattr(got, name) <= bound
        allowed = [one for one in allowed if getattr(one, name) <= bound]


@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("seed", range(4))
def test_larger_budget_is_never_worse(seed: int, name: str) -> None:
    problem = random_problem(seed, 5)
    values = [getattr(one, name) for one in everything_of(problem)]
    limits = np.linspace(min(values), max(values), 6)
    goal = "loss" if name == "latency_s" else "latency_s"
    reached = [getattr(assign(problem, Limits(**{name: float(limit)})), goal) for limit in limits]
    for worse, better in itertools.pairwise(reached):
        assert better <= worse + TIE * abs(worse)


@pytest.mark.parametrize("points", [3, 5, 9])
@pytest.mark.parametrize("seed", range(4))
def test_front_is_sorted_distinct_and_undominated(seed: int, points: int) -> None:
    problem = random_problem(seed, 4)
    everything = everything_of(problem)
    front = pareto(problem, points)
    assert len(front) <= points
    assert [one.latency_s for one in front] == sorted(one.latency_s for one in front)
    assert len({tuple(one.schemes.values()) for one in front}) == len(front)
    for one, other in itertools.permutations(front, 2):
        assert any(getattr(one, name) < getattr(other, name) for name in QUANTITIES) or one.schemes == other.schemes
    for name in QUANTITIES:
        best = min(getattr(one, name) for one in everything)
        assert min(getattr(one, name) for one in front) <= best + TIE * abs(best)


def test_front_keeps_its_limits() -> None:
    problem = random_problem(1, 5)
    limits = _limits(everything_of(problem), (0.6, None, 0.5))
    assert all(within(one, limits) for one in pareto(problem, 6, limits))
    with pytest.raises(HwqError, match="no assignment meets the budget"):
        pareto(problem, 6, Limits(latency_s=0.0))


def test_front_has_the_plans_between_the_extremes() -> None:
    candidates = []
    for i in range(6):
        candidates += [candidate(f"l{i}", "f32", 2.0), candidate(f"l{i}", "w8a8", 1.0, 0.5 + i / 10)]
    front = pareto(Problem(candidates=tuple(candidates)), 7)
    assert [one.latency_s for one in front] == [6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]
    assert front[1].schemes["l5"] == "f32"  # the layer that loses most is the first to be float


# What lies near, and what is forced


@pytest.mark.parametrize("seed", range(40))
def test_next_best_solutions_are_those_of_brute_force(seed: int) -> None:
    problem = random_problem(seed, 5)
    kept = replace(problem, candidates=prune(problem.candidates, problem.pairs))
    best = assign(problem, Limits(weight_bytes=_limits(everything_of(kept), (None, None, 0.7)).weight_bytes))
    among = ["l0", "l2", "l3"]
    bounds = Limits(**{name: getattr(best, name) + 0.5 * abs(getattr(best, name)) for name in QUANTITIES})
    expected: dict[tuple[str, ...], float] = {}
    for one in everything_of(kept):
        key = tuple(one.schemes[layer] for layer in among)
        if within(one, bounds) and key != tuple(best.schemes[layer] for layer in among):
            expected[key] = min(one.latency_s, expected.get(key, np.inf))
    got = near(problem, best, 4, tolerance=0.5, among=among)
    assert len({tuple(one.schemes[layer] for layer in among) for one in (best, *got)}) == len(got) + 1
    np.testing.assert_allclose([one.latency_s for one in got], sorted(expected.values())[:4], rtol=TIE)
    assert all(within(one, bounds) for one in got)


def test_nothing_lies_near_what_has_no_choice() -> None:
    problem = Problem(candidates=(candidate("a", "f32", 1.0), candidate("b", "w8a8", 1.0)))
    assert near(problem, assign(problem), 3) == ()
    assert near(problem, assign(problem), 3, among=[]) == ()
    assert near(replace(problem, candidates=()), evaluate(Problem(candidates=()), {}), 1) == ()


@pytest.mark.parametrize("seed", range(20))
def test_a_layer_forced_is_the_best_of_brute_force(seed: int) -> None:
    problem = random_problem(seed, 4)
    everything = everything_of(problem)
    limits = _limits(everything, (None, None, 0.8))
    best = assign(problem, limits)
    ways = [(one.layer, one.scheme) for one in problem.candidates]
    for (layer, scheme), got in forced(problem, best, ways, limits).items():
        able = [one for one in everything if one.schemes[layer] == scheme]
        able = [one for one in able if within(one, Limits(weight_bytes=limits.weight_bytes))]
        in_time = [one for one in able if within(one, Limits(latency_s=best.latency_s))]
        if not able:
            assert got is None
            continue
        assert got is not None
        assert got.schemes[layer] == scheme
        goal, rivals = ("loss", in_time) if in_time else ("latency_s", able)
        least = min(getattr(one, goal) for one in rivals)
        assert getattr(got, goal) <= least + TIE * abs(least)


# Borders

CHAIN = (
    candidate("a", "f32", 10.0),
    candidate("a", "w8a8", 1.0),
    candidate("b", "f32", 5.0),
    candidate("c", "f32", 10.0),
    candidate("c", "w8a8", 1.0),
)


def test_conversions_are_paid_once_and_shared() -> None:
    border = Border(tensor="t", producer="a", consumers=("b", "c", "d"), quantize_s=1.0, dequantize_s=2.0)
    f, i = "f32", "w8a8"
    paid = {
        (f, f, f, f): 0.0,
        (f, i, f, i): 1.0,
        (i, i, i, i): 0.0,
        (i, f, f, i): 2.0,
        (i, f, f, f): 2.0,
    }
    for schemes, expected in paid.items():
        named = dict(zip("abcd", schemes, strict=True))
        assert conversion_s(border, named) == expected
        direct = replace(border, direct_s=0.25)
        assert conversion_s(direct, named) == (0.25 if schemes == (i, f, f, f) else expected)
        output = replace(direct, output=True)
        assert conversion_s(output, named) == {(i, i, i, i): 2.0}.get(schemes, conversion_s(direct, named))
        moved = replace(border, moved_s=-0.5)
        assert conversion_s(moved, named) == expected
        assert conversion_s(moved, {**named, "a": f}) == (
            -0.5 if schemes[1:] == (i, i, i) else 1.0 * (i in schemes[1:])
        )
        assert conversion_s(replace(moved, output=True), {**named, "a": f}) == 1.0 * (i in schemes[1:])
    unread = Border(tensor="t", producer="a", consumers=(), dequantize_s=2.0)
    assert conversion_s(unread, {"a": i}) == 0.0
    assert conversion_s(replace(unread, output=True), {"a": i}) == 2.0
    assert conversion_s(replace(unread, producer=None, output=True), {}) == 0.0


@pytest.mark.parametrize(("cost_s", "scheme"), [(1.0, "w8a8"), (10.0, "f32")])
def test_dear_conversions_keep_layers_in_float(cost_s: float, scheme: str) -> None:
    borders = (
        Border(tensor="x", producer=None, consumers=("a",), quantize_s=cost_s),
        Border(tensor="y", producer="a", consumers=("b",), quantize_s=cost_s, dequantize_s=cost_s),
        Border(tensor="z", producer="b", consumers=("c",), quantize_s=cost_s),
        Border(tensor="o", producer="c", consumers=(), output=True, dequantize_s=cost_s),
    )
    got = assign(Problem(candidates=CHAIN, borders=borders))
    assert got.schemes == {"a": scheme, "b": "f32", "c": scheme}
    assert got.latency_s == 5.0 + (20.0 if scheme == "f32" else 2.0 + 4 * cost_s)


# Limits, ties, errors


def test_slack_trades_latency_for_loss() -> None:
    candidates = (candidate("a", "w8a8", 1.0, 0.1), candidate("a", "w4a8", 0.99, 5.0), candidate("a", "f32", 3.0))
    problem = Problem(candidates=candidates)
    assert assign(problem).schemes == {"a": "w4a8"}
    assert assign(problem, slack=0.05).schemes == {"a": "w8a8"}
    assert assign(problem, slack=0.05) == assign(problem, Limits(latency_s=1.0))


def test_slack_that_buys_no_loss_is_taken_back() -> None:
    candidates = (
        *(candidate("a", "w8a8", 100.0, 1.0), candidate("a", "f32", 101.0, 0.5)),
        *(candidate("b", "w8a8", 1.0, 0.0, 4), candidate("b", "f32", 2.0, 0.0, 0)),
        *(candidate("c", "w8a8", 1.0, 0.0, 1000),),
    )
    assert assign(Problem(candidates=candidates), slack=0.05).schemes == {"a": "f32", "b": "w8a8", "c": "w8a8"}


def test_loss_breaks_ties_of_latency_and_size_those_of_loss() -> None:
    candidates = (
        candidate("a", "w8a8", 1.0, 0.5, 9),
        candidate("a", "f32", 1.0, 0.2, 36),
        candidate("b", "w8a8", 1.0, 0.2, 9),
        candidate("b", "f32", 1.0, 0.2, 36),
    )
    assert assign(Problem(candidates=candidates)).schemes == {"a": "f32", "b": "w8a8"}


def test_limit_that_is_met_exactly_is_met(rng: np.random.Generator) -> None:
    candidates = []
    for i in range(12):
        for scheme in ("f32", "w8a8", "w4a8"):
            values = rng.uniform(1e-6, 1e-3), rng.uniform(0, 1), int(rng.integers(10**5, 10**7))
            candidates.append(candidate(f"l{i}", scheme, *values))
    problem = Problem(candidates=tuple(candidates))
    for name in QUANTITIES:
        found = assign(problem, Limits(**{name: getattr(pareto(problem, 5)[2], name)}))
        again = assign(problem, Limits(**{name: getattr(found, name)}))
        assert getattr(again, name) <= getattr(found, name) * (1 + 1e-9)


def test_dominated_candidates_are_pruned_within_their_domain_only() -> None:
    candidates = (
        candidate("a", "f32", 5.0, 0.0, 40),
        candidate("a", "w8a8", 1.0, 0.0, 10),
        candidate("a", "w4a8", 1.0, 0.1, 10),
        candidate("b", "w8a8", 1.0, 0.1, 10),
        candidate("b", "w4a8", 1.0, 0.1, 10),
        candidate("c", "w8a8", 1.0, 0.1, 10),
        candidate("c", "w4a8", 2.0, 0.2, 9),
    )
    kept = [(one.layer, one.scheme) for one in prune(candidates)]
    assert kept == [("a", "f32"), ("a", "w8a8"), ("b", "w8a8"), ("c", "w8a8"), ("c", "w4a8")]
    pairs = (Pair(layers=("a", "b"), schemes=("w4a8", "w8a8"), loss=-0.2),)
    kept = [(one.layer, one.scheme) for one in prune(candidates, pairs)]
    assert kept == [("a", "f32"), ("a", "w8a8"), ("a", "w4a8"), *(("b", "w8a8"), ("b", "w4a8")), *kept[-2:]]


def test_impossible_limit_says_the_closest_and_by_how_much() -> None:
    problem = Problem(candidates=CHAIN)
    with pytest.raises(HwqError, match=r"latency_s 3 is too low by 4, the closest that can be met is 7") as caught:
        assign(problem, Limits(latency_s=3.0))
    assert caught.value.code == "budget-impossible"
    assert assign(problem, Limits(latency_s=7.0)).latency_s == 7.0
    assert list(closest(problem, Limits(latency_s=3.0))) == ["latency_s"]


def test_limits_impossible_only_together_are_both_named() -> None:
    candidates = (candidate("a", "f32", 3.0, 0.0, 40), candidate("a", "w8a8", 1.0, 1.0, 10))
    problem = Problem(candidates=candidates)
    with pytest.raises(HwqError) as caught:
        assign(problem, Limits(latency_s=2.0, loss=0.5))
    assert "latency_s 2 is too low by 1, the closest that can be met is 3.0" in caught.value.message
    assert "loss 0.5 is too low by 0.5, the closest that can be met is 1.0" in caught.value.message
    assert set(closest(problem, Limits(latency_s=2.0, loss=0.5))) == {"latency_s", "loss"}


@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("seed", range(6))
def test_closest_limit_in_the_text_can_be_met(seed: int, name: str) -> None:
    problem = random_problem(seed, 4)
    least = min(getattr(one, name) for one in everything_of(problem))
    limit = least * 0.9 - 1e-12
    with pytest.raises(HwqError) as caught:
        assign(problem, Limits(**{name: limit}))
    told = re.search(r"closest that can be met is (\S+)$", caught.value.message)
    assert told is not None
    assert least <= float(told[1]) * (1 + 1e-9)
    assert float(told[1]) <= least + max(1e-3 * abs(least), 1e-12)
    assert assign(problem, Limits(**{name: float(told[1])}))


def test_nothing_to_assign() -> None:
    got = assign(Problem(candidates=()), Limits(loss=0.0))
    assert got == Solution(schemes={}, latency_s=0.0, weight_bytes=0, loss=0.0)


def test_same_input_same_answer(rng: np.random.Generator) -> None:
    candidates = tuple(
        candidate(f"l{i}", scheme, rng.uniform(1, 2), rng.uniform(0, 1), int(rng.integers(1, 9)))
        for i in range(15)
        for scheme in ("f32", "w8a8", "w4a8")
    )
    assert pareto(Problem(candidates=candidates), 3) == pareto(Problem(candidates=candidates), 3)


def test_rows_are_paid_for_once_and_by_dynamic_readers_only() -> None:
    border = Border(tensor="t", producer=None, consumers=("a", "b"), by_rows=("a", "b"), rows_s=3.0, quantize_s=1.0)
    assert conversion_s(border, {"a": "f32", "b": "f32"}) == 0.0
    assert conversion_s(border, {"a": "w8a8_dyn", "b": "f32"}) == 3.0
    assert conversion_s(border, {"a": "w8a8_dyn", "b": "w4a8_g64_dyn"}) == 3.0
    assert conversion_s(border, {"a": "w8a8_dyn", "b": "w8a8"}) == 4.0


def test_layers_that_are_alike_are_pruned_together() -> None:
    """What is worse for one of them and better for the other stays where it is better for both together."""
    candidates = (
        *(candidate("q", "w8a8", 1.0), candidate("q", "w4a8", 2.0)),
        *(candidate("k", "w8a8", 9.0), candidate("k", "w4a8", 1.0)),
        candidate("k", "f32", 0.1),
    )
    problem = Problem(candidates=candidates, alike=(("q", "k"),))
    assert {(one.layer, one.scheme) for one in prune(candidates, (), problem.alike)} == {("q", "w4a8"), ("k", "w4a8")}
    assert assign(problem).schemes == {"q": "w4a8", "k": "w4a8"}
