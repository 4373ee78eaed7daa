"""Crews: what a worker does costs its one job; others go on; nobody stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hwq import crew as crews
from hwq.crew import START, Crew, Ended, Job, NobodyTakesIt, Seat, crew_of, work_off

TESTS = Path(__file__).parent
KINDS = ("toy", "first", "second", "other")


@pytest.fixture(autouse=True)
def _nobody_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers find the toy; afterwards this process has no child, not even a dead one."""
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{TESTS.parent}")
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


def seat(kind: str = "toy", **hello: Any) -> Seat:
    return Seat(kind=kind, module="toy_worker", hello=hello)


def job(label: Any, *steps: Any, kind: str = "toy", limit_s: float = 60.0, fresh: bool = False, **content: Any) -> Job:
    limits = {START: 60.0, "work": limit_s}
    return Job(kind=kind, content={"steps": ["work", *steps], **content}, limits_s=limits, label=label, fresh=fresh)


def done(crew: Crew, *jobs: Job, patience_s: float = 60.0) -> dict[Any, Ended]:
    return {each.label: ended for each, ended in work_off(crew, deque(jobs), dict.fromkeys(KINDS, patience_s))}


def test_all_jobs_are_answered_by_as_many_workers_as_there_are_seats(tmp_path: Path) -> None:
    with crew_of([seat(), seat()], tmp_path) as crew:
        found = done(crew, *(job(number, 0.05, "long") for number in range(10)))
        pids = {ended.answer["pid"] for ended in found.values() if ended.answer is not None}
        assert sorted(found) == list(range(10))
        assert len(pids) == 2
        assert sum(ended.first for ended in found.values()) == 2
        later = done(crew, job("later"))["later"]
        assert later.answer is not None
        assert later.answer["pid"] in pids, "they stay for the next call"
        assert list(tmp_path.iterdir()) == [], "what was handed over is removed"


def test_temporary_files_of_a_killed_worker_are_in_the_crew_s_folder(tmp_path: Path) -> None:
    with crew_of([seat()], tmp_path) as crew:
        done(crew, job("killed", "temporary"))
        assert [path.is_dir() for path in tmp_path.iterdir()] == [True]


def test_one_job_starts_one_worker(tmp_path: Path) -> None:
    with crew_of([seat(), seat(), seat()], tmp_path) as crew:
        done(crew, job("only"))
        assert sum(each.process is not None for each in crew.seats) == 1


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGKILL])
def test_a_crash_costs_one_job_and_names_the_signal(number: int, tmp_path: Path) -> None:
    with crew_of([seat()], tmp_path) as crew:
        found = done(crew, job("before"), job("bad", int(number)), job("after"))
    bad = found["bad"]
    assert (bad.answer, bad.signal, bad.stage, bad.first) == (None, number, "work", False)
    assert bad.reason == f"crashed: {signal.Signals(number).name}"
    assert found["before"].answer is not None
    assert found["after"].answer is not None
    assert found["after"].first


def test_a_hang_costs_one_job_and_its_time(tmp_path: Path) -> None:
    began = time.monotonic()
    with crew_of([seat(), seat()], tmp_path) as crew:
        found = done(crew, job("bad", "hang", limit_s=0.3), *(job(number) for number in range(4)))
    assert found["bad"].reason == "took too long in the stage 'work'"
    assert all(found[number].answer is not None for number in range(4))
    assert time.monotonic() - began < 30


def test_each_stage_has_its_own_time(tmp_path: Path) -> None:
    with crew_of([seat()], tmp_path) as crew:
        found = done(crew, job("slow", 0.3, "work", 0.3, "work", 0.3, limit_s=0.7))
    assert found["slow"].answer is not None


def test_what_a_worker_started_goes_with_it(tmp_path: Path) -> None:
    """A linker, say, that would hold the worker's output open."""
    pid = tmp_path / "pid"
    with crew_of([seat()], tmp_path) as crew:
        found = done(crew, job("bad", "child", "hang", limit_s=1.0, pid=str(pid)))
    assert found["bad"].answer is None
    until = time.monotonic() + 10
    while not gone(int(pid.read_text())):
        assert time.monotonic() < until


def gone(pid: int) -> bool:
    """Whether it is dead; init, which it was given to, may be slow to bury it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_fresh_job_gets_a_worker_that_had_none(tmp_path: Path) -> None:
    with crew_of([seat()], tmp_path) as crew:
        found = done(crew, job(1), job(2, fresh=True), job(3))
    pids = [found[number].answer["pid"] for number in (1, 2, 3)]  # type: ignore[index]
    assert pids[0] != pids[1] == pids[2]
    assert [found[number].first for number in (1, 2, 3)] == [True, True, False]


def test_a_worker_that_says_it_is_over_is_replaced(tmp_path: Path) -> None:
    with crew_of([seat()], tmp_path) as crew:
        found = done(crew, job(1, answer={"over": True}), job(2))
    assert found[2].first


def test_jobs_may_be_added_while_others_end(tmp_path: Path) -> None:
    todo, seen = deque([job(0, kind="first")]), []
    with crew_of([seat("first"), seat("second")], tmp_path) as crew:
        for each, ended in work_off(crew, todo, dict.fromkeys(KINDS, 60.0)):
            seen.append((each.kind, each.label, ended.answer is not None))
            if each.kind == "first":
                todo.append(job(1, kind="second"))
    assert seen == [("first", 0, True), ("second", 1, True)]


def test_a_seat_that_is_not_greeted_leaves_the_work_to_others(tmp_path: Path) -> None:
    """As a board that is gone."""
    gone = seat(answer={"error": "no board"})
    with crew_of([gone, seat()], tmp_path) as crew:
        found = done(crew, *(job(number, 0.2) for number in range(5)))
    assert all(ended.answer is not None for ended in found.values())
    assert gone.said == "no board"


@pytest.mark.parametrize("hello", [{"answer": {"error": "no board"}}, {"steps": [int(signal.SIGABRT)]}])
def test_nobody_who_takes_a_job_is_said(hello: dict[str, Any], tmp_path: Path) -> None:
    todo = deque([job("never"), job("done", kind="other")])
    with (
        crew_of([seat(**hello), seat("other")], tmp_path) as crew,
        pytest.raises(NobodyTakesIt, match=r"no board|SIGABRT") as caught,
    ):
        list(work_off(crew, todo, {"toy": 1.0, "other": 60.0}))
    assert caught.value.kind == "toy"
    assert [each.label for each in todo] == ["never"]


def test_a_greeting_that_never_ends_keeps_no_one_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job, and the seat that is started for it hears nothing from its board: another is started."""
    monkeypatch.setattr(crews, "_SLOW_S", 0.5)
    with crew_of([seat(steps=["hang"]), seat()], tmp_path) as crew:
        assert done(crew, job("only"))["only"].answer is not None


def test_an_idle_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    with crew_of([seat()], tmp_path) as crew:
        first = done(crew, job(1))[1]
        assert first.answer is not None
        os.kill(first.answer["pid"], signal.SIGKILL)
        psutil.wait_procs([psutil.Process(first.answer["pid"])], timeout=0.5)
        ended = done(crew, job(2, 0.1))
        while ended[2].answer is None:  # it was handed over before the death was heard of
            assert ended[2].stage == START
            ended = done(crew, job(2, 0.1))
        assert ended[2].answer["pid"] != first.answer["pid"]


def test_leaving_early_ends_the_busy(tmp_path: Path) -> None:
    with crew_of([seat(), seat()], tmp_path) as crew:
        work = work_off(crew, deque([job("quick", 1.0), job("bad", "hang")]), {"toy": 60.0})
        assert next(work)[0].label == "quick"
        work.close()  # type: ignore[attr-defined]
        assert sum(each.process is not None for each in crew.seats) == 1


SCRIPT = """
import sys
from collections import deque
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_crew import crew_of, job, seat, work_off
with crew_of([seat(), seat()], Path(sys.argv[2])) as crew:
    for each, ended in work_off(crew, deque([job(1), job(2), job(3, "hang"), job(4, "hang")]), {"toy": 60.0}):
        print(ended.answer["pid"], flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_caller(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(TESTS), str(tmp_path)]
    caller = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert caller.stdout is not None
    pids = {int(caller.stdout.readline()), int(caller.stdout.readline())}
    workers = psutil.Process(caller.pid).children(recursive=True)
    assert pids <= {worker.pid for worker in workers}
    time.sleep(0.3)  # they hang
    caller.send_signal(number)
    assert caller.wait(timeout=10) != 0
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    caller.stdout.close()
