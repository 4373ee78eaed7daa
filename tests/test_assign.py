"""The program against brute force, conversions included; larger budgets no worse; impossible ones say by how much."""

from __future__ import annotations

import ctypes
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from hwq import mixed_integer
from hwq.assign import Border, Limits, Problem, Solution, assign, closest, evaluate, pareto, prune
from hwq.assignment import QUANTITIES, conversion_s, within
from hwq.errors import HwqError
from hwq.scheme import Candidate, Cost

TIE = 2e-6  # assign's own tie of 1e-6, and as much for the quantity behind it


def _candidate(layer: str, scheme: str, latency_s: float, loss: float = 0.0, weight_bytes: int = 0) -> Candidate:
    cost = Cost(latency_s=latency_s, weight_bytes=weight_bytes, source="roofline", interval_s=(0.0, 1.0))
    return Candidate(layer=layer, scheme=scheme, loss=loss, cost=cost)


def _problem(seed: int, layers: int) -> Problem:
    """A network of ``layers`` layers with random candidates, edges, outputs and conversion costs."""
    rng = np.random.default_rng([seed, layers])
    unit = 1e-5 if seed % 2 else 1.0
    names = [f"l{i}" for i in range(layers)]
    candidates = []
    for layer in names:
        schemes = [s for s in ("f32", "w8a8", "w4a8") if rng.random() < 0.8] or ["f32"]
        for scheme in schemes:
            loss = 0.0 if scheme == "f32" else float(rng.lognormal(-3, 1))
            # Coarse numbers make ties, which fine ones never show.
            latency = float(rng.integers(1, 5)) if rng.random() < 0.5 else float(rng.uniform(0.1, 3))
            candidates.append(_candidate(layer, scheme, latency * unit, loss, int(rng.integers(0, 1000))))
    borders = []
    for i, maker in enumerate([None, *names]):
        after = [layer for layer in names[i:] if rng.random() < 0.5]
        borders.append(
            Border(
                tensor=f"t{i}",
                producer=maker,
                consumers=tuple(after),
                output=bool(rng.random() < 0.3),
                quantize_s=float(rng.uniform(0, 2)) * unit,
                dequantize_s=float(rng.uniform(0, 2)) * unit,
                direct_s=[None, 0.0, float(rng.uniform(-1.0, 4.0)) * unit, -unit][rng.integers(0, 4)],
            )
        )
    return Problem(candidates=tuple(candidates), borders=tuple(borders), fixed_s=unit)


def _all(problem: Problem) -> list[Solution]:
    layers: dict[str, list[str]] = {}
    for candidate in problem.candidates:
        layers.setdefault(candidate.layer, []).append(candidate.scheme)
    choices = itertools.product(*layers.values())
    return [evaluate(problem, dict(zip(layers, schemes, strict=True))) for schemes in choices]


def _limits(everything: list[Solution], shares: tuple[float | None, ...]) -> Limits:
    """Limits at a share of the way from the least to the most of each quantity; None leaves it free."""
    bounds = {}
    for name, share in zip(QUANTITIES, shares, strict=True):
        values = [getattr(one, name) for one in everything]
        bounds[name] = None if share is None else min(values) + share * (max(values) - min(values))
    return Limits(**bounds)


@pytest.mark.parametrize("seed", range(150))
def test_answer_is_that_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = _problem(seed, int(rng.integers(2, 6)))
    everything = _all(problem)
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
    problem = _problem(seed, 5)
    values = [getattr(one, name) for one in _all(problem)]
    limits = np.linspace(min(values), max(values), 6)
    goal = "loss" if name == "latency_s" else "latency_s"
    reached = [getattr(assign(problem, Limits(**{name: float(limit)})), goal) for limit in limits]
    for worse, better in itertools.pairwise(reached):
        assert better <= worse + TIE * abs(worse)


@pytest.mark.parametrize("points", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_front_is_sorted_distinct_and_undominated(seed: int, points: int) -> None:
    problem = _problem(seed, 4)
    everything = _all(problem)
    front = pareto(problem, points)
    assert [one.latency_s for one in front] == sorted(one.latency_s for one in front)
    assert len({tuple(one.schemes.values()) for one in front}) == len(front)
    for one, other in itertools.permutations(front, 2):
        assert any(getattr(one, name) < getattr(other, name) for name in QUANTITIES) or one.schemes == other.schemes
    for name in QUANTITIES:
        best = min(getattr(one, name) for one in everything)
        assert min(getattr(one, name) for one in front) <= best + TIE * abs(best)


def test_front_has_the_plans_between_the_extremes() -> None:
    candidates = []
    for i in range(6):
        candidates += [_candidate(f"l{i}", "f32", 2.0), _candidate(f"l{i}", "w8a8", 1.0, 0.5 + i / 10)]
    front = pareto(Problem(candidates=tuple(candidates)), 7)
    assert [one.latency_s for one in front] == [6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]
    assert front[1].schemes["l5"] == "f32"  # the layer that loses most is the first to be float


# Borders

CHAIN = (
    _candidate("a", "f32", 10.0),
    _candidate("a", "w8a8", 1.0),
    _candidate("b", "f32", 5.0),
    _candidate("c", "f32", 10.0),
    _candidate("c", "w8a8", 1.0),
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
    got = assign(Problem(candidates=CHAIN, borders=borders, fixed_s=0.5))
    assert got.schemes == {"a": scheme, "b": "f32", "c": scheme}
    assert got.latency_s == 0.5 + 5.0 + (20.0 if scheme == "f32" else 2.0 + 4 * cost_s)


# Limits, ties, errors


def test_slack_trades_latency_for_loss() -> None:
    candidates = (_candidate("a", "w8a8", 1.0, 0.1), _candidate("a", "w4a8", 0.99, 5.0), _candidate("a", "f32", 3.0))
    problem = Problem(candidates=candidates)
    assert assign(problem).schemes == {"a": "w4a8"}
    assert assign(problem, slack=0.05).schemes == {"a": "w8a8"}
    assert assign(problem, slack=0.05) == assign(problem, Limits(latency_s=1.0))


def test_slack_that_buys_no_loss_is_taken_back() -> None:
    candidates = (
        *(_candidate("a", "w8a8", 100.0, 1.0), _candidate("a", "f32", 101.0, 0.5)),
        *(_candidate("b", "w8a8", 1.0, 0.0, 4), _candidate("b", "f32", 2.0, 0.0, 0)),
        *(_candidate("c", "w8a8", 1.0, 0.0, 1000),),
    )
    assert assign(Problem(candidates=candidates), slack=0.05).schemes == {"a": "f32", "b": "w8a8", "c": "w8a8"}


def test_loss_breaks_ties_of_latency_and_size_those_of_loss() -> None:
    candidates = (
        _candidate("a", "w8a8", 1.0, 0.5, 9),
        _candidate("a", "f32", 1.0, 0.2, 36),
        _candidate("b", "w8a8", 1.0, 0.2, 9),
        _candidate("b", "f32", 1.0, 0.2, 36),
    )
    assert assign(Problem(candidates=candidates)).schemes == {"a": "f32", "b": "w8a8"}


def test_limit_that_is_met_exactly_is_met(rng: np.random.Generator) -> None:
    candidates = []
    for i in range(12):
        for scheme in ("f32", "w8a8", "w4a8"):
            values = rng.uniform(1e-6, 1e-3), rng.uniform(0, 1), int(rng.integers(10**5, 10**7))
            candidates.append(_candidate(f"l{i}", scheme, *values))
    problem = Problem(candidates=tuple(candidates))
    for name in QUANTITIES:
        found = assign(problem, Limits(**{name: getattr(pareto(problem, 5)[2], name)}))
        again = assign(problem, Limits(**{name: getattr(found, name)}))
        assert getattr(again, name) <= getattr(found, name) * (1 + 1e-9)


def test_dominated_candidates_are_pruned_within_their_domain_only() -> None:
    candidates = (
        _candidate("a", "f32", 5.0, 0.0, 40),
        _candidate("a", "w8a8", 1.0, 0.0, 10),
        _candidate("a", "w4a8", 1.0, 0.1, 10),
        _candidate("b", "w8a8", 1.0, 0.1, 10),
        _candidate("b", "w4a8", 1.0, 0.1, 10),
        _candidate("c", "w8a8", 1.0, 0.1, 10),
        _candidate("c", "w4a8", 2.0, 0.2, 9),
    )
    kept = [(one.layer, one.scheme) for one in prune(candidates)]
    assert kept == [("a", "f32"), ("a", "w8a8"), ("b", "w8a8"), ("c", "w8a8"), ("c", "w4a8")]


def test_impossible_limit_says_the_closest_and_by_how_much() -> None:
    problem = Problem(candidates=CHAIN, fixed_s=0.5)
    with pytest.raises(
        HwqError, match=r"latency_s 3 is too low by 4\.5, the closest that can be met is 7\.5"
    ) as caught:
        assign(problem, Limits(latency_s=3.0))
    assert caught.value.code == "budget-impossible"
    assert assign(problem, Limits(latency_s=7.5)).latency_s == 7.5
    assert list(closest(problem, Limits(latency_s=3.0))) == ["latency_s"]


def test_limits_impossible_only_together_are_both_named() -> None:
    candidates = (_candidate("a", "f32", 3.0, 0.0, 40), _candidate("a", "w8a8", 1.0, 1.0, 10))
    problem = Problem(candidates=candidates)
    with pytest.raises(HwqError) as caught:
        assign(problem, Limits(latency_s=2.0, loss=0.5))
    assert "latency_s 2 is too low by 1, the closest that can be met is 3.0" in caught.value.message
    assert "loss 0.5 is too low by 0.5, the closest that can be met is 1.0" in caught.value.message
    assert set(closest(problem, Limits(latency_s=2.0, loss=0.5))) == {"latency_s", "loss"}


@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("seed", range(6))
def test_closest_limit_in_the_text_can_be_met(seed: int, name: str) -> None:
    problem = _problem(seed, 4)
    least = min(getattr(one, name) for one in _all(problem))
    limit = least * 0.9 - 1e-12
    with pytest.raises(HwqError) as caught:
        assign(problem, Limits(**{name: limit}))
    told = re.search(r"closest that can be met is (\S+)$", caught.value.message)
    assert told is not None
    assert least <= float(told[1]) * (1 + 1e-9)
    assert float(told[1]) <= least + max(1e-3 * abs(least), 1e-12)
    assert assign(problem, Limits(**{name: float(told[1])}))


def test_nothing_to_assign() -> None:
    got = assign(Problem(candidates=(), fixed_s=2.0), Limits(loss=0.0))
    assert got == Solution(schemes={}, latency_s=2.0, weight_bytes=0, loss=0.0)
    with pytest.raises(HwqError, match="closest that can be met is 2"):
        assign(Problem(candidates=(), fixed_s=2.0), Limits(latency_s=1.0))


def test_same_input_same_answer(rng: np.random.Generator) -> None:
    candidates = tuple(
        _candidate(f"l{i}", scheme, rng.uniform(1, 2), rng.uniform(0, 1), int(rng.integers(1, 9)))
        for i in range(15)
        for scheme in ("f32", "w8a8", "w4a8")
    )
    assert pareto(Problem(candidates=candidates), 3) == pareto(Problem(candidates=candidates), 3)


def test_what_the_solver_prints_is_kept_off_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    libc = ctypes.CDLL(None)
    print("before")
    with mixed_integer._stdout_to_stderr():
        libc.puts(b"from C")
    libc.puts(b"after")
    libc.fflush(None)
    captured = capfd.readouterr()
    assert captured.err == "from C\n"
    assert captured.out == "before\nafter\n"


def test_network_of_many_layers_is_solved_within_seconds(rng: np.random.Generator) -> None:
    candidates, borders = [], []
    for i in range(120):
        base, size = rng.uniform(0.1, 3) * 1e-4, int(rng.uniform(1e3, 1e6))
        candidates += [
            _candidate(f"l{i}", "f32", base, 0.0, 4 * size),
            _candidate(f"l{i}", "w8a8", base * rng.uniform(0.2, 0.6), rng.lognormal(-5, 1), size),
            _candidate(f"l{i}", "w4a8", base * rng.uniform(0.2, 0.7), rng.lognormal(-2, 1), size // 2),
        ]
        after = tuple(f"l{j}" for j in (i + 1, i + 3) if j < 120)
        borders.append(
            Border(tensor=f"t{i}", producer=f"l{i}", consumers=after, quantize_s=1e-5, dequantize_s=1e-5, direct_s=0.0)
        )
    problem = Problem(candidates=tuple(candidates), borders=tuple(borders))
    w8a8 = evaluate(problem, {f"l{i}": "w8a8" for i in range(120)})
    got = assign(problem, Limits(weight_bytes=0.7 * w8a8.weight_bytes), slack=0.01)
    assert got.weight_bytes <= 0.7 * w8a8.weight_bytes
    assert got.loss < evaluate(problem, {f"l{i}": "w4a8" for i in range(120)}).loss
