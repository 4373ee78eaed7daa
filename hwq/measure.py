"""Measure: what each kernel takes on this machine, alone, from the store where a record of it exists."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tvm

from hwq.execute import KernelSet, Progress, packed_constants, quiet
from hwq.lower import Program, Step
from hwq.store import Record, get_many, key_of, put, summarize, tool_versions
from hwq.target import Target
from hwq.threads import use_threads
from hwq.workload import Workload

# Figures a kernel in each of PASSES turns, and the least that one figure's calls take together: short, so that some
# of them fall between what else the machine does.
REPEATS = 5
MIN_REPEAT_MS = 2
PASSES = 2


def fill(shape: tuple[int, ...], dtype: str) -> tvm.runtime.Tensor:
    """A tensor of ordinary values (normal floats, small integers): zeros and denormals have timings of their own."""
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype).kind
    values = rng.standard_normal(shape) if kind == "f" else rng.integers(0, 2 if kind == "b" else 100, shape)
    return tvm.runtime.tensor(values.astype(dtype))


def time_step(step: Step, program: Program, kernels: KernelSet) -> list[float]:
    """Seconds a call of the step's kernel takes, one figure for each repeat, on made-up activations."""
    assert step.workload is not None
    values = [fill(*program.values[name]) for name in step.inputs]
    values += [tvm.runtime.tensor(constant) for constant in packed_constants(step, kernels)]
    values.append(tvm.runtime.empty(*program.values[step.output]))
    timer = kernels.libraries[step.workload].time_evaluator(
        kernels.of(step).symbol, tvm.cpu(), number=1, repeat=REPEATS, min_repeat_ms=MIN_REPEAT_MS
    )
    return list(timer(*values).results)


def measure_kernels(
    programs: Iterable[Program],
    kernels: KernelSet,
    target: Target,
    store_path: Path,
    threads: int,
    progress: Progress = quiet,
) -> dict[Workload, Record]:
    """A record for every distinct kernel of ``programs``: the store's, or a new one, kept there at once.

    New ones are measured in ``PASSES`` turns, so that a passing load on the machine does not fall on one kernel alone.
    Of a kernel's figures the faster half counts: whatever else runs here only adds.
    """
    use_threads(threads)
    tools = tool_versions()
    steps = {
        step.workload: (step, program) for program in programs for step in program.steps if step.workload is not None
    }
    keys = {workload: key_of(workload, kernels.kernels[workload].schedule, target, tools) for workload in steps}
    known = get_many(store_path, keys.values())
    times: dict[Workload, list[float]] = {workload: [] for workload, key in keys.items() if key not in known}
    for turn in range(PASSES):
        for done, workload in enumerate(times):
            times[workload] += time_step(*steps[workload], kernels)
            if turn == PASSES - 1:
                fast = sorted(times[workload])[: (len(times[workload]) + 1) // 2]
                known[keys[workload]] = summarize(keys[workload], fast)
                put(store_path, known[keys[workload]])
            progress(turn * len(times) + done + 1, PASSES * len(times))
    return {workload: known[key] for workload, key in keys.items()}
