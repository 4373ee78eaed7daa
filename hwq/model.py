"""``hwq.load``: a trained network from a file, prepared and cut into layers. The first stage of the flow.

Refuses, each with its own code: a missing, truncated or foreign file, opsets outside 8 to 21, operators that TVM cannot
import (all at once, with counts), dimensions that nothing fixes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import helper

from hwq import pipeline
from hwq.errors import HwqError
from hwq.graph import TRANSFORMER_OPS, Graph, Shape
from hwq.layers import find_layers
from hwq.onnx_import import import_graph
from hwq.onnx_prepare import free_inputs, opset_of, prepare, read_proto


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """An input or output as the caller sees it: its ONNX name, its shape with the batch axis first, its NumPy dtype."""

    name: str
    shape: Shape
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A loaded network. ``graph.inputs`` and ``graph.outputs`` name the tensors of ``inputs``, ``outputs``, in order.

    fingerprint: SHA-256 of the model's content and its fixed shapes. float_ops: operators that stay in float, with
    counts. Of a network by ``hwq.decoder`` length is how many tokens a session holds, and whole the fingerprint of the
    network of whole sequences; of others both are None.
    """

    name: str
    graph: Graph
    fingerprint: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    float_ops: Mapping[str, int] = field(default_factory=dict)
    opset: int = 0
    batch: int = 1
    whole: str | None = None
    length: int | None = None


def load(source: str | Path | onnx.ModelProto, *, batch: int = 1, shapes: Mapping[str, Shape] | None = None) -> Model:
    """Load an ONNX network (opset 8 to 21) and find its layers.

    batch fixes a free first dimension of every input; shapes gives the whole shape of inputs with other free
    dimensions.
    Raises HwqError: "model-missing", "model-invalid", "model-kind", "model-opset", "model-dynamic",
    "model-unsupported", "shapes-invalid".
    """
    name, proto = read_proto(source)
    try:
        digest = hashlib.sha256(proto.SerializeToString(deterministic=True))
    except (EncodeError, ValueError):
        raise HwqError("model-invalid", f"model {name!r} holds 2 GiB or more; accepted: models below that") from None
    proto = prepare(proto, batch=batch, shapes=dict(shapes or {}))
    inputs = tuple(_spec(value) for value in free_inputs(proto))
    digest.update(json.dumps([[spec.name, spec.shape, spec.dtype] for spec in inputs]).encode())
    graph = find_layers(pipeline.run(import_graph(proto), name=name))
    outputs = tuple(
        TensorSpec(name=value.name, shape=graph.shapes[tensor], dtype=graph.dtypes[tensor])
        for value, tensor in zip(proto.graph.output, graph.outputs, strict=True)
    )
    return Model(
        name=name, graph=graph, fingerprint=digest.hexdigest(), inputs=inputs, outputs=outputs,
        float_ops=kept_in_float(graph), opset=opset_of(proto), batch=batch,
    )  # fmt: skip


def kept_in_float(graph: Graph) -> dict[str, int]:
    """The operators that no integer kernel computes, by name, with counts."""
    counts: Counter[str] = Counter()
    for layer in graph.layers:
        if layer.op == "float":
            counts[str(layer.attrs["operator"])] += 1
        elif layer.op in ("softmax", "layer_norm", *TRANSFORMER_OPS):
            counts[layer.op] += 1
    return dict(sorted(counts.items()))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value for dim in tensor.shape.dim)
    return TensorSpec(
        name=value.name, shape=shape, dtype=str(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
    )
