"""What tuning is worth: a network in w8a8 with and without the decisions of a job, in turns in one process.

    python benchmarks/bench_tuning.py [--network resnet50] [--target host] [--trials 400] [--threads 1] [--cache FOLDER]
                                      [--json FILE]

The network is compiled with the kernels' defaults; a job of so many trials runs (``hwq.job``); the same plan is built
again, with what the job decided. Printed: what the job says of each kernel that it changed, how many layers take longer
than before inside the network, both networks' times in turns, and whether their outputs are the same bits. A store of
its own is used, in a folder that is gone afterwards, unless --cache names one that is to be kept and gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import hwq
from hwq.artifact import Artifact
from hwq.cli_tune import line_of, show
from hwq.job import run_job
from hwq.job_file import read_job

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench_models import networks

# Turns of both networks, calls in a turn, and runs that tell the times of layers.
TURNS, CALLS, LAYER_RUNS = 20, 10, 60
# A layer is slower where its median is by more than this: the clock between layers is no better.
SLOWER = 1.05

JOB = """
trials = {trials}
work_dir = "{work}"
[[model]]
path = "{path}"
schemes = ["w8a8"]
[[target]]
name = "{target}"
threads = {threads}
"""


def in_turns(before: Artifact, after: Artifact, x: Any) -> tuple[float, float, float]:
    """Seconds of a call of both, and the median of their ratios, turn by turn."""
    pairs = [[statistics.median(one.times(x, runs=CALLS, warm_up=2)) for one in (before, after)] for _ in range(TURNS)]
    old, new = (statistics.median(column) for column in zip(*pairs, strict=True))
    return old, new, statistics.median(mine / other for other, mine in pairs)


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures."""
    (network,) = networks([given.network], folder)
    model, x = hwq.load(network.path), network.feed()
    plan = hwq.plan(
        model,
        given.target,
        calibration=network.samples,
        schemes=["w8a8"],
        threads=given.threads,
        measure=False,
        sensitivity_s=0.0,
    )
    before = hwq.build(model, plan, given.target)
    job = folder / "job.toml"
    job.write_text(
        JOB.format(
            trials=given.trials, work=folder / "work", path=network.path, target=given.target, threads=given.threads
        )
    )
    report = run_job(
        read_job(job), tell=lambda name, standing: print(line_of(name, standing), file=sys.stderr, flush=True)
    )
    after = hwq.build(model, plan, given.target)
    many = {name: values[:16] for name, values in network.samples.items()}
    layers = [one.layer_times(x, runs=LAYER_RUNS) for one in (before, after)]
    slower = {name: (old, layers[1][name]) for name, old in layers[0].items() if layers[1][name] > SLOWER * old}
    old_s, new_s, ratio = in_turns(before, after, x)
    show(report, Console(width=120))
    (found,) = report["targets"]
    worse = [task["name"] for task in found["tasks"] if task["best_s"] > task["default_s"]]
    print(f"tasks slower than their default: {len(worse)} of {len(found['tasks'])}")
    print(f"layers that take {SLOWER - 1:.0%} more inside the network: {len(slower)} of {len(layers[0])}")
    for name, (old, new) in slower.items():
        print(f"    {name}: {old * 1e6:.1f} -> {new * 1e6:.1f} us")
    print(
        f"{network.name} on {given.target}, threads {given.threads}: {old_s * 1e3:.3f} ms, {new_s * 1e3:.3f} ms tuned"
    )
    print(f"ratio in turns: {ratio:.3f}")
    same = bool(np.array_equal(before(many), after(many)))
    print(f"the same bits: {same}")
    return {
        "network": network.name,
        "target": given.target,
        "threads": given.threads,
        "default_s": old_s,
        "tuned_s": new_s,
        "ratio": ratio,
        "same": same,
        "slower": slower,
        "report": report,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--target", default="host")
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="a folder for the store and the kernels")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hwq-") as place:
        folder = Path(place)
        os.environ["HWQ_CACHE"] = str(given.cache.absolute() if given.cache else folder / "cache")
        figures = run(given, folder)
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
