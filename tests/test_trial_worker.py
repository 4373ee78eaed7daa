"""What a worker does, without one: builds, checks, sets of weights, and when it has seen enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anchor_runs import anchor
from trial_runs import case, idle, named, sleepy

from hwq import device, trial_worker
from hwq.compile_kernel import compile_object, link
from hwq.target import Target
from hwq.trial_data import kernel_content, task_content
from hwq.trial_worker import TURNS, Bench, attempt
from hwq.workload import Kernel

HOST = Target.load("host")
FAR = replace(HOST, l2_bytes=100_000, l3_bytes=400_000)


def content(default: Kernel, candidate: Kernel, folder: Path, **options: Any) -> dict[str, Any]:
    """A job to try ``candidate``; its kernels are built."""
    step, program, _ = options.get("case") or case(HOST)
    rows = []
    for kernel in (default, candidate):
        library = folder / f"{kernel.symbol}.so"
        link(library, [compile_object(kernel, HOST, folder)])
        rows.append(kernel_content(kernel, step, library, folder))
    return {
        "name": str(folder),
        "task": task_content(step, program, options.get("target", HOST), options.get("home", "l2"), folder),
        "default": rows[0],
        "candidate": rows[1],
        "threads": 1,
        "needs_s": 1.0,
    }


def tried(job: dict[str, Any], bench: Bench | None = None) -> tuple[dict[str, Any], list[str]]:
    told: list[str] = []
    return attempt(bench or Bench(device=device.local()), job, told.append), told


def test_a_candidate_is_tried_beside_the_default(tmp_path: Path) -> None:
    _, _, default = case(HOST)
    answer, told = tried(content(default, named(default, "other"), tmp_path))
    assert told == ["default", "candidate"]
    assert sorted(answer) == ["default_s", "seconds"]
    assert len(answer["seconds"]) == len(answer["default_s"])
    assert 3 <= len(answer["seconds"]) <= TURNS[1]
    assert all(1e-8 < second < 1 for second in (*answer["seconds"], *answer["default_s"]))


@pytest.mark.parametrize("at", ["default", "candidate"])
def test_one_that_differs_is_said_with_the_number_of_elements(at: str, tmp_path: Path) -> None:
    _, _, default = case(HOST)
    pair = {"default": default, "candidate": named(default, "other")} | {at: idle(default)}
    answer, _ = tried(content(pair["default"], pair["candidate"], tmp_path))
    said = {"default": "default", "candidate": "refused"}[at]
    assert answer == {said: "differs: 1152 of 1152 elements"}


def test_the_default_is_loaded_once_a_task(tmp_path: Path) -> None:
    _, _, default = case(HOST)
    bench = Bench(device=device.local())
    tried(content(default, named(default, "one"), tmp_path), bench)
    before, tensors = bench.default, len(bench.tensors)
    tried(content(default, named(default, "two"), tmp_path), bench)
    assert bench.default is before
    assert len(bench.tensors) == tensors


@pytest.mark.parametrize(("home", "least_bytes"), [("l2", 0), ("l3", 400_000), ("memory", 800_000)])
def test_weights_from_afar_are_as_many_as_that_takes(
    home: str, least_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_worker, "ROUND_S", 60.0)
    one = case(HOST, anchor("dense", "w8a8", (1, 256), 256))
    bench = Bench(device=device.local())
    calls: list[Any] = []
    timed = trial_worker._figure_s
    monkeypatch.setattr(trial_worker, "_figure_s", lambda where, call: (calls.append(call), timed(where, call))[1])
    job = content(one[2], named(one[2], "other"), tmp_path, case=one, home=home, target=FAR)
    assert "seconds" in tried(job, bench)[0]
    counts = {len(call.turns) for call in calls}
    assert len(counts) == 1, "the candidate has as many as the default"
    (count,) = counts
    weights = {id(turn[1]) for turn in calls[0].turns}
    assert len(weights) == count
    assert count == 1 if home == "l2" else count * 256 * 256 >= 0.9 * least_bytes


def test_one_that_is_no_use_is_not_timed_to_the_end(tmp_path: Path) -> None:
    _, _, default = case(HOST)
    answer, _ = tried(content(default, sleepy(default, 0.05), tmp_path))
    assert len(answer["seconds"]) == len(answer["default_s"]) == 3
    assert min(answer["seconds"]) > 0.05 > np.median(answer["default_s"])


def test_one_that_seems_faster_is_timed_longer(tmp_path: Path) -> None:
    _, _, default = case(HOST)
    answer, _ = tried(content(sleepy(default, 0.005), default, tmp_path))
    assert len(answer["seconds"]) == TURNS[1]


def test_a_session_that_is_about_to_end_takes_no_trial(tmp_path: Path) -> None:
    _, _, default = case(HOST)
    answer, told = tried(content(default, default, tmp_path), Bench(device=device.local(), until=0.0, task="other"))
    assert answer["again"]
    assert answer["over"]
    assert told == []
    answer, _ = tried(content(default, default, tmp_path), Bench(device=device.local(), until=0.0))
    assert "seconds" in answer, "a session that has just begun takes one in any case"
