"""Tasks: the distinct kernels of networks, as what there is to tune, with how much each weighs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from hwq.execute import KernelSet
from hwq.lower import Program, Step
from hwq.measure import home_of_weights
from hwq.pricing import constant_bytes, footprints_of
from hwq.schedule import kernel_for
from hwq.target import Target
from hwq.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A kernel to tune: one of its steps, in a program. home: where its weights are when its turn comes (see
    ``hwq.measure``). count: calls of it in all networks; weight: the same, each network's times its priority."""

    step: Step
    program: Program
    home: str
    count: int
    weight: float

    @property
    def workload(self) -> Workload:
        assert self.step.workload is not None
        return self.step.workload


def tasks_of(
    program: Program,
    target: Target,
    footprints: Mapping[str, int] | None = None,
    priority: float = 1.0,
) -> tuple[Task, ...]:
    """The distinct kernels of ``program``. footprints: as in ``hwq.pricing``; None takes the program's own."""
    counts: dict[Workload, int] = {}
    steps: dict[Workload, Step] = {}
    for step in program.steps:
        if step.workload is not None:
            counts[step.workload] = counts.get(step.workload, 0) + 1
            steps.setdefault(step.workload, step)
    if footprints is None:
        made = {workload: kernel_for(workload, target, step.func) for workload, step in steps.items()}
        resident = constant_bytes([program], KernelSet(kernels=made, objects={}, libraries={}))[1]
        footprints = footprints_of([program], resident)
    return tuple(
        Task(
            step=step,
            program=program,
            home=home_of_weights(footprints.get(workload.scheme, 0), target),
            count=counts[workload],
            weight=counts[workload] * priority,
        )
        for workload, step in steps.items()
    )


def joined(tasks: Iterable[Task]) -> tuple[Task, ...]:
    """Tasks of several programs as one list, each kernel once for each place that its weights are in, sorted by its key
    and that: what wins with its weights near may lose where they come from memory."""
    found: dict[tuple[str, str], Task] = {}
    for task in tasks:
        name = task.workload.key, task.home
        other = found.get(name)
        if other is not None:
            task = replace(other, count=task.count + other.count, weight=task.weight + other.weight)
        found[name] = task
    return tuple(found[name] for name in sorted(found))
