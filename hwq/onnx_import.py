"""ONNX to Relax, one node at a time, so that every call knows its node's name and every refusal is found at once.

Stands after ``hwq.onnx_prepare``. A node whose inputs are all known is evaluated by ONNX's reference; the operators of
``hwq.onnx_convert`` are written as plain Relax there; all others go through ``tvm.relax.frontend.onnx``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tvm import IRModule, ir, relax
from tvm.relax.frontend.onnx import from_onnx
from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map

from hwq import relax_tools as rt
from hwq.errors import HwqError
from hwq.onnx_convert import CONVERTERS, Node
from hwq.onnx_modules import module_paths
from hwq.onnx_prepare import free_inputs, opset_of

# Operators whose result is not a function of their inputs, and those over graphs or lists of tensors.
_NOT_FOLDED = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
_REFUSED = ("If", "Loop", "Scan", "SplitToSequence", "ConcatFromSequence")
_REFUSED_PREFIXES = ("Sequence", "Optional")
_FOLD_LIMIT_BYTES = 1 << 28
_LATER = 21
# Float constants of at least this many elements enter the importer as variables, which saves two copies of the weights.
_BIG = 64


@dataclass(slots=True, kw_only=True)
class _State:
    """What is known so far: tensors by ONNX name, as arrays where their value is known, and what was refused."""

    opset: int
    exprs: dict[str, rt.Expr] = field(default_factory=dict)
    arrays: dict[str, rt.Array] = field(default_factory=dict)
    scope: rt.Scope = field(default_factory=rt.Scope)
    unsupported: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def expr(self, name: str) -> rt.Expr:
        if name not in self.exprs:
            self.exprs[name] = rt.const(self.arrays[name])
        return self.exprs[name]

    def set(self, name: str, value: rt.Expr | rt.Array) -> None:
        if isinstance(value, np.ndarray):
            self.arrays[name] = value
            return
        self.exprs[name] = value
        if rt.is_const(value):
            self.arrays[name] = rt.value_of(value)


def import_graph(proto: onnx.ModelProto) -> IRModule:
    """The Relax module of a prepared network: ``main`` takes its inputs in order and returns a tuple of its outputs.

    Raises HwqError "model-unsupported" listing every operator that cannot be imported with its count, "model-dynamic"
    for a tensor whose shape depends on data, "model-kind" for a network with a constant output, "model-invalid" for a
    weight that holds other than the numbers it claims.
    """
    state = _State(opset=opset_of(proto))
    for tensor in proto.graph.initializer:
        try:
            state.arrays[tensor.name] = numpy_helper.to_array(tensor)
        except (ValueError, TypeError):
            shape = "x".join(map(str, tensor.dims))
            raise HwqError(
                "model-invalid", f"weight {tensor.name!r} does not hold the {shape} numbers it claims"
            ) from None
    params = [_input_var(value) for value in free_inputs(proto)]
    state.exprs.update({value.name: param for value, param in zip(free_inputs(proto), params, strict=True)})
    known = {value.name: value for value in [*proto.graph.value_info, *proto.graph.output]}
    names = _node_names(proto.graph)
    paths = module_paths(proto.graph)
    origins = names if paths is None else [rt.module_origin(path) for path in paths]
    for name, here, node in zip(names, origins, proto.graph.node, strict=True):
        state.scope.here = here
        if not _import_node(state, node, name):
            _assume_outputs(state, node, known)
    if state.unsupported:
        raise HwqError("model-unsupported", _unsupported_text(state))
    outputs = []
    for value in proto.graph.output:
        if value.name in state.arrays:
            raise HwqError(
                "model-kind",
                f"output {value.name!r} is constant: it does not depend on the inputs; remove it from the model",
            )
        outputs.append(state.exprs[value.name])
    return rt.new_main(state.scope, params, outputs)


def _input_var(value: onnx.ValueInfoProto) -> rt.Expr:
    tensor = value.type.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return relax.Var(value.name, relax.TensorType([dim.dim_value for dim in tensor.shape.dim], str(dtype)))


def _node_names(graph: onnx.GraphProto) -> list[str]:
    """A unique name for each node: its own, or its first output's."""
    names: list[str] = []
    seen: Counter[str] = Counter()
    for node in graph.node:
        name = node.name or next((out for out in node.output if out), node.op_type)
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}:{seen[name]}")
    return names


def _import_node(state: _State, node: onnx.NodeProto, name: str) -> bool:
    """Import one node into ``state``; False where that cannot be, which is then noted."""
    if node.op_type in _REFUSED or node.op_type.startswith(_REFUSED_PREFIXES):
        return _refuse(state, node, name)
    if any(item and item not in state.exprs and item not in state.arrays for item in node.input):
        return _refuse_unknown(state, node, name)
    if _fold(state, node):
        return True
    inputs = tuple(state.expr(item) if item else None for item in node.input)
    attrs = {attr.name: helper.get_attribute_value(attr) for attr in node.attribute}
    view = Node(
        op=node.op_type, attrs=attrs, opset=state.opset, inputs=inputs, outputs=len(node.output),
        arrays=tuple(state.arrays.get(item) if item else None for item in node.input), emit=state.scope.emit,
    )  # fmt: skip
    try:
        convert = CONVERTERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        results = convert(view) if convert is not None else None
        if results is None:
            results = _through_tvm(state, node, inputs)
        for out, value in zip(node.output, results, strict=False):
            if out:
                value = value if isinstance(value, relax.Var) or rt.is_const(value) else state.scope.emit(value)
                rt.shape_of(value)
                state.set(out, value)
    except rt.NotStaticError:
        kind = f"the output shape of {node.op_type} {name!r} depends on data"
        raise HwqError(
            "model-dynamic", f"{kind}; accepted: networks whose shapes follow from the input shapes"
        ) from None
    except Exception as error:  # whatever the importer raises is a refusal, to be listed with the others
        logging.getLogger(__name__).debug("%s %r is refused: %s", node.op_type, name, error)
        return _refuse(state, node, name)
    return True


def _fold(state: _State, node: onnx.NodeProto) -> bool:
    """Evaluate a node whose inputs are all known."""
    if node.op_type == "Shape" and node.input[0] not in state.arrays:
        attrs = {attr.name: attr.i for attr in node.attribute}
        shape = rt.shape_of(state.exprs[node.input[0]])
        state.set(node.output[0], np.array(shape[slice(attrs.get("start"), attrs.get("end"))], np.int64))
        return True
    if node.op_type == "Size" and node.input[0] not in state.arrays:
        state.set(node.output[0], np.array(np.prod(rt.shape_of(state.exprs[node.input[0]]), dtype=np.int64)))
        return True
    if node.op_type in _NOT_FOLDED or any(item and item not in state.arrays for item in node.input):
        return False
    feeds = {item: state.arrays[item] for item in node.input if item}
    outputs = [out for out in node.output if out]
    # The reference has quantization in its later forms only, which take in the earlier ones.
    opset = _LATER if node.op_type in ("QuantizeLinear", "DequantizeLinear") else state.opset
    try:
        results = _evaluate(node, feeds, outputs, opset)
    except Exception:  # whatever the reference cannot do is left to the importer
        return False
    if not all(isinstance(value, np.ndarray | np.generic) and value.nbytes <= _FOLD_LIMIT_BYTES for value in results):
        return False
    for out, value in zip(outputs, results, strict=True):
        state.set(out, np.asarray(value))
    return True


def _evaluate(node: onnx.NodeProto, feeds: dict[str, rt.Array], outputs: list[str], opset: int) -> list[Any]:
    """The outputs of one node by ONNX's reference; raises whatever it raises."""
    inputs = [
        helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for key, value in feeds.items()
    ]
    graph = helper.make_graph([node], "fold", inputs, [helper.make_empty_tensor_value_info(out) for out in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return list(ReferenceEvaluator(model).run(None, feeds))


def _through_tvm(state: _State, node: onnx.NodeProto, inputs: tuple[rt.Expr | None, ...]) -> list[rt.Expr]:
    """Import one node with TVM's own importer, and bind what comes out in ``state``."""
    if node.domain not in ("", "ai.onnx", "com.microsoft"):
        raise NotImplementedError(f"operator domain {node.domain}")
    single = onnx.NodeProto()
    single.CopyFrom(node)
    del single.input[:], single.output[:]
    infos, params, known = [], [], []
    for index, (item, value) in enumerate(zip(node.input, inputs, strict=True)):
        single.input.append(f"i{index}" if value is not None else "")
        if value is None:
            continue
        array = state.arrays.get(item)
        if array is not None and (array.dtype.kind != "f" or array.size < _BIG):
            known.append(numpy_helper.from_array(array, f"i{index}"))
            continue
        elem = helper.np_dtype_to_tensor_dtype(np.dtype(rt.dtype_of(value)))
        infos.append(helper.make_tensor_value_info(f"i{index}", elem, rt.shape_of(value)))
        params.append(value)
    single.output.extend(f"o{index}" for index in range(len(node.output)))
    used = [f"o{index}" for index, out in enumerate(node.output) if out]
    graph = helper.make_graph(
        [single], "node", infos, [helper.make_empty_tensor_value_info(out) for out in used], known
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", state.opset)])
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mod = from_onnx(model)
    result = rt.inlined(mod, params, state.scope)
    fields = list(result.fields) if isinstance(result, ir.Tuple) else [result]
    found = dict(zip(used, fields, strict=True))
    return [found.get(f"o{index}") for index in range(len(node.output))]


def _assume_outputs(state: _State, node: onnx.NodeProto, known: dict[str, onnx.ValueInfoProto]) -> None:
    """Go on after a refusal with what ONNX infers of the outputs, so that later refusals are found too."""
    for out in node.output:
        if out in known and known[out].type.WhichOneof("value") == "tensor_type":
            tensor = known[out].type.tensor_type
            if tensor.HasField("shape") and all(dim.dim_value > 0 for dim in tensor.shape.dim):
                state.exprs[out] = _input_var(known[out])


def _refuse(state: _State, node: onnx.NodeProto, name: str) -> bool:
    label = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    state.unsupported[label] += 1
    state.first.setdefault(label, name)
    return False


def _refuse_unknown(state: _State, node: onnx.NodeProto, name: str) -> bool:
    """A node behind a refused one, its input types unknown: refused only where TVM does not know its operator."""
    known = node.op_type in CONVERTERS or node.op_type in _get_convert_map()
    return False if known else _refuse(state, node, name)


def _unsupported_text(state: _State) -> str:
    listed = [f"{label} ({count}, first {state.first[label]!r})" for label, count in sorted(state.unsupported.items())]
    found = f"operators that cannot be imported: {', '.join(listed)}"
    return f"{found}; accepted: those of TVM's ONNX importer, in valid forms"
