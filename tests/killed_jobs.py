"""A tuning job in a process of its own, its timer made up, that tells each call of it, so that a test can kill it.

    python tests/killed_jobs.py JOB.toml

Lines are "try" with [workload, decisions] as JSON, before the call; the last one is "done".
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
Call = tuple[str, list[str]]


def ran(job: Path, env: dict[str, str], kill_at: int | None = None, delay_s: float = 0.0) -> list[Call]:
    """The calls of one process; ``delay_s`` after line number ``kill_at`` it is killed."""
    started = subprocess.Popen(
        [sys.executable, str(HERE), str(job)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
        start_new_session=True,
    )
    assert started.stdout is not None
    calls: list[Call] = []
    done = False
    for number, line in enumerate(started.stdout, 1):
        if line == "done\n":
            done = True
        elif line.endswith("\n"):
            workload, decisions = json.loads(line.removeprefix("try "))
            calls.append((workload, decisions))
        if number == kill_at:
            time.sleep(delay_s)
            os.killpg(started.pid, signal.SIGKILL)
    assert (started.wait(), done) in ((0, True), (-signal.SIGKILL, False), (-signal.SIGKILL, True))
    return calls


def digest(workload: str) -> str:
    """A short name for a workload's key."""
    return hashlib.sha256(workload.encode()).hexdigest()[:16]


def main() -> None:
    """Do the job."""
    from made_up_trials import timer

    from hwq.job import run_job
    from hwq.job_file import read_job

    made_up, chance = timer(), random.Random(0)

    def told(trials: Any, default: Any, step: Any, *rest: Any, **options: Any) -> Any:
        print("try", json.dumps([digest(step.workload.key), [trial.decision for trial in trials]]), flush=True)
        time.sleep(chance.random() * 0.02)
        return made_up(trials, default, step, *rest, **options)

    run_job(read_job(Path(sys.argv[1])), try_them=told)
    print("done", flush=True)


if __name__ == "__main__":
    main()
