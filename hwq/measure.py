"""Measure: what each kernel takes on its machine, alone, from the store where a record of it exists.

The machine is this one, or the board that a target's ``device`` names: there the board's clock counts, and the network
between is in no figure.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.cost import SMALL_WEIGHTS_BYTES
from hwq.device import Device, close, connect_to, empty, heard, local, set_threads, tensor
from hwq.execute import KernelSet, device_constants, loaded_on, packed_constants, quiet, resident_bytes
from hwq.lengths import count_at_most
from hwq.library import build_library
from hwq.lower import Program, Step
from hwq.placed import between_kernels, place
from hwq.progress import Callback
from hwq.store import Key, Record, get_many, key_of, put, summarize, tool_versions
from hwq.target import Target
from hwq.workload import Workload

# Figures a kernel in each of PASSES turns, and the least that one figure's calls take together: short, so that some
# of them fall between what else the machine does.
REPEATS = 5
MIN_REPEAT_MS = 2
PASSES = 2
# Calls with weights that are not near: how long one figure may take.
ROUND_S = 0.006


def fill(shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """Ordinary values (normal floats, small integers): zeros and denormals have timings of their own."""
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype).kind
    values = rng.standard_normal(shape) if kind == "f" else rng.integers(0, 2 if kind == "b" else 100, shape)
    return values.astype(dtype)


def home_of_weights(footprint_bytes: int, target: Target) -> str:
    """Where a layer's weights are when its turn comes, in a network whose weights take ``footprint_bytes`` in all:

    "l2" where they all stay near the core, "l3" where they fill no more than half of it (others and the activations
    have the rest), else "memory". They were last read one call of the network ago.
    """
    if footprint_bytes <= target.l2_bytes:
        return "l2"
    return "l3" if 2 * footprint_bytes <= target.l3_bytes else "memory"


def homes_by(footprints: Mapping[str, int], target: Target) -> Callable[[Workload], str]:
    """Where a kernel's weights are in a network with these ``footprints``, by its scheme (see ``measure_kernels``)."""
    return lambda workload: home_of_weights(footprints.get(workload.scheme, 0), target)


def time_step(
    step: Step, program: Program, kernels: KernelSet, home: str, target: Target, device: Device | None = None
) -> list[float]:
    """Seconds a call of the step's kernel takes, one figure for each repeat, on made-up activations.

    ``home`` beyond "l2" gives each call weights of its own, as many in turn as make them come from there, or as
    ``ROUND_S`` allows: a kernel that is slow for its weights hardly feels where they come from. device: where it runs
    (None: here); ``kernels`` are ``loaded_on`` it.
    """
    assert step.workload is not None
    at = device or local()
    values = [tensor(at, _input(name, step, program)) for name in step.inputs]
    out = empty(at, *program.values[step.output])
    packed = packed_constants(step, kernels)
    first = (*values, *device_constants(step, kernels, packed, at), out)
    size = resident_bytes(step, kernels, packed)
    near = home == "l2" or size < SMALL_WEIGHTS_BYTES
    if near or at.session is not None:
        options = (
            {"number": 1, "repeat": REPEATS, "min_repeat_ms": MIN_REPEAT_MS} if near else {"number": 1, "repeat": 3}
        )
        library, symbol = kernels.libraries[step.workload], kernels.of(step).symbol
        times = list(library.time_evaluator(symbol, at.context, **options)(*first).results)
        if near:
            return times
        return _board_turns_s(at, step, program, kernels, _copies(home, size, min(times), target), target)
    call = kernels.function(step.workload)
    copies = _copies(home, size, min(_call_s(call, [first]) for _ in range(3)), target)
    turns = [first, *((*values, *device_constants(step, kernels, packed), out) for _ in range(copies - 1))]
    _call_s(call, turns)
    return [_call_s(call, turns) for _ in range(REPEATS)]


def _input(name: str, step: Step, program: Program) -> Any:
    """A made-up value of a step's input; all tokens are there."""
    assert step.workload is not None
    count = count_at_most(name, step.workload)
    return fill(*program.values[name]) if count is None else count


def _copies(home: str, size: int, hot_s: float, target: Target) -> int:
    """How many weights of ``size`` bytes are called in turn, so that each time they come from ``home``."""
    span = 4 * target.l2_bytes if home == "l3" else 2 * max(target.l3_bytes, 4 * target.l2_bytes)
    return max(2, min(-(-span // size), int(ROUND_S / hot_s)))


def _board_turns_s(
    device: Device, step: Step, program: Program, kernels: KernelSet, copies: int, target: Target
) -> list[float]:
    """Seconds a call takes in a library that calls it with ``copies`` of its weights in turn, by the board's clock.

    A figure for each of REPEATS rounds: the median of its calls, as ``_call_s`` has it.
    """
    names = [f"{step.name}:{turn}" for turn in range(copies)]
    inputs = tuple(dict.fromkeys(step.inputs))
    many = Program(
        inputs=inputs,
        outputs=(step.output,),
        values=program.values,
        steps=tuple(replace(step, name=name) for name in names),
    )
    packed = packed_constants(step, kernels)
    placed = place(build_library(many, kernels, dict.fromkeys(names, packed), target), device)
    given = [tensor(device, _input(name, step, program)) for name in inputs]
    args = [*given, *placed.memory, empty(device, *program.values[step.output])]
    rounds = between_kernels(placed, args, copies, REPEATS)
    return [float(value) for value in np.median(rounds[:, :-1], axis=1)]


def _call_s(call: Any, turns: Sequence[tuple[Any, ...]]) -> float:
    """Seconds a call takes: the median of one call with each of ``turns``, so that interruptions are not in it."""
    marks = [time.perf_counter()]
    for args in turns:
        call(*args)
        marks.append(time.perf_counter())
    return statistics.median(after - before for before, after in itertools.pairwise(marks))


def measure_kernels(
    programs: Iterable[Program],
    kernels: KernelSet,
    target: Target,
    store_path: Path,
    threads: int,
    footprints: Mapping[str, int],
    progress: Callback = quiet,
) -> dict[Workload, Record]:
    """A record for every distinct kernel of ``programs``: the store's, or a new one, kept there at once.

    Times of an emulated target mean nothing: they are given, and not kept.

    footprints: for each scheme the bytes of all weights of the network in it, see ``home_of_weights``; where the
    weights were is a part of the record's schedule name ("cpu/conv2d:1#3f09c2@l3", with the code's own hash).
    New ones are measured in ``PASSES`` turns, so that a passing load on the machine does not fall on one kernel alone.
    Of a kernel's figures the faster half counts: whatever else runs here only adds. Records of an
    emulated ``target`` are not kept. Raises HwqError as ``hwq.device.connect_to``: a board of another CPU model is not
    measured.
    """
    steps, homes, keys = _keys(programs, kernels, target, footprints)
    known = get_many(store_path, keys.values())
    times: dict[Workload, list[float]] = {workload: [] for workload, key in keys.items() if key not in known}
    if times:
        device = connect_to(target)
        try:
            set_threads(device, threads)
            there = loaded_on(kernels, times, device)
            with heard(device):
                for turn, (done, workload) in itertools.product(range(PASSES), enumerate(times)):
                    times[workload] += time_step(*steps[workload], there, homes[workload], target, device)
                    if turn == PASSES - 1:
                        fast = sorted(times[workload])[: (len(times[workload]) + 1) // 2]
                        known[keys[workload]] = summarize(keys[workload], fast)
                        if not target.emulated:
                            put(store_path, known[keys[workload]])
                    progress(turn * len(times) + done + 1, PASSES * len(times))
        finally:
            close(device)
    return {workload: known[key] for workload, key in keys.items()}


def recorded_kernels(
    programs: Iterable[Program], kernels: KernelSet, target: Target, store_path: Path, footprints: Mapping[str, int]
) -> dict[Workload, Record]:
    """What ``measure_kernels`` finds in the store; what is not there is not measured."""
    _, _, keys = _keys(programs, kernels, target, footprints)
    known = get_many(store_path, keys.values())
    return {workload: known[key] for workload, key in keys.items() if key in known}


def _keys(
    programs: Iterable[Program], kernels: KernelSet, target: Target, footprints: Mapping[str, int]
) -> tuple[dict[Workload, tuple[Step, Program]], dict[Workload, str], dict[Workload, Key]]:
    """By kernel: one of its steps with the program around it, where its weights are, and its record's key."""
    steps = {
        step.workload: (step, program) for program in programs for step in program.steps if step.workload is not None
    }
    home_of = homes_by(footprints, target)
    homes = {workload: home_of(workload) for workload in steps}
    tools = tool_versions()
    keys = {
        workload: key_of(workload, f"{kernels.name_of(workload)}@{homes[workload]}", target, tools)
        for workload in steps
    }
    return steps, homes, keys
