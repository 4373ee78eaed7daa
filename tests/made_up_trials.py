"""A search space and a timer for tests of tuning: what each candidate takes is made up, and the same each time."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import tiny

from hwq.lower import lower
from hwq.schedule import kernel_for
from hwq.target import Target
from hwq.tasks import Task, joined, tasks_of
from hwq.trial import Outcome, Trial
from hwq.workload import Kernel, Workload

HOST = Target.load("host")
SPACE = 20
DEFAULT_S = 1e-3


def network_tasks(target: Target = HOST) -> tuple[Task, ...]:
    """Three convolutions in float, of which two are alike."""
    layers = [
        tiny.conv("x", "a", (3, 16)),
        tiny.conv("a", "b", (16, 16), seed=2),
        tiny.conv("b", "c", (16, 16), seed=3),
    ]
    return joined(tasks_of(lower(tiny.graph(layers, ["x"], ["c"]), {}, {}, {}, target, 1), target))


def part(workload: Workload, decision: str) -> float:
    """The time of a candidate, of the default's: 0.8 to 1.3."""
    if not decision:
        return 1.0
    text = f"{workload.key} {decision}"
    return 0.8 + int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**33


@functools.cache
def kernel_of(workload: Workload, decision: str, target: Target = HOST) -> Kernel:
    """The default under a name of its own: its object has another hash."""
    kernel = kernel_for(workload, target)
    return replace(kernel, symbol=f"{kernel.symbol}_{decision}")


def candidates_of(
    workload: Workload, target: Target, tried: Mapping[str, float], count: int, seed: int, func: Any = None
) -> list[tuple[str, Kernel]]:
    """The next of ``SPACE`` candidates in an order of the seed's; a pool's and an add's space is empty."""
    del func
    names = [f"v{n}" for n in range(SPACE)]
    random.Random(seed).shuffle(names)
    return [(name, kernel_of(workload, name, target)) for name in names if name not in tried][:count]


def timer(
    part_of: Callable[[Workload, str], float] = part,
    refused: Callable[[Workload, str], str | None] = lambda workload, decision: None,
    seen: list[tuple[str, tuple[str, ...]]] | None = None,
) -> Callable[..., list[Outcome]]:
    """A ``run_trials`` whose figures are ``part_of`` times the default's; ``seen`` gets (workload, decisions) of each
    call."""

    def try_them(trials: Sequence[Trial], default: Kernel, step: Any, *rest: Any, **options: Any) -> list[Outcome]:
        del default, rest, options
        found = []
        if seen is not None:
            seen.append((step.workload.key, tuple(trial.decision for trial in trials)))
        for trial in trials:
            reason = refused(step.workload, trial.decision)
            seconds = (DEFAULT_S * part_of(step.workload, trial.decision),) * 9
            found.append(
                Outcome(seconds=seconds, default_s=(DEFAULT_S,) * 9) if reason is None else Outcome(refused=reason)
            )
        return found

    return try_them
