"""A tuning job on two emulated ARM boards under one key, one of which is killed in the middle of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from anchor_runs import anchor
from boards import serving
from trial_runs import case

from hwq import store
from hwq.cache import default_cache_dir
from hwq.device import resolved
from hwq.target import Target
from hwq.tasks import tasks_of
from hwq.tune import Standing, tune

TRIALS = 16


@pytest.fixture(scope="module")
def boards(board_root: Path, tracker: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The name of two boards of one key, and what serves one of them."""
    with serving(board_root, tracker, "pair"), serving(board_root, tracker, "pair") as second:
        yield f"pair@{tracker}", second


@pytest.mark.slow
def test_a_job_goes_on_when_a_board_of_its_key_dies(
    boards: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    name, server = boards
    target = resolved(Target.load("arm-cortex-a76").on(name))
    assert target.emulated
    _, program, _ = case(target, anchor("conv2d", "w8a8", (1, 6, 6, 16), 32))
    workers = set(psutil.Process().children(recursive=True))
    seen: list[int] = []

    def tell(standing: Standing) -> None:
        seen.append(standing.trials)
        if 0 < standing.trials < TRIALS and server.poll() is None:
            os.kill(server.pid, signal.SIGKILL)
            server.wait()

    tuned = tune(
        tasks_of(program, target),
        target,
        default_cache_dir(),
        tmp_path / "records.sqlite",
        trials=TRIALS,
        devices=[name],
        tell=tell,
    )
    assert server.poll() is not None
    assert seen[-1] == tuned.standing.trials == TRIALS
    (task,) = tuned.tasks
    assert (task.trials, task.refused) == (TRIALS, 0), "every one was right, and timed"
    assert tuned.idle == {}
    assert not tuned.kept
    assert store.everything(tmp_path / "records.sqlite") == (), "times of an emulator are not kept"
    # Boards stand below this process too, and what one runs a session in ends a moment after the session.
    left = set(psutil.Process().children(recursive=True)) - workers
    assert psutil.wait_procs(left, timeout=10)[1] == []
