"""What is delivered, on made-up times: the proposal, a uniform assignment or float, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from demo_study import anchors, demo_evaluation, demo_study, demo_work, priced

from hwq import dispose as module
from hwq import evaluate as evaluation_of
from hwq.artifact import Artifact
from hwq.assignment import Solution
from hwq.choose import choose, uniforms
from hwq.contest import LEAST_S, NOISE, interleaved
from hwq.errors import HwqError
from hwq.evaluate import Evaluation
from hwq.progress import silent
from hwq.reanchor import TIME_S
from hwq.scheme import Budget
from hwq.study import Study
from hwq.verify import Accuracy


def size_of(scheme: str) -> int:
    return uniforms(demo_study())[scheme].weight_bytes


class Bench:
    """A compile whose networks take the times it is given: of what was chosen, and of each "all scheme"."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: Mapping[str, float], study: Study | None = None) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.study = study or priced(demo_study(), {"f32": 10.0, "w8a8": 4.0, "w4a8": 4.5})

        def timed(contenders: Mapping[str, Artifact], x: Any, **_: Any) -> dict[str, float]:
            self.asked.append(tuple(contenders))
            return {name: times[name] for name in contenders}

        monkeypatch.setattr(module, "interleaved", timed)

    def dispose(self, budget: Budget | None = None) -> Artifact:
        return module.dispose(
            self.study, demo_work(), budget or Budget(), demo_evaluation(), silent, seed=0, sensitivity_s=TIME_S
        )


def test_the_choice_stays_where_it_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {"chosen": 1.0, "all f32": 2.0, "all w4a8": 1.5, "all w8a8": 1.1})
    artifact = bench.dispose()
    assert artifact.report["verdict"].startswith("the proposal: 1000 ms against all f32 2000 ms")
    assert artifact.report["measured"]["latency_s"] == 1.0
    assert {artifact.plan.schemes[name] for name in anchors(bench.study)} == {"w8a8"}


@pytest.mark.parametrize(("ratio", "wins"), [(1 - 2 * NOISE, False), (1 + 2 * NOISE, True)])
def test_float_is_delivered_where_it_wins(ratio: float, wins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {"chosen": ratio, "all f32": 1.0, "all w8a8": 3.0, "all w4a8": 3.0})
    artifact = bench.dispose()
    assert (set(artifact.plan.schemes.values()) == {"f32"}) == wins
    assert ("uniform f32, faster than the proposal" in artifact.report["verdict"]) == wins
    assert ("chosen" in artifact.report["alternatives"]) == wins
    assert artifact.report["measured"]["drop"] == (0.0 if wins else artifact.report["measured"]["drop"])


def test_of_equal_times_the_least_loss_is_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"chosen": 1.0, "all f32": 1 + NOISE / 2, "all w8a8": 1.0, "all w4a8": 1 - NOISE / 3}
    artifact = Bench(monkeypatch, times).dispose()
    assert set(artifact.plan.schemes.values()) == {"f32"}
    assert "as fast and with less loss than the proposal" in artifact.report["verdict"]
    artifact = Bench(monkeypatch, times | {"all f32": 1.5}).dispose()
    assert artifact.report["verdict"].startswith("the proposal")


def test_a_faster_uniform_that_misses_the_budget_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {"chosen": 1.0, "all f32": 0.5, "all w8a8": 0.5, "all w4a8": 2.0})
    artifact = bench.dispose(Budget(weight_bytes=0.8 * size_of("w8a8")))
    assert "w4a8" in artifact.plan.schemes.values()
    assert artifact.report["alternatives"]["all f32"]["latency_s"] == 0.5


def test_prices_are_corrected_by_what_layers_took_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone int8 is the fastest; in the networks that were built its first layer takes longer than float's."""
    measured = priced(demo_study(), {"f32": 10.0, "w8a8": 4.0, "w4a8": 9.0})
    measured = replace(
        measured, costs={unit: replace(cost, source="measured") for unit, cost in measured.costs.items()}
    )
    first = anchors(measured)[0]

    def seen(study: Study, artifacts: Iterable[Artifact], x: Any) -> dict[tuple[str, str], float]:
        units = {(name, scheme) for one in artifacts for name, scheme in one.plan.schemes.items()}
        return {unit: 30e-6 if unit == (first, "w8a8") else study.costs[unit].latency_s for unit in units}

    monkeypatch.setattr(module, "seen_s", seen)
    name = "proposal 2, by times in place"
    times = {"chosen": 2.0, "all f32": 3.0, "all w8a8": 2.0, "all w4a8": 3.0, name: 1.0}
    artifact = Bench(monkeypatch, times, measured).dispose()
    assert artifact.report["verdict"].startswith(f"{name}, faster than the proposal: 1000 ms")
    assert artifact.plan.schemes[first] != "w8a8"
    assert {artifact.plan.schemes[one] for one in anchors(measured)[1:]} == {"w8a8"}
    assert artifact.report["alternatives"].keys() == {"chosen", "all f32"}, "and then the choice was stable"


def test_a_little_speed_does_not_buy_much_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform int4 is a tenth faster and, where no drop was allowed, loses more than that is worth."""
    times = {"chosen": 1.0, "all f32": 3.0, "all w8a8": 3.0, "all w4a8": 0.9}
    judged = evaluation_of.judge
    for lost, wins in ((0.01, True), (0.05, False)):
        bench = Bench(monkeypatch, times)

        def judge(evaluation: Evaluation, one: Artifact, lost: float = lost) -> Accuracy:
            whole = all(one.plan.schemes[name] == "w4a8" for name in anchors(demo_study()))
            return replace(judged(evaluation, one), drop=lost if whole else 0.0)

        with monkeypatch.context() as patch:
            patch.setattr(module.evaluation_of, "judge", judge)
            artifact = bench.dispose(Budget(weight_bytes=0.8 * size_of("w8a8")))
        assert artifact.report["verdict"].startswith("uniform w4a8, faster than the proposal") == wins


def test_weight_budget_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {"chosen": 1.0, "all f32": 2.0, "all w8a8": 2.0, "all w4a8": 2.0})
    proposed = choose(bench.study, demo_work(), Budget(weight_bytes=0.8 * size_of("w8a8")), None).solution
    artifact = bench.dispose(Budget(weight_bytes=proposed.weight_bytes))
    assert artifact.report["measured"]["weight_bytes"] == proposed.weight_bytes
    assert artifact.report["verdict"].startswith("the proposal")
    assert bench.asked.count(("chosen",)) == 1, "proposed once"


def test_within_a_latency_budget_the_least_loss_is_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faster ones are there, and not asked for; where the choice misses, the fastest that fits is delivered."""
    times = {"chosen": 1.0, "all f32": 0.5, "all w8a8": 0.6, "all w4a8": 0.7}
    bench = Bench(monkeypatch, times)
    limit = uniforms(bench.study)["f32"].latency_s * 1e6
    assert bench.dispose(Budget(latency_s=limit)).report["measured"]["latency_s"] == 1.0
    late = Bench(monkeypatch, times | {"chosen": 2 * limit}).dispose(Budget(latency_s=limit))
    assert late.report["measured"]["latency_s"] == 0.5
    assert "since the proposal misses the budget (latency is" in late.report["verdict"]


def test_within_a_latency_and_a_drop_the_least_bytes_are_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"chosen": 1.0, "all f32": 0.5, "all w8a8": 0.6, "all w4a8": 0.7}
    bench = Bench(monkeypatch, times)
    limit = uniforms(bench.study)["f32"].latency_s * 1e6
    small = bench.dispose(Budget(latency_s=limit, drop=1.0))
    assert small.report["measured"]["weight_bytes"] <= size_of("w4a8")
    missing = times | {"chosen": limit * 2}
    late = Bench(monkeypatch, missing).dispose(Budget(latency_s=limit, drop=1.0))
    assert "since the proposal misses the budget" in late.report["verdict"]
    large = Bench(monkeypatch, times).dispose(Budget(latency_s=limit, drop=0.0))
    assert large.report["measured"]["drop"] <= 0.0


def test_a_latency_is_kept_with_room_for_another_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float loses least; a hair below the budget it is taken only where nothing else is within it."""
    times = {"chosen": 1.0, "all f32": 0.99, "all w8a8": 0.5, "all w4a8": 0.5}
    budget = Budget(latency_s=1.0)
    assert set(Bench(monkeypatch, times).dispose(budget).plan.schemes.values()) != {"f32"}
    late = times | {"all w8a8": 1.5, "all w4a8": 1.5}
    assert set(Bench(monkeypatch, late | {"chosen": 1.5}).dispose(budget).plan.schemes.values()) == {"f32"}


def test_what_is_delivered_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is twice as slow as what misses the budget of bytes, and yet the fastest that keeps it."""
    times = {"chosen": 1.2, "all f32": 0.1, "all w8a8": 0.5, "all w4a8": 0.9}
    artifact = Bench(monkeypatch, times).dispose(Budget(weight_bytes=0.8 * size_of("w8a8")))
    assert artifact.report["verdict"].startswith("uniform w4a8")
    assert artifact.report["measured"]["accuracy"]["samples"] > 0


def test_slow_uniforms_are_not_built_but_float_always_is(monkeypatch: pytest.MonkeyPatch) -> None:
    study = priced(demo_study(), {"f32": 50.0, "w8a8": 4.0, "w4a8": 40.0})
    bench = Bench(monkeypatch, {"chosen": 1.0, "all f32": 5.0}, study)
    assert bench.dispose().report["alternatives"].keys() == {"all f32"}


def test_what_was_measured_tightens_the_next_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions are half of what is measured: a slower proposal misses, a faster one is found."""
    study = priced(demo_study(), {"f32": 10.0, "w8a8": 4.0, "w4a8": 4.5})
    proposals: list[Solution] = []
    real = module.choose

    def watched(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        proposals.append(found.solution)
        return found

    def timed(contenders: Mapping[str, Artifact], x: Any, **_: Any) -> dict[str, float]:
        return {name: 2 * one.plan.latency_s for name, one in contenders.items()}

    monkeypatch.setattr(module, "choose", watched)
    monkeypatch.setattr(module, "interleaved", timed)
    everything = uniforms(study)
    budget = Budget(latency_s=everything["w8a8"].latency_s + everything["f32"].latency_s)
    artifact = module.dispose(study, demo_work(), budget, demo_evaluation(), silent, seed=0, sensitivity_s=TIME_S)
    assert len(proposals) == 2
    assert proposals[1].latency_s <= budget.latency_s / 2 < proposals[0].latency_s
    assert artifact.report["measured"]["latency_s"] <= budget.latency_s


def test_a_budget_missed_by_all_that_was_built_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, dict.fromkeys(["chosen", "all f32", "all w8a8", "all w4a8"], 9.0))
    with pytest.raises(HwqError) as caught:
        bench.dispose(Budget(latency_s=uniforms(bench.study)["w8a8"].latency_s * 1.5))
    assert caught.value.code == "budget-impossible"


def test_times_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def times(self, x: Any, runs: int, warm_up: int) -> list[float]:
            order.append(self.name)
            return [float(len(order))] * runs

    fakes: Any = {name: Fake(name) for name in "ab"}
    assert interleaved(fakes, None, rounds=3, runs=2) == {"a": 1.0, "b": 2.0}, "of 1, 1, 3, 3, 5, 5 the faster half"
    assert interleaved(fakes, None, rounds=1, runs=1) == {"a": 7.0, "b": 8.0}
    assert order == list("abababab")


def test_what_is_hopelessly_slow_is_timed_once() -> None:
    calls: dict[str, int] = {"fast": 0, "slow": 0}

    class Fake:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds = name, seconds

        def times(self, x: Any, runs: int, warm_up: int) -> list[float]:
            calls[self.name] += 1
            return [self.seconds] * runs

    fakes: Any = {"fast": Fake("fast", 1.0), "slow": Fake("slow", 2.1)}
    assert interleaved(fakes, None, rounds=4, runs=2) == {"fast": 1.0, "slow": 2.1}
    assert calls == {"fast": 4, "slow": 1}


def test_fast_networks_are_timed_for_longer() -> None:
    calls = 0

    class Fake:
        def times(self, x: Any, runs: int, warm_up: int) -> list[float]:
            nonlocal calls
            calls += 1
            return [LEAST_S / 12] * runs

    fakes: Any = {"one": Fake()}
    interleaved(fakes, None, rounds=2, runs=2)
    assert calls == 6, "six rounds of two runs make LEAST_S"
