"""Where tokens go through a PrimFunc that TVM legalized an operator to: which axis of its output is theirs.

Used by ``hwq.tokens`` for "float" layers, whose operators are any: what an operator does to an axis is read off the
indices of its blocks. An axis that is indexed by one loop, in every load and in the store, passes through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.s_tir.stmt import SBlock


class MixedError(Exception):
    """An output value depends on more than one token, or on where sequences end; the reason is the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAxis:
    """An axis of a tensor that runs over tokens, and within each over its ``inner`` rows: tokens x inner long."""

    axis: int
    inner: int = 1


Axes = tuple[TokenAxis, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Known:
    """A buffer with its token axes; ``constant``: its values are the same in every call."""

    buffer: Any
    axes: Axes
    constant: bool


def follow(func: Any, inputs: Sequence[Axes], least: int) -> Axes:
    """The token axes of the last parameter of ``func``, from those of its first ``inputs``; the rest are constant.

    least: how many tokens there are always: what reads one of these by its number does not mix. Raises MixedError.
    """
    params = list(func.params)
    known = [
        _Known(buffer=param, axes=inputs[i] if i < len(inputs) else (), constant=i >= len(inputs))
        for i, param in enumerate(params[:-1])
    ]
    for block in _blocks(func):
        known.append(_block(block, known, least))
    for one in known[len(params) - 1 :]:
        if one.buffer.same_as(params[-1]):
            return one.axes
    raise MixedError("it is not made of plain loops")


def _blocks(func: Any) -> list[Any]:
    """The blocks that compute, in order."""
    found: list[Any] = []

    def visit(block: Any) -> None:
        if len(block.iter_vars):
            found.append(block)

    tvm_ffi.structural_walk(func.body, (SBlock, visit))
    return found


def _block(block: Any, known: Sequence[_Known], least: int) -> _Known:
    """What a block writes."""
    loads, stores = _accesses(block.body)
    if len(stores) != 1:
        raise MixedError("it is not made of plain loops")
    target = stores[0].buffer
    sources = [(load, _of(load.source, known)) for load in loads if not load.source.same_as(target)]
    marked: list[tuple[Any, int]] = []  # loops over tokens, with their rows of a token
    for load, source in sources:
        for one in source.axes:
            index = load.indices[one.axis]
            if isinstance(index, tirx.IntImm):
                if int(index.value) >= least * one.inner:
                    raise MixedError(f"it reads token {int(index.value) // one.inner}, and there may be fewer")
                continue
            if _reduced(block, index):
                raise MixedError("it reduces over tokens")
            if not _is_loop(block, index):
                raise MixedError("it moves tokens")
            if any(var.same_as(index) and inner != one.inner for var, inner in marked):
                raise MixedError("it joins tensors that lay tokens out differently")
            marked.append((index, one.inner))
    for load, source in sources:
        if not (source.constant or source.axes) and any(_uses(index, marked) for index in load.indices):
            raise MixedError("it joins tokens with an axis whose length does not vary")
    constant = not marked and all(source.constant for _, source in sources)
    return _Known(buffer=target, axes=tuple(_placed(stores[0], marked)), constant=constant)


def _placed(store: Any, marked: Sequence[tuple[Any, int]]) -> Iterator[TokenAxis]:
    """Where the store of a block puts the loops over tokens."""
    for axis, index in enumerate(store.indices):
        inner = next((inner for var, inner in marked if var.same_as(index)), None)
        if inner is not None:
            yield TokenAxis(axis=axis, inner=inner)
        elif _uses(index, marked):
            raise MixedError("it moves tokens")


def _accesses(body: Any) -> tuple[list[Any], list[Any]]:
    loads: list[Any] = []
    stores: list[Any] = []
    tvm_ffi.structural_walk(body, [(ir.TensorLoad, loads.append), (tirx.BufferStore, stores.append)])
    return loads, stores


def _of(buffer: Any, known: Sequence[_Known]) -> _Known:
    found = next((one for one in known if one.buffer.same_as(buffer)), None)
    if found is None:
        raise MixedError("it is not made of plain loops")
    return found


def _is_loop(block: Any, index: Any) -> bool:
    return any(each.var.same_as(index) for each in block.iter_vars)


def _reduced(block: Any, index: Any) -> bool:
    """Whether an index is, or has in it, an axis that a block reduces."""
    free = tirx.analysis.undefined_vars(index)
    return any(
        each.iter_type == tirx.IterVar.CommReduce and any(each.var.same_as(var) for var in free)
        for each in block.iter_vars
    )


def _uses(index: Any, marked: Sequence[tuple[Any, int]]) -> bool:
    free = tirx.analysis.undefined_vars(index)
    return any(var.same_as(each) for var, _ in marked for each in free)
