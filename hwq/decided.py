"""Decided: kernels compiled as tuning decided, where that still holds, and as their defaults where it does not.

A decision holds for the code that was measured, beside the default as it is now, with the weights where they were then
(see ``hwq.measure.home_of_weights``): what wins with its weights near may lose where they come from memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from hwq import store
from hwq.compile_kernel import object_path
from hwq.errors import HwqError
from hwq.execute import KernelSet, compile_kernels, quiet
from hwq.lower import Program, Step
from hwq.progress import Callback
from hwq.schedule import kernel_for
from hwq.switches import verify_wanted
from hwq.target import Target
from hwq.workload import Workload

log = logging.getLogger(__name__)

Decisions = Mapping[store.Key, store.Decision]
HomeOf = Callable[[Workload], str]


def decisions_for(target: Target, path: Path) -> Decisions:
    """What the store ``path`` has decided for ``target`` and these tools; nothing for an emulator.

    Raises HwqError as ``store.everything``.
    """
    return {} if target.emulated else store.decisions(path, target, store.tool_versions())


def compile_decided(
    programs: Iterable[Program],
    target: Target,
    cache_dir: Path,
    decisions: Decisions,
    home_of: HomeOf,
    progress: Callback = quiet,
    known: KernelSet | None = None,
) -> KernelSet:
    """``compile_kernels`` with the ``decisions`` that hold. home_of: where the weights of a kernel are."""
    given = list(programs)
    made = known.kernels if known is not None else {}
    names = {key.workload for key in decisions}
    steps = {
        step.workload: step
        for program in given
        for step in program.steps
        if step.workload is not None and step.workload not in made and step.workload.key in names
    }
    tools = store.tool_versions() if steps else ""
    texts = {
        workload.key: text
        for workload, step in steps.items()
        if (text := _text(decisions, step, target, home_of(workload), tools)) is not None
    }
    return compile_kernels(given, target, cache_dir, progress, known, texts)


def without_decided(kernels: KernelSet, decisions: Decisions) -> KernelSet:
    """Those of ``kernels`` about which nothing was decided."""
    names = {key.workload for key in decisions}
    kept = {workload: kernel for workload, kernel in kernels.kernels.items() if workload.key not in names}
    return KernelSet(
        kernels=kept,
        objects={workload: kernels.objects[workload] for workload in kept},
        libraries={workload: kernels.libraries[workload] for workload in kept if workload in kernels.libraries},
    )


def _text(decisions: Decisions, step: Step, target: Target, home: str, tools: str) -> str | None:
    """The decision for a step's kernel, where one holds. Checked kernels (HWQ_VERIFY) have other code than those that
    were measured, and are held to the reference anyway."""
    assert step.workload is not None
    try:
        default = kernel_for(step.workload, target, step.func)
        found = decisions.get(store.key_of(step.workload, f"{default.schedule}@{home}", target, tools))
        if found is None:
            return None
        kernel = kernel_for(step.workload, target, step.func, found.decision)
    except HwqError as error:
        log.debug("a decision for %s holds no more: %s", step.name, error)
        return None
    if not verify_wanted() and object_path(kernel, target, Path()).stem[:12] != found.code:
        log.debug("a decision for %s holds no more: its code is another", step.name)
        return None
    return found.decision
