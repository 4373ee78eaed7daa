"""Samples as users give them, checked and cut into the batches a network was prepared for; and .npz files of them.

A set of samples is one array, or an iterable of arrays or of dicts (input name -> array), batch axis first. What comes
out is a stream of {input name: array of exactly the network's shape}.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.errors import HwqError
from hwq.graph import LEAST, SPAN, Shape
from hwq.lengths import COUNT, EXTRA, Length, counts, filled_up, lengths_of

Array = npt.NDArray[Any]
Batch = dict[str, Array]
# name -> (shape, dtype), in the network's order of inputs
Inputs = Mapping[str, tuple[Shape, str]]

LABELS = "labels"
# Among the rows of tables: an input that is none, but a mask (``hwq.masks``), where -infinity is LEAST.
MASK = 0


class Gathered(Batch):
    """Batches of ``split`` in one, by ``gathered``: the only ones that say themselves how many tokens they have."""


def batch_size(inputs: Inputs) -> int | None:
    """The length of the batch axis that all inputs share; None where they share none, and only whole inputs can be."""
    firsts = {shape[:1] for shape, _ in inputs.values()}
    if any(lengths_of(firsts)):
        return None
    first = firsts.pop()
    return first[0] if not firsts and first else None


def count_of(batch: Mapping[str, Array]) -> int:
    """How many samples a batch holds: the length of its inputs' first axis; 1 for an input without axes."""
    first = next(iter(batch.values()))
    return len(first) if first.ndim else 1


def check_array(
    name: str, value: Any, shape: Shape, dtype: str, what: str, *, batched: bool = True, mask: bool = False
) -> Array:
    """``value`` as a contiguous array of ``dtype`` and ``shape``; float widths are converted.

    batched: the first axis may have any length but 0. mask: -infinity is LEAST. Raises HwqError "input-type",
    "input-shape", "input-range", "input-nan", and "samples-empty" for a length of 0.
    """
    axes = [f"{size.least}..{size}" if isinstance(size, Length) else str(size) for size in shape]
    axes = ["N", *axes[1:]] if batched else axes
    wanted = f"({axes[0]},)" if len(axes) == 1 else f"({', '.join(axes)})"
    array = array_of(name, value, what, dtype)
    if array.dtype.kind != np.dtype(dtype).kind:
        raise HwqError("input-type", f"{what} for input {name!r} has type {array.dtype}; accepted: {dtype}")
    known = [None, *shape[1:]] if batched else list(shape)
    fits = array.ndim == len(shape) and all(map(_fits, array.shape, known))
    if not fits:
        raise HwqError("input-shape", f"{what} for input {name!r} has shape {tuple(array.shape)}; accepted: {wanted}")
    check_range(name, array, dtype, what)
    if batched and not len(array):
        raise HwqError("samples-empty", f"{what} for input {name!r} holds no samples; accepted: {wanted}, N at least 1")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype).reshape(array.shape)  # the former makes (1,) of ()
    if mask:
        array = np.maximum(array, array.dtype.type(LEAST))
    if array.dtype.kind == "f" and not np.isfinite(array).all():  # after the conversion, since 1e300 is no float32
        bad = int(np.argmin(np.isfinite(array.reshape(len(array), -1)).all(axis=1))) if batched else 0
        accepted = f"finite {dtype} numbers" + (", and -infinity where a mask hides" if mask else "")
        message = f"{what} for input {name!r} holds NaN or infinity in sample {bad}; accepted: {accepted}"
        raise HwqError("input-nan", message)
    return array


def array_of(name: str, value: Any, what: str, accepted: str) -> Array:
    """``value`` as an array. Raises HwqError "input-shape" for rows of different lengths, and "input-type"."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:  # rows of different lengths, or something that refuses to be an array
        if _unlike(value):
            raise HwqError(
                "input-shape",
                f"{what} for input {name!r} holds rows of different lengths; accepted: rows of one length in one call, "
                "those of other lengths in calls of their own",
            ) from None
        raise HwqError(
            "input-type", f"{what} for input {name!r} is no array ({error}); accepted: {accepted}"
        ) from error


def _unlike(value: Any) -> bool:
    """Whether a list holds rows of different lengths, somewhere inside."""
    if not isinstance(value, list | tuple):
        return False
    return len({np.shape(row) if isinstance(row, np.ndarray) else _count(row) for row in value}) > 1 or any(
        map(_unlike, value)
    )


def _count(row: Any) -> Any:
    return len(row) if isinstance(row, list | tuple) else ()


def check_range(name: str, array: Array, dtype: str, what: str, rows: int | None = None) -> None:
    """Raises HwqError "input-range" for whole numbers that ``dtype`` does not hold, or a table of ``rows`` rows, of
    which they are numbers: the last may also be counted as -1, and so on."""
    if array.dtype.kind not in "iu" or not array.size:
        return
    held = np.iinfo(dtype)
    least, most = (int(held.min), int(held.max)) if rows is None else (-rows, rows - 1)
    for found in (int(array.min()), int(array.max())):
        if not least <= found <= most:
            whose = f"the type {held.dtype}" if rows is None else f"a table of {rows} rows"
            message = f"{what} for input {name!r} holds {found}, which is beyond {whose}"
            raise HwqError("input-range", f"{message}; accepted: {least} to {most}")


def as_batch(value: Any, inputs: Inputs, what: str, rows: Mapping[str, int] | None = None) -> Batch:
    """One user value (an array for the only input, a sequence in input order, or a dict) as checked arrays by name.

    Of what ``gathered`` made, how many tokens there are goes along. rows: of inputs that are looked up in a table, how
    many it has; MASK of masks (``hwq.masks.limits``). Raises HwqError "input-name", "input-shape", and those of
    ``check_array``.
    """
    names = list(inputs)
    extra: Batch = {}
    if isinstance(value, Mapping):
        given = dict(value)
        if isinstance(value, Gathered):
            extra = {name: given.pop(name) for name in EXTRA if name in given}
    elif isinstance(value, tuple | list if len(names) > 1 else tuple) and len(value) == len(names):
        given = dict(zip(names, value, strict=True))
    elif len(names) == 1 and not isinstance(value, tuple):
        given = {names[0]: value}
    else:
        count = len(value) if isinstance(value, tuple | list) else 1
        message = f"{what} gives {count} for the inputs {_listed(names)}; accepted: one array for each, or a dict"
        raise HwqError("input-name", message)
    if set(given) != set(names):
        raise HwqError("input-name", f"{what} names inputs {_listed(given)}; accepted: {_listed(names)}")
    batched = batch_size(inputs) is not None
    rows = rows or {}
    batch = {
        name: check_array(name, given[name], *inputs[name], what, batched=batched, mask=rows.get(name) == MASK)
        for name in names
    }
    for name, count in rows.items():
        check_range(name, batch[name], str(batch[name].dtype), what, count)
    counts = {len(array) for array in batch.values()} if batched else ()
    if len(counts) > 1:
        message = f"{what} has inputs of different lengths {sorted(counts)}; accepted: one length for all"
        raise HwqError("input-shape", message)
    tokens_of(batch, inputs, what)
    return Gathered(batch | extra) if extra else batch


def _fits(found: int, size: int | None) -> bool:
    """Whether a dimension is as it should be; any where ``size`` is None."""
    return size is None or (size.least <= found <= size if isinstance(size, Length) else found == size)


def tokens_of(batch: Mapping[str, Array], inputs: Inputs, what: str) -> int | None:
    """How many tokens a checked batch has in all axes whose lengths vary; None where there is none.

    Raises HwqError "input-shape" where they are not as many everywhere.
    """
    found = {
        name: batch[name].shape[axis]
        for name, (shape, _) in inputs.items()
        for axis, size in enumerate(shape)
        if isinstance(size, Length)
    }
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{count} in {name!r}" for name, count in found.items())
        raise HwqError("input-shape", f"{what} has different lengths, {listed}; accepted: one length in all of these")
    return next(iter(found.values()), None)


def split(batch: Batch, inputs: Inputs) -> Iterator[tuple[Batch, int]]:
    """Cut a checked batch into network-sized ones, each with the number of its samples that are real.

    The last one is filled up by repeating its final sample. Without a batch axis the whole is one sample. Where lengths
    vary, they are filled up with zeros to the most, and how many tokens there are goes along (``lengths.EXTRA``).
    """
    size = batch_size(inputs)
    if size is None:
        yield _whole(batch, inputs), 1
        return
    total = count_of(batch)
    for start in range(0, total, size):
        real = min(size, total - start)
        part = {name: array[start : start + real] for name, array in batch.items()}
        if real < size:
            fill = size - real
            part = {name: np.concatenate([array, np.repeat(array[-1:], fill, axis=0)]) for name, array in part.items()}
        yield _whole(part, inputs), real


def _whole(part: Batch, inputs: Inputs) -> Batch:
    """A batch in the network's shapes, with EXTRA where lengths vary."""
    if COUNT in part:
        return part | counts(int(part[COUNT][0]))
    tokens = tokens_of(part, inputs, "the batch")
    if tokens is None:
        return part
    return {name: filled_up(part[name], shape) for name, (shape, _) in inputs.items()} | counts(tokens)


def gathered(parts: Sequence[Batch]) -> Batch:
    """Batches of ``split`` in one, samples first, which ``as_batch`` takes again: each has as many tokens as it had."""
    return Gathered(
        {
            name: np.stack([part[name] for part in parts])
            if name == SPAN
            else np.concatenate([part[name] for part in parts])
            for name in parts[0]
        }
    )


def in_batches(
    run: Callable[[Batch], Sequence[Array]],
    value: Any,
    inputs: Inputs,
    what: str = "the argument",
    shapes: Sequence[Shape] = (),
    rows: Mapping[str, int] | None = None,
) -> Array | tuple[Array, ...]:
    """Call ``run`` on network-sized batches of ``value`` and join what it gives: one array, or a tuple of several.

    Outputs with the inputs' batch axis hold as many samples as ``value``; others follow one another, batch by batch.
    ``run`` gives outputs for as many tokens as there are; of what ``gathered`` made they are filled up with zeros to
    ``shapes``, the outputs' own. rows and errors: those of ``as_batch``.
    """
    size = batch_size(inputs)
    results = []
    batch = as_batch(value, inputs, what, rows)
    for part, real in split(batch, inputs):
        found = run(part)
        if COUNT in batch and shapes:
            found = [filled_up(out, shape) for out, shape in zip(found, shapes, strict=True)]
        results.append([out[:real] if out.shape[:1] == (size,) else out for out in found])
    if len(results) == 1:
        joined = tuple(results[0])
    else:
        joined = tuple(np.concatenate([np.atleast_1d(out) for out in column]) for column in zip(*results, strict=True))
    return joined[0] if len(joined) == 1 else joined


def repeatable(samples: Any) -> bool:
    """Whether ``stream`` can go through ``samples`` more than once: through a generator's it cannot."""
    return isinstance(samples, np.ndarray | Mapping | list | tuple)


def stream(
    samples: Any, inputs: Inputs, what: str = "calibration", rows: Mapping[str, int] | None = None
) -> Iterator[Batch]:
    """Network-sized batches of ``samples``; HwqError "samples-empty" if there is not one.

    Empty arrays among others are passed over. rows: see ``as_batch``.
    """
    sets = [samples] if isinstance(samples, np.ndarray | Mapping) else samples
    if not isinstance(sets, Iterable):
        found = type(samples).__name__
        message = f"{what} is {found}; accepted: an array, or an iterable of arrays or of dicts (input name -> array)"
        raise HwqError("input-type", message)
    empty = True
    for item in sets:
        arrays = item.values() if isinstance(item, Mapping) else [item]
        if all(isinstance(array, np.ndarray) and array.shape[:1] == (0,) for array in arrays):
            continue
        for part, _ in split(as_batch(item, inputs, what, rows), inputs):
            empty = False
            yield part
    if empty:
        raise HwqError("samples-empty", f"{what} holds no samples; accepted: at least one")


def made_up(inputs: Inputs) -> Batch:
    """One network-sized batch of ordinary values (normal floats, zeros for other types), for timing; the longest where
    lengths vary, the first token of a sequence where it goes token by token."""
    rng = np.random.default_rng(0)
    lengths = lengths_of(shape for shape, _ in inputs.values())
    found = {
        name: rng.standard_normal(shape).astype(dtype) if np.dtype(dtype).kind == "f" else np.zeros(shape, dtype)
        for name, (shape, dtype) in inputs.items()
    } | (counts(lengths[0].tokens) if lengths else {})
    return found if SPAN not in inputs else found | {SPAN: np.array([1, 1], inputs[SPAN][1])}


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


def read_file(path: str | os.PathLike[str], inputs: Sequence[str]) -> tuple[Batch, Array | None]:
    """(arrays by input name, labels or None) of an .npz: one array for each of ``inputs``, and optionally "labels".

    "x" is taken for the only input, and so is the array of an .npy. Shapes and types are not checked here. Raises
    HwqError "samples-missing" or "samples-invalid".
    """
    shown = os.fspath(path)
    try:
        with open(path, "rb") as file:
            if file.peek(2)[:2] not in (b"PK", b"\x93N"):  # NumPy would take it for a pickle, and say so
                raise ValueError("neither .npz nor .npy")
            loaded = np.load(file, allow_pickle=False)
            arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"cannot read the samples file {shown!r}: {reason}; accepted: an .npz of arrays"
        raise HwqError("samples-missing", message) from error
    except Exception as error:  # NumPy, zipfile and zlib each raise their own, without a common base
        message = f"samples file {shown!r} is damaged or of another kind ({error}); accepted: an .npz of plain arrays"
        raise HwqError("samples-invalid", message) from error
    labels = arrays.pop(LABELS, None) if LABELS not in inputs else None
    if len(inputs) == 1 and "x" in arrays and inputs[0] not in arrays:
        arrays[inputs[0]] = arrays.pop("x")
    if set(arrays) != set(inputs):
        accepted = _listed(inputs) + (" (or x)" if len(inputs) == 1 else "")
        message = f"samples file {shown!r} holds {_listed(arrays)}; accepted: {accepted}, and optionally {LABELS}"
        raise HwqError("samples-invalid", message)
    return arrays, labels


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(str(name)) for name in sorted(map(str, names))) or "nothing"
