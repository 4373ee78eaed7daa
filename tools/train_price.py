"""Measures kernels of random layers on this machine, and trains from them the prices that ship with hwq.

    python -m tools.train_price measure --store FILE [--count 350] [--seed 0] [--rounds 4] [--target host]
                                       [--again]
    python -m tools.train_price train --store FILE ... [--target host ...] [--out FILE]

``measure`` compiles and times the kernels of ``tools.price_cases`` and keeps a record of each in the store FILE; what
it holds already is not timed again. Most of the time is compiling. All kernels are timed in turns, ``rounds`` times,
and of a kernel's figures the fastest quarter counts, so that other work on the machine falls on few of them.

``train`` makes the model of all records that fit the targets' fingerprints and the present tools, prints its
cross-validated error and coverage by operator, and writes it to hwq/data/price.json (or FILE).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hwq.cache import default_cache_dir
from hwq.cpu import cpu_model
from hwq.errors import HwqError
from hwq.execute import KernelSet, compile_kernels
from hwq.learned_price import SHIPPED_AT, Row, Validation, learn, rows_of, to_text
from hwq.measure import time_step
from hwq.price_features import FEATURES
from hwq.store import everything, get_many, key_of, put, summarize, tool_versions
from hwq.target import Target
from hwq.threads import use_threads
from tools.price_cases import Job, alone, jobs


def measure(store: Path, count: int, seed: int, rounds: int, target: Target, again: bool) -> None:
    """Adds records of the kernels of ``count`` draws to ``store``. again: those it holds are timed too, and the faster
    figure stays.
    """
    wanted = list(jobs(count, target, seed))
    print(f"{len(wanted)} kernels to compile", flush=True)
    kernels = _compile(wanted, target)
    tools = tool_versions()
    keyed = {}
    for job in wanted:
        assert job.step.workload is not None
        if job.step.workload in kernels.kernels:
            name = f"{kernels.name_of(job.step.workload)}@{job.home}"
            keyed[key_of(job.step.workload, name, target, tools)] = job
    known = get_many(store, keyed)
    missing = {key: job for key, job in keyed.items() if again or key not in known}
    times: dict[object, list[float]] = {key: [] for key in missing}
    for turn in range(rounds):
        began = time.monotonic()
        for threads in (1, 2):
            use_threads(threads)
            for key, job in missing.items():
                if job.threads == threads:
                    times[key] += time_step(job.step, job.program, kernels, job.home, target)
        print(f"round {turn + 1} of {rounds}: {len(missing)} kernels in {time.monotonic() - began:.0f} s", flush=True)
    found = [summarize(key, sorted(times[key])[: max(1, len(times[key]) // 4)]) for key in missing]
    put(store, *(one for one in found if one.key not in known or one.median_s < known[one.key].median_s))


def _compile(wanted: list[Job], target: Target) -> KernelSet:
    """The kernels of the jobs, in parts that show progress; those that there is no kernel for are left out."""
    made = KernelSet(kernels={}, objects={}, libraries={})
    for start in range(0, len(wanted), 25):
        programs = [alone(job) for job in wanted[start : start + 25]]
        try:
            made |= compile_kernels(programs, target, default_cache_dir())
        except (HwqError, TypeError, RuntimeError):
            for program in programs:
                try:
                    made |= compile_kernels([program], target, default_cache_dir())
                except (HwqError, TypeError, RuntimeError) as error:  # a gap in hwq, to be mended
                    why = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                    print(f"left out: {program.steps[0].workload}: {why[0]}", flush=True)
        print(f"compiled {min(start + 25, len(wanted))} of {len(wanted)}", flush=True)
    return made


def train(stores: list[Path], targets: list[Target], out: Path) -> None:
    """Trains on the records of ``stores`` that are the targets' and the present tools', and writes the model."""
    records = [record for store in stores for record in everything(store)]
    rows = [row for target in targets for row in rows_of(records, target, tool_versions())]
    summary = {
        "machine": cpu_model(),
        "tools": tool_versions(),
        "targets": [target.description or target.name for target in targets],
        "records": len(rows),
        "layers": len({row.group for row in rows}),
    }
    model, found = learn(rows, targets[0].fingerprint, summary)
    show(rows, found)
    out.write_text(to_text(model))
    print(f"{out.name}: {out.stat().st_size} bytes")


def show(rows: Sequence[Row], found: Validation) -> None:
    """The cross-validation by operator and domain."""
    roofline = FEATURES.index("roofline")
    plain = np.log([row.measured_s / row.base_s for row in rows]) - [row.features[roofline] * np.log(2) for row in rows]
    print(f"{'':28} records  roofline  learned  90% of  within interval")
    kinds = [("all", ""), *sorted({row.kind for row in rows})]
    for kind in kinds:
        own = np.array([kind[0] == "all" or row.kind == kind for row in rows])
        off = np.abs(np.expm1(-found.log_ratio[own]))
        other = np.median(np.abs(np.expm1(-plain[own])))
        figures = f"{own.sum():7} {other:9.1%} {np.median(off):8.1%} {np.quantile(off, 0.9):7.0%}"
        print(f"{' '.join(kind):28} {figures} {found.covered[own].mean():16.0%}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure")
    one.add_argument("--store", type=Path, required=True)
    two = commands.add_parser("train")
    two.add_argument("--store", type=Path, required=True, nargs="+")
    two.add_argument("--target", default=["host"], nargs="+")
    two.add_argument("--out", type=Path, default=SHIPPED_AT)
    one.add_argument("--count", type=int, default=350)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--rounds", type=int, default=4)
    one.add_argument("--target", default="host")
    one.add_argument("--again", action="store_true", help="time all of them, and keep the faster figures")
    given = parser.parse_args()
    if given.command == "train":
        train(given.store, [Target.load(name) for name in given.target], given.out)
    else:
        measure(given.store, given.count, given.seed, given.rounds, Target.load(given.target), given.again)


if __name__ == "__main__":
    main()
