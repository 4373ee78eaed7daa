"""``hwq.compile`` in a process of its own that tells each piece of work it does, so that a test can kill it there.

    python tests/killed_runs.py demo|NETWORK BUDGET_BYTES BUDGET_DROP WORK

Lines are "stage done total" of every progress, and "ran WHAT NAME 1" of what is kept piece by piece; the last one is
"plan" with a part of the plan as JSON. NETWORK is one of ``benchmarks/real_data.py``, with 128 calibration samples and
600 to evaluate on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The lines of one process. found: what was found, if it came to its end: the schemes, and by layer and tensor what
    does not depend on times."""

    lines: tuple[str, ...]
    found: dict[str, Any] | None

    @property
    def stage(self) -> str:
        """The stage of the last line."""
        return self.lines[-1].rsplit(" ", 2)[0] if self.lines else ""


def ran(args: list[str], env: dict[str, str], kill_at: int | None = None) -> Ran:
    """One process; at line number ``kill_at`` it is killed. Its helpers end when nobody asks them any more."""
    started = subprocess.Popen(
        [sys.executable, str(HERE), *args],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
        start_new_session=True,
    )
    assert started.stdout is not None
    lines = []
    for line in started.stdout:
        lines.append(line.rstrip("\n"))
        if len(lines) == kill_at:
            os.killpg(started.pid, signal.SIGKILL)
    code = started.wait()
    assert code in (0, -signal.SIGKILL), f"ended by itself with {code}"
    found = json.loads(lines.pop().removeprefix("plan ")) if code == 0 else None
    return Ran(lines=tuple(lines), found=found)


@contextlib.contextmanager
def _said(name: str) -> Iterator[Any]:
    began = time.monotonic()
    yield lambda done, total: print(name, done, total, flush=True)
    print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)


def _tell() -> None:
    """Have what is kept piece by piece tell each piece that it makes."""
    from hwq import correct, judge, reanchor

    def key(schemes: Any) -> str:
        return hashlib.sha256(repr(sorted(dict(schemes).items())).encode()).hexdigest()[:12]

    def say(what: str, name: str) -> None:
        print("ran", what, name, 1, flush=True)

    layer_of, losses_of, run = correct.correct_layer, reanchor.losses_of, judge._run

    def correct_layer(layer: Any, *rest: Any) -> Any:
        say("correct", layer.name)
        return layer_of(layer, *rest)

    def told_losses(runs: Any, schemes: Any) -> Any:
        if tuple(schemes[layer.name] for layer in runs.study.graph.layers) not in runs.known:
            say("re-anchor", key(schemes))
        return losses_of(runs, schemes)

    def told_run(judging: Any, solution: Any) -> Any:
        say("accuracy", key(solution.schemes))
        return run(judging, solution)

    correct.correct_layer, reanchor.losses_of, judge._run = correct_layer, told_losses, told_run


def main() -> None:
    """Compile what the arguments name."""
    network, size, drop, work = sys.argv[1:]
    import numpy as np

    import hwq
    from hwq import calibrate

    given: dict[str, Any]
    if network == "demo":
        from hwq.demo import load_demo

        calibrate.CHECKPOINT_S = -1.0  # after every sample
        model, pictures, _ = load_demo()
        noise = np.random.default_rng(0).standard_normal((48, *pictures.shape[1:])).astype(np.float32)
        given = {"calibration": noise}  # of no class, so that what keeps float's has to be searched for
    else:
        sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
        from real_data import case

        one = case(network, 600, 128)
        model, given = one.model, {"calibration": one.calibration, "evaluate": (one.inputs, one.labels)}
    _tell()
    budget = hwq.Budget(weight_bytes=float(size), drop=float(drop))
    artifact = hwq.compile(hwq.load(model), budget=budget, threads=1, work_dir=work, progress=_said, **given)
    print(artifact.report["compile"], artifact.report["measured"]["accuracy"], file=sys.stderr, flush=True)
    plan = artifact.plan.to_dict()
    kept = {name: plan[name] for name in ("qparams", "means", "roundings")}
    print("plan", json.dumps({"schemes": dict(artifact.plan.schemes), **kept}), flush=True)


if __name__ == "__main__":
    main()
