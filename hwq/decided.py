"""Decided: kernels compiled as tuning decided, where that still holds, and as their defaults where it does not."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from hwq import store
from hwq.errors import HwqError
from hwq.execute import KernelSet, compile_kernels, quiet
from hwq.lower import Program, Step
from hwq.progress import Callback
from hwq.schedule import kernel_for
from hwq.target import Target

log = logging.getLogger(__name__)

Decisions = Mapping[str, store.Decision]


def decisions_for(target: Target, path: Path) -> Decisions:
    """``Workload.key`` -> what the store ``path`` has decided for ``target`` and these tools; nothing for an emulator.

    Raises HwqError as ``store.everything``.
    """
    return {} if target.emulated else store.decisions(path, target, store.tool_versions())


def compile_decided(
    programs: Iterable[Program],
    target: Target,
    cache_dir: Path,
    decisions: Decisions,
    progress: Callback = quiet,
    known: KernelSet | None = None,
) -> KernelSet:
    """``compile_kernels`` with the ``decisions`` that hold: those of a template as it is now, made against the default
    as it is now."""
    given = list(programs)
    made = known.kernels if known is not None else {}
    steps = {
        step.workload: step
        for program in given
        for step in program.steps
        if step.workload is not None and step.workload not in made and step.workload.key in decisions
    }
    texts = {
        workload.key: decisions[workload.key].decision
        for workload, step in steps.items()
        if _holds(decisions[workload.key], step, target)
    }
    return compile_kernels(given, target, cache_dir, progress, known, texts)


def without_decided(kernels: KernelSet, decisions: Decisions) -> KernelSet:
    """Those of ``kernels`` about which nothing was decided."""
    kept = {workload: kernel for workload, kernel in kernels.kernels.items() if workload.key not in decisions}
    return KernelSet(
        kernels=kept,
        objects={workload: kernels.objects[workload] for workload in kept},
        libraries={workload: kernels.libraries[workload] for workload in kept if workload in kernels.libraries},
    )


def _holds(decision: store.Decision, step: Step, target: Target) -> bool:
    assert step.workload is not None
    try:
        default = kernel_for(step.workload, target, step.func)
        kernel_for(step.workload, target, step.func, decision.decision)
    except HwqError as error:
        log.debug("a decision for %s holds no more: %s", step.name, error)
        return False
    return default.schedule == decision.key.schedule
