"""What a Relax operator computes, in NumPy: for constants that are folded, and for following elements through moves.

Used by the passes. Operators that are not here have no answer, and stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import ir, relax

from hwq import relax_tools as rt

# Operators that put elements of their arguments into other places, some perhaps nowhere, some more than once.
MOVES = (
    *("reshape", "expand_dims", "squeeze", "permute_dims", "broadcast_to", "concat", "stack", "strided_slice", "split"),
    *("take", "repeat", "tile", "flip", "flatten"),
)

_ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": np.maximum, "minimum": np.minimum,
    "negative": np.negative, "sqrt": np.sqrt, "exp": np.exp, "log": np.log, "abs": np.abs, "square": np.square,
    "sin": np.sin, "cos": np.cos, "floor": np.floor, "ceil": np.ceil, "less": np.less, "less_equal": np.less_equal,
    "greater": np.greater, "greater_equal": np.greater_equal, "equal": np.equal, "not_equal": np.not_equal,
    "logical_and": np.logical_and, "logical_or": np.logical_or, "logical_not": np.logical_not,
    "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or, "bitwise_not": np.bitwise_not,
    "floor_divide": np.floor_divide, "where": np.where, "nn.relu": lambda x: np.maximum(x, x.dtype.type(0)),
    "rsqrt": lambda x: 1 / np.sqrt(x), "matmul": np.matmul,
}  # fmt: skip


def tensors_of(value: rt.Expr) -> list[rt.Expr]:
    """The tensor arguments of a call, those in a tuple among them."""
    if rt.op_name(value) in ("concat", "stack"):
        return list(value.args[0].fields)
    return [arg for arg in value.args if isinstance(arg, relax.Var) or rt.is_const(arg)]


def evaluate(value: ir.Call, arrays: Sequence[rt.Array]) -> Any:
    """The result of a call (an array, for "split" a list) for ``arrays`` in the places of ``tensors_of``; None where
    it is not known here.
    """
    op = rt.op_name(value)
    if op in MOVES:
        return moved(value, arrays)
    if op in _ELEMENTWISE:
        with np.errstate(all="ignore"):
            return _ELEMENTWISE[op](*arrays)
    if op in ("divide", "power") and arrays[0].dtype.kind == "f":
        with np.errstate(all="ignore"):
            return (np.divide if op == "divide" else np.power)(*arrays)
    if op == "astype":
        with np.errstate(all="ignore"):
            return arrays[0].astype(rt.dtype_of(value))
    if op in ("full", "full_like"):
        return np.broadcast_to(arrays[-1], rt.shape_of(value))
    if op in ("zeros", "zeros_like", "ones", "ones_like"):
        return np.full(rt.shape_of(value), float(op.startswith("ones")))
    if op == "arange":
        first, last, step = (item.value for item in value.args)
        return np.arange(first, last, step)
    if op in ("tril", "triu"):
        return (np.tril if op == "tril" else np.triu)(arrays[0], int(value.args[1].value))
    if op == "cumsum" and value.attrs.axis is not None and not value.attrs.exclusive:
        return np.cumsum(arrays[0], int(value.attrs.axis))
    return None


def moved(value: ir.Call, arrays: Sequence[rt.Array]) -> Any:
    """``evaluate`` for the operators in MOVES, on arrays of any type."""
    op, attrs, array = rt.op_name(value), value.attrs, arrays[0]
    if op in ("reshape", "expand_dims", "squeeze", "flatten"):
        return array.reshape(rt.shape_of(value))
    if op == "permute_dims":
        return array.transpose(None if attrs.axes is None else rt.ints(attrs.axes))
    if op == "broadcast_to":
        return np.broadcast_to(array, rt.shape_of(value))
    if op in ("concat", "stack"):
        return (np.concatenate if op == "concat" else np.stack)(arrays, int(attrs.axis or 0))
    if op == "take":
        axis = attrs.axis
        inside = axis is not None and len(arrays) == 2
        return np.take(array, arrays[1], axis=int(axis), mode="wrap") if inside else None
    if op == "strided_slice":
        cut = cut_of(value)
        return None if cut is None else array[cut]
    if op == "split":
        parts = attrs.indices_or_sections
        return np.split(
            array, int(parts) if isinstance(parts, int | ir.prim.IntImm) else rt.ints(parts), int(attrs.axis)
        )
    if op == "repeat":
        return np.repeat(array, int(attrs.repeats), None if attrs.axis is None else int(attrs.axis))
    if op == "tile":
        return np.tile(array, rt.ints(attrs.repeats))
    return np.flip(array, int(attrs.axis)) if op == "flip" else None


def cut_of(value: ir.Call) -> tuple[slice, ...] | None:
    """The slice that a strided_slice takes of each axis; None where its ends are not known."""
    parts = [list(arg.fields) for arg in value.args[1:] if isinstance(arg, ir.Tuple)]
    if len(parts) + 1 < len(value.args) or not all(isinstance(item, ir.prim.IntImm) for part in parts for item in part):
        return None
    axes, first, last, *rest = [[int(item.value) for item in part] for part in parts]
    steps = rest[0] if rest else [1] * len(axes)
    shape = rt.shape_of(value.args[0])
    cut = [slice(0, size, 1) for size in shape]
    for axis, begin, end, step in zip(axes, first, last, steps, strict=True):
        low, high, step = slice(begin, end, step).indices(shape[axis])
        cut[axis] = slice(low, high if high >= 0 else None, step)
    return tuple(cut)
