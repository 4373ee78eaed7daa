"""Masks of a network: float tensors that are only added to what softmaxes weigh by, where -infinity hides a place.

Any number that is low enough hides as well, and LEAST is: it stands for -infinity in samples and in statistics. Masks
and sums with them stay float: no range of int8 holds both a mask and scores.
"""

from __future__ import annotations

import functools

from hwq.graph import Graph, Layer, table_rows
from hwq.samples import MASK
from hwq.scores import CARRY


@functools.lru_cache(maxsize=16)
def weighed_by(graph: Graph) -> frozenset[str]:
    """The float32 tensors whose every element goes into softmaxes only, alone or in sums: masks and scores."""
    only = dict.fromkeys(graph.outputs, False)
    for layer in reversed(graph.layers):
        carries = _carries(layer) and only.get(layer.output, False)
        for place, name in enumerate(layer.inputs):
            hides = layer.op == "softmax" or (layer.op == "attention" and place == 3)
            adds = layer.residual and place == len(layer.inputs) - 1 and only.get(layer.output, False)
            only[name] = only.get(name, True) and (hides or carries or (adds and layer.activation.kind == "none"))
    return frozenset(name for name, alone in only.items() if alone and graph.dtypes[name] == "float32")


def limits(graph: Graph) -> dict[str, int]:
    """What inputs may hold, as ``hwq.samples`` takes it: of a table the number of its rows, MASK of a mask."""
    weighed = weighed_by(graph)
    return table_rows(graph) | {name: MASK for name in graph.inputs if name in weighed}


def _carries(layer: Layer) -> bool:
    """Whether what a layer reads hides by LEAST what it would hide by -infinity."""
    op = layer.attrs.get("operator", layer.op)
    return layer.activation.kind == "none" and op in (*CARRY, "transpose", "slice")
