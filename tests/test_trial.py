"""Trials on this machine: what a candidate does costs itself alone, and only what is right and fast comes back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from anchor_runs import anchor
from trial_runs import case, endless, idle, illegal, named, other_weights, trial, unselectable

from hwq import trial as trials
from hwq.cache import default_cache_dir
from hwq.crew import Crew
from hwq.errors import HwqError
from hwq.target import Target
from hwq.trial import Outcome, open_crew, run_trials
from hwq.workload import Kernel

TESTS = Path(__file__).parent
HOST = Target.load("host")


@pytest.fixture(scope="module", autouse=True)
def _nobody_stays() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """One for all tests here: two builders whose compiler has faults, and this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{TESTS.parent}")
        patch.setenv("TRIAL_FLAG", str(tmp_path_factory.mktemp("flag") / "flag"))
        patch.setattr(trials, "_WORKER", "trial_runs")
        with open_crew(HOST, builders=2) as crew:
            yield crew


def outcomes(crew: Crew, kernels: Sequence[Kernel], **options: Any) -> list[Outcome]:
    step, program, default = options.pop("case", None) or case(HOST)
    found = [trial(kernel) for kernel in kernels]
    given: dict[str, Any] = {"home": "l2", "threads": 1, "crew": crew, **options}
    return run_trials(found, default, step, program, HOST, default_cache_dir(), **given)


def test_a_kernel_beside_itself_takes_as_long(crew: Crew) -> None:
    """Half to twice, by the least figure; of three attempts, as the machine may be busy with other things."""
    seen: list[tuple[int, int]] = []
    _, _, default = case(HOST)
    kernels, ratios = [default, named(default, "again")], []
    for _ in range(3):
        seen.clear()
        found = outcomes(crew, kernels, progress=lambda *at: seen.append(at))
        for outcome in found:
            assert (outcome.refused, outcome.lost) == (None, False)
            assert 3 <= len(outcome.seconds) == len(outcome.default_s)
            assert 1e-8 < min(outcome.seconds) < 0.1
        assert seen == sorted(seen)
        assert (seen[0], seen[-1]) == ((0, 2), (2, 2))
        ratios = [min(outcome.seconds) / min(outcome.default_s) for outcome in found]
        if all(0.5 < ratio < 2 for ratio in ratios):
            return
    pytest.fail(f"the ratios of a kernel to itself are {ratios}")


@pytest.mark.parametrize("scheme", ["f32", "w4a8"])
def test_every_scheme_is_held_to_its_reference(crew: Crew, scheme: str) -> None:
    one = case(HOST, anchor("conv2d", scheme, (1, 6, 6, 16), 32, kernel=(3, 3), padding=(1, 1, 1, 1)))
    good, bad = outcomes(crew, [one[2], other_weights(one[2])], case=one)
    assert good.refused is None
    assert str(bad.refused).startswith("differs: ")


def test_wrong_candidates_are_refused_and_the_others_go_on(crew: Crew) -> None:
    _, _, default = case(HOST)
    bad = [idle(default), illegal(default), endless(default)]
    found = outcomes(crew, [*bad, default], timeout_s=1.5)
    assert [outcome.refused for outcome in found] == [
        "differs: 1152 of 1152 elements",
        "crashed: SIGILL",
        "took too long in the stage 'candidate'",
        None,
    ]
    assert found[3].seconds
    assert not any(outcome.lost or (outcome.refused and outcome.seconds) for outcome in found)


def test_builds_that_fail_are_refused_and_the_others_go_on(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "BUILD_S", 2.0)
    _, _, default = case(HOST)
    words = ("hangs", "hogs", "unlucky", "late", "fine")
    lacks = replace(named(default, "lacks"), instruction="amx.none")
    kernels = [*(named(default, word) for word in words), lacks, unselectable(default)]
    found = dict(zip((*words, "lacks", "crashes"), outcomes(crew, kernels), strict=True))
    assert str(found["crashes"].refused).startswith("crashed: SIGABRT (LLVM ERROR: Cannot select")
    assert found["hangs"].refused == "took too long in the stage 'build'"
    assert found["hogs"].refused == "out of memory"
    assert str(found["lacks"].refused).startswith("instruction-missing: ")
    assert found["unlucky"].seconds, "a worker that something else killed is no fault of what it built"
    assert found["late"].seconds, "what takes too long once may have been held up"
    assert found["fine"].seconds


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (idle, "kernel-differs", "differs: 1152 of 1152"),
        (lambda kernel: replace(kernel, instruction="amx.none"), "compile-failed", "amx.none"),
    ],
)
def test_a_default_that_is_wrong_is_an_error(crew: Crew, spoil: Any, code: str, said: str) -> None:
    step, program, default = case(HOST)
    with pytest.raises(HwqError, match=said) as caught:
        outcomes(crew, [default], case=(step, program, spoil(default)))
    assert caught.value.code == code


def test_a_default_that_crashes_is_an_error(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "FREE_TURNS", 1)
    step, program, default = case(HOST)
    with pytest.raises(HwqError, match="SIGILL") as caught:
        outcomes(crew, [default], case=(step, program, illegal(default)))
    assert caught.value.code == "kernel-failed"


def test_workers_that_do_not_start_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_WORKER", "hwq.no_such_module")
    monkeypatch.setattr(trials, "START_S", 0.5)
    _, _, default = case(HOST)
    began = time.monotonic()
    with open_crew(HOST, builders=1) as crew, pytest.raises(HwqError, match="no_such_module") as caught:
        outcomes(crew, [default])
    assert caught.value.code == "worker-failed"
    assert time.monotonic() - began < 20


def test_what_an_interrupt_finds_it_ends(crew: Crew) -> None:
    """The caller's own progress raises as Ctrl-C does; the crew works on afterwards."""
    _, _, default = case(HOST)

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outcomes(crew, [idle(default), endless(default)], progress=stop)
    assert all(seat.job is None for seat in crew.seats)
    assert outcomes(crew, [default])[0].seconds
