"""A captured PyTorch network to Relax, node by node, so that every call knows its module and every refusal is found.

Stands after ``hwq.torch_export``. A node whose inputs are all known is evaluated by torch itself; the operators of
``hwq.torch_convert`` are written as plain Relax there; all others go through ``tvm.relax.frontend.torch``.
Tensors of float16 and bfloat16 become float32, which holds their values exactly.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tvm import IRModule, ir, relax

from hwq import relax_tools as rt
from hwq.errors import HwqError
from hwq.torch_call import Call
from hwq.torch_convert import CONVERTERS
from hwq.torch_export import Exported
from hwq.torch_program import tensor_of

_FOLD_LIMIT_BYTES = 1 << 28
# What only checks, at run time, what holds for fixed shapes.
_CHECKS = ("_assert_tensor_metadata.default", "_assert_async.msg", "_assert_async.default", "_assert_scalar.default")
_CHECK_PREFIXES = ("sym_constrain_range",)
# Operators whose tensors are of one type, masks apart.
_ONE_TYPE = (
    "linear.", "matmul.", "mm.", "bmm.", "addmm.", "baddbmm.", "conv", "scaled_dot_product", "layer_norm.",
    "native_layer_norm.", "group_norm.", "native_group_norm.", "batch_norm.", "_native_batch_norm",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class _State:
    """What is known so far: for each node a tensor of torch's, its values known, a Relax expression, or a number."""

    torch: Any
    inputs: dict[Any, str] = field(default_factory=dict)
    env: dict[Any, Any] = field(default_factory=dict)
    consts: dict[int, rt.Expr] = field(default_factory=dict)
    scope: rt.Scope = field(default_factory=rt.Scope)
    unsupported: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def expr(self, value: Any) -> Any:
        """A value as converters see it: known tensors as constants, lists item by item."""
        if isinstance(value, self.torch.Tensor):
            if id(value) not in self.consts:
                self.consts[id(value)] = rt.const(value.detach().cpu().contiguous().numpy())
            return self.consts[id(value)]
        if isinstance(value, list | tuple):
            return [self.expr(item) for item in value]
        return value

    def plain(self, value: Any) -> Any:
        """A known tensor or type in float32 instead of half precision."""
        half = (self.torch.float16, self.torch.bfloat16)
        if isinstance(value, self.torch.Tensor) and value.dtype in half:
            return value.float()
        return self.torch.float32 if isinstance(value, self.torch.dtype) and value in half else value


class _UnknownError(Exception):
    """A node reads what a refused node would have made."""


def import_program(exported: Exported) -> IRModule:
    """The Relax module of a captured network: ``main`` takes its inputs in order and returns a tuple of its outputs.

    Raises HwqError "model-unsupported" listing every operator that cannot be imported with its count, "model-dynamic"
    for a tensor whose shape depends on data, "model-kind" for a network with a constant output or random numbers,
    "example-inputs" for inputs of another type than the weights.
    """
    import torch

    state = _State(torch=torch)
    shapes = {key: (name, shape) for key, name, shape in exported.inputs}
    specs = {spec.arg.name: spec for spec in exported.program.graph_signature.input_specs}
    params: dict[str, rt.Expr] = {}
    outputs: list[Any] = []
    graph = exported.program.graph
    needed = _all_before(graph.output_node())
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in shapes:
            name, shape = shapes[node.name]
            dtype = _dtype(state, node.meta["val"].dtype)
            state.inputs[node] = name
            params[node.name] = state.env[node] = relax.Var(name, relax.TensorType(shape, dtype))
        elif node.op == "placeholder":
            value = tensor_of(exported.program, specs[node.name])
            state.env[node] = getattr(specs[node.name].arg, "value", None) if value is None else state.plain(value)
        elif node.op == "output":
            outputs = _outputs(state, node.args[0], exported)
        elif node in needed:
            _import_node(state, node)
    return rt.new_main(state.scope, [params[key] for key, _, _ in exported.inputs], outputs)


def _outputs(state: _State, results: Any, exported: Exported) -> list[Any]:
    if state.unsupported:
        raise HwqError("model-unsupported", _unsupported_text(state))
    specs = exported.program.graph_signature.output_specs
    values = [
        state.env[item]
        for item, spec in zip(results, specs, strict=True)
        if spec.kind.name == "USER_OUTPUT" and isinstance(item, state.torch.fx.Node)
    ]
    for name, value in zip(exported.outputs, values, strict=True):
        if isinstance(value, state.torch.Tensor) or rt.is_const(value):
            raise HwqError(
                "model-kind", f"output {name!r} is constant: it does not depend on the inputs; remove it from the model"
            )
    return values


def _dtype(state: _State, dtype: Any) -> str:
    return str(state.plain(dtype)).removeprefix("torch.")


def _import_node(state: _State, node: Any) -> None:
    """Import one node into ``state``; what cannot be is noted, and its readers are passed over."""
    label = getattr(node.target, "__name__", str(node.target))
    state.scope.here = rt.module_origin(_path(node))
    if label in _CHECKS or label.startswith(_CHECK_PREFIXES):
        return
    if _draws(state, node):
        raise HwqError(
            "model-kind",
            f"{label} at {_path(node) or node.name!r} draws random numbers, which an artifact cannot; accepted: a "
            "network whose outputs follow from its inputs (draw them outside, and give them as an input)",
        )
    try:
        state.env[node] = _converted(state, node, label)
    except _UnknownError:  # its inputs are not known, but whether there is a converter is
        if label not in CONVERTERS and label not in _tvm_names():
            _refuse(state, node, label)
    except rt.NotStaticError:
        raise HwqError(
            "model-dynamic",
            f"the output shape of {label} {node.name!r} depends on data; accepted: networks whose shapes follow from "
            "the input shapes",
        ) from None
    except Exception as error:  # whatever the importer raises is a refusal, to be listed with the others
        logging.getLogger(__name__).debug("%s %r is refused: %s", label, node.name, error)
        _check_types(state, node, label)
        _refuse(state, node, label)
        state.env.update(_assumed(state, node))


def _draws(state: _State, node: Any) -> bool:
    """Whether a node draws random numbers; dropout and attention with dropout off, as export leaves them, do not."""
    if state.torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    given = _bound(node.target, list(node.args), node.kwargs)
    flags = [given[key] for key in ("dropout_p", "train", "training") if key in given]
    return not flags or any(flag != 0 for flag in flags)  # False and 0.0 are off


def _refuse(state: _State, node: Any, label: str) -> None:
    state.unsupported[label] += 1
    state.first.setdefault(label, _path(node) or node.name)


def _check_types(state: _State, node: Any, label: str) -> None:
    """Raises HwqError "example-inputs" for a refused node whose tensors differ in type because an input does."""
    values = [item.meta.get("val") for item in node.all_input_nodes]
    types = {_dtype(state, value.dtype) for value in values if isinstance(value, state.torch.Tensor)} - {"bool"}
    if not label.startswith(_ONE_TYPE) or len(types) < 2:
        return
    seen = _all_before(node)
    found = {name: _dtype(state, item.meta["val"].dtype) for item, name in state.inputs.items() if item in seen}
    blamed = ", ".join(f"{name!r} is {dtype}" for name, dtype in found.items() if dtype in types)
    if blamed:
        where = f"{label} at {_path(node) or node.name!r} is given {' and '.join(sorted(types))}"
        accepted = "inputs of the type that the network computes with"
        raise HwqError("example-inputs", f"example input {blamed}, and {where}; accepted: {accepted}") from None


def _all_before(node: Any) -> set[Any]:
    """A node and all that it is made of."""
    found, todo = {node}, [node]
    while todo:
        new = [item for item in todo.pop().all_input_nodes if item not in found]
        found.update(new)
        todo += new
    return found


def _assumed(state: _State, node: Any) -> dict[Any, Any]:
    """What torch promises of a refused node, so that later refusals are found too."""
    value = node.meta.get("val")
    static = isinstance(value, state.torch.Tensor) and all(isinstance(dim, int) for dim in value.shape)
    if not static or value.is_complex():  # TVM has no complex numbers
        return {}
    return {node: relax.Var("refused", relax.TensorType(tuple(value.shape), _dtype(state, value.dtype)))}


def _path(node: Any) -> str:
    """The path of the innermost module that a node came from, as the module's own parameters are named."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L['self']").split("@")[0]


def _converted(state: _State, node: Any, label: str) -> Any:
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
    from torch.fx.node import map_aggregate

    def known(item: Any) -> Any:
        if not isinstance(item, state.torch.fx.Node):
            return state.plain(item)
        if item not in state.env:
            raise _UnknownError
        return state.env[item]

    if node.op == "get_attr":
        raise NotImplementedError("a part of the graph as a value")
    args, kwargs = map_aggregate(node.args, known), map_aggregate(node.kwargs, known)
    if node.target is operator.getitem:
        return args[0][args[1]]
    if label == "sym_size.int" and isinstance(args[0], relax.Expr):
        return rt.shape_of(args[0])[args[1]]
    if label == "full_like.default" and isinstance(args[0], relax.Expr):  # of which only the shape matters
        args = (state.torch.empty(rt.shape_of(args[0]), dtype=state.plain(node.meta["val"].dtype)), *args[1:])
    if not _any(lambda item: isinstance(item, relax.Expr), (args, kwargs)):
        result = _fold(state, node, args, kwargs)
        if result is not None:
            return result
    value = node.meta.get("val")
    if free_unbacked_symbols(value):
        raise rt.NotStaticError
    value = value[0] if isinstance(value, list | tuple) and value else value
    dtype = _dtype(state, value.dtype) if hasattr(value, "dtype") else ""
    convert = CONVERTERS.get(label)
    if convert is None:
        result = _through_tvm(state, node, args, kwargs)
    else:
        bound = _bound(node.target, state.expr(list(args)), {key: state.expr(item) for key, item in kwargs.items()})
        call = Call(op=label, args=bound, dtype=dtype, emit=state.scope.emit)
        try:
            result = convert(call)
        except NotImplementedError:
            result = _through_tvm(state, node, args, kwargs)
    return _checked(state, result, node.meta.get("val"))


def _any(test: Callable[[Any], bool], value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_any(test, item) for item in value)
    return any(_any(test, item) for item in value.values()) if isinstance(value, dict) else test(value)


def _fold(state: _State, node: Any, args: Any, kwargs: Any) -> Any:
    """Evaluate a node whose inputs are all known; None where it makes too much."""
    with state.torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = node.target(*args, **{**kwargs, **({"device": "cpu"} if "device" in kwargs else {})})
    if isinstance(result, state.torch.Tensor):
        return None if result.nbytes > _FOLD_LIMIT_BYTES else state.plain(result)
    return result


def _bound(target: Any, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of the operator's schema, defaults filled in."""
    found: dict[str, Any] = {}
    for index, spec in enumerate(target._schema.arguments):
        if index < len(args):
            found[spec.name] = args[index]
        else:
            found[spec.name] = kwargs.get(spec.name, spec.default_value)
    return found


def _checked(state: _State, result: Any, value: Any) -> Any:
    """``result`` bound to variables, found to be of the shapes and types that torch promises."""
    if isinstance(result, list | tuple):
        promised = value if isinstance(value, list | tuple) else [None] * len(result)
        return [_checked(state, item, at) for item, at in zip(result, promised, strict=False)]
    if not isinstance(result, relax.Expr):
        return result
    if not (isinstance(result, relax.Var) or rt.is_const(result)):
        result = state.scope.emit(result)
    try:
        shape = rt.shape_of(result)
    except rt.NotStaticError:
        raise NotImplementedError("TVM does not infer its shape") from None
    if isinstance(value, state.torch.Tensor):
        promised = [dim if isinstance(dim, int) else None for dim in value.shape]
        fits = len(promised) == len(shape) and all(
            want in (None, dim) for want, dim in zip(promised, shape, strict=True)
        )
        if not fits or rt.dtype_of(result) != _dtype(state, value.dtype):
            raise NotImplementedError("its result differs from torch's in shape or type")
    return result


def _tvm_names() -> frozenset[str]:
    """The operators that TVM's importer has a converter for."""
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    return frozenset(ExportedProgramImporter().convert_map)


def _through_tvm(state: _State, node: Any, args: Any, kwargs: Any) -> Any:
    """Import one node with TVM's own importer, and bind what comes out in ``state``."""
    from torch import fx
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    importer = ExportedProgramImporter()
    convert = importer.convert_map.get(node.target.__name__)
    if convert is None:
        raise NotImplementedError(node.target.__name__)
    graph = fx.Graph()
    params: list[rt.Expr] = []
    given: list[rt.Expr] = []

    def stand_in(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(stand_in(item) for item in value)
        if not isinstance(value, relax.Expr | state.torch.Tensor):
            return value
        place = graph.placeholder(f"p{len(params)}")
        given.append(state.expr(value))
        params.append(relax.Var(place.name, given[-1].ty))
        importer.env[place] = params[-1]
        return place

    single = graph.call_function(
        node.target, tuple(map(stand_in, args)), {key: stand_in(item) for key, item in kwargs.items()}
    )
    single.meta = dict(node.meta)
    importer.block_builder = builder = relax.BlockBuilder()
    with builder.function("main", params), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with builder.dataflow():
            made = convert(single)
            listed = isinstance(made, list | tuple)
            result = builder.emit_output(relax.Tuple(list(made)) if listed else made)
        builder.emit_func_output(result)
    out = rt.inlined(builder.get(), given, state.scope)
    if isinstance(out, ir.Tuple):
        return list(out.fields)
    if isinstance(out.ty, relax.TupleType):
        return [state.scope.emit(relax.TupleGetItem(out, index)) for index in range(len(out.ty.fields))]
    return out


def _unsupported_text(state: _State) -> str:
    listed = [f"{label} ({count}, first {state.first[label]!r})" for label, count in sorted(state.unsupported.items())]
    found = f"operators that cannot be imported: {', '.join(listed)}"
    return f"{found}; accepted: those of TVM's importer of PyTorch programs, in valid forms"
