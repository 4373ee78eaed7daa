"""Run programs kernel by kernel: how float statistics, sensitivities and checks are made without building a library.

A program's kernels are compiled once each; a runner calls them in order on buffers that are kept from call to call.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm

from hwq.compile_kernel import compile_many, link, load_kernels
from hwq.device import Device, empty, load_library, local, tensor
from hwq.files import scratch
from hwq.lengths import COUNT, cut_to
from hwq.lower import Program, Step
from hwq.progress import Callback
from hwq.schedule import kernel_for
from hwq.target import Target
from hwq.workload import Kernel, Workload

Array = npt.NDArray[Any]


def quiet(done: int, total: int) -> None:
    """A progress callback that shows nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelSet:
    """Compiled kernels by workload: the kernel, its object file, and the loaded library that holds its function.

    There are no libraries of kernels that this CPU cannot run, until ``loaded_on`` puts them on a board.
    """

    kernels: Mapping[Workload, Kernel]
    objects: Mapping[Workload, Path]
    libraries: Mapping[Workload, Any]

    def of(self, step: Step) -> Kernel:
        assert step.workload is not None
        return self.kernels[step.workload]

    def name_of(self, workload: Workload) -> str:
        """The schedule that made the kernel, and a hash of the code: no record outlives the code that it timed."""
        return f"{self.kernels[workload].schedule}#{self.objects[workload].stem[:12]}"

    @property
    def code(self) -> str:
        """A hash of all the kernels' code: what was found with them is not found again with others."""
        names = sorted(map(self.name_of, self.kernels))
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    def function(self, workload: Workload) -> Any:
        return self.libraries[workload][self.kernels[workload].symbol]

    def __or__(self, other: KernelSet) -> KernelSet:
        return KernelSet(
            kernels={**self.kernels, **other.kernels},
            objects={**self.objects, **other.objects},
            libraries={**self.libraries, **other.libraries},
        )


def compile_kernels(
    programs: Iterable[Program],
    target: Target,
    cache_dir: Path,
    progress: Callback = quiet,
    known: KernelSet | None = None,
    decisions: Mapping[str, str] | None = None,
) -> KernelSet:
    """Schedule, compile and load every distinct kernel of ``programs`` beyond ``known``, which the result includes.

    For a ``target`` that this CPU cannot run nothing is loaded. What the cache holds is not compiled again, but
    scheduled: that alone takes a hundredth of a second a kernel. decisions: ``Workload.key`` -> a point of its space
    (``hwq.space``), in place of the default, for kernels that are not ``known``. Raises HwqError "decision-invalid" for
    one that is of no template of this version.
    """
    decided = decisions or {}
    known = known or KernelSet(kernels={}, objects={}, libraries={})
    needed = {step.workload: step.func for program in programs for step in program.steps if step.workload is not None}
    needed = {workload: func for workload, func in needed.items() if workload not in known.kernels}
    kernels = {
        workload: kernel_for(workload, target, func, decided.get(workload.key)) for workload, func in needed.items()
    }
    paths = compile_many(list(kernels.values()), target, cache_dir, progress=progress)
    objects = {workload: paths[kernel.symbol] for workload, kernel in kernels.items()}
    libraries = {} if target.missing_flags() else dict.fromkeys(kernels, load_kernels(objects.values()))
    return known | KernelSet(kernels=kernels, objects=objects, libraries=libraries)


def loaded_on(kernels: KernelSet, workloads: Iterable[Workload], device: Device) -> KernelSet:
    """``kernels`` with those of ``workloads`` loaded on a board, in one library; as they are where that is here.

    Raises HwqError as ``link`` and ``hwq.device``.
    """
    wanted = list(workloads)
    if device.session is None or not wanted:
        return kernels
    with scratch() as folder:
        path = folder / "kernels.so"
        link(path, dict.fromkeys(kernels.objects[workload] for workload in wanted))
        return replace(kernels, libraries=dict.fromkeys(wanted, load_library(device, path)))


def packed_constants(step: Step, kernels: KernelSet) -> tuple[Array, ...]:
    """The step's constants as an artifact holds them: the weight packed, the rest as they are."""
    if step.weight is None:
        return step.constants
    pack = kernels.of(step).pack
    assert pack is not None
    return tuple(pack(value) if i == step.weight else value for i, value in enumerate(step.constants))


def device_constants(
    step: Step, kernels: KernelSet, packed: Sequence[Array], device: Device | None = None
) -> tuple[Any, ...]:
    """``packed_constants`` on the device (None: here) as the kernel reads them: a weight expanded where it wants so."""
    at = device or local()
    found = [tensor(at, value) for value in packed]
    expand = None if step.workload is None else kernels.of(step).expand
    if expand is not None:
        assert step.workload is not None
        assert step.weight is not None
        expanded = empty(at, expand.shape, expand.dtype)
        kernels.libraries[step.workload][expand.symbol](found[step.weight], expanded)
        found[step.weight] = expanded
    return tuple(found)


def resident_bytes(step: Step, kernels: KernelSet, packed: Sequence[Array]) -> int:
    """Bytes that ``device_constants`` take."""
    sizes = [array.nbytes for array in packed]
    expand = None if step.workload is None else kernels.of(step).expand
    if expand is not None:
        assert step.weight is not None
        sizes[step.weight] = math.prod(expand.shape) * np.dtype(expand.dtype).itemsize
    return sum(sizes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundStep:
    """A step with its function and its constants on the device; ``function`` None is a view."""

    step: Step
    function: Any
    constants: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runner:
    """A program ready to run; ``buffers`` are allocated at the first run and written again by each later one, but for
    the program's state, to which each run adds."""

    program: Program
    steps: tuple[BoundStep, ...]
    buffers: dict[str, Any] = field(default_factory=dict)


def bind_step(step: Step, kernels: KernelSet) -> BoundStep:
    """Put a step's constants on the device beside its function."""
    return BoundStep(
        step=step,
        function=None if step.workload is None else kernels.function(step.workload),
        constants=device_constants(step, kernels, packed_constants(step, kernels)),
    )


def bind(program: Program, kernels: KernelSet) -> Runner:
    """A program with all its steps bound."""
    return Runner(program=program, steps=tuple(bind_step(step, kernels) for step in program.steps))


def run(
    runner: Runner,
    known: Mapping[str, Any],
    steps: Sequence[BoundStep] | None = None,
    watch: Callable[[BoundStep, Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run ``steps`` (default: all) on the ``known`` tensors and return every tensor, known ones included.

    The results live in the runner's buffers: they hold until its next run. ``watch`` is called after each step.
    """
    env = dict(known)
    for bound in runner.steps if steps is None else steps:
        step = bound.step
        shape, dtype = runner.program.values[step.output]
        if bound.function is None:
            env[step.output] = env[step.inputs[0]]._create_view(shape)
        else:
            if step.output not in runner.buffers:
                lives_on = step.output in runner.program.state
                made = tvm.runtime.tensor(np.zeros(shape, dtype)) if lives_on else tvm.runtime.empty(shape, dtype)
                runner.buffers[step.output] = made
            out = runner.buffers[step.output]
            bound.function(*(env[name] for name in step.inputs), *bound.constants, out)
            env[step.output] = out
        if watch is not None:
            watch(bound, env)
    return env


def seen(runner: Runner, env: Mapping[str, Any], name: str) -> Array:
    """A tensor of what ``run`` returned as an array, cut to the tokens that there are where its length varies."""
    counted = env.get(COUNT)
    tokens = None if counted is None else int(counted.numpy()[0])
    return cut_to(env[name].numpy(), runner.program.values[name][0], tokens)


def to_device(batch: Mapping[str, Array]) -> dict[str, Any]:
    """NumPy arrays as aligned tensors."""
    return {name: tvm.runtime.tensor(np.ascontiguousarray(value)) for name, value in batch.items()}
