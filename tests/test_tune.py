"""Tuning with a timer whose figures are made up: who gets trials, what wins, what is kept, and where it goes on."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_trials import DEFAULT_S, HOST, SPACE, candidates_of, kernel_of, network_tasks, part, timer

from hwq import rounds, store
from hwq.errors import HwqError
from hwq.rounds import MARGIN
from hwq.store import Contents
from hwq.tasks import Task, joined
from hwq.trial import Outcome
from hwq.tune import ROUND, Standing, Tuned, tune

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


def without_times(contents: Contents) -> list[Any]:
    return [replace(row, measured_at=0.0) for row in contents.rows]


def test_the_best_of_each_space_takes_the_place_of_the_default(path: Path) -> None:
    found = tuned(path)
    decided = store.decisions(path, HOST, store.tool_versions())
    assert {key: row.decision for key, row in decided.items()} == BEST
    for task in found.tasks:
        expected = DEFAULT_S * min(
            part(one.workload, BEST[task.workload]) for one in TASKS if one.workload.key == task.workload
        )
        assert (task.trials, task.refused, task.decision) == (SPACE, 0, BEST[task.workload])
        assert task.default_s == DEFAULT_S
        assert task.best_s == pytest.approx(expected)
        row = decided[task.workload]
        assert (row.default_s, row.median_s) == (DEFAULT_S, pytest.approx(expected))
    assert found.standing.won_s == pytest.approx(sum(task.count * (DEFAULT_S - task.best_s) for task in found.tasks))
    assert found.standing.whole_s == pytest.approx(3 * DEFAULT_S)
    assert found.kept


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


def test_every_default_is_measured_before_the_first_candidate_and_once(path: Path) -> None:
    seen: Calls = []
    tuned(path, trials=10, try_them=timer(seen=seen))
    assert seen[: len(TASKS)] == [(task.workload.key, ("",)) for task in TASKS]
    tuned(path, trials=20, try_them=timer(seen=seen))
    assert sum("" in decisions for _, decisions in seen) == len(TASKS)


def test_trials_are_counted_over_all_calls(path: Path) -> None:
    assert tuned(path, trials=10).standing.trials == 10
    seen: Calls = []
    assert tuned(path, trials=10, try_them=timer(seen=seen)).standing.trials == 10
    assert seen == []
    assert tuned(path, trials=11).standing.trials == 11


def test_a_space_that_is_exhausted_ends_it(path: Path) -> None:
    assert tuned(path).standing.trials == SPACE * len(TASKS)


def test_the_task_that_can_save_more_gets_more_trials(path: Path) -> None:
    heavy = tuple(replace(task, weight=task.weight * (1 if n else 50)) for n, task in enumerate(TASKS))
    by_key = {task.workload: task.trials for task in tuned(path, trials=SPACE, tasks=heavy).tasks}
    assert by_key[heavy[0].workload.key] > 2 * by_key[heavy[1].workload.key]


def test_nothing_to_choose_about_is_no_task(path: Path) -> None:
    def but_one(workload: Any, *rest: Any) -> Any:
        return [] if workload == TASKS[0].workload else candidates_of(workload, *rest)

    seen: Calls = []
    found = tuned(path, candidates_of=but_one, try_them=timer(seen=seen))
    assert [task.workload for task in found.tasks] == [TASKS[1].workload.key]
    assert {workload for workload, _ in seen} == {TASKS[1].workload.key}


class Killed(BaseException):
    """Stands for kill -9."""


def test_killed_anywhere_it_repeats_no_more_than_its_round_and_ends_alike(path: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.sqlite"
    whole: Calls = []
    tuned(alone, trials=30, try_them=timer(seen=whole))
    for stop in range(1, len(whole)):
        before: Calls = []
        after: Calls = []

        def killed(*given: Any, before: Calls = before, stop: int = stop, **options: Any) -> list[Outcome]:
            if len(before) == stop:
                raise Killed
            return timer(seen=before)(*given, **options)

        with pytest.raises(Killed):
            tuned(path, trials=30, try_them=killed)
        tuned(path, trials=30, try_them=timer(seen=after))
        assert before == whole[:stop]
        assert after == whole[-len(after) :]
        assert len(before) + len(after) - len(whole) <= 1, "of a round of candidates and finals, the candidates"
        assert without_times(store.contents(path)) == without_times(store.contents(alone))
        path.unlink()


def test_another_seed_tries_in_another_order(path: Path, tmp_path: Path) -> None:
    seen: tuple[Calls, Calls] = ([], [])
    for seed in range(2):
        tuned(tmp_path / f"{seed}.sqlite", trials=8, seed=seed, try_them=timer(seen=seen[seed]))
    assert seen[0] != seen[1]


def test_what_is_refused_never_wins_and_is_not_tried_again(path: Path) -> None:
    def differs(workload: Any, decision: str) -> str | None:
        return "the output differs" if decision == BEST[workload.key] else None

    found = tuned(path, try_them=timer(refused=differs))
    for task in found.tasks:
        assert (task.trials, task.refused) == (SPACE, 1)
        assert task.decision not in (None, BEST[task.workload])
    refused = store.refusals(path, HOST, store.tool_versions())
    assert refused == {key: {name: "the output differs"} for key, name in BEST.items()}


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
    assert store.decisions(path, HOST, store.tool_versions()) == {first.key.workload: first}


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


def test_without_a_device_it_ends_and_keeps_what_there_is(path: Path) -> None:
    def gone(trials: Any, *rest: Any, **options: Any) -> list[Outcome]:
        if len(store.contents(path).trials) >= ROUND:
            return [Outcome(lost=True)] * len(trials)
        return timer()(trials, *rest, **options)

    with pytest.raises(HwqError, match="no device of key answered") as caught:
        tuned(path, try_them=gone, devices=("key",))
    assert caught.value.code == "device-lost"
    assert len(store.contents(path).trials) == ROUND


def test_a_default_that_is_wrong_is_left_alone(path: Path) -> None:
    def wrong(trials: Any, default: Any, step: Any, *rest: Any, **options: Any) -> list[Outcome]:
        if step.workload == TASKS[0].workload:
            raise HwqError("kernel-differs", "the default differs")
        return timer()(trials, default, step, *rest, **options)

    found = tuned(path, try_them=wrong)
    assert found.idle == {TASKS[0].step.name: "the default differs"}
    assert [task.workload for task in found.tasks] == [TASKS[1].workload.key]


def test_times_of_an_emulated_device_are_not_kept(path: Path) -> None:
    emulated = replace(HOST, cpu_model="emulated cortex-a72")
    found = tune(TASKS, emulated, path.parent, path, trials=16, try_them=timer(), candidates_of=candidates_of)
    assert (found.kept, found.standing.trials) == (False, 16)
    assert not path.exists()


def test_an_end_by_the_clock(path: Path) -> None:
    found = tuned(path, trials=None, until=time.monotonic())
    assert (found.standing.trials, found.tasks) == (0, ())
    found = tuned(path, trials=None, until=time.monotonic() + 3600)
    assert found.standing.trials == SPACE * len(TASKS), "the space ends first"


def test_progress_is_told(path: Path) -> None:
    told: list[Standing] = []
    tuned(path, trials=24, tell=told.append)
    assert [one.measured for one in told[: len(TASKS)]] == [1, 2]
    assert [one.trials for one in told[len(TASKS) :]] == [0, 8, 16, 24]
    assert all(one.tasks == len(TASKS) and one.total == 24 for one in told)
    assert told[-1].left_s == 0
    assert told[-2].left_s is not None
    won = [one.won_s for one in told]
    assert won == sorted(won)
    assert won[-1] > 0


def test_a_bound_of_the_median() -> None:
    """Of ten pairs at most one is above the median with a chance of 11 in 1024, and at most two with 56."""
    ones = (1.0,) * 10
    falling = tuple(float(n) for n in range(10, 0, -1))
    assert rounds.ratio_bound(falling, ones) == 9.0
    assert rounds.ratio_bound(falling, tuple(2.0 for _ in ones)) == 4.5
    assert rounds.ratio_bound(falling, ones, confidence=0.9) == 8.0
    assert rounds.ratio_bound(ones[:5], ones[:5]) == 1.0
    assert math.isinf(rounds.ratio_bound(ones[:4], ones[:4]))


def test_kernels_of_several_networks_are_joined() -> None:
    twice = joined([*TASKS, *(replace(task, weight=3 * task.weight, home="memory") for task in TASKS)])
    assert [task.workload.key for task in twice] == sorted(task.workload.key for task in TASKS)
    for one, other in zip(twice, TASKS, strict=True):
        assert (one.count, one.weight, one.home) == (2 * other.count, 4 * other.weight, "memory")
    assert sorted(task.count for task in TASKS) == [1, 2]
