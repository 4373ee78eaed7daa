"""Tuning with a timer whose figures are made up: who gets trials, what wins, what is kept, and where it goes on."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_trials import DEFAULT_S, HOST, SPACE, candidates_of, kernel_of, network_tasks, part, timer

from hwq import rounds, store
from hwq.errors import HwqError
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
    decided = {key.workload: row for key, row in store.decisions(path, HOST, store.tool_versions()).items()}
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
    refused = {row.key.workload: (row.decision, row.reason) for row in store.contents(path).trials if row.reason}
    assert refused == {key: (name, "the output differs") for key, name in BEST.items()}


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


@pytest.mark.parametrize(("code", "known"), [("kernel-differs", True), ("kernel-failed", False)])
def test_a_default_that_is_wrong_later_is_left_alone_too(path: Path, code: str, known: bool) -> None:
    """As one whose record is of an earlier call. What may have been bad luck is tried again by the next call."""
    met: Counter[str] = Counter()

    def wrong(trials: Any, default: Any, step: Any, *rest: Any, **options: Any) -> list[Outcome]:
        met[step.workload.key] += 1
        if step.workload == TASKS[0].workload and met[step.workload.key] > 1:
            raise HwqError(code, "the default is wrong")
        return timer()(trials, default, step, *rest, **options)

    for calls in (2, 2 if known else 3):
        found = tuned(path, try_them=wrong)
        assert found.idle == {TASKS[0].step.name: "the default is wrong"}
        assert [(task.workload, task.trials) for task in found.tasks] == [(TASKS[1].workload.key, SPACE)]
        assert met[TASKS[0].workload.key] == calls


def test_what_is_wrong_with_a_default_holds_for_its_code(path: Path) -> None:
    def wrong(trials: Any, default: Any, step: Any, *rest: Any, **options: Any) -> list[Outcome]:
        raise HwqError("kernel-differs", "the default differs")

    assert tuned(path, try_them=wrong).tasks == ()
    assert len(tuned(path).idle) == len(TASKS)
    rows = store.contents(path).trials
    store.put(path, *(replace(row, code="of another default") for row in rows))
    found = tuned(path)
    assert not found.idle
    assert [task.trials for task in found.tasks] == [SPACE] * len(TASKS)


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


def test_a_kernel_is_tuned_for_each_place_that_its_weights_are_in(path: Path) -> None:
    """With the other half of them in memory, where another candidate wins."""
    tasks = joined([*TASKS, *(replace(task, home="memory") for task in TASKS)])

    def by_home(
        trials: Any, default: Any, step: Any, program: Any, target: Any, cache: Any, home: str, *_: Any, **__: Any
    ):
        workload = step.workload if home == "l2" else replace(step.workload, parallel=7)
        return timer()(trials, default, SimpleNamespace(workload=workload))

    found = tuned(path, tasks=tasks, try_them=by_home)
    assert [task.trials for task in found.tasks] == [SPACE] * 4
    decided = {row.key: row.decision for row in store.contents(path).decisions}
    for task in TASKS:
        far = min((f"v{n}" for n in range(SPACE)), key=lambda name: part(replace(task.workload, parallel=7), name))
        homes = {key.schedule.split("@")[1]: text for key, text in decided.items() if key.workload == task.workload.key}
        assert homes == {"l2": BEST[task.workload.key], "memory": far}
        assert far != BEST[task.workload.key]
