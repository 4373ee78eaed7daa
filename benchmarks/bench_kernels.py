"""The kernels of ``kernel_cases`` alone, on this machine: time, GMAC/s, bytes/s, and the share of the limit that binds.

    python benchmarks/bench_kernels.py [--schemes w8a8,f32] [--ops conv2d,dense] [--match 56x56] [--threads 1]
                                       [--target host] [--json FILE]

First the machine's limits are measured (``limits``). A call of a kernel takes at least the time of its products at its
instruction's limit, and at least that of its bytes, each touched once, at the limit of the level that holds them
all (weights "in memory" at the memory's): the longer one binds, and its share of the measured time is printed.
What is read and written at once, or comes from a nearer level than assumed, can pass 100%, and so can Winograd
convolutions: products are counted as a direct convolution has them. Of such a layer the direct kernel is timed too, at
the table's end, and VNNI's bar is held to that one. N threads have N times one core's limits, but for the memory's. A
depthwise kernel's limit is that of its instruction with every product in use, which no schedule of nine taps reaches.

Times are the least over several rounds through all kernels (``hwq.measure.time_step``): what else runs here only adds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hwq.cache import default_cache_dir
from hwq.compile_kernel import compile_many, load_kernels
from hwq.cost import moved_bytes, op_macs, weight_bytes
from hwq.cpu import cpu_model
from hwq.errors import HwqError
from hwq.execute import KernelSet, compile_kernels, packed_constants, resident_bytes
from hwq.graph import ANCHORS
from hwq.lower import Program, Step
from hwq.measure import time_step
from hwq.schedules.cpu import conv2d
from hwq.scheme import SCHEMES
from hwq.store import tool_versions
from hwq.target import Target
from hwq.threads import use_threads

sys.path.insert(0, str(Path(__file__).resolve().parent))
from kernel_cases import CASES, Case, program_of, schemes_of
from limits import Limits, measure, shown

ROUNDS = 4
WINOGRAD, DIRECT = "x86/winograd", "direct"
# What the project wants in w8a8: of the VNNI instruction's limit, and of AMX's where GMAC/s fall short.
LEAST_SHARE_VNNI = 0.75
LEAST_SHARE_AMX = 0.45
# What it wants of w4a8: time over that of w8a8, at most.
INT4_BARS = {
    "dense 1x4096->4096 weights in memory": 1 / 1.7,
    "dense 128x4096->4096 weights in memory": 1.15,
    "conv2d 7x7x512->512 3x3/1": 1.05,
    "conv2d 7x7x2048->512 1x1/1": 1.05,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """A case in a scheme, and the program of its one kernel."""

    case: Case
    scheme: str
    program: Program
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was found for one kernel. schedule: the family that made it. limit names what binds; share is of it; bar is
    "" where none is set.
    """

    name: str
    scheme: str
    schedule: str
    us: float
    gmacs: float
    gbytes: float
    limit: str
    share: float
    bar: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run."""

    schemes: tuple[str, ...] | None
    ops: tuple[str, ...] | None
    match: str
    threads: int
    target: str
    json: Path | None


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The command line; ends the process with a usage text where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", type=_listed, help="of " + ", ".join(SCHEMES) + "; all that the target can do")
    parser.add_argument("--ops", type=_listed, help="of " + ", ".join(_ops()) + "; all of them")
    parser.add_argument("--match", default="", help="only kernels whose name has this text in it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", default="host", help="host, or a target that this machine can run")
    parser.add_argument("--json", type=Path, help="write limits and kernels there as well")
    given = parser.parse_args(arguments)
    for what, values, known in (("schemes", given.schemes, SCHEMES), ("ops", given.ops, _ops())):
        unknown = sorted(set(values or ()) - set(known))
        if unknown:
            parser.error(f"{what} {', '.join(unknown)} are not known; accepted: {', '.join(known)}")
    if given.threads < 1:
        parser.error(f"--threads {given.threads} is not a number of threads; accepted: at least 1")
    options = Options(**vars(given))
    if not selected(options):
        parser.error(f"no kernel has {given.match!r} in its name")
    return options


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _ops() -> tuple[str, ...]:
    return tuple(dict.fromkeys(case.op for case in CASES))


def selected(options: Options) -> list[Case]:
    """The cases that were asked for."""
    return [case for case in CASES if options.match in case.name and (not options.ops or case.op in options.ops)]


def jobs_of(options: Options, target: Target) -> list[Job]:
    """The cases that were asked for, in each scheme that was asked for and the target can do."""
    jobs = []
    for case in selected(options):
        for scheme in schemes_of(case, target):
            if options.schemes is None or scheme in options.schemes:
                program, step = program_of(case, scheme, target, options.threads)
                jobs.append(Job(case=case, scheme=scheme, program=replace(program, steps=(step,)), step=step))
    return jobs


def compiled(jobs: Sequence[Job], target: Target) -> tuple[list[Job], KernelSet]:
    """The kernels of the jobs; a job that hwq has no kernel for is named and left out."""
    try:
        return list(jobs), compile_kernels([job.program for job in jobs], target, default_cache_dir())
    except HwqError:
        if len(jobs) == 1:
            raise
    kept, kernels = [], KernelSet(kernels={}, objects={}, libraries={})
    for job in jobs:
        try:
            kernels |= compile_kernels([job.program], target, default_cache_dir())
        except HwqError as error:
            print(f"{job.case.name} in {job.scheme} is left out: {error.code}: {error}", flush=True)
        else:
            kept.append(job)
    return kept, kernels


def beside_winograd(jobs: Sequence[Job], kernels: KernelSet, target: Target) -> tuple[list[Job], KernelSet]:
    """The layers in w8a8 whose kernels are Winograd's, named "... direct", and their direct kernels."""
    found, made = [], {}
    for job in jobs:
        if job.scheme == "w8a8" and kernels.of(job.step).schedule.startswith(WINOGRAD):
            assert job.step.workload is not None
            kernel = conv2d.apply(job.step.workload, target)
            assert kernel is not None
            made[job.step.workload] = kernel
            found.append(replace(job, case=replace(job.case, name=f"{job.case.name} {DIRECT}")))
    paths = compile_many(list(made.values()), target, default_cache_dir())
    objects = {workload: paths[kernel.symbol] for workload, kernel in made.items()}
    library = load_kernels(objects.values())
    return found, KernelSet(kernels=made, objects=objects, libraries=dict.fromkeys(made, library))


def bound(
    macs: int, instruction: str, held: Sequence[tuple[int, str]], limits: Limits, threads: int
) -> tuple[str, float]:
    """What binds, and the least seconds: ``macs`` by ``instruction``, or bytes ``held`` in levels, all touched once."""
    moving: dict[str, float] = {}
    for size, level in held:
        workers = 1 if level == "memory" else threads
        moving[level] = moving.get(level, 0.0) + size / (limits.bytes_per_s[level] * workers)
    slowest = max(moving, key=lambda level: moving[level])
    rate = limits.macs_per_s.get(instruction)
    compute_s = macs / (rate * threads) if rate else 0.0
    total_s = sum(moving.values())
    return (instruction, compute_s) if compute_s >= total_s else (slowest, total_s)


def level_of(size: int, target: Target, threads: int) -> str:
    """The nearest level that holds ``size`` bytes, split over the threads' own caches."""
    for level, capacity in (("L1", target.l1_bytes * threads), ("L2", target.l2_bytes * threads)):
        if size <= capacity:
            return level
    return "L3" if size <= target.l3_bytes else "memory"


def row_of(job: Job, seconds: float, kernels: KernelSet, limits: Limits, target: Target, threads: int) -> Row:
    """The figures of a kernel that took ``seconds``."""
    workload = job.step.workload
    assert workload is not None
    constants = resident_bytes(job.step, kernels, packed_constants(job.step, kernels))
    activations = moved_bytes(workload) - weight_bytes(workload)
    if job.case.home == "memory":
        held = [(constants, "memory"), (activations, level_of(activations, target, threads))]
    else:
        held = [(constants + activations, level_of(constants + activations, target, threads))]
    instruction = instruction_of(job.case.op, job.scheme, target)
    macs = op_macs(workload) if job.case.op in ANCHORS else 0
    limit, least_s = bound(macs, instruction, held, limits, threads)
    row = Row(
        name=job.case.name,
        scheme=job.scheme,
        schedule=kernels.of(job.step).schedule,
        us=seconds * 1e6,
        gmacs=macs / seconds / 1e9,
        gbytes=(constants + activations) / seconds / 1e9,
        limit=limit,
        share=least_s / seconds,
    )
    return replace(row, bar=bar_of(job.case, row, instruction, limits, threads))


def instruction_of(op: str, scheme: str, target: Target) -> str:
    """The instruction that ``target`` says ``op`` is computed by, without its family."""
    spec = SCHEMES[scheme]
    row = target.instruction(op, spec.weight_type, spec.act_type)
    return "" if row is None else row.instruction.rpartition(".")[2]


def bar_of(case: Case, row: Row, instruction: str, limits: Limits, threads: int) -> str:
    """ "met" or "missed" for an int8 convolution that there is a bar for, else ""."""
    if row.scheme != "w8a8" or threads > 1:
        return ""
    share = row.gmacs * 1e9 / limits.macs_per_s[instruction] if instruction in limits.macs_per_s else 0.0
    if instruction.startswith("tdp") and case.least_gmacs_amx is not None:
        enough = row.gmacs >= case.least_gmacs_amx or share >= LEAST_SHARE_AMX
    elif instruction == "vpdpbusd" and case.barred and not row.schedule.startswith(WINOGRAD):
        enough = share >= LEAST_SHARE_VNNI
    else:
        return ""
    return "met" if enough else "missed"


def int4_lines(rows: Sequence[Row]) -> list[str]:
    """w4a8 over w8a8, where both were run, against the bars."""
    us = {(row.name, row.scheme): row.us for row in rows}
    lines = []
    for name in dict.fromkeys(row.name for row in rows):
        if (name, "w4a8") in us and (name, "w8a8") in us:
            ratio, bar = us[name, "w4a8"] / us[name, "w8a8"], INT4_BARS.get(name)
            held = "" if bar is None else f" <= {bar:.2f}: {'met' if ratio <= bar else 'missed'}"
            lines.append(f"| {name} | {ratio:.2f}{held} |")
    return ["", "| kernel | w4a8 time / w8a8 time |", "|---|---|", *lines] if lines else []


def shown_row(row: Row) -> str:
    """A line of the table."""
    products = f"{row.gmacs:.1f}" if row.gmacs else ""
    figures = f"{row.us:.1f} | {products} | {row.gbytes:.1f} | {row.limit} | {row.share:.0%} | {row.bar}"
    return f"| {row.name} | {row.scheme} | {row.schedule} | {figures} |"


def machine(target: Target, threads: int) -> str:
    """What a reader of figures has to know."""
    split = f"{threads} thread{'s' if threads > 1 else ''}"
    return (
        f"{datetime.date.today()}, {cpu_model()}, {os.cpu_count()} cores; target {target.name} "
        f"({target.description}), {split}; {tool_versions()}"
    )


def time_all(jobs: Sequence[Job], kernels: KernelSet, target: Target, threads: int) -> list[float]:
    """Seconds a call of each job's kernel, the least over ``ROUNDS`` rounds through all of them."""
    use_threads(threads)
    least = [float("inf")] * len(jobs)
    for _ in range(ROUNDS):
        for i, job in enumerate(jobs):
            least[i] = min(least[i], *time_step(job.step, job.program, kernels, job.case.home, target))
    return least


def main() -> None:
    """Prints the limits, a line each kernel and scheme, and what int4 weights cost or gain."""
    options = parse()
    target = Target.load(options.target)
    print(machine(target, options.threads), flush=True)
    use_threads(1)
    limits = measure(target)
    print(f"{shown(limits)}\n", flush=True)
    jobs, kernels = compiled(jobs_of(options, target), target)
    rows = []
    for some, compiled_of in ((jobs, kernels), beside_winograd(jobs, kernels, target)):
        times = time_all(some, compiled_of, target, options.threads)
        rows += [
            row_of(job, s, compiled_of, limits, target, options.threads) for job, s in zip(some, times, strict=True)
        ]
    head = ("kernel", "scheme", "schedule", "us", "GMAC/s", "GB/s", "limit", "share of it", "bar")
    print("\n".join([f"| {' | '.join(head)} |", "|---|---|---|---:|---:|---:|---|---:|---|", *map(shown_row, rows)]))
    print("\n".join(int4_lines(rows)))
    if options.json is not None:
        found: dict[str, Any] = {"machine": machine(target, options.threads), "limits": asdict(limits)}
        options.json.write_text(json.dumps(found | {"kernels": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
