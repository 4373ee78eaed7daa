"""Tables: constants that many layers hold alike, the angles of positions and biases of attention, are stored once.

An exporter writes them for each block anew. Layers with equal ones are given the same array here; prices, libraries and
reports then know by the array itself that there is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from hwq.graph import Graph, Layer

# Operators whose kernels, in every scheme, take the layer's constants as they are.
TABLE_OPS = ("rope", "attention")

Array = npt.NDArray[np.generic]


def with_one_of_each(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """``layers``, those of TABLE_OPS with equal constants with the same ones."""
    known: dict[tuple[tuple[int, ...], str, bytes], Array] = {}

    def first(array: Array) -> Array:
        return known.setdefault((array.shape, str(array.dtype), array.tobytes()), array)

    return tuple(
        replace(layer, constants=tuple(map(first, layer.constants))) if layer.op in TABLE_OPS else layer
        for layer in layers
    )


def repeated_bytes(graph: Graph) -> dict[str, int]:
    """Of each layer of TABLE_OPS the bytes of its constants that a layer before it holds."""
    seen: set[int] = set()
    found: dict[str, int] = {}
    for layer in graph.layers:
        if layer.op in TABLE_OPS:
            found[layer.name] = sum(array.nbytes for array in layer.constants if id(array) in seen)
            seen.update(map(id, layer.constants))
    return found
