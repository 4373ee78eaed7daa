"""The kernel families in order: the first that takes a workload makes its kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from hwq.errors import HwqError
from hwq.schedules.arm import smmla
from hwq.schedules.arm import table as arm_table
from hwq.schedules.cpu import attention, attention_cache, conv2d, dense, depthwise, grouped, weight_only
from hwq.schedules.generic import (
    binary,
    boxes,
    embedding,
    float_func,
    gather,
    layer_norm,
    pool,
    position,
    quantize,
    reduce,
    resize,
    rms_norm,
    rope,
    rows,
    softmax,
    transpose,
    unary,
)
from hwq.schedules.template import Choice, Decision, Template, read_decision
from hwq.schedules.x86 import amx, picture, table, winograd
from hwq.schedules.x86 import binary as x86_binary
from hwq.target import Target
from hwq.workload import Kernel, Workload

FAMILIES: tuple[Callable[[Workload, Target], Kernel | None], ...] = (
    amx.apply,
    smmla.apply,
    dense.apply,
    grouped.apply,
    weight_only.apply,
    winograd.apply,
    conv2d.apply,
    depthwise.apply,
    picture.apply,
    quantize.apply,
    rows.apply,
    x86_binary.apply,
    binary.apply,
    table.apply,
    arm_table.apply,
    unary.apply,
    pool.apply,
    boxes.apply,
    gather.apply,
    resize.apply,
    transpose.apply,
    softmax.apply,
    reduce.apply,
    layer_norm.apply,
    rms_norm.apply,
    rope.apply,
    embedding.apply,
    attention.apply,
    position.apply,
    attention_cache.apply,
)


# The families that have more than one way to compute a workload.
SEARCHED: tuple[Callable[[Workload, Target], Iterable[Template]], ...] = (
    smmla.templates,
    dense.templates,
    grouped.templates,
    winograd.templates,
    conv2d.templates,
    depthwise.templates,
)


@functools.lru_cache(maxsize=64)
def templates(workload: Workload, target: Target) -> tuple[Template, ...]:
    """Every template that can make the kernel of ``workload``, that of the default kernel first, then by the models'
    expectations; none where the default kernel is not made by one of a family in SEARCHED.
    """
    found = [template for family in SEARCHED for template in family(workload, target)]
    if not found:
        return ()
    name = kernel_for(workload, target).schedule
    default = next((template for template in found if template.name == name), None)
    if default is None:
        return ()
    return (default, *sorted((each for each in found if each is not default), key=lambda each: each.cycles))


def kernel_for(workload: Workload, target: Target, func: Any = None, decision: str | None = None) -> Kernel:
    """The scheduled kernel of ``workload`` on ``target``; ``func`` is the PrimFunc of an op "float".

    decision: a point of its search space, see ``hwq.space``; None is the default.
    Raises HwqError "kernel-missing" if no family takes it: legal schemes come from the target, so this is a gap in hwq;
    "decision-invalid" for a decision that is not of a template of ``workload``.
    """
    if decision is not None:
        return _decided(workload, target, read_decision(decision))
    if workload.op == "float":
        assert func is not None, workload
        return float_func.apply(workload, target, func)
    for family in FAMILIES:
        kernel = family(workload, target)
        if kernel is not None:
            return kernel
    shapes = ", ".join(map(str, workload.input_shapes))
    raise HwqError("kernel-missing", f"no kernel on {target.name} for {workload.op} in {workload.scheme} of {shapes}")


def _decided(workload: Workload, target: Target, decision: Decision) -> Kernel:
    """The kernel of a decision."""
    return template_named(workload, target, decision).made(Choice(values=decision.values))[0]


def template_named(workload: Workload, target: Target, decision: Decision) -> Template:
    """The template of a decision. Raises HwqError "decision-invalid" for one that ``workload`` does not have."""
    for template in templates(workload, target):
        if (template.name, template.variant) == (decision.template, decision.variant):
            return template
    what = f"{decision.template} {decision.variant!r} for {workload.op} in {workload.scheme} on {target.name}"
    raise HwqError("decision-invalid", f"a decision is {what}, which is none of its templates; accepted: one of them")
