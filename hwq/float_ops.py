"""Operators without kernels of their own: each as the PrimFunc that TVM legalizes it to, in a "float" layer.

Used by ``hwq.layers``. A call with several results gives one layer a result; a call that TVM lowers to several
functions gives one layer a function. Constants of more than one element become arguments, after the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tvm import IRModule, ir, relax, tirx
from tvm.s_tir.stmt import SBlock, SBlockRealize
from tvm.target import Target

from hwq import relax_tools as rt
from hwq.graph import Layer


class NoKernelError(Exception):
    """TVM lowers an operator to something that is not a PrimFunc."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatLayers:
    """The layers of one call, the dtype of each tensor they write, and the call's results in order."""

    layers: list[Layer] = field(default_factory=list)
    dtypes: dict[str, str] = field(default_factory=dict)
    results: list[str] = field(default_factory=list)


def float_layers(
    mod: IRModule, value: rt.Expr, name: str, tensors: Mapping[rt.Expr, str], unique: Callable[[str], str]
) -> FloatLayers:
    """Lower one call. ``tensors`` names the tensor of each variable, ``unique`` makes a name that nothing has yet.

    Raises NoKernelError.
    """
    leaves = _leaves(value)
    params = [relax.Var(f"p{index}", leaf.ty) for index, leaf in enumerate(leaves)]
    lowered = _lower(mod, _replaced(value, iter(params)), params)
    found = FloatLayers()
    label = rt.op_name(value).removeprefix("nn.") or str(value.args[0].name_hint).rstrip("_0123456789")
    env: dict[rt.Expr, Any] = dict(zip(params, leaves, strict=True))
    for var, item in rt.bindings_of(lowered):
        env[var] = _step(lowered, item, env, tensors, found, name, unique, label)
    result = _resolve(lowered["main"].body.body, env)
    for item in result if isinstance(result, tuple) else (result,):
        if not isinstance(item, str):
            raise NoKernelError
        found.results.append(item)
    return found


def _leaves(value: rt.Expr) -> list[rt.Expr]:
    """The variables, and the constants of more than one element, that a call reads, with repeats."""
    if isinstance(value, relax.Var):
        return [value]
    if rt.is_const(value):
        return [value] if rt.value_of(value).size > 1 else []
    if isinstance(value, ir.Tuple):
        return [leaf for item in value.fields for leaf in _leaves(item)]
    return [leaf for arg in value.args for leaf in _leaves(arg)] if isinstance(value, ir.Call) else []


def _replaced(value: rt.Expr, params: Any) -> rt.Expr:
    """``value`` with its leaves replaced in order."""
    if isinstance(value, relax.Var) or (rt.is_const(value) and rt.value_of(value).size > 1):
        return next(params)
    if isinstance(value, ir.Tuple):
        return relax.Tuple([_replaced(item, params) for item in value.fields])
    if isinstance(value, ir.Call):
        return ir.Call(value.op, [_replaced(arg, params) for arg in value.args], value.attrs, value.ty_args)
    return value


def _lower(mod: IRModule, call: rt.Expr, params: list[rt.Expr]) -> IRModule:
    """A module whose ``main`` computes the one call with PrimFuncs."""
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        builder.emit_func_output(builder.emit(call))
    shell = builder.get()
    for gvar in [arg for arg in call.args if isinstance(arg, ir.GlobalVar)]:
        shell[gvar] = mod[gvar]
    with Target({"kind": "llvm"}):
        try:
            lowered = relax.backend.DispatchSortScan()(relax.transform.LegalizeOps(enable_warning=False)(shell))
        except Exception as error:  # whatever a legalization raises: there is no kernel
            raise NoKernelError from error
    if any(rt.op_name(item) not in ("call_tir", "") for _, item in rt.bindings_of(lowered)):
        raise NoKernelError
    return lowered


def _resolve(value: rt.Expr, env: Mapping[rt.Expr, Any]) -> Any:
    """What a variable or tuple is: a tensor's name, a leaf of the call (variable or constant), or a tuple of these."""
    if isinstance(value, ir.Tuple):
        return tuple(_resolve(item, env) for item in value.fields)
    if isinstance(value, relax.TupleGetItem):
        return _resolve(value.tuple_value, env)[value.index]
    return env.get(value, value) if isinstance(value, relax.Var) else value


def _step(
    lowered: IRModule, item: rt.Expr, env: Mapping[rt.Expr, Any], tensors: Mapping[rt.Expr, str], found: FloatLayers,
    name: str,
    unique: Callable[[str], str], label: str,
) -> Any:  # fmt: skip
    """One binding of the lowered function; adds its layers to ``found`` and returns what its variable is."""
    if rt.op_name(item) != "call_tir":
        return _resolve(item, env)
    if len(item.args) > 2:
        raise NoKernelError
    func, args = lowered[item.args[0]], _resolve(item.args[1], env)
    types = list(item.ty_args[0].fields) if isinstance(item.ty_args[0], relax.TupleType) else [item.ty_args[0]]
    is_tensor = [isinstance(arg, str) or arg in tensors for arg in args]
    order = [i for i, yes in enumerate(is_tensor) if yes] + [i for i, yes in enumerate(is_tensor) if not yes]
    inputs = [args[i] if isinstance(args[i], str) else tensors[args[i]] for i in order if is_tensor[i]]
    shapes = [rt.ints(func.params[i].shape) for i in order if is_tensor[i]]
    outputs = []
    for index, out in enumerate(types):
        output = unique(name)
        layer = Layer(
            name=output, op="float", inputs=tuple(inputs), output=output, input_shapes=tuple(shapes),
            output_shape=rt.ints(out.shape), func=_single_output(func, order, len(args), index, len(types)),
            attrs={"operator": label}, constants=tuple(rt.value_of(args[i]).copy() for i in order if not is_tensor[i]),
        )  # fmt: skip
        found.layers.append(layer)
        found.dtypes[output] = str(out.dtype)
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 and not isinstance(item.ty_args[0], relax.TupleType) else tuple(outputs)


def _single_output(func: Any, order: list[int], inputs: int, index: int, outputs: int) -> Any:
    """``func`` with its inputs in ``order`` and only output ``index``; the others become buffers of its own."""
    params = list(func.params)
    kept = [params[i] for i in order] + [params[inputs + index]]
    dropped = [params[inputs + i] for i in range(outputs) if i != index]
    if not dropped:
        return func if kept == params else tirx.PrimFunc(kept, func.body, func.ret_type, func.attrs)
    root = func.body.block
    block = SBlock(
        root.iter_vars, root.reads, root.writes, root.name_hint, root.body, root.init, [*root.alloc_buffers, *dropped],
        root.match_buffers, root.annotations,
    )  # fmt: skip
    body = SBlockRealize(func.body.iter_values, func.body.predicate, block)
    return tirx.PrimFunc(kept, body, func.ret_type, func.attrs)
