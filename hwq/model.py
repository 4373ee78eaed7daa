"""``hwq.load``: a trained network, of ONNX or PyTorch, prepared and cut into layers. The first stage of the flow.

Refuses, each with its own code: a missing, truncated or foreign file, opsets outside 8 to 21, operators that TVM cannot
import (all at once, with counts), dimensions that nothing fixes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import helper

from hwq import pipeline
from hwq.baked import check_constants, same_layers
from hwq.errors import HwqError
from hwq.graph import Graph, Shape
from hwq.layers import find_layers
from hwq.lengths import NO_LENGTHS, Dynamic, Lengths, check_axes, check_dynamic, plain
from hwq.onnx_import import import_graph
from hwq.onnx_prepare import free_inputs, opset_of, prepare, read_proto
from hwq.relax_tools import dtype_of
from hwq.tokens import with_lengths
from hwq.torch_export import export, is_torch
from hwq.torch_import import import_program


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """An input or output as the caller sees it: its own name, its shape with the batch axis first, its NumPy dtype."""

    name: str
    shape: Shape
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A loaded network. ``graph.inputs`` and ``graph.outputs`` name the tensors of ``inputs``, ``outputs``, in order.

    fingerprint: SHA-256 of the model's content and its fixed shapes. dynamic: the axes whose lengths vary, as
    ``hwq.compile`` takes them; their dimensions are ``hwq.lengths.Length``s. seen: whether it was held against the
    network at a second length, and has no values computed from the length. float_ops: operators that stay in float,
    with counts. whole: of a network by ``hwq.decoder``, and of one whose lengths vary, the fingerprint of the network
    of whole sequences, all of one length, that it was made from; length: how many tokens a session of a decoder holds.
    Of others both are None.
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
    dynamic: Dynamic = field(default_factory=dict)
    seen: bool = False

    def __repr__(self) -> str:
        """One line, without the weights."""
        taken, given = (
            ", ".join(f"{spec.name} {spec.dtype} {plain(spec.shape)}" for spec in specs)
            for specs in (self.inputs, self.outputs)
        )
        return f"Model({self.name!r}: {taken} -> {given}; {len(self.graph.layers)} layers)"


def load(
    source: Any,
    example_inputs: Any = None,
    *,
    batch: int | None = None,
    shapes: Mapping[str, Shape] | None = None,
    dynamic: Any = None,
) -> Model:
    """Load a network and find its layers: an ONNX file or ModelProto (opset 8 to 21); a torch.nn.Module in evaluation
    mode with example_inputs, a tuple of tensors or arrays or a dict by the names of forward's parameters; a
    torch.export.ExportedProgram, or the .pt2 file of one.

    batch fixes a free first dimension of every input (None: 1); shapes gives the whole shape of inputs with other free
    dimensions. A module has none: its shapes are those of example_inputs. Parameters in half precision become float32.
    dynamic: axes whose lengths may vary from call to call, as ``hwq.compile`` takes them; the network is then loaded at
    the most, and such an axis that is free in a file or a program needs no other word. A network with free axes is held
    against itself at a second length: what it computes from the length itself is refused. Where the axes are fixed, as
    a module's are, such values cannot be told from others, and are those of the most.
    Raises HwqError: "model-missing", "model-invalid", "model-kind", "model-opset", "model-dynamic",
    "model-unsupported", "shapes-invalid"; of torch: "torch-missing", "torch-export", "model-training",
    "example-inputs"; of dynamic: "dynamic-invalid", "tokens-mixed".
    """
    if dynamic is not None:
        return _load_varying(source, example_inputs, batch, dict(shapes or {}), check_dynamic(dynamic))
    return _load(source, example_inputs, batch, dict(shapes or {}), NO_LENGTHS)


def _load(source: Any, example_inputs: Any, batch: int | None, shapes: Mapping[str, Shape], lengths: Lengths) -> Model:
    """``load`` at fixed shapes; ``lengths`` as ``hwq.torch_export.export`` takes them."""
    if is_torch(source):
        return _load_torch(source, example_inputs, batch=batch, shapes=shapes, lengths=lengths)
    if example_inputs is not None:
        raise HwqError("example-inputs", f"example_inputs are given for {_no_module(source)}")
    batch = 1 if batch is None else batch
    name, proto = read_proto(source)
    try:
        digest = hashlib.sha256(proto.SerializeToString(deterministic=True))
    except (EncodeError, ValueError):
        raise HwqError("model-invalid", f"model {name!r} holds 2 GiB or more; accepted: models below that") from None
    proto = prepare(proto, batch=batch, shapes={**shapes_at(proto, lengths, batch), **shapes})
    inputs = tuple(_spec(value) for value in free_inputs(proto))
    digest.update(json.dumps([[spec.name, spec.shape, spec.dtype] for spec in inputs]).encode())
    graph = find_layers(pipeline.run(import_graph(proto), name=name))
    outputs = _output_specs([value.name for value in proto.graph.output], graph)
    return Model(
        name=name, graph=graph, fingerprint=digest.hexdigest(), inputs=inputs, outputs=outputs,
        float_ops=kept_in_float(graph), opset=opset_of(proto), batch=batch,
    )  # fmt: skip


def _no_module(source: Any) -> str:
    """What was given with example_inputs instead of a torch module, and what is accepted."""
    kind = type(source).__name__
    if isinstance(source, Mapping):
        return f"a {kind}, which holds weights without their network; accepted: the torch.nn.Module that they belong to"
    if isinstance(source, type):
        return f"the class {source.__name__}; accepted: an instance of it that is a torch.nn.Module"
    if callable(source):
        return f"a {kind}; accepted: a torch.nn.Module whose forward calls it"
    return f"a {kind}; accepted: for a torch module only"


def _load_varying(
    source: Any, example_inputs: Any, batch: int | None, shapes: Mapping[str, Shape], dynamic: Dynamic
) -> Model:
    """``load`` at the most; where axes are free, held against the same network at a second length."""
    ((least, most),) = {pair for axes in dynamic.values() for pair in axes.values()}

    def at(length: int) -> Model:
        given = {name: dict.fromkeys(axes, length) for name, axes in dynamic.items()}
        longer = {
            name: tuple(
                given.get(name, {}).get(axis, size) if size == most else size for axis, size in enumerate(shape)
            )
            for name, shape in shapes.items()
            if length != most
        }
        return _load(source, example_inputs, batch, {**shapes, **longer}, given)

    model = at(most)
    made = varying(model, dynamic)
    if example_inputs is not None:
        return made
    lengths = [length for length in dict.fromkeys((most - 1, (least + most) // 2)) if length > 1]
    for length in lengths:
        try:
            other = at(length)
        except HwqError:  # it has no other length, or shapes in it are those of the most
            return made
        if [spec.shape for spec in other.inputs] == [spec.shape for spec in model.inputs]:
            return made
        if same_layers(model.graph, other.graph):
            check_constants(model.graph, other.graph, most, length)
            return replace(made, seen=True)
    if not lengths:
        return made
    message = f"the network has other layers at {lengths[-1]} tokens than at {most}; accepted: the same at every length"
    raise HwqError("tokens-mixed", message)


def _load_torch(
    source: Any, example_inputs: Any, *, batch: int | None, shapes: Mapping[str, Shape], lengths: Lengths
) -> Model:
    exported = export(source, example_inputs, batch=batch, shapes=shapes, lengths=lengths)
    mod = import_program(exported)
    inputs = tuple(
        TensorSpec(name=name, shape=shape, dtype=dtype_of(param))
        for (_, name, shape), param in zip(exported.inputs, mod["main"].params, strict=True)
    )
    graph = find_layers(pipeline.run(mod, name=exported.name))
    return Model(
        name=exported.name, graph=graph, fingerprint=exported.fingerprint, inputs=inputs,
        outputs=_output_specs(exported.outputs, graph), float_ops=kept_in_float(graph), batch=batch or 1,
    )  # fmt: skip


def _output_specs(names: Sequence[str], graph: Graph) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, shape=graph.shapes[tensor], dtype=graph.dtypes[tensor])
        for name, tensor in zip(names, graph.outputs, strict=True)
    )


def shapes_at(proto: onnx.ModelProto, lengths: Lengths, batch: int) -> dict[str, Shape]:
    """The whole shapes of an ONNX network's inputs in ``lengths`` (input name -> axis -> how long), whose free axes are
    so long; without those that have other free dimensions than these and the batch axis.

    Raises HwqError "dynamic-invalid" for inputs and axes that the network lacks.
    """
    if not lengths:
        return {}
    tensors = {value.name: value.type.tensor_type for value in free_inputs(proto)}
    known = {name: len(tensor.shape.dim) if tensor.HasField("shape") else None for name, tensor in tensors.items()}
    check_axes(lengths, known)
    found = {}
    for name, wanted in lengths.items():
        sizes = [dim.dim_value for dim in tensors[name].shape.dim]
        shape = [size or wanted.get(axis) or (0 if axis else batch) for axis, size in enumerate(sizes)]
        if shape and all(shape):
            found[name] = tuple(shape)
    return found


def varying(model: Model, dynamic: Any) -> Model:
    """``model`` for sequences of any length in the range of ``dynamic``: input name -> axis -> (least, most).

    Its shapes are those of the most, which it has to be loaded with. Raises HwqError "dynamic-invalid", and
    "tokens-mixed" naming a layer for which lengths cannot vary.
    """
    wanted = check_dynamic(dynamic)
    if model.length is not None:
        message = f"dynamic is given for {model.name!r}, a decoder, whose sessions take any number of tokens as it is"
        raise HwqError("dynamic-invalid", f"{message}; accepted: dynamic for the network of whole sequences")
    if model.dynamic:
        if model.dynamic != wanted:
            message = f"dynamic is {wanted}, and the model was loaded with {dict(model.dynamic)}; accepted: one of them"
            raise HwqError("dynamic-invalid", message)
        return model
    names = {spec.name: tensor for spec, tensor in zip(model.inputs, model.graph.inputs, strict=True)}
    graph = with_lengths(model.graph, names, wanted)

    def varied(specs: tuple[TensorSpec, ...], tensors: tuple[str, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, shape=graph.shapes[tensor]) for spec, tensor in zip(specs, tensors, strict=True))

    return replace(
        model,
        graph=graph,
        fingerprint=varied_fingerprint(model.fingerprint, wanted),
        whole=model.fingerprint,
        inputs=varied(model.inputs, graph.inputs),
        outputs=varied(model.outputs, graph.outputs),
        dynamic=wanted,
    )


def varied_fingerprint(fingerprint: str, dynamic: Dynamic) -> str:
    """The fingerprint of the network of ``fingerprint`` for sequences of the lengths that ``dynamic`` says."""
    return hashlib.sha256(f"{fingerprint}{sorted(dynamic.items())}".encode()).hexdigest()


def kept_in_float(graph: Graph) -> dict[str, int]:
    """The operators that no integer kernel computes, by name, with counts."""
    counts: Counter[str] = Counter()
    for layer in graph.layers:
        if layer.op == "float":
            counts[str(layer.attrs["operator"])] += 1
        elif layer.op in ("softmax", "layer_norm", "rms_norm", "rope", "reduce"):
            counts[layer.op] += 1
    return dict(sorted(counts.items()))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value for dim in tensor.shape.dim)
    return TensorSpec(
        name=value.name, shape=shape, dtype=str(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
    )
