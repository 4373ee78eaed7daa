"""The torch modules that the nodes of an ONNX file came from, as torch.onnx's exporter (dynamo=True) notes them.

Used by ``hwq.onnx_import``, so that a module and its export get the same layer names. Files without such notes are none
of this file's business.
"""

from __future__ import annotations

import ast

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def module_paths(graph: onnx.GraphProto) -> list[str] | None:
    """For each node the path of its module, "" for the whole network; None where the file holds no such notes.

    A batch norm that the exporter folded into a product goes by the product's weight. A node without a note, which the
    exporter's optimizer wrote, goes by the first reader of its first result that has one.
    """
    scopes = [_scopes(node) for node in graph.node]
    if not any(scopes):
        return None
    weights = {tensor.name for tensor in graph.initializer if tensor.name.endswith(".weight")}
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(index)
    found: list[str] = []
    for node, scope in zip(graph.node, scopes, strict=True):
        if not scope:
            after = [scopes[index] for name in node.output[:1] for index in readers.get(name, [])]
            scope = next((item for item in after if item), ["", ""])
        folded = node.op_type in _WEIGHTED and "batch_norm" in scope[-1] and len(node.input) > 1
        if folded and node.input[1] in weights:
            found.append(node.input[1].removesuffix(".weight"))
        else:
            found.append(scope[-2].split("@")[0])
    return found


def _scopes(node: onnx.NodeProto) -> list[str]:
    """From the outermost module to the node of the captured graph; empty where the node has no such note."""
    for item in node.metadata_props:
        if item.key == _SCOPES:
            try:
                value = ast.literal_eval(item.value)
            except (ValueError, SyntaxError):
                return []
            good = isinstance(value, list) and len(value) > 1 and all(isinstance(part, str) for part in value)
            return value if good else []
    return []
