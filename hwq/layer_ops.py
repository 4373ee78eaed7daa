"""Which layer a single Relax call is: the table between Relax operators and the operators of ``hwq.graph``.

Used by ``hwq.layers``, which fuses. Only float32 tensors are taken; whatever is not found here stays a "float" layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import IRModule, ir, relax

from hwq import relax_tools as rt
from hwq.graph import Activation, Layer
from hwq.layer_functions import layer_attrs
from hwq.operators import COORDINATES, linear_sources

# From here on a constant masks, and computes nothing.
_MASKING = 1e4
Tensors = Mapping[rt.Expr, str]

# Operators that are activations of the same name.
_ACTIVATIONS = ("nn.relu", "sigmoid", "tanh", "nn.silu", "nn.gelu", "nn.gelu_tanh")


def activation_of(mod: IRModule, value: rt.Expr) -> Activation | None:
    """The activation that a call is, None if it is none."""
    if isinstance(value, ir.Call) and isinstance(value.op, ir.GlobalVar):
        attrs = mod[value.op].attrs
        if attrs is None or "activation" not in attrs:
            return None
        return Activation(
            kind=str(attrs["activation"]), alpha=float(attrs["alpha"].value) if "alpha" in attrs else 0.0,
            beta=float(attrs["beta"].value) if "beta" in attrs else 0.0,
        )  # fmt: skip
    op = rt.op_name(value)
    if op == "nn.relu6":
        return Activation(kind="clip", lo=0.0, hi=6.0)
    if op == "clip":
        return Activation(kind="clip", lo=float(value.args[1].value), hi=float(value.args[2].value))
    if op == "nn.leakyrelu":
        return Activation(kind="leaky_relu", alpha=float(value.attrs.alpha))
    kind = op.removeprefix("nn.")
    return Activation(kind=kind) if op in _ACTIVATIONS else None


def layer_of(mod: IRModule, value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    """The layer (its output named as itself) that a call is; None where it has no place in ``hwq.graph``."""
    if rt.op_name(value) == "reshape":  # a view, whatever its elements are
        return _layer(value, name, tensors, "reshape")
    if not _all_float32(value):
        return None
    activation = activation_of(mod, value)
    if activation is not None:
        return _layer(value, name, tensors, "unary", activation=activation)
    if isinstance(value.op, ir.GlobalVar):
        return _private(mod, value, name, tensors)
    make = _MAKERS.get(rt.op_name(value))
    return None if make is None else make(value, name, tensors)


def _private(mod: IRModule, value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    """A call of one of the module's own functions that stands for a layer."""
    attrs = layer_attrs(mod, value)
    if attrs is None:
        return None
    op = attrs.pop("layer")
    data = [arg for arg in value.args if not rt.is_const(arg)]
    constants = tuple(rt.value_of(arg).copy() for arg in value.args if rt.is_const(arg))
    if op == "attention" and constants:
        attrs["bias"] = constants[0].shape
    return _layer(value, name, tensors, op, data, attrs=attrs, constants=constants)


def _all_float32(value: rt.Expr) -> bool:
    tensors = [arg for arg in value.args if isinstance(arg, relax.Var) or rt.is_const(arg)]
    if rt.op_name(value) == "take":
        tensors = tensors[:1]
    if rt.op_name(value) == "concat":
        tensors = list(value.args[0].fields)
    return all(isinstance(item.ty, relax.TensorType) and rt.dtype_of(item) == "float32" for item in [value, *tensors])


def _layer(
    value: rt.Expr, name: str, tensors: Tensors, op: str, args: list[rt.Expr] | None = None, **rest: Any
) -> Layer | None:
    """A layer over the variables ``args`` (default: the call's first argument); None where one of them is constant."""
    args = [value.args[0]] if args is None else args
    if not all(arg in tensors for arg in args if isinstance(arg, relax.Var)) or any(rt.is_const(arg) for arg in args):
        return None
    return Layer(
        name=name, op=op, inputs=tuple(tensors[arg] for arg in args), output=name,
        input_shapes=tuple(rt.shape_of(arg) for arg in args), output_shape=rt.shape_of(value), **rest,
    )  # fmt: skip


def _conv2d(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    attrs, data, weight = value.attrs, value.args[0], value.args[1]
    if attrs.data_layout != "NHWC" or attrs.kernel_layout != "OHWI" or not rt.is_const(weight):
        return None
    array, groups = np.array(rt.value_of(weight)), int(attrs.groups)
    channels = rt.shape_of(data)[3]
    op = "depthwise_conv2d" if groups == channels == array.shape[0] and groups > 1 else "conv2d"
    found = {
        "strides": rt.ints(attrs.strides), "padding": rt.ints(attrs.padding), "dilation": rt.ints(attrs.dilation),
        "groups": groups, "kernel": (int(array.shape[1]), int(array.shape[2])),
    }  # fmt: skip
    return _layer(value, name, tensors, op, attrs=found, weight=array)


def _dense(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    data, weight = value.args
    if not rt.is_const(weight) or len(rt.shape_of(weight)) != 2 or len(rt.shape_of(data)) != 2:
        return None
    return _layer(value, name, tensors, "dense", weight=np.ascontiguousarray(rt.value_of(weight).T))


def _pool(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    attrs = value.attrs
    averages = rt.op_name(value) == "nn.avg_pool2d"
    if attrs.layout != "NHWC" or attrs.ceil_mode or (averages and set(rt.ints(attrs.dilation)) != {1}):
        return None
    found = {
        "strides": rt.ints(attrs.strides), "padding": rt.ints(attrs.padding), "dilation": rt.ints(attrs.dilation),
        "kernel": rt.ints(attrs.pool_size), "count_include_pad": bool(attrs.count_include_pad),
    }  # fmt: skip
    return _layer(value, name, tensors, rt.op_name(value).removeprefix("nn."), attrs=found)


def _global_pool(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    """A mean or maximum over the whole plane."""
    shape = rt.shape_of(value.args[0])
    if len(shape) != 4 or value.attrs.axis is None or not value.attrs.keepdims:
        return None
    if sorted(axis % 4 for axis in rt.ints(value.attrs.axis)) != [1, 2]:
        return None
    found = {
        "strides": (1, 1),
        "padding": (0, 0, 0, 0),
        "dilation": (1, 1),
        "kernel": shape[1:3],
        "count_include_pad": False,
    }
    op = "avg_pool2d" if rt.op_name(value) == "mean" else "max_pool2d"
    return _layer(value, name, tensors, op, attrs=found)


def _reduce(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    """Over one axis, or some beside each other, with nothing but 1s before: rows, joined to one. Not of pictures."""
    kind, shape = rt.op_name(value), rt.shape_of(value.args[0])
    axes = range(len(shape)) if value.attrs.axis is None else rt.ints(value.attrs.axis)
    found = tuple(sorted(axis % len(shape) for axis in axes))
    beside = bool(found) and found[-1] - found[0] < len(found)
    if len(shape) > 3 or not beside or any(size != 1 for size in shape[: found[0]]):
        return None
    return _layer(value, name, tensors, "reduce", attrs={"kind": kind, "axes": found})


def _over_axes(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    return _global_pool(value, name, tensors) or _reduce(value, name, tensors)


def _binary(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    op, (a, b) = rt.op_name(value), value.args
    if rt.is_const(a) or rt.is_const(b):
        return _per_channel(value, name, tensors)
    shape, out = rt.shape_of, rt.shape_of(value)
    if shape(a) != out:
        a, b = b, a
    broadcast = len(out) == 4 and op == "multiply" and shape(b) == (out[0], 1, 1, out[3])
    if shape(a) != out or not (shape(b) == out or broadcast):
        return None
    return _layer(value, name, tensors, op, [a, b])


def _per_channel(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    """A product with, or sum of, one constant a channel: a depthwise convolution of one tap. What makes a mask is none:
    where (1 - mask) * -3.4e38 is rounded at all, what is to be 0 drowns the scores that it is added to."""
    data, other = (value.args[1], value.args[0]) if rt.is_const(value.args[0]) else tuple(value.args)
    out = rt.shape_of(value)
    if rt.is_const(data) or len(out) != 4 or rt.shape_of(data) != out:
        return None
    channels = channel_values(other, out)
    if channels is None or np.abs(channels).max() >= _MASKING:
        return None
    scales = rt.op_name(value) == "multiply"
    weight = channels if scales else np.ones_like(channels)
    op = "depthwise_conv2d" if out[3] > 1 else "conv2d"
    found = {"strides": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": out[3], "kernel": (1, 1)}
    return _layer(
        value,
        name,
        tensors,
        op,
        [data],
        attrs=found,
        weight=weight.reshape(-1, 1, 1, 1),
        bias=None if scales else channels,
    )


def channel_values(other: rt.Expr, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """A constant as (C,) where it varies along the last axis of ``shape`` only; None otherwise."""
    if not rt.is_const(other) or rt.dtype_of(other) != "float32":
        return None
    array = rt.value_of(other)
    if array.ndim > len(shape) or any(dim != 1 for dim in array.shape[:-1]) or array.size not in (1, shape[-1]):
        return None
    return np.array(np.broadcast_to(array.reshape(-1), (shape[-1],)), np.float32)


def _concat(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    items = list(value.args[0].fields)
    return _layer(
        value, name, tensors, "concat", items, attrs={"axis": int(value.attrs.axis) % len(rt.shape_of(value))}
    )


def _pad(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    if value.attrs.pad_mode != "constant" or not math.isfinite(float(value.attrs.pad_value)):
        return None
    widths = rt.ints(value.attrs.pad_width)
    found = {"pads": tuple(zip(widths[::2], widths[1::2], strict=True)), "value": float(value.attrs.pad_value)}
    return _layer(value, name, tensors, "pad", attrs=found)


def _slice(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    shape = rt.shape_of(value.args[0])
    cut = [tuple(int(item.value) for item in arg.fields) for arg in value.args[1:]]
    steps = cut[3] if len(cut) > 3 else (1,) * len(cut[0])
    if any(step < 1 for step in steps):
        return None
    begin, end, strides = [0] * len(shape), list(shape), [1] * len(shape)
    for axis, first, last, step in zip(*cut[:3], steps, strict=True):
        begin[axis], end[axis], strides[axis] = slice(first, last, step).indices(shape[axis])
    return _layer(
        value, name, tensors, "slice", attrs={"begin": tuple(begin), "end": tuple(end), "strides": tuple(strides)}
    )


def _take(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    """Rows of a constant table; constant rows or columns of a plane: nearest resizing along one axis."""
    data, index = value.args
    shape = rt.shape_of(data)
    if rt.is_const(data) and len(shape) == 2 and value.attrs.axis is not None and int(value.attrs.axis) % 2 == 0:
        return _gather(value, name, tensors)
    if value.attrs.axis is None or not rt.is_const(index) or len(shape) != 4 or len(rt.shape_of(index)) != 1:
        return None
    axis, found = int(value.attrs.axis) % 4, rt.ints(rt.value_of(index))
    if axis not in (1, 2) or not all(0 <= item < shape[axis] for item in found):
        return None
    maps = {"map_h": tuple(range(shape[1])), "map_w": tuple(range(shape[2])), ("map_h", "map_w")[axis - 1]: found}
    return _layer(value, name, tensors, "resize_nearest", attrs=maps)


def _gather(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    table, ids = value.args
    kind = rt.dtype_of(ids)
    if kind not in ("int64", "int32"):
        return None
    weight = np.array(rt.value_of(table), np.float32)
    return _layer(value, name, tensors, "gather", [ids], attrs={"ids": kind, "rows": len(weight)}, weight=weight)


def _rms_norm(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    """Over the last axis, with a constant scale."""
    data, scale = value.args
    last = len(rt.shape_of(data)) - 1
    if not rt.is_const(scale) or [axis % (last + 1) for axis in rt.ints(value.attrs.axes)] != [last]:
        return None
    attrs = {"epsilon": float(value.attrs.epsilon)}
    return _layer(value, name, tensors, "rms_norm", attrs=attrs, constants=(rt.value_of(scale).copy(),))


def _layer_norm(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    """Over the last axis, with constant scale and bias."""
    data, *numbers = value.args
    last = len(rt.shape_of(data)) - 1
    if not all(rt.is_const(each) for each in numbers) or [axis % (last + 1) for axis in value.attrs.axes] != [last]:
        return None
    constants = tuple(rt.value_of(each).copy() for each in numbers)
    return _layer(
        value, name, tensors, "layer_norm", attrs={"epsilon": float(value.attrs.epsilon)}, constants=constants
    )


def _resize2d(value: rt.Expr, name: str, tensors: Tensors) -> Layer | None:
    """Linear resizing of planes."""
    attrs, shape, out = value.attrs, rt.shape_of(value.args[0]), rt.shape_of(value)
    if attrs.method != "linear" or attrs.layout != "NHWC" or attrs.coordinate_transformation_mode not in COORDINATES:
        return None
    sources = [linear_sources(shape[axis], out[axis], attrs.coordinate_transformation_mode) for axis in (1, 2)]
    return _layer(value, name, tensors, "resize_linear", constants=(*sources[0], *sources[1]))


def _plain(op: str, **attrs: Callable[[rt.Expr], Any]) -> Callable[[rt.Expr, str, Tensors], Layer | None]:
    return lambda value, name, tensors: _layer(
        value, name, tensors, op, attrs={key: get(value) for key, get in attrs.items()}
    )


def _axes(value: rt.Expr) -> tuple[int, ...]:
    rank = len(rt.shape_of(value))
    return (
        tuple(reversed(range(rank)))
        if value.attrs.axes is None
        else tuple(axis % rank for axis in rt.ints(value.attrs.axes))
    )


_MAKERS: Mapping[str, Callable[[rt.Expr, str, Tensors], Layer | None]] = {
    "nn.conv2d": _conv2d,
    "matmul": _dense,
    "nn.max_pool2d": _pool,
    "nn.avg_pool2d": _pool,
    "mean": _over_axes,
    "max": _over_axes,
    "sum": _reduce,
    "add": _binary,
    "multiply": _binary,
    "concat": _concat,
    "nn.pad": _pad,
    "strided_slice": _slice,
    "take": _take,
    "image.resize2d": _resize2d,
    "nn.softmax": _plain("softmax", axis=lambda value: int(value.attrs.axis) % len(rt.shape_of(value))),
    "nn.layer_norm": _layer_norm,
    "nn.rms_norm": _rms_norm,
    "permute_dims": _plain("transpose", axes=_axes),
}
