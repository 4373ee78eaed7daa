"""kill -9 at any moment: the same call goes on, and what was finished is neither lost nor done again."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from killed_runs import ran

from hwq.sensitivity import BF16_SHARE, SENSITIVITY_SAMPLES
from hwq.store import everything

pytestmark = pytest.mark.slow

# Within these bytes and this share of changed classes the demo network is proposed, re-anchored and searched for.
ARGS = ["demo", "24000", "0.06"]
KILLS = 8
# What is kept as it is found: the lines of these tell pieces of work, and of sensitivity one sample has several.
KEPT = ("calibrate", "ran correct", "sensitivity", "sensitivity bf16", "ran re-anchor", "ran accuracy")


def kept(line: str) -> bool:
    return line.startswith(tuple(f"{name} " for name in KEPT))


def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    """Random moments: each time after a few lines more, until it was killed often enough and may end."""
    whole = ran([*ARGS, str(tmp_path / "other")], {"HWQ_CACHE": str(tmp_path / "other cache")})
    assert whole.found is not None
    samples = {"sensitivity": SENSITIVITY_SAMPLES[1], "sensitivity bf16": SENSITIVITY_SAMPLES[1] // BF16_SHARE}
    units = {
        stage: len([line for line in whole.lines if line.startswith(f"{stage} ")]) // count
        for stage, count in samples.items()
    }
    work, cache = tmp_path / "work", tmp_path / "cache"
    args, env = [*ARGS, str(work)], {"HWQ_CACHE": str(cache)}
    said: Counter[str] = Counter()
    allowed = 0
    objects: dict[Path, int] = {}
    records: dict[str, float] = {}
    runs = 0
    rng, most = random.Random(1), 2 * len(whole.lines) // KILLS
    for at in [*(rng.randint(1, most) for _ in range(KILLS)), None]:
        run = ran(args, env, at)
        runs += 1
        print(f"killed at line {at}, in {run.stage}")
        said.update(line for line in dict.fromkeys(run.lines) if kept(line))
        allowed += units.get(run.stage, 1)  # what it was at was not finished
        found = {path: path.stat().st_mtime_ns for path in (cache / "objects").glob("*")}
        assert objects.items() <= found.items(), "a kernel was compiled again"
        objects = found
        times = {repr(record.key): record.median_s for record in everything(cache / "records.sqlite")}
        assert records.items() <= times.items(), "a record was measured again"
        records = times
        if run.found is not None:
            break
    assert run.found is not None
    assert (run.found["qparams"], run.found["means"]) == (whole.found["qparams"], whole.found["means"])
    alike = [
        name
        for name, one in run.found["roundings"].items()
        if name in whole.found["roundings"] and one["scheme"] == whole.found["roundings"][name]["scheme"]
    ]
    assert alike
    assert all(run.found["roundings"][name] == whole.found["roundings"][name] for name in alike)
    assert runs > KILLS // 2
    assert {line.rsplit(" ", 2)[0] for line in said} >= {"calibrate", "sensitivity"}
    assert {" ".join(line.split(" ")[:2]) for line in said} >= {"ran correct", "ran re-anchor", "ran accuracy"}
    assert sum(said.values()) - len(said) <= allowed, [line for line, count in said.items() if count > 1]
