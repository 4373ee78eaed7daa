"""Which tensors must share a scale and a zero point.

An operator of ``PASS_THROUGH`` copies values, or takes some between them, so its inputs and its output are one number
format. Stands after ``hwq.layers``; calibration gives each group one QParams, and the program treats it as a unit.
"""

from __future__ import annotations

import networkx as nx

from hwq.assignment import Tie
from hwq.graph import PASS_THROUGH, Graph


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
