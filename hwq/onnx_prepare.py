"""The ONNX side of loading: read, check, fix the shapes, infer, all before anything is imported into TVM.

Stands before ``hwq.onnx_import``. Refuses files that are not a float inference network with tensor inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import inliner, shape_inference

from hwq.errors import HwqError
from hwq.graph import Shape

OPSETS = range(8, 22)
_WEIGHTS = (".pt", ".pth", ".safetensors")
_LARGE = 4096  # elements of a float weight whose values no shape depends on


def read_proto(source: str | Path | onnx.ModelProto) -> tuple[str, onnx.ModelProto]:
    """The network's name and its protobuf, with external data read in.

    Raises HwqError "model-missing" where there is no such file, "model-invalid" where it is not a whole ONNX file.
    """
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        return proto.graph.name or "model", proto
    if not isinstance(source, str | Path):
        raise HwqError(
            "model-invalid",
            f"a model is given as {type(source).__name__}; accepted: a path to an .onnx or .pt2 file, an "
            "onnx.ModelProto, a torch.nn.Module, or a torch.export.ExportedProgram",
        )
    path = Path(source)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise HwqError("model-missing", f"model file {str(path)!r} {kind}; accepted: a path to an .onnx or .pt2 file")
    try:
        proto = onnx.load_model(str(path))
    except DecodeError:
        raise _not_onnx(path) from None
    except OSError as error:
        reason = error.strerror or "not readable"
        raise HwqError("model-missing", f"model file {str(path)!r} cannot be read: {reason}") from None
    except (onnx.checker.ValidationError, ValueError) as error:
        raise HwqError(
            "model-invalid", f"the external data of {str(path)!r} cannot be read: {_first_line(error)}"
        ) from None
    if not proto.graph.node and not proto.graph.output:
        raise _not_onnx(path)
    return path.stem, proto


def _not_onnx(path: Path) -> HwqError:
    accepted = "a whole ONNX protobuf, or a .pt2 file that torch.export.save wrote"
    if path.suffix.lower() in _WEIGHTS:
        message = f"{str(path)!r} holds weights without their network, or TorchScript"
        accepted = f"the torch.nn.Module that they belong to, a torch.export.ExportedProgram, or {accepted}"
    else:
        message = f"{str(path)!r} is cut short or not an ONNX file"
    return HwqError("model-invalid", f"{message}; accepted: {accepted}")


def prepare(proto: onnx.ModelProto, *, batch: int, shapes: Mapping[str, Shape]) -> onnx.ModelProto:
    """The network with functions inlined and every input's shape fixed, checked by ONNX itself, with inferred types.

    Raises HwqError "model-kind" for what is not an inference network over tensors, "model-opset", "model-dynamic" for
    an input dimension that neither ``batch`` nor ``shapes`` fixes, "model-invalid" for what ONNX's checker refuses.
    """
    check_kind(proto)
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    fix_inputs(proto, batch=batch, shapes=shapes)
    skeleton = _skeleton(proto)
    outputs = list(skeleton.graph.output)
    # The checker wants a shape, known or not, for every output; exporters leave it out where they cannot infer it.
    del skeleton.graph.output[:]
    skeleton.graph.output.extend(value for value in outputs if value.type.tensor_type.HasField("shape"))
    try:
        onnx.checker.check_model(skeleton)
        del skeleton.graph.output[:]
        skeleton.graph.output.extend(outputs)
        inferred = shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise HwqError("model-invalid", f"ONNX refuses the model: {_first_line(error)}") from None
    proto.graph.value_info.extend(inferred.graph.value_info)
    del proto.graph.output[:]
    proto.graph.output.extend(inferred.graph.output)
    return proto


def _skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large weights as inputs: all that checking and inference look at, and no copy of weights."""
    bare = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    bare.graph.name = proto.graph.name or "graph"
    for name in ("node", "input", "output", "sparse_initializer"):
        getattr(bare.graph, name).extend(getattr(proto.graph, name))
    there = {value.name for value in bare.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) < _LARGE:
            bare.graph.initializer.append(tensor)
        elif tensor.name not in there:
            bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return bare


def check_kind(proto: onnx.ModelProto) -> None:
    """Raises HwqError "model-kind" or "model-opset"; see ``prepare``."""
    if proto.training_info:
        raise HwqError("model-kind", "the model is a training graph; accepted: an ONNX network exported for inference")
    training = sorted(
        {
            node.op_type
            for node in proto.graph.node
            for attr in node.attribute
            if attr.name == "training_mode" and attr.i
        }
    )
    if training:
        raise HwqError(
            "model-kind",
            f"the model has {', '.join(training)} in training mode; accepted: a network exported for inference",
        )
    opsets = [opset.version for opset in proto.opset_import if opset.domain in ("", "ai.onnx")]
    if not opsets:
        domains = ", ".join(sorted({opset.domain for opset in proto.opset_import})) or "none"
        raise HwqError(
            "model-kind",
            f"the model uses no standard ONNX operators (domains: {domains}); accepted: an ONNX neural network",
        )
    if opsets[0] not in OPSETS:
        raise HwqError("model-opset", f"the model has opset {opsets[0]}; accepted: {OPSETS[0]} to {OPSETS[-1]}")
    for value in free_inputs(proto):
        if value.type.WhichOneof("value") != "tensor_type":
            kind = (value.type.WhichOneof("value") or "nothing").removesuffix("_type")
            raise HwqError("model-kind", f"model input {value.name!r} is a {kind}; accepted: tensors")
    if not free_inputs(proto) or not proto.graph.output:
        lacks = "input" if proto.graph.output else "output"
        raise HwqError(
            "model-kind", f"the model has no {lacks}; accepted: a network with at least one input and one output"
        )


def free_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller gives: those without an initializer."""
    known = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in known]


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that the model uses."""
    return next(int(opset.version) for opset in proto.opset_import if opset.domain in ("", "ai.onnx"))


def fix_inputs(proto: onnx.ModelProto, *, batch: int, shapes: Mapping[str, Shape]) -> None:
    """Write the fixed shape of every input into ``proto``. A free first dimension becomes ``batch``.

    Raises HwqError "model-dynamic" where another dimension is free, "shapes-invalid" where ``shapes`` or ``batch`` does
    not fit.
    """
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise HwqError("shapes-invalid", f"batch is {batch!r}; accepted: a positive integer")
    inputs = free_inputs(proto)
    unknown = sorted(set(shapes) - {value.name for value in inputs})
    if unknown:
        names = ", ".join(repr(value.name) for value in inputs)
        raise HwqError(
            "shapes-invalid", f"shapes names input {unknown[0]!r}, which the model lacks; its inputs: {names}"
        )
    for value in inputs:
        tensor = value.type.tensor_type
        given = shapes.get(value.name)
        if given is not None:
            given = _checked_shape(value.name, given, _free_shape(tensor))
        elif not tensor.HasField("shape"):
            raise HwqError(
                "model-dynamic",
                f"input {value.name!r} has no shape in the model; give it in shapes={{{value.name!r}: (...)}}",
            )
        else:
            free = _free_shape(tensor)
            given = tuple((batch if axis == 0 else -1) if dim is None else dim for axis, dim in enumerate(free))
            for axis, dim in enumerate(given):
                if dim == -1:
                    label = tensor.shape.dim[axis].dim_param or "?"
                    raise HwqError(
                        "model-dynamic",
                        f"dimension {axis} ({label}) of input {value.name!r} is free; give the whole shape in "
                        f"shapes={{{value.name!r}: (...)}}, or its lengths, where they vary, in "
                        f"dynamic={{{value.name!r}: {{{axis}: (least, most)}}}}",
                    )
        del tensor.shape.dim[:]
        for dim in given:
            tensor.shape.dim.add().dim_value = dim
    # Shapes that the exporter wrote down may still speak of the free dimensions; they are inferred again.
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()


def _free_shape(tensor: onnx.TypeProto.Tensor) -> tuple[int | None, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim)


def _checked_shape(name: str, given: Shape, free: tuple[int | None, ...]) -> Shape:
    good = isinstance(given, tuple | list) and all(isinstance(dim, int) and dim > 0 for dim in given)
    if not good:
        raise HwqError("shapes-invalid", f"shapes[{name!r}] is {given!r}; accepted: a tuple of positive integers")
    if free and (len(free) != len(given) or any(a is not None and a != b for a, b in zip(free, given, strict=True))):
        text = ", ".join("free" if dim is None else str(dim) for dim in free)
        raise HwqError("shapes-invalid", f"shapes[{name!r}] is {tuple(given)}; accepted by the model: ({text})")
    return tuple(given)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
