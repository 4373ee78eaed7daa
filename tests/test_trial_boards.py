"""Trials on boards, several under one key: what becomes of one costs the job nothing. All are this machine, served."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
from boards import START_S, running
from trial_runs import case, idle, illegal, named

from hwq import board_server, device
from hwq import trial as trials
from hwq.cache import default_cache_dir
from hwq.errors import HwqError
from hwq.target import Target
from hwq.trial import Outcome, open_crew, run_trials
from hwq.workload import Kernel

Served = subprocess.Popen[bytes]


@contextlib.contextmanager
def serving(tracker: str, key: str, count: int) -> Iterator[tuple[Target, list[Served]]]:
    """This machine as a target that is reached as so many boards of one key, and what serves them."""
    command = [sys.executable, board_server.__file__, "--key", key, "--tracker", tracker, "--host", "127.0.0.1"]
    target = Target.load("host").on(f"{key}@{tracker}")
    with contextlib.ExitStack() as ends:
        servers = [ends.enter_context(running(command)) for _ in range(count)]
        until = time.monotonic() + START_S
        while device.count(target.device) < count:
            assert time.monotonic() < until, "the boards did not come"
            time.sleep(0.1)
        try:
            yield target, servers
        finally:
            for process in [process for server in servers for process in whole(server)]:
                process.resume()


def whole(server: Served) -> list[psutil.Process]:
    """The processes of a board."""
    if server.poll() is not None:
        return []
    process = psutil.Process(server.pid)
    return [process, *process.children(recursive=True)]


def outcomes(target: Target, change: Callable[[Kernel], list[Kernel]], **options: Any) -> list[Outcome]:
    step, program, default = case(target)
    found = [trials.Trial(decision=str(number), kernel=kernel) for number, kernel in enumerate(change(default))]
    given: dict[str, Any] = {"home": "l2", "threads": 1, "timeout_s": 20.0, **options}
    return run_trials(found, default, step, program, target, default_cache_dir(), **given)


def many(kernel: Kernel) -> list[Kernel]:
    return [named(kernel, f"copy{number}") for number in range(6)]


def stop(server: Served) -> None:
    """From now on it is there, and does not answer."""
    for process in whole(server):
        process.suspend()


@pytest.mark.slow
def test_boards_that_die_or_never_answer_cost_the_job_nothing(tracker: str) -> None:
    """Of three one accepts sessions and does not answer, one is killed in mid-job: the third does their work."""
    killed: list[int] = []
    with serving(tracker, "three", 3) as (target, (dies, silent, _)):
        stop(silent)

        def progress(done: int, total: int) -> None:
            if done == 2 and not killed:
                killed.append(done)
                os.kill(dies.pid, signal.SIGKILL)

        began = time.monotonic()
        found = outcomes(target, many, progress=progress)
        took_s = time.monotonic() - began
    assert killed
    assert all(outcome.seconds and not outcome.lost and outcome.refused is None for outcome in found), found
    assert took_s < trials.WAIT_S / 2, "the others did not wait for them"


@pytest.mark.slow
def test_wrong_candidates_are_refused_and_the_session_is_kept(tracker: str) -> None:
    """One that ends the session twice is refused too; the board serves on."""
    with serving(tracker, "one", 1) as (target, _), open_crew(target, builders=1) as crew:

        def sessions() -> list[int]:
            return [seat.process.pid for seat in crew.seats if seat.kind == "try" and seat.process is not None]

        assert all(outcome.seconds for outcome in outcomes(target, lambda default: [default], crew=crew))
        before = sessions()
        assert all(outcome.seconds for outcome in outcomes(target, lambda default: [default], crew=crew))
        assert sessions() == before
        found = outcomes(target, lambda default: [illegal(default), idle(default), named(default, "last")], crew=crew)
    assert [outcome.refused for outcome in found] == [
        "crashed: the board ended the session",
        "differs: 1152 of 1152 elements",
        None,
    ]
    assert found[2].seconds


@pytest.mark.slow
def test_when_the_last_board_goes_what_is_known_is_given(tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stops to answer in the middle of a trial, then the other is killed."""
    monkeypatch.setattr(trials, "CONNECT_S", 2.0)
    with serving(tracker, "two", 2) as (target, (first, second)):

        def progress(done: int, total: int) -> None:
            if done == 1:
                stop(first)
            if done == 3:
                os.kill(second.pid, signal.SIGKILL)

        found = outcomes(target, many, progress=progress, timeout_s=3.0, wait_s=1.0)
    assert 3 <= sum(bool(outcome.seconds) for outcome in found) < len(found)
    assert all(outcome.lost for outcome in found if not outcome.seconds)
    assert not any(outcome.refused for outcome in found)


def test_a_board_of_another_model_gets_no_work(near_name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, however often it is asked."""
    target = replace(Target.load("host").on(near_name), cpu_model="another")
    with pytest.raises(HwqError, match="and what is measured is 'another'") as caught:
        outcomes(target, lambda default: [default], wait_s=6.0)
    assert caught.value.code == "device-lost"
    said = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(said) == 1
    assert near_name in said[0]


def test_no_board_at_all_is_said(tracker: str) -> None:
    target = Target.load("host").on(f"none@{tracker}")
    with pytest.raises(HwqError, match="no board 'none'") as caught:
        outcomes(target, lambda default: [default], wait_s=0.1)
    assert caught.value.code == "device-lost"
