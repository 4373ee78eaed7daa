"""Masks of a network: float tensors that are only added to what softmaxes weigh by, where -infinity hides a place.

Any number that is low enough hides as well, and LEAST is: it stands for -infinity in samples and in statistics. What a
mask was added to stays float: no range of int8 holds both a mask and scores.
"""

from __future__ import annotations

import functools

from hwq.graph import Graph, Layer, data_tensors, table_rows
from hwq.samples import MASK
from hwq.scores import CARRY, FAR


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


@functools.lru_cache(maxsize=16)
def masked(graph: Graph) -> frozenset[str]:
    """Those of ``weighed_by`` that are masks, inputs of the network or made of no data, or that masks went into."""
    weighed = weighed_by(graph)
    found = {name for name in weighed if name in graph.inputs or name not in data_tensors(graph)}
    for layer in graph.layers:
        constants = layer.constants if layer.bias is None else (layer.bias,)
        least = min((float(array.min(initial=0)) for array in constants if array.dtype.kind == "f"), default=0.0)
        if layer.output in weighed and (least < FAR or found & {*layer.inputs}):
            found.add(layer.output)
    return frozenset(found)


def limits(graph: Graph) -> dict[str, int]:
    """What inputs may hold, as ``hwq.samples`` takes it: of a table the number of its rows, MASK of a mask."""
    weighed = weighed_by(graph)
    return table_rows(graph) | {name: MASK for name in graph.inputs if name in weighed}


def _carries(layer: Layer) -> bool:
    """Whether what a layer reads hides by LEAST what it would hide by -infinity."""
    op = layer.attrs.get("operator", layer.op)
    return layer.activation.kind == "none" and op in (*CARRY, "transpose", "slice")
