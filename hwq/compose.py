"""Compose: programs put together from kernels and constants that earlier ones needed already.

Assignments of one network share almost all their steps. A pool keeps each kernel, each step's constants on the device
and each tensor's buffer, so that a further assignment compiles only what none before it had: as a rule nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwq.execute import BoundStep, KernelSet, Runner, bind_step, compile_kernels, quiet
from hwq.lower import Program
from hwq.progress import Callback
from hwq.target import Target
from hwq.workload import Workload

# A step's name, kernel and tensors say which constants it has, as long as ranges and weights stay.
_Key = tuple[str, Workload | None, tuple[str, ...], str]


@dataclass(slots=True, kw_only=True, eq=False)
class Pool:
    """Kernels, bound steps and buffers of programs of one network with the same ranges and weights; it grows."""

    kernels: KernelSet
    target: Target
    cache: Path
    steps: dict[_Key, BoundStep] = field(default_factory=dict)
    buffers: dict[str, Any] = field(default_factory=dict)


def composed(pool: Pool, program: Program, progress: Callback = quiet) -> Runner:
    """``program`` ready to run. Runners of one pool write the same buffers: what one returned holds until the next run
    of any of them."""
    if any(step.workload is not None and step.workload not in pool.kernels.kernels for step in program.steps):
        pool.kernels = compile_kernels([program], pool.target, pool.cache, progress, known=pool.kernels)
    steps = []
    for step in program.steps:
        key = (step.name, step.workload, step.inputs, step.output)
        if key not in pool.steps:
            pool.steps[key] = bind_step(step, pool.kernels)
        steps.append(pool.steps[key])
    return Runner(program=program, steps=tuple(steps), buffers=pool.buffers)
