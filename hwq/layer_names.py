"""Names of the layers that came from torch modules: the module's path where it makes one layer, else with the operator.

Used by ``hwq.layers`` at its end. A module captured by torch.export and its ONNX export give the same layers under the
same paths, and so the same names, however many nodes stand for one layer. Names from other ONNX files are kept.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hwq.graph import ANCHORS, Graph, Layer
from hwq.relax_tools import MODULE

# Named after what they read: exporters and passes put them wherever it suits.
VIEWS = ("transpose", "reshape", "slice")


def name_layers(graph: Graph) -> Graph:
    """The graph with the final name of every layer, and of the tensor that it writes.

    "layer1.0.conv1" where the module there makes one layer, or one with weights, and no module within it makes any;
    "layer1.0.add" for others; "add" for the outermost module's. A name that is taken gets ":2", ":3" behind it.
    """
    made: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        if MODULE in layer.name and layer.op not in VIEWS:
            made.setdefault(_path(layer), []).append(layer)
    alone = {path: _alone(path, layers, made) for path, layers in made.items()}
    final = {name: name for name in graph.inputs}
    taken = Counter([*graph.inputs, *(layer.name for layer in graph.layers if MODULE not in layer.name)])
    for layer in graph.layers:
        name = layer.name
        if MODULE in name and layer.op in VIEWS:
            name = _unique(f"{final[layer.inputs[0]]}:{layer.op}", taken)
        elif MODULE in name:
            path = _path(layer)
            name = path if layer is alone[path] else f"{path}.{_label(layer)}".removeprefix(".")
            name = _unique(name, taken)
        final[layer.name] = name
    layers = tuple(
        replace(
            layer,
            name=final[layer.name],
            output=final[layer.output],
            inputs=tuple(final[name] for name in layer.inputs),
        )
        for layer in graph.layers
    )
    return replace(
        graph, layers=layers, outputs=tuple(final[name] for name in graph.outputs),
        shapes={final[name]: shape for name, shape in graph.shapes.items()},
        dtypes={final[name]: dtype for name, dtype in graph.dtypes.items()},
    )  # fmt: skip


def _path(layer: Layer) -> str:
    return layer.name.split(MODULE)[0]


def _alone(path: str, layers: list[Layer], made: dict[str, list[Layer]]) -> Layer | None:
    """The layer that bears its module's own name, if one does."""
    if path == "" or any(other.startswith(f"{path}.") for other in made):
        return None
    anchors = [layer for layer in layers if layer.op in ANCHORS]
    found = anchors or layers
    return found[0] if len(found) == 1 else None


def _label(layer: Layer) -> str:
    """What a layer does, in one word."""
    if layer.op == "float":
        return str(layer.attrs["operator"])
    return layer.activation.kind if layer.op == "unary" else layer.op


def _unique(name: str, taken: Counter[str]) -> str:
    """``name``, or with a number behind it where it is taken."""
    candidate, count = name, 1
    while taken[candidate]:
        count += 1
        candidate = f"{name}:{count}"
    taken[candidate] += 1
    return candidate
