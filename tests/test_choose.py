"""Choosing: the problem is what lowering does, budgets hold, and a drop is judged on outputs."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from demo_study import anchors, demo_evaluation, demo_study, demo_work, priced, random_schemes

from hwq import choose as module
from hwq.assignment import Solution, evaluate, within
from hwq.choose import BESIDE, BISECTIONS, LAST, LEAD, SLACK, choose, leading, problem_of, uniform, uniforms
from hwq.errors import HwqError
from hwq.judge import Judge
from hwq.reanchor import LEAST, anchored
from hwq.scheme import Budget
from hwq.study import Study
from hwq.verify import Accuracy

# int8 is faster than float, int4 slower than int8; conversions cost a little.
TIMES = {"f32": 10.0, "w8a8": 4.0, "w4a8": 5.0}


@pytest.fixture(scope="module")
def study() -> Study:
    return priced(demo_study(), TIMES, conversion_us=0.5)


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are anchored by as few assignments as may be: how well is for other tests to say."""
    monkeypatch.setattr("hwq.reanchor.FIRST", LEAST)
    monkeypatch.setattr("hwq.reanchor.MORE", 4)


@pytest.mark.parametrize("more", [(), ("block1.conv1", "pool")], ids=["one output", "inner outputs too"])
def test_conversions_priced_are_the_conversions_lowered(
    more: tuple[str, ...], study: Study, rng: np.random.Generator
) -> None:
    """Any assignment at all: one unit for each quantize, a thousand for each dequantize."""
    graph = replace(study.graph, outputs=(*study.graph.outputs, *more))
    study = replace(study, model=replace(study.model, graph=graph))
    counted = problem_of(replace(study, conversions=dict.fromkeys(study.conversions, (1.0, 1000.0))))
    for _ in range(40):
        schemes = random_schemes(study, rng)
        names = [step.name for step in study.program(schemes).steps]
        steps = sum(name.endswith(":quantize") for name in names) + 1000 * sum(
            name.endswith(":dequantize") for name in names
        )
        layers = sum(study.costs[layer, scheme].latency_s for layer, scheme in schemes.items())
        assert evaluate(counted, schemes).latency_s - layers == pytest.approx(steps, abs=1e-6)


def test_problem_has_the_study_s_figures(study: Study) -> None:
    problem = problem_of(study, fixed={"stem": "w4a8"})
    assert [one.scheme for one in problem.candidates if one.layer == "stem"] == ["w4a8"]
    others = {(one.layer, one.scheme): one for one in problem.candidates if one.layer != "stem"}
    assert len(others) == sum(len(names) for layer, names in study.candidates.items() if layer != "stem")
    for unit, one in others.items():
        assert (one.loss, one.cost) == (study.losses[unit], study.costs[unit])


def test_uniform_assignments(study: Study) -> None:
    found = uniforms(study)
    assert found.keys() == {"f32", "w8a8", "w4a8"}
    assert set(found["f32"].schemes.values()) == {"f32"}
    for scheme in ("w8a8", "w4a8"):
        assert {found[scheme].schemes[name] for name in anchors(study)} == {scheme}
    assert found["w4a8"].weight_bytes < found["w8a8"].weight_bytes < found["f32"].weight_bytes


def test_a_scheme_that_only_some_layers_have_is_no_uniform_float(study: Study) -> None:
    """Layers that know nothing but float do not make a network of int8 and int4 "all f32"."""
    integers = {layer: tuple(name for name in names if name != "f32") for layer, names in study.candidates.items()}
    candidates = integers | {"classifier": ("f32",)}
    assert uniforms(replace(study, candidates=candidates)).keys() == {"w8a8", "w4a8"}
    assert uniform(replace(study, candidates=candidates), "f32") is None


def test_what_one_of_tied_layers_lacks_the_others_are_not_in(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take one scheme, so int4 of the first alone would be no assignment at all."""
    first, *middle, last = anchors(study)
    monkeypatch.setattr(module, "projections", lambda graph: ((first, last),))
    names = tuple(name for name in study.candidates[last] if name != "w4a8")
    found = uniform(replace(study, candidates={**study.candidates, last: names}), "w4a8")
    assert found is not None
    assert {found.schemes[name] for name in middle} == {"w4a8"}
    assert found.schemes[first] == found.schemes[last] != "w4a8"


def test_without_budget_the_fastest_but_for_slack_is_taken(study: Study) -> None:
    found = choose(study, demo_work(), Budget(), None).solution
    best = min(one.latency_s for one in uniforms(study).values())
    assert best * 0.9 < found.latency_s <= best * (1 + SLACK)
    assert set(found.schemes[name] for name in anchors(study)) <= {"w8a8", "f32"}


def test_a_percent_of_time_is_given_up_for_less_loss(study: Study) -> None:
    near = priced(study, {"f32": 4.0 * (1 + SLACK / 2), "w8a8": 4.0, "w4a8": 5.0})
    found = choose(near, demo_work(), Budget(), None).solution
    assert found.loss == 0.0
    apart = priced(study, {"f32": 4.0 * (1 + 2 * SLACK), "w8a8": 4.0, "w4a8": 5.0})
    found = choose(apart, demo_work(), Budget(), None).solution
    assert {found.schemes[name] for name in anchors(study)} == {"w8a8", "f32"}, "as many in float as two percent pay"


@pytest.mark.parametrize(("int4_us", "taken"), [(3.9, "w8a8"), (4 / (1 + LEAD) + 0.01, "w8a8"), (3.7, "w4a8")])
def test_int4_has_to_lead_by_more_than_noise(study: Study, int4_us: float, taken: str) -> None:
    near = priced(study, {"f32": 10.0, "w8a8": 4.0, "w4a8": int4_us})
    found = choose(near, demo_work(), Budget(), None).solution
    assert {found.schemes[name] for name in anchors(study)} >= {taken}
    assert ("w4a8" in found.schemes.values()) == (taken == "w4a8")
    small = choose(near, demo_work(), Budget(weight_bytes=0.8 * uniforms(study)["w8a8"].weight_bytes), None).solution
    assert "w4a8" in small.schemes.values(), "bytes are a reason of their own"


def test_leading_compares_within_a_layer_and_a_domain(study: Study) -> None:
    kept = [one.scheme for one in leading(problem_of(study).candidates) if one.layer == "stem"]
    assert kept == ["f32", "w8a8"], "int4 is slower and loses more; float is another domain"
    assert len(leading(problem_of(priced(study, {"f32": 10.0, "w8a8": 4.0, "w4a8": 2.0})).candidates)) == len(
        problem_of(study).candidates
    )


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
def test_weight_budget_holds_with_the_least_loss_of_its_time(study: Study, share: float) -> None:
    whole = uniforms(study)["w8a8"]
    budget = share * whole.weight_bytes
    found = choose(study, demo_work(), Budget(weight_bytes=budget), None).solution
    assert found.weight_bytes <= budget
    assert "w4a8" in found.schemes.values()
    assert found.loss < uniforms(study)["w4a8"].loss


def test_latency_budget_holds_by_measured_time(study: Study) -> None:
    """Where networks took twice what was predicted, half the budget is left to predictions."""
    slow, fast = uniforms(study)["f32"].latency_s, uniforms(study)["w8a8"].latency_s
    budget = (slow + fast) / 2
    loose = choose(study, demo_work(), Budget(latency_s=budget), None).solution
    tight = choose(study, demo_work(), Budget(latency_s=budget), None, latency_ratio=1.3).solution
    assert fast < tight.latency_s <= budget / 1.3 < loose.latency_s <= budget
    assert loose.loss < tight.loss, "what a budget leaves free is used for accuracy"


@pytest.mark.parametrize(
    "budget", [Budget(latency_s=1e-9), Budget(weight_bytes=100), Budget(latency_s=1e-9, weight_bytes=100)]
)
def test_an_impossible_budget_names_the_closest(study: Study, budget: Budget) -> None:
    with pytest.raises(HwqError, match=r"closest that can be met is \d") as caught:
        choose(study, demo_work(), budget, None)
    assert caught.value.code == "budget-impossible"


def fake_accuracy(drops: list[Solution], slope: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy as a straight line of the predicted loss; ``drops`` collects what was run."""

    def run(_: Judge, solution: Solution) -> Accuracy:
        drops.append(solution)
        drop = slope * solution.loss
        return Accuracy(score=1 - drop, float_score=1.0, drop=drop, agreement=None, sqnr_db=(), samples=1)

    monkeypatch.setattr(module, "accuracy_of", run)


@pytest.mark.parametrize("part", [1.5, 0.9, 0.5, 0.1, 0.01])
def test_drop_budget_is_honoured_as_fast_as_may_be(study: Study, part: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Solution] = []
    fake_accuracy(ran, 1.0, monkeypatch)
    fastest = choose(study, demo_work(), Budget(), None).solution
    found = choose(study, demo_work(), Budget(drop=part * fastest.loss), demo_evaluation())
    assert found.accuracy is not None
    assert found.accuracy.drop == found.solution.loss <= part * fastest.loss
    assert len(ran) <= BISECTIONS + 2
    kept = [one for one in ran if one.loss <= part * fastest.loss]
    assert found.solution.latency_s == min(one.latency_s for one in kept)
    if part > 1:
        assert ran == [fastest], "the first proposal was good"
    elif part >= 0.1:
        assert found.solution.latency_s < uniforms(study)["f32"].latency_s, "float is not the only way"


@pytest.mark.parametrize("part", [1.5, 0.9, 0.5, 0.1, 0.01, 0.0])
def test_within_a_latency_and_a_drop_bytes_are_minimized(
    study: Study, part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Solution] = []
    fake_accuracy(ran, 1.0, monkeypatch)
    every = uniforms(study)
    latency_s, drop = 1.01 * every["f32"].latency_s, part * every["w4a8"].loss
    found = choose(study, demo_work(), Budget(drop=drop, latency_s=latency_s), demo_evaluation()).solution
    assert found.loss <= drop
    assert found.latency_s <= latency_s
    kept = [one for one in ran if one.loss <= drop]
    assert found.weight_bytes == min(one.weight_bytes for one in kept)
    if part > 1:
        assert found.weight_bytes <= every["w4a8"].weight_bytes
        assert len(ran) == 1, "the first proposal was good"
    if part == 0.5:
        assert every["w4a8"].weight_bytes < found.weight_bytes < 0.9 * every["w8a8"].weight_bytes
    if part == 0:
        assert {found.schemes[name] for name in anchors(study)} == {"f32"}


def test_a_kernel_at_fault_is_no_budget_that_cannot_be_met(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """What running a candidate raises is not taken for a bound without an assignment."""
    ran: list[Solution] = []

    def run(_: Judge, solution: Solution) -> Accuracy:
        ran.append(solution)
        if len(ran) == 3:  # the first within the bisection
            raise HwqError("kernel-missing", "no kernel")
        return Accuracy(score=0.0, float_score=1.0, drop=solution.loss, agreement=None, sqnr_db=(), samples=1)

    monkeypatch.setattr(module, "accuracy_of", run)
    fastest = choose(study, demo_work(), Budget(), None).solution
    with pytest.raises(HwqError, match="no kernel") as caught:
        choose(study, demo_work(), Budget(drop=0.5 * fastest.loss), demo_evaluation())
    assert caught.value.code == "kernel-missing"


def test_drop_budget_holds_within_the_others(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_accuracy([], 1.0, monkeypatch)
    size = 1.5 * uniforms(study)["w8a8"].weight_bytes
    first = choose(study, demo_work(), Budget(weight_bytes=size), None).solution
    found = choose(study, demo_work(), Budget(weight_bytes=size, drop=0.5 * first.loss), demo_evaluation())
    assert found.solution.weight_bytes <= size
    assert found.solution.loss <= 0.5 * first.loss
    with pytest.raises(HwqError, match="the closest assignment found loses") as caught:
        choose(study, demo_work(), Budget(weight_bytes=size, drop=1e-9), demo_evaluation())
    assert caught.value.code == "budget-impossible"


def test_a_drop_that_the_safest_misses_by_a_sample_is_not_given_up(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others that should lose hardly more are run, and the first that holds bounds the search; none holds: an error."""
    size = 0.8 * uniforms(study)["w8a8"].weight_bytes
    ran: list[Solution] = []

    def run(_: Judge, solution: Solution, holds: int) -> Accuracy:
        if solution not in ran:
            ran.append(solution)
        drop = 0.01 if ran.index(solution) == holds else 0.02
        return Accuracy(score=1 - drop, float_score=1.0, drop=drop, agreement=None, sqnr_db=(), samples=300)

    monkeypatch.setattr(module, "accuracy_of", functools.partial(run, holds=3))
    budget = Budget(weight_bytes=size, drop=0.01)
    found = choose(study, demo_work(), budget, demo_evaluation())
    assert found.solution == ran[3]
    assert found.solution.weight_bytes <= size
    assert ran[1].loss < found.solution.loss <= (1 + BESIDE) * ran[1].loss, "ran[1] is the safest"
    ran.clear()
    monkeypatch.setattr(module, "accuracy_of", functools.partial(run, holds=-1))
    with pytest.raises(HwqError, match=r"drop 1\.00% cannot be met") as caught:
        choose(study, demo_work(), budget, demo_evaluation())
    assert caught.value.code == "budget-impossible"
    assert 3 <= len(ran) <= LAST + 2


def test_no_drop_at_all_is_float(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_accuracy([], 1.0, monkeypatch)
    found = choose(study, demo_work(), Budget(drop=0.0), demo_evaluation())
    assert {found.solution.schemes[name] for name in anchors(study)} == {"f32"}


def test_drop_budget_needs_something_to_judge_by(study: Study) -> None:
    with pytest.raises(HwqError, match="a budget of drop needs samples") as caught:
        choose(study, demo_work(), Budget(drop=0.1), None)
    assert caught.value.code == "evaluate-missing"


def test_solutions_are_sums_of_their_candidates(study: Study) -> None:
    budget = Budget(weight_bytes=0.7 * uniforms(study)["w8a8"].weight_bytes)
    choice = choose(study, demo_work(), budget, None)
    assert choice.anchors is not None, "sums of the scores that it was chosen by"
    found = choice.solution
    assert evaluate(problem_of(anchored(study, choice.anchors)), found.schemes) == found
    assert within(found, module.Limits(weight_bytes=0.7 * uniforms(study)["w8a8"].weight_bytes))


def test_no_time_for_whole_assignments_leaves_the_losses_of_layers(study: Study) -> None:
    choice = choose(study, demo_work(), Budget(weight_bytes=25_000), None, time_s=0)
    assert choice.anchors is None
    assert choice.solution.loss == pytest.approx(
        sum(study.losses[unit] for unit in choice.solution.schemes.items()), rel=1e-9
    )
