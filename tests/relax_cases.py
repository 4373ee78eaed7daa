"""What the tests of Relax passes share: one check of everything that a pass must show."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.target import Target

from hwq import relax_tools as rt
from hwq import transformer
from hwq.layer_functions import layer_attrs
from hwq.relax_numpy import evaluate, tensors_of

Array = np.ndarray[Any, Any]


def module_of(make: Any, shape: tuple[int, ...]) -> IRModule:
    """``make(emit, x)``, one tensor or a list of them, as a function of one float32 tensor of ``shape``."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = make(builder.emit, x)
            outs = [builder.emit_output(item) for item in (out if isinstance(out, list) else [out])]
        builder.emit_func_output(relax.Tuple(outs) if len(outs) > 1 else outs[0])
    return builder.get()


def run(mod: IRModule, seed: int = 0) -> list[Array]:
    """The outputs of ``main`` on random float32 inputs, compiled without any schedule."""
    rng = np.random.default_rng(seed)
    inputs = [(rng.standard_normal(rt.shape_of(param)) * 3).astype(np.float32) for param in mod["main"].params]
    machine = relax.VirtualMachine(relax.build(mod, Target({"kind": "llvm"})), tvm.cpu())
    out = machine["main"](*(tvm.runtime.tensor(value) for value in inputs))
    return [out.numpy()] if hasattr(out, "numpy") else [item.numpy() for item in out]


def assert_same_numbers(before: IRModule, after: IRModule, tolerance: float = 1e-5) -> None:
    """Equal up to ``tolerance`` of the largest output: the same float32 sums, in another order or scaled earlier."""
    for old, new in zip(run(before), run(after), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=tolerance * max(float(np.abs(old).max()), 1e-3))


def run_in_numpy(mod: IRModule, seed: int = 0) -> list[Array]:
    """``run`` without a compiler, which takes seconds; calls of layers' functions by what ``hwq.transformer`` says."""
    rng = np.random.default_rng(seed)
    found = {param: (rng.standard_normal(rt.shape_of(param)) * 3).astype(np.float32) for param in mod["main"].params}

    def value_of(expr: Any) -> Any:
        if isinstance(expr, tvm.ir.Tuple):
            return [value_of(item) for item in expr.fields]
        return rt.value_of(expr) if rt.is_const(expr) else found[expr]

    for var, value in rt.bindings_of(mod):
        attrs = layer_attrs(mod, value)
        if isinstance(value, relax.TupleGetItem):
            found[var] = value_of(value.tuple_value)[value.index]
        elif isinstance(value, relax.Var):
            found[var] = found[value]
        elif attrs is not None:
            compute = getattr(transformer, attrs.pop("layer"))
            found[var] = compute(*map(value_of, value.args), **attrs)
        elif rt.op_name(value) in _EXTRA:
            found[var] = _EXTRA[rt.op_name(value)](value, *map(value_of, tensors_of(value)))
        else:
            found[var] = evaluate(value, [value_of(arg) for arg in tensors_of(value)])
            assert found[var] is not None, value
    out = value_of(mod["main"].body.body)
    return out if isinstance(out, list) else [out]


def _softmax(value: Any, x: Array) -> Array:
    power = np.exp(x - x.max(axis=int(value.attrs.axis), keepdims=True))
    return np.asarray(power / power.sum(axis=int(value.attrs.axis), keepdims=True))


def _attention(value: Any, *args: Array) -> Array:
    """R.nn.attention, (B, S, H, D)."""
    flat = [x.reshape(*x.shape[:2], -1) for x in args[:3]]
    heads, dim = args[0].shape[2:]
    scale = dim**-0.5 if value.attrs.scale is None else float(value.attrs.scale.value)
    causal = value.attrs.causal_mask is not None
    assert not causal or args[0].shape[1] == args[1].shape[1], "aligned at the start or the end"
    out = transformer.attention(*flat, *args[3:], heads=heads, kv_heads=heads, scale=scale, causal=causal)
    return out.reshape(rt.shape_of(value))


_EXTRA = {
    "nn.softmax": _softmax,
    "nn.attention": _attention,
    "nn.attention_bias": _attention,
    "isnan": lambda _, x: np.isnan(x),
    "tanh": lambda _, x: np.tanh(x),
    "mean": lambda value, x: x.mean(axis=rt.ints(value.attrs.axis), keepdims=bool(value.attrs.keepdims)),
}


def assert_same_in_numpy(before: IRModule, after: IRModule, tolerance: float = 1e-5) -> None:
    """``assert_same_numbers`` by NumPy."""
    for old, new in zip(run_in_numpy(before), run_in_numpy(after), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=tolerance * max(float(np.abs(old).max()), 1e-3))


def assert_pass(step: Any, before: IRModule, expected: IRModule, *, numbers: bool = True) -> None:
    """``step`` turns ``before`` into ``expected``; it is well formed, at rest, and computes the same."""
    after = step(before)
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after, expected, map_free_vars=True)
    tvm.ir.assert_structural_equal(step(after), after)
    if numbers:
        assert_same_numbers(before, after)


def assert_left_alone(step: Any, before: IRModule) -> None:
    """``step`` changes nothing."""
    tvm.ir.assert_structural_equal(step(before), before)
