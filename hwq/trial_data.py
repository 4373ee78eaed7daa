"""What the workers of ``hwq.trial`` are handed of a task: arrays in files, and plain values.

Arrays are named by their content, so that what two kernels share is written and sent once, and the reference's output
by what it is computed from, so that it is computed once. Workers need neither the program nor the packing functions:
weights are packed here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq import reference
from hwq.cost import SMALL_WEIGHTS_BYTES
from hwq.lengths import count_at_most
from hwq.lower import Program, Step
from hwq.scheme import SCHEMES
from hwq.target import Target
from hwq.workload import Kernel

Array = npt.NDArray[Any]


def made_up(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Activations: bytes over their whole range, normal floats, 0 and 1 for any other type (indices among them)."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if kind.itemsize == 1 and kind.kind in "iu":
        return rng.integers(0, 256, shape).astype(np.uint8).view(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def task_content(step: Step, program: Program, target: Target, home: str, folder: Path) -> dict[str, Any]:
    """The part of a job that all trials of one task share: inputs, what is to come out, and where the weights are.

    An op "float" has no reference, and nothing to search either: there are no trials of it. bound None: integers, to be
    equal. span_bytes: so much of other weights is read between two readings of one; 0 for weights that
    are near, or too small for it to be felt.
    """
    workload = step.workload
    assert workload is not None
    assert workload.op != "float"
    shape, dtype = program.values[step.output]
    inputs = [
        made_up(*program.values[name], seed) if (count := count_at_most(name, workload)) is None else count
        for seed, name in enumerate(step.inputs)
    ]
    arguments = [*inputs, *step.constants]
    key = _digest([workload.key, target.activation_storage, *map(_name, arguments)])
    expected, bound = folder / f"{key}-expected.npy", folder / f"{key}-bound.npy"
    floating = SCHEMES[workload.scheme].domain == "f32"
    if not expected.exists():
        np.save(expected, reference.evaluate(workload, arguments, target.activation_storage))
    if floating and not bound.exists():
        np.save(bound, reference.float_bound(workload, arguments))
    near = home == "l2" or step.weight is None or step.constants[step.weight].nbytes < SMALL_WEIGHTS_BYTES
    far_bytes = 4 * target.l2_bytes if home == "l3" else 2 * max(target.l3_bytes, 4 * target.l2_bytes)
    return {
        "inputs": [_kept(value, folder) for value in inputs],
        "shape": list(shape),
        "dtype": dtype,
        "expected": str(expected),
        "bound": str(bound) if floating else None,
        "span_bytes": 0 if near else far_bytes,
    }


def kernel_content(
    kernel: Kernel, step: Step, library: Path, folder: Path, others: Path | None = None
) -> dict[str, Any]:
    """The part of a job that tells of one kernel: its library, and its constants as it stores them, in files of
    ``folder``, or of ``others`` if they are there already.
    """
    constants = [
        kernel.pack(value) if i == step.weight and kernel.pack is not None else value
        for i, value in enumerate(step.constants)
    ]
    expand = kernel.expand
    return {
        "library": str(library),
        "symbol": kernel.symbol,
        "constants": [_kept(value, folder, others) for value in constants],
        "weight": step.weight,
        "expand": None if expand is None else [expand.symbol, list(expand.shape), expand.dtype],
    }


def _kept(value: Array, folder: Path, others: Path | None = None) -> str:
    """The file of ``value`` in ``folder``, written if it is neither there nor in ``others``."""
    name = f"{_name(value)}.npy"
    path = folder / name if others is None or not (others / name).exists() else others / name
    if not path.exists():
        np.save(path, value, allow_pickle=False)
    return str(path)


def _name(value: Array) -> str:
    """A name of its content."""
    return _digest([value.shape, str(value.dtype), hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()])


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
