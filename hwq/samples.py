"""Samples as users give them, checked and cut into the batches a network was prepared for.

A set of samples is one array, or an iterable of arrays or of dicts (input name -> array), batch axis first. What comes
out is a stream of {input name: array of exactly the network's shape}.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.errors import HwqError
from hwq.graph import Shape

Array = npt.NDArray[Any]
Batch = dict[str, Array]
# name -> (shape, dtype), in the network's order of inputs
Inputs = Mapping[str, tuple[Shape, str]]


def check_array(name: str, value: Any, shape: Shape, dtype: str, what: str) -> Array:
    """``value`` as a contiguous array of ``dtype`` whose trailing axes are shape[1:]; float widths are converted.

    Raises HwqError "input-type", "input-shape" or "input-nan".
    """
    array = np.asarray(value)
    floats = np.dtype(dtype).kind == "f"
    if array.dtype.kind != np.dtype(dtype).kind:
        raise HwqError("input-type", f"{what} for input {name!r} has type {array.dtype}; accepted: {dtype}")
    if array.ndim != len(shape) or tuple(array.shape[1:]) != shape[1:] or array.shape[0] == 0:
        wanted = "(N, " + ", ".join(map(str, shape[1:])) + ")" if len(shape) > 1 else "(N,)"
        raise HwqError("input-shape", f"{what} for input {name!r} has shape {tuple(array.shape)}; accepted: {wanted}")
    if floats and not np.isfinite(array).all():
        raise HwqError("input-nan", f"{what} for input {name!r} holds NaN or infinity; accepted: finite numbers")
    return np.ascontiguousarray(array, dtype)


def as_batch(value: Any, inputs: Inputs, what: str) -> Batch:
    """One user value (an array for the only input, a sequence in input order, or a dict) as checked arrays by input name."""
    names = list(inputs)
    if isinstance(value, Mapping):
        given = dict(value)
    elif len(names) == 1:
        given = {names[0]: value[0] if isinstance(value, tuple) and len(value) == 1 else value}
    elif isinstance(value, tuple | list) and len(value) == len(names):
        given = dict(zip(names, value, strict=True))
    else:
        raise HwqError("input-name", f"{what} gives one array, but the network has inputs {', '.join(names)}; accepted: a dict")
    if set(given) != set(names):
        raise HwqError("input-name", f"{what} names inputs {sorted(given)}; accepted: {sorted(names)}")
    batch = {name: check_array(name, given[name], *inputs[name], what) for name in names}
    counts = {len(array) for array in batch.values()}
    if len(counts) > 1:
        raise HwqError("input-shape", f"{what} has inputs of different lengths {sorted(counts)}; accepted: one length for all")
    return batch


def split(batch: Batch, inputs: Inputs) -> Iterator[tuple[Batch, int]]:
    """Cut a checked batch into network-sized ones, each with the number of its samples that are real.

    The last one is filled up by repeating its final sample.
    """
    size = next(iter(inputs.values()))[0][0]
    total = len(next(iter(batch.values())))
    for start in range(0, total, size):
        real = min(size, total - start)
        part = {name: array[start : start + real] for name, array in batch.items()}
        if real < size:
            part = {name: np.concatenate([array, np.repeat(array[-1:], size - real, axis=0)]) for name, array in part.items()}
        yield part, real


def stream(samples: Any, inputs: Inputs, what: str = "calibration") -> Iterator[Batch]:
    """Network-sized batches of ``samples``; HwqError "samples-empty" if there is not one."""
    sets = [samples] if isinstance(samples, np.ndarray | Mapping) else samples
    if not isinstance(sets, Iterable):
        raise HwqError("input-type", f"{what} is {type(samples).__name__}; accepted: an array, or an iterable of arrays or dicts")
    empty = True
    for item in sets:
        if isinstance(item, np.ndarray) and item.shape[:1] == (0,):
            continue
        for part, _ in split(as_batch(item, inputs, what), inputs):
            empty = False
            yield part
    if empty:
        raise HwqError("samples-empty", f"{what} holds no samples; accepted: at least one")


def made_up(inputs: Inputs) -> Batch:
    """One network-sized batch of ordinary values (normal floats, zeros for other types), for timing."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(dtype) if np.dtype(dtype).kind == "f" else np.zeros(shape, dtype)
        for name, (shape, dtype) in inputs.items()
    }


class Digest:
    """A hash of samples' content and order, taken as they pass."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, batch: Batch) -> None:
        for name in sorted(batch):
            self._hash.update(name.encode())
            self._hash.update(np.ascontiguousarray(batch[name]).data)

    def hex(self) -> str:
        return self._hash.hexdigest()
