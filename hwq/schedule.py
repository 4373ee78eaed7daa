"""The kernel families in order: the first that takes a workload makes its kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hwq.errors import HwqError
from hwq.schedules.generic import binary, boxes, gather, pool, quantize, transpose
from hwq.target import Target
from hwq.workload import Kernel, Workload

FAMILIES: tuple[Callable[[Workload, Target], Kernel | None], ...] = (
    quantize.apply,
    binary.apply,
    pool.apply,
    boxes.apply,
    gather.apply,
    transpose.apply,
)


def kernel_for(workload: Workload, target: Target, func: Any = None) -> Kernel:
    """The scheduled kernel of ``workload`` on ``target``; ``func`` is the PrimFunc of an op "float".

    Raises HwqError "kernel-missing" if no family takes it: legal schemes come from the target, so this is a gap in hwq.
    """
    del func
    for family in FAMILIES:
        kernel = family(workload, target)
        if kernel is not None:
            return kernel
    raise HwqError("kernel-missing", f"no kernel for {workload.op} in {workload.scheme} of {workload.input_shapes} on {target.name}")
