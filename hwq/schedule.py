"""The kernel families in order: the first that takes a workload makes its kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hwq.errors import HwqError
from hwq.schedules.cpu import conv2d, dense, depthwise, grouped
from hwq.schedules.generic import (
    binary,
    boxes,
    float_func,
    gather,
    layer_norm,
    pool,
    quantize,
    softmax,
    transpose,
    unary,
)
from hwq.schedules.x86 import amx, picture, resize, table, winograd
from hwq.schedules.x86 import binary as x86_binary
from hwq.target import Target
from hwq.workload import Kernel, Workload

FAMILIES: tuple[Callable[[Workload, Target], Kernel | None], ...] = (
    amx.apply,
    dense.apply,
    grouped.apply,
    winograd.apply,
    conv2d.apply,
    depthwise.apply,
    picture.apply,
    quantize.apply,
    x86_binary.apply,
    binary.apply,
    table.apply,
    unary.apply,
    pool.apply,
    boxes.apply,
    gather.apply,
    resize.apply,
    transpose.apply,
    softmax.apply,
    layer_norm.apply,
)


def kernel_for(workload: Workload, target: Target, func: Any = None) -> Kernel:
    """The scheduled kernel of ``workload`` on ``target``; ``func`` is the PrimFunc of an op "float".

    Raises HwqError "kernel-missing" if no family takes it: legal schemes come from the target, so this is a gap in hwq.
    """
    if workload.op == "float":
        assert func is not None, workload
        return float_func.apply(workload, target, func)
    for family in FAMILIES:
        kernel = family(workload, target)
        if kernel is not None:
            return kernel
    shapes = ", ".join(map(str, workload.input_shapes))
    raise HwqError("kernel-missing", f"no kernel on {target.name} for {workload.op} in {workload.scheme} of {shapes}")
