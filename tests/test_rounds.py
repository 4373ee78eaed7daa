"""Rounds with a timer whose figures are made up: what wins, what is withdrawn, and what is lost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_trials import DEFAULT_S, HOST, SPACE, candidates_of, kernel_of, network_tasks, part, timer

from hwq import rounds, store
from hwq.errors import HwqError
from hwq.rounds import MARGIN
from hwq.tasks import Task
from hwq.trial import Outcome
from hwq.tune import ROUND, Tuned, tune

TASKS = network_tasks()
BEST = {
    task.workload.key: min((f"v{n}" for n in range(SPACE)), key=lambda name: part(task.workload, name))
    for task in TASKS
}


@pytest.fixture(autouse=True)
def made_up_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions of the made-up space can be rebuilt."""
    monkeypatch.setattr(
        rounds, "kernel_for", lambda workload, target, func, decision: kernel_of(workload, decision, target)
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


def tuned(path: Path, *, trials: int | None = 1000, tasks: tuple[Task, ...] = TASKS, **options: Any) -> Tuned:
    values: dict[str, Any] = {"try_them": timer(), "candidates_of": candidates_of} | options
    return tune(tasks, HOST, path.parent, path, trials=trials, **values)


Calls = list[tuple[str, tuple[str, ...]]]


def test_the_winners_time_is_an_ordinary_record_of_its_code(path: Path) -> None:
    tuned(path)
    records = store.everything(path)
    for task in TASKS:
        kernel = kernel_of(task.workload, BEST[task.workload.key])
        code = rounds.Bench(target=HOST, cache_dir=path.parent, threads=1, devices=(), try_them=timer()).code_of(kernel)
        key = store.key_of(task.workload, f"{kernel.schedule}#{code}@{task.home}", HOST, store.tool_versions())
        (record,) = (one for one in records if one.key == key)
        assert record.median_s == pytest.approx(DEFAULT_S * part(task.workload, BEST[task.workload.key]))


def test_the_winners_record_is_in_terms_of_the_defaults(path: Path) -> None:
    """On a machine that is half as fast when candidates are tried as it was when defaults were."""
    met: list[str] = []

    def slower(trials: Any, *rest: Any, **options: Any) -> list[Outcome]:
        found = timer()(trials, *rest, **options)
        met.extend(trial.decision for trial in trials)
        if trials[0].decision == "":
            return found
        return [
            replace(one, seconds=tuple(2 * it for it in one.seconds), default_s=tuple(2 * it for it in one.default_s))
            for one in found
        ]

    found = tuned(path, try_them=slower)
    assert met
    for task in found.tasks:
        times = sorted(row.median_s for row in store.everything(path) if row.key.workload == task.workload)
        assert times[0] == pytest.approx(task.best_s)
        assert times[-1] == task.default_s == DEFAULT_S


def test_a_winner_must_win_again(path: Path) -> None:
    """Fast at its first measurement, it is not when it is measured against the default once more."""
    met: Counter[tuple[str, str]] = Counter()

    def lucky(workload: Any, decision: str) -> float:
        met[workload.key, decision] += 1
        return 0.5 if decision and met[workload.key, decision] == 1 else 1.0

    found = tuned(path, try_them=timer(lucky))
    assert all(task.decision is None and task.best_s == task.default_s for task in found.tasks)
    assert not store.decisions(path, HOST, store.tool_versions())
    assert len(store.everything(path)) == len(TASKS), "no record of anything but the defaults"


def test_what_seems_faster_within_noise_does_not_win(path: Path) -> None:
    """Faster by a tenth in eight pairs of nine is enough, in six of nine is not."""
    for fast, wins in ((8, True), (6, False)):

        def noisy(trials: Any, *_: Any, fast: int = fast, **__: Any) -> list[Outcome]:
            seconds = (*(0.9e-3,) * fast, *(1.1e-3,) * (9 - fast))
            return [Outcome(seconds=seconds, default_s=(1e-3,) * 9) for _ in trials]

        place = path.with_name(f"{fast}.sqlite")
        found = tuned(place, trials=8, try_them=noisy)
        assert any(task.decision is not None for task in found.tasks) is wins


def test_what_is_used_is_replaced_only_by_what_beats_it_too(path: Path) -> None:
    """A candidate that is a little faster than the one before it, but within the margin, changes nothing."""
    order: list[str] = []

    def alike(workload: Any, decision: str) -> float:
        if decision and decision not in order:
            order.append(decision)
        return 1.0 if not decision else 0.8 - 0.2 * MARGIN * order.index(decision) / SPACE

    tasks = TASKS[:1]
    tuned(path, trials=ROUND, tasks=tasks, try_them=timer(alike))
    (first,) = store.decisions(path, HOST, store.tool_versions()).values()
    tuned(path, trials=SPACE, tasks=tasks, try_them=timer(alike))
    assert store.decisions(path, HOST, store.tool_versions()) == {first.key: first}


def test_noise_that_both_feel_is_not_in_the_winners_record(path: Path) -> None:
    """Every other pair of figures takes twice as long, and one in nine ten times: the ratio stays."""
    factors = (1, 2, 1, 2, 10, 2, 1, 2, 1.5)

    def noisy(trials: Any, *rest: Any, **options: Any) -> list[Outcome]:
        found = timer()(trials, *rest, **options)
        if trials[0].decision == "":
            return found
        return [
            Outcome(
                seconds=tuple(factor * it for factor, it in zip(factors, one.seconds, strict=True)),
                default_s=tuple(factor * it for factor, it in zip(factors, one.default_s, strict=True)),
            )
            for one in found
        ]

    found = tuned(path, try_them=noisy)
    for task in found.tasks:
        times = sorted(row.median_s for row in store.everything(path) if row.key.workload == task.workload)
        assert times[0] == pytest.approx(task.best_s)
        (workload,) = (one.workload for one in TASKS if one.workload.key == task.workload)
        assert task.best_s == pytest.approx(DEFAULT_S * part(workload, BEST[task.workload]))


def spaced(first: str, *others: str) -> Callable[..., Any]:
    """Candidates in this order, the first in a round of its own."""

    def candidates(workload: Any, target: Any, tried: Any, count: int, seed: int, func: Any = None) -> Any:
        names = [first] if first not in tried else [name for name in others if name not in tried]
        return [(name, kernel_of(workload, name, target)) for name in names][:count]

    return candidates


@pytest.mark.parametrize(
    ("fate", "kept"),
    [
        (Outcome(refused="the output differs"), False),
        (Outcome(seconds=(1.1 * DEFAULT_S,) * 9, default_s=(DEFAULT_S,) * 9), False),
        (Outcome(seconds=(3 * DEFAULT_S,) * 3, default_s=(DEFAULT_S,) * 3), False),
        (Outcome(seconds=(0.999 * DEFAULT_S,) * 9, default_s=(DEFAULT_S,) * 9), True),
        (Outcome(lost=True), True),
    ],
)
def test_what_is_used_is_withdrawn_where_it_is_wrong_now_or_slower_than_the_default(
    path: Path, fate: Outcome, kept: bool
) -> None:
    """v0 wins; v1 seems faster still, and is not when it is measured again beside it."""
    met: Counter[str] = Counter()
    decided: list[str] = []

    def lucky(workload: Any, decision: str) -> float:
        met[decision] += 1
        return 0.8 if decision == "v0" else 0.5 if decision and met[decision] == 1 else 1.0

    def worn(trials: Any, *rest: Any, **options: Any) -> list[Outcome]:
        found = timer(lucky)(trials, *rest, **options)
        if [trial.decision for trial in trials] == ["v1", "v0"]:
            decided.extend(row.decision for row in store.contents(path).decisions)
            found[1] = fate
        return found

    found = tuned(path, tasks=TASKS[:1], try_them=worn, candidates_of=spaced("v0", "v1"))
    assert decided == ["v0"]
    (task,) = found.tasks
    assert task.decision == ("v0" if kept else None)
    assert len(store.contents(path).decisions) == kept
    assert kept or task.best_s == task.default_s
    (row,) = (row for row in store.contents(path).trials if row.decision == "v0")
    if fate.lost:
        assert row.seconds == pytest.approx(0.8 * DEFAULT_S)
    else:
        assert row.reason == fate.refused
        assert row.seconds == (None if fate.refused else pytest.approx(fate.seconds[0]))


def test_what_another_process_decided_meanwhile_stays(path: Path) -> None:
    other: list[store.Decision] = []

    def beside(trials: Any, *rest: Any, **options: Any) -> list[Outcome]:
        if len(trials) <= rounds.FINALISTS and trials[0].decision and not other:
            (task,) = TASKS[:1]
            schedule = f"{kernel_of(task.workload, '').schedule}@{task.home}"
            key = store.key_of(task.workload, schedule, HOST, store.tool_versions())
            code = rounds.Bench(target=HOST, cache_dir=path, threads=1, devices=(), try_them=timer())
            other.append(
                store.Decision(
                    key=key,
                    decision="mine",
                    code=code.code_of(kernel_of(task.workload, "mine")),
                    median_s=0.1 * DEFAULT_S,
                    default_s=DEFAULT_S,
                    measured_at=1.0,
                )
            )
            store.put(path, *other)
        return timer()(trials, *rest, **options)

    found = tuned(path, tasks=TASKS[:1], try_them=beside)
    assert store.contents(path).decisions == tuple(other)
    assert [task.decision for task in found.tasks] == ["mine"]


def test_a_decision_with_other_code_is_not_used_and_gives_way(path: Path) -> None:
    tuned(path, trials=ROUND, tasks=TASKS[:1])
    (first,) = store.contents(path).decisions
    store.put(path, replace(first, code="other", median_s=1e-9))
    stale = tuned(path, trials=ROUND, tasks=TASKS[:1])
    assert [task.decision for task in stale.tasks] == [None]
    found = tuned(path, tasks=TASKS[:1], candidates_of=spaced("x1", "x2"), try_them=timer(lambda *_: 0.7))
    assert [task.decision for task in found.tasks] == ["x1"]


def test_a_finalist_that_is_lost_is_as_if_it_had_not_been_tried(path: Path) -> None:
    lost: list[str] = []

    def flaky(trials: Any, *rest: Any, **options: Any) -> list[Outcome]:
        found = timer()(trials, *rest, **options)
        if trials[0].decision and 1 < len(trials) <= rounds.FINALISTS and not lost:
            lost.append(trials[0].decision)
            found[0] = Outcome(lost=True)
            assert lost[0] not in {row.decision for row in store.contents(path).trials}
        elif lost and len(lost) == 1:
            lost.append("")
            assert lost[0] not in {row.decision for row in store.contents(path).trials}
        return found

    found = tuned(path, tasks=TASKS[:1], try_them=flaky)
    assert len(lost) == 2
    assert [(task.decision, task.trials) for task in found.tasks] == [(BEST[TASKS[0].workload.key], SPACE)]


@pytest.mark.parametrize("devices", [("key",), ("local",)])
def test_without_a_device_in_the_finals_the_others_are_kept(path: Path, devices: tuple[str, ...]) -> None:
    seen: list[set[str]] = []

    def gone(trials: Any, *rest: Any, **options: Any) -> list[Outcome]:
        if trials[0].decision:
            seen.append({trial.decision for trial in trials})
        if len(seen) == 2:
            return [Outcome(lost=True)] * len(trials)
        return timer()(trials, *rest, **options)

    where = "no device of key answered" if devices == ("key",) else "no process on this machine lasted"
    with pytest.raises(HwqError, match=where) as caught:
        tuned(path, try_them=gone, devices=devices)
    assert caught.value.code == "device-lost"
    first, finals = seen
    assert finals < first
    assert {row.decision for row in store.contents(path).trials} == first - finals


def test_a_lost_trial_is_not_kept_and_tried_again(path: Path) -> None:
    lost: set[str] = set()

    def flaky(trials: Any, default: Any, step: Any, *rest: Any, **options: Any) -> list[Outcome]:
        found = timer()(trials, default, step, *rest, **options)
        if trials[0].decision and step.workload.key not in lost:
            lost.add(step.workload.key)
            found[0] = Outcome(lost=True)
        return found

    found = tuned(path, try_them=flaky)
    assert len(lost) == len(TASKS)
    assert {task.workload: task.decision for task in found.tasks} == BEST
    assert all(task.trials == SPACE for task in found.tasks)


def test_a_bound_of_the_median() -> None:
    """Of ten pairs at most one is above the median with a chance of 11 in 1024, and at most two with 56."""
    ones = (1.0,) * 10
    falling = tuple(float(n) for n in range(10, 0, -1))
    assert rounds.ratio_bound(falling, ones) == 9.0
    assert rounds.ratio_bound(falling, tuple(2.0 for _ in ones)) == 4.5
    assert rounds.ratio_bound(falling, ones, confidence=0.9) == 8.0
    assert rounds.ratio_bound(ones[:5], ones[:5]) == 1.0
    assert math.isinf(rounds.ratio_bound(ones[:4], ones[:4]))
