"""kill -9 in the middle of a tuning job, at random moments: nothing that was stored is lost, doubled or tried again,
and the job ends where one left alone ends."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from killed_jobs import digest, ran
from shell_runs import DEMO

from hwq.store import Contents, contents

pytestmark = pytest.mark.slow

KILLS = 20 if os.environ.get("HWQ_FULL", "") not in ("", "0") else 6
TRIALS = 10 * KILLS
JOB = f"""
trials = {TRIALS}
seed = 3
[[model]]
path = "{DEMO}"
schemes = ["w8a8"]
[[target]]
name = "host"
threads = 1
"""


def without_times(rows: Iterable[Any]) -> list[Any]:
    return [replace(row, measured_at=0.0) for row in rows]


def test_a_job_killed_at_any_moment_ends_like_one_left_alone(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(JOB)
    calls = ran(job, {"HWQ_CACHE": str(tmp_path / "other")})
    alone = contents(tmp_path / "other" / "records.sqlite")
    assert len(alone.trials) == TRIALS
    assert alone.decisions
    env, store = {"HWQ_CACHE": str(tmp_path / "cache")}, tmp_path / "cache" / "records.sqlite"
    rng, most = random.Random(5), max(2, 2 * len(calls) // KILLS)
    before = Contents()
    moments = [(rng.randint(1, most), rng.random() * 0.05) for _ in range(KILLS)]
    for kill_at, delay_s in [*moments, (None, 0.0)]:
        known = {(digest(row.key.workload), row.decision) for row in before.trials}
        for workload, decisions in ran(job, env, kill_at, delay_s):
            again = [decision for decision in decisions if (workload, decision) in known]
            assert len(again) < len(decisions), "nothing new in it"
            assert len(again) <= 1, "only what is used is measured again, beside what may take its place"
        found = contents(store)
        assert set(before.records) <= set(found.records)
        # What is used may have been measured again since, with the same figures.
        assert set(without_times(before.trials)) <= set(without_times(found.trials))
        assert {row.key for row in before.decisions} <= {row.key for row in found.decisions}
        counts = f"{len(found.records)} records, {len(found.trials)} trials"
        print(f"killed {delay_s * 1e3:.0f} ms after call {kill_at}: {counts}")
        before = found
    assert without_times(before.rows) == without_times(alone.rows)
