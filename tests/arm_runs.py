"""ARM kernels on a board: compiled here, many to a library, run there, and held to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from anchor_runs import make_arguments, packed
from kernel_runs import Array

from hwq import device
from hwq.compile_kernel import compile_object, link
from hwq.reference import evaluate, float_bound
from hwq.schedule import kernel_for
from hwq.scheme import SCHEMES
from hwq.target import Target
from hwq.workload import Kernel, Workload

TARGETS = ("arm-cortex-a72", "arm-cortex-a76")
Case = tuple[Workload, Kernel, list[Array]]


def results(board: device.Device, target: Target, folder: Path, cases: Sequence[Case]) -> list[Array]:
    """What the kernels of ``cases`` write on ``board``, of these arguments, over values that they have to overwrite.

    Each assembly holds its kernel's instruction (``compile_object``).
    """
    library = folder / "kernels.so"
    link(library, [compile_object(kernel, target, folder) for _, kernel, _ in cases])
    module = device.load_library(board, library)
    found = []
    for workload, kernel, arguments in cases:
        dtype = target.activation_storage if workload.out_dtype == "int8" else "float32"
        out = device.tensor(board, np.full(workload.output_shape, 99, dtype))
        module[kernel.symbol](*(device.tensor(board, np.ascontiguousarray(value)) for value in arguments), out)
        found.append(out.numpy())
    return found


def check_layers(
    board: device.Device,
    target: Target,
    folder: Path,
    workloads: Sequence[Workload],
    rng: np.random.Generator,
    *,
    varied: bool = True,
) -> list[Kernel]:
    """The kernels of layers equal the reference (float schemes: within ``float_bound``); those kernels. varied: what
    comes out is not all clamped.
    """
    kernels = [kernel_for(workload, target) for workload in workloads]
    arguments = [make_arguments(workload, target, rng) for workload in workloads]
    ready = [packed(*case) for case in zip(workloads, kernels, arguments, strict=True)]
    found = results(board, target, folder, list(zip(workloads, kernels, ready, strict=True)))
    for workload, values, result in zip(workloads, arguments, found, strict=True):
        expected = evaluate(workload, values, target.activation_storage)
        assert result.dtype == expected.dtype, workload
        if SCHEMES[workload.scheme].domain == "f32":
            assert np.all(np.abs(result - expected) <= float_bound(workload, values)), workload
        else:
            np.testing.assert_array_equal(result, expected, str(workload))
            assert not varied or expected.size < 99 or len(np.unique(expected)) > 5, "not all clamped"
    return kernels
