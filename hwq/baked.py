"""Values computed from the length of sequences, which importing a network writes into it as constants: found, refused.

A network with a free axis is imported at the most, where sum(x) / length divides by the most whatever the length is.
Imported once more at a second length, it has other constants: those that run along tokens are cut, all others have to
be the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm_ffi
from tvm import ir, tirx

from hwq.errors import HwqError
from hwq.graph import Graph, Layer
from hwq.lengths import Array

_ACCEPTED = (
    "networks whose only values that depend on the length are tables along tokens, read from their start (the mean of "
    "a mask's sum needs no length, nor does ReduceMean)"
)


def same_layers(graph: Graph, other: Graph) -> bool:
    """Whether two graphs of one network, at two lengths, have the same layers in the same order."""
    return [_kind(layer) for layer in graph.layers] == [_kind(layer) for layer in other.layers]


def check_constants(graph: Graph, other: Graph, most: int, length: int) -> None:
    """Raises HwqError "tokens-mixed" naming the first layer of ``graph``, a network at the most, whose constants are
    not those of ``other``, the same at another length, beside what is longer in them.
    """
    for layer, again in zip(graph.layers, other.layers, strict=True):
        held = [layer.weight, layer.bias, *layer.constants]
        found = [again.weight, again.bias, *again.constants]
        agree = (
            all(_cut(one, two) for one, two in zip(held, found, strict=True))
            and _number(dict(layer.attrs), dict(again.attrs), most, length)
            and layer.activation == again.activation
            and _immediates(layer.func) == _immediates(again.func)
        )
        if not agree:
            kind = layer.attrs["operator"] if layer.op == "float" else layer.op
            raise HwqError(
                "tokens-mixed",
                f"layer {layer.name!r} ({kind}) cannot run on sequences of any length: it has a constant computed from "
                f"the length, another at {most} tokens than at {length}; accepted: {_ACCEPTED}",
            )


def _kind(layer: Layer) -> tuple[Any, ...]:
    held = [layer.weight, layer.bias, *layer.constants]
    ranks = tuple(None if one is None else one.ndim for one in held)
    return layer.op, layer.attrs.get("operator"), len(layer.inputs), layer.residual, ranks


def _cut(one: Array | None, two: Array | None) -> bool:
    """Whether ``two`` is the start of ``one``, along each axis."""
    if one is None or two is None:
        return one is two
    if any(size > most for size, most in zip(two.shape, one.shape, strict=True)):
        return False
    start = one[tuple(slice(size) for size in two.shape)]
    return np.array_equal(start, two, equal_nan=start.dtype.kind == "f")


def _number(one: Any, two: Any, most: int, length: int) -> bool:
    """Whether two attributes are the same; whole numbers may grow with the length, as shapes do."""
    if isinstance(one, Mapping):
        return one.keys() == two.keys() and all(_number(one[key], two[key], most, length) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(_number(a, b, most, length) for a, b in zip(one, two, strict=True))
    if isinstance(one, np.ndarray):
        return _cut(one, two)
    if isinstance(one, int) and not isinstance(one, bool):
        return bool(one == two or one * length == two * most)
    return bool(one == two)


def _immediates(func: Any) -> Counter[str]:
    """The numbers in what a function stores, but for those that only say where it reads."""
    found: Counter[str] = Counter()
    if func is None:
        return found

    def note(item: Any) -> None:
        found[str(item.value)] += 1

    def stored(store: Any) -> None:
        passed = (ir.TensorLoad, lambda _: tvm_ffi.WalkResult.SKIP)
        tvm_ffi.structural_walk(store.value, [passed, (tirx.FloatImm, note), (tirx.IntImm, note)], order="pre")

    tvm_ffi.structural_walk(func.body, (tirx.BufferStore, stored))
    return found
