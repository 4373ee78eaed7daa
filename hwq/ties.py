"""Which tensors must share a scale and a zero point.

An operator of ``PASS_THROUGH`` copies values, or takes some between them, so its inputs and its output are one number
format. Stands after ``hwq.layers``; calibration gives each group one QParams, and the program treats it as a unit.
"""

from __future__ import annotations

from dataclasses import replace

import networkx as nx

from hwq.assignment import Tie
from hwq.graph import ANCHORS, INTEGER_OPS, PASS_THROUGH, Graph, Layer


def tied_tensors(graph: Graph) -> tuple[frozenset[str], ...]:
    """Every float32 tensor of ``graph`` in exactly one group, in the order of each group's first tensor in the graph.

    A tensor that nothing ties is a group of its own. Tensors of other types have no scale and are in no group.
    """
    ties: nx.Graph[str] = nx.Graph()
    ties.add_nodes_from(name for name in graph.shapes if graph.dtypes[name] == "float32")
    for layer in graph.layers:
        if layer.op in PASS_THROUGH and graph.dtypes[layer.output] == "float32":
            ties.add_edges_from((name, layer.output) for name in layer.inputs)
    order = {name: index for index, name in enumerate(graph.shapes)}
    groups = [frozenset(group) for group in nx.connected_components(ties)]
    return tuple(sorted(groups, key=lambda group: min(order[name] for name in group)))


def passing_units(graph: Graph) -> tuple[Tie, ...]:
    """The layers that only pass values through, by the tensors they share, each unit with the layers around it."""
    found = []
    for group in tied_tensors(graph):
        at_it = [layer for layer in graph.layers if group & {*layer.inputs, layer.output}]
        passing = tuple(layer.name for layer in at_it if layer.op in PASS_THROUGH)
        around = tuple(layer.name for layer in at_it if layer.op not in PASS_THROUGH)
        found += [Tie(passing=passing, neighbours=around)] if passing else []
    return tuple(found)


def with_float_residuals(graph: Graph) -> Graph:
    """``graph`` with ``float_residual`` set for each dense layer with a residual whose output no layer reads in int8.

    Between the layers of a transformer runs a stream that each adds to, and that only norms and such additions read:
    it stays float32, whatever the layers compute in. Convolutions are left as they are: what they add to is read by
    convolutions.
    """
    readers: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        for tensor in dict.fromkeys(layer.inputs):
            readers.setdefault(tensor, []).append(layer)
    floating: dict[str, bool] = {}  # tensors by whether nothing reads them in int8
    found: dict[str, Layer] = {}

    def only_float(tensor: str, reader: Layer) -> bool:
        if reader.name in found:
            return tensor not in reader.inputs[:-1]
        if reader.op in PASS_THROUGH:
            return floating.get(reader.output, False)
        return reader.op not in (*ANCHORS, *INTEGER_OPS, "attention")

    for layer in reversed(graph.layers):
        output = layer.output
        floating[output] = all(only_float(output, reader) for reader in readers.get(output, ()))
        if layer.op == "dense" and layer.residual and layer.activation.clamps and floating[output]:
            found[layer.name] = replace(layer, float_residual=True)
    return replace(graph, layers=tuple(found.get(layer.name, layer) for layer in graph.layers))


# What stands between a projection and the attention that it is made for, and keeps each row to itself.
_BETWEEN = ("reshape", "rope")


def projections(graph: Graph) -> tuple[tuple[str, ...], ...]:
    """The dense layers of each attention layer that read one tensor and make its queries, keys and values of it,
    directly or through rotary positions and reshapes: those take one scheme, since they are one product in all but
    name, and an error in one means little without the others'. Only groups of two and more.
    """
    makers = {layer.output: layer for layer in graph.layers}
    found: dict[tuple[str, ...], None] = {}
    for layer in graph.layers:
        if layer.op != "attention":
            continue
        sources: dict[str, list[str]] = {}
        for tensor in layer.inputs[:3]:
            maker = makers.get(tensor)
            while maker is not None and maker.op in _BETWEEN:
                maker = makers.get(maker.inputs[0])
            if maker is not None and maker.op == "dense":
                sources.setdefault(maker.inputs[0], []).append(maker.name)
        for names in sources.values():
            group = tuple(dict.fromkeys(names))
            if len(group) > 1:
                found[group] = None
    return tuple(found)
