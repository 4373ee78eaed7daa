"""ONNX operators that hwq writes as plain Relax itself, where TVM's importer would leave opaque kernels or lose facts.

Used by ``hwq.onnx_import``. Padding is made explicit here (auto_pad, ceil_mode), reshapes get static shapes, nearest
resizing becomes gathers by constant source indices, and weights meet their alpha, beta and transposes. A converter
returns None for what it does not cover; that node then goes through TVM's importer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from hwq import relax_tools as rt
from hwq.einsum import matmul_of
from hwq.graph import Shape
from hwq.operators import COORDINATES, resize_places


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One ONNX node as converters see it: arrays holds the value of every input that is known, emit binds a value."""

    op: str
    attrs: Mapping[str, Any]
    opset: int
    inputs: tuple[rt.Expr | None, ...]
    arrays: tuple[rt.Array | None, ...]
    outputs: int
    emit: Callable[[rt.Expr], rt.Expr]

    def array(self, index: int) -> rt.Array | None:
        return self.arrays[index] if index < len(self.arrays) else None

    def given(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def constants(self, attr: str, index: int) -> tuple[int, ...] | None:
        """Integers that stand in an attribute or, in later opsets, in an input; None where absent or not known."""
        if attr in self.attrs:
            return rt.ints(self.attrs[attr])
        array = self.array(index)
        return None if array is None else rt.ints(array.reshape(-1))


def _spatial_padding(node: Node, size: Shape, kernel: Shape, strides: Shape, dilation: Shape) -> tuple[Shape, Shape]:
    """Explicit padding (before..., after...) for auto_pad or pads."""
    auto = node.attrs.get("auto_pad", b"NOTSET").decode()
    rank = len(size)
    before, after = [0] * rank, [0] * rank
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        for i in range(rank):
            total = max((-(-size[i] // strides[i]) - 1) * strides[i] + (kernel[i] - 1) * dilation[i] + 1 - size[i], 0)
            small = total // 2
            before[i], after[i] = (small, total - small) if auto == "SAME_UPPER" else (total - small, small)
    elif auto == "NOTSET":
        pads = rt.ints(node.attrs.get("pads", [0] * (2 * rank)))
        before, after = list(pads[:rank]), list(pads[rank:])
    return tuple(before), tuple(after)


def _conv(node: Node) -> Any:
    data, weight = node.inputs[0], node.inputs[1]
    shape, kernel_shape = rt.shape_of(data), rt.shape_of(weight)
    rank = len(shape) - 2
    if rank not in (1, 2):
        return None
    strides = rt.ints(node.attrs.get("strides", [1] * rank))
    dilation = rt.ints(node.attrs.get("dilations", [1] * rank))
    before, after = _spatial_padding(node, shape[2:], kernel_shape[2:], strides, dilation)
    if rank == 1:  # a row of height 1
        data = node.emit(relax.op.reshape(data, (*shape[:2], 1, shape[2])))
        weight = node.emit(relax.op.reshape(weight, (*kernel_shape[:2], 1, kernel_shape[2])))
        strides, dilation, before, after = (1, *strides), (1, *dilation), (0, *before), (0, *after)
    out = node.emit(
        relax.op.nn.conv2d(
            data,
            weight,
            strides=strides,
            padding=(*before, *after),
            dilation=dilation,
            groups=int(node.attrs.get("group", 1)),
        )
    )
    if node.given(2):
        out = node.emit(relax.op.add(out, node.emit(relax.op.reshape(node.inputs[2], (1, kernel_shape[0], 1, 1)))))
    return [_row(out) if rank == 1 else out]


def _pool(node: Node) -> Any:
    if node.outputs > 1:
        raise NotImplementedError("the indices of MaxPool are not supported")
    data = node.inputs[0]
    shape = rt.shape_of(data)
    kernel = rt.ints(node.attrs["kernel_shape"])
    rank = len(kernel)
    if rank not in (1, 2):
        return None
    strides = rt.ints(node.attrs.get("strides", [1] * rank))
    dilation = rt.ints(node.attrs.get("dilations", [1] * rank))
    before, after = _spatial_padding(node, shape[2:], kernel, strides, dilation)
    include = bool(node.attrs.get("count_include_pad", 0))
    ceil = bool(node.attrs.get("ceil_mode", 0))
    if ceil:
        # Windows that start inside the input or its leading padding and reach beyond: padding that counts for nothing.
        extra = []
        for i in range(rank):
            span = (kernel[i] - 1) * dilation[i] + 1
            room = shape[2 + i] + before[i] + after[i] - span
            count = -(-room // strides[i]) + 1
            if (count - 1) * strides[i] >= shape[2 + i] + before[i]:
                count -= 1
            extra.append(max((count - 1) * strides[i] - room, 0))
        if node.op == "AveragePool" and include and any(extra):
            return None
        after = tuple(a + b for a, b in zip(after, extra, strict=True))
    if rank == 1:  # a row of height 1
        data = node.emit(relax.op.reshape(data, (*shape[:2], 1, shape[2])))
        kernel, strides, dilation = (1, *kernel), (1, *strides), (1, *dilation)
        before, after = (0, *before), (0, *after)
    padding = (*before, *after)
    if node.op == "MaxPool":
        out = node.emit(relax.op.nn.max_pool2d(data, kernel, strides, padding, dilation))
    else:
        out = node.emit(relax.op.nn.avg_pool2d(data, kernel, strides, padding, dilation, False, include))
    return [_row(out) if rank == 1 else out]


def _row(out: rt.Expr) -> rt.Expr:
    """(N, C, 1, W) as (N, C, W)."""
    n, c, _, w = rt.shape_of(out)
    return relax.op.reshape(out, (n, c, w))


def _global_pool(node: Node) -> Any:
    """Over a row: as over a plane of height 1."""
    shape = rt.shape_of(node.inputs[0])
    if len(shape) != 3:
        return None
    make = relax.op.mean if node.op == "GlobalAveragePool" else relax.op.max
    data = node.emit(relax.op.reshape(node.inputs[0], (*shape[:2], 1, shape[2])))
    return [_row(node.emit(make(data, [2, 3], True)))]


def _clip(node: Node) -> Any:
    if not rt.dtype_of(node.inputs[0]).startswith("float"):
        return None
    bounds = [-math.inf, math.inf]
    for side, attr in enumerate(("min", "max")):
        array = node.array(1 + side)
        if attr in node.attrs:
            bounds[side] = float(node.attrs[attr])
        elif array is not None and array.size == 1 and not np.isnan(array).any():
            bounds[side] = float(array.reshape(()))
        elif node.given(1 + side):
            return None
    return [relax.op.clip(node.inputs[0], *bounds)]


def _pad(node: Node) -> Any:
    data = node.inputs[0]
    rank = len(rt.shape_of(data))
    pads = node.constants("pads", 1)
    value = float(node.attrs.get("value", 0.0))
    if node.given(2):
        array = node.array(2)
        if array is None:
            return None
        value = float(array.reshape(())) if array.size else 0.0
    if pads is None or node.attrs.get("mode", b"constant") != b"constant" or not rt.dtype_of(data).startswith("float"):
        return None
    axes: tuple[int, ...] | None = tuple(range(rank))
    if node.given(3):
        axes = node.constants("axes", 3)
        if axes is None:
            return None
    assert axes is not None
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[len(axes) + i]
    if min(before + after) < 0:  # negative padding cuts
        begin = [max(-dim, 0) for dim in before]
        end = [size - max(-dim, 0) for size, dim in zip(rt.shape_of(data), after, strict=True)]
        data = node.emit(relax.op.strided_slice(data, list(range(rank)), begin, end))
    widths = [max(dim, 0) for pair in zip(before, after, strict=True) for dim in pair]
    return [relax.op.nn.pad(data, widths, "constant", value) if any(widths) else data]


def _reshape(node: Node) -> Any:
    shape = rt.shape_of(node.inputs[0])
    target = _new_shape(node, shape)
    return None if target is None else [relax.op.reshape(node.inputs[0], target)]


def _new_shape(node: Node, shape: Shape) -> Shape | None:
    rank = len(shape)
    if node.op == "Flatten":
        axis = int(node.attrs.get("axis", 1))
        axis += rank if axis < 0 else 0
        return math.prod(shape[:axis]), math.prod(shape[axis:])
    if node.op == "Reshape":
        wanted = node.constants("shape", 1)
        if wanted is None:
            return None
        keep = not node.attrs.get("allowzero", 0)
        dims = [shape[i] if dim == 0 and keep else dim for i, dim in enumerate(wanted)]
        known = math.prod(dim for dim in dims if dim != -1)
        return tuple(math.prod(shape) // known if dim == -1 else dim for dim in dims)
    axes = node.constants("axes", 1)
    if node.op == "Squeeze":
        if axes is None:
            if node.given(1):
                return None
            return tuple(dim for dim in shape if dim != 1)
        drop = {axis % rank for axis in axes}
        return tuple(dim for i, dim in enumerate(shape) if i not in drop)
    if axes is None:
        return None
    full = rank + len(axes)
    new = {axis % full for axis in axes}
    rest = iter(shape)
    return tuple(1 if i in new else next(rest) for i in range(full))


def _slice(node: Node) -> Any:
    shape = rt.shape_of(node.inputs[0])
    starts, ends = node.constants("starts", 1), node.constants("ends", 2)
    axes, steps = node.constants("axes", 3), node.constants("steps", 4)
    if starts is None or ends is None or (node.given(3) and axes is None) or (node.given(4) and steps is None):
        return None
    axes = tuple(range(len(starts))) if axes is None else tuple(axis % len(shape) for axis in axes)
    steps = (1,) * len(starts) if steps is None else steps
    if min(steps, default=1) < 1:
        return None
    cuts = [
        slice(*item).indices(shape[axis])
        for axis, item in zip(axes, zip(starts, ends, steps, strict=True), strict=True)
    ]
    begin, end, step = ([cut[i] for cut in cuts] for i in range(3))
    return [relax.op.strided_slice(node.inputs[0], list(axes), begin, end, step)]


def _gather(node: Node) -> Any:
    """One index, or neighbours, along an axis: a slice. Others: a take, which wraps negative indices as ONNX does."""
    data, index = node.inputs[0], node.array(1)
    shape = rt.shape_of(data)
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    if index is None:
        return [relax.op.take(data, node.inputs[1], axis, "wrap")]
    index = index.astype(np.int64) % shape[axis]
    flat = index.reshape(-1)
    if flat.size and index.ndim <= 1 and np.array_equal(flat, np.arange(flat[0], flat[0] + flat.size)):
        cut = node.emit(relax.op.strided_slice(data, [axis], [int(flat[0])], [int(flat[-1]) + 1]))
        return [cut if index.ndim else relax.op.reshape(cut, (*shape[:axis], *shape[axis + 1 :]))]
    return [relax.op.take(data, rt.const(index), axis, "clip")]


def _split(node: Node) -> Any:
    shape = rt.shape_of(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    sizes = node.constants("split", 1)
    if sizes is None:
        if node.given(1):
            return None
        part = -(-shape[axis] // node.outputs)
        sizes = tuple(min(part, shape[axis] - i * part) for i in range(node.outputs))
    ends = np.cumsum(sizes)
    return [
        node.emit(relax.op.strided_slice(node.inputs[0], [axis], [int(end) - size], [int(end)]))
        for size, end in zip(sizes, ends, strict=True)
    ]


def _tile(node: Node) -> Any:
    """TVM's importer makes a kernel of it, through which no pass sees."""
    repeats = node.constants("repeats", 1)
    return None if repeats is None else [relax.op.tile(node.inputs[0], list(repeats))]


def _gemm(node: Node) -> Any:
    data, weight = node.inputs[0], node.arrays[1]
    if weight is None or weight.dtype != np.float32:
        return None
    weight = weight.T if node.attrs.get("transB", 0) else weight
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    if node.attrs.get("transA", 0):
        data = node.emit(relax.op.permute_dims(data, [1, 0]))
    out = relax.op.matmul(data, rt.const(weight if alpha == 1.0 else weight * np.float32(alpha)))
    if not node.given(2):
        return [out]
    addend = node.inputs[2]
    if beta != 1.0:
        addend = node.emit(relax.op.multiply(addend, relax.const(beta, "float32")))
    return [relax.op.add(node.emit(out), addend)]


def _fold_binary(node: Node) -> Any:
    op = {"Sum": relax.op.add, "Max": relax.op.maximum, "Min": relax.op.minimum}[node.op]
    out = node.inputs[0]
    for item in node.inputs[1:]:
        out = node.emit(op(out, item))
    return [out]


def _resize(node: Node) -> Any:
    """Nearest: one gather an axis, channels last; linear as Relax's own resize."""
    data, mode = node.inputs[0], node.attrs.get("mode", b"nearest").decode()
    shape = rt.shape_of(data)
    first_form = node.op == "Upsample" or node.opset < 11
    scales_at, sizes_at = (1, 9) if first_form else (2, 3)
    scales = np.array(node.attrs["scales"], np.float32) if "scales" in node.attrs else node.array(scales_at)
    sizes = node.array(sizes_at)
    plain = node.attrs.get("keep_aspect_ratio_policy", b"stretch") == b"stretch" and not node.attrs.get("antialias", 0)
    if not plain or "axes" in node.attrs or node.attrs.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        raise NotImplementedError("a form of Resize that neither hwq nor TVM computes as ONNX does")
    if scales is not None and scales.size == len(shape):
        factors = [np.float32(scale) for scale in scales]
        target = tuple(int(np.floor(np.float64(size) * scale)) for size, scale in zip(shape, factors, strict=True))
    elif sizes is not None and sizes.size == len(shape):
        target = rt.ints(sizes)
        factors = [np.float32(new) / np.float32(old) for new, old in zip(target, shape, strict=True)]
    else:
        return None
    coordinates = (
        "asymmetric" if first_form else node.attrs.get("coordinate_transformation_mode", b"half_pixel").decode()
    )
    if mode != "nearest":
        if target[:2] != shape[:2]:
            raise NotImplementedError("linear Resize of batch or channels")
        if not all(
            np.isclose(new / old, factor, rtol=1e-6) for new, old, factor in zip(target, shape, factors, strict=True)
        ):
            raise NotImplementedError("Resize by scales that do not divide the shape")
        if len(shape) != 4 or not (first_form or (mode == "linear" and coordinates in COORDINATES)):
            return None
        size = relax.ShapeExpr(target[2:])
        return [relax.op.image.resize2d(data, size, method=mode, coordinate_transformation_mode=coordinates)]
    if len(shape) != 4 or target[:2] != shape[:2]:
        return None
    rounding = node.attrs.get("nearest_mode", b"round_prefer_floor").decode()
    out = node.emit(relax.op.permute_dims(data, (0, 2, 3, 1)))
    for axis in (2, 3):
        way = ("floor" if factors[axis] >= 1 else "ceil") if first_form else rounding
        index = nearest_sources(shape[axis], target[axis], factors[axis], coordinates, way)
        out = node.emit(relax.op.take(out, rt.const(index), axis - 1, "clip"))
    return [relax.op.permute_dims(out, (0, 3, 1, 2))]


def nearest_sources(old: int, new: int, scale: np.float32, coordinates: str, rounding: str) -> rt.Array:
    """For each of ``new`` positions its source among ``old``, by ONNX's formulas in float32, as ONNX Runtime does."""
    at, half = resize_places(old, new, scale, coordinates), np.float32(0.5)
    ways: Mapping[str, Callable[[rt.Array], rt.Array]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda x: np.ceil(x - half),
        "round_prefer_ceil": lambda x: np.floor(x + half),
    }
    return np.clip(ways[rounding](at), 0, old - 1).astype(np.int64)


def _einsum(node: Node) -> Any:
    if len(node.inputs) != 2:
        return None
    made = matmul_of(node.attrs["equation"].decode(), node.inputs[0], node.inputs[1], node.emit)
    return None if made is None else [made]


CONVERTERS: Mapping[str, Callable[[Node], Any]] = {
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "Clip": _clip,
    "Pad": _pad,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Slice": _slice,
    "Gather": _gather,
    "Split": _split,
    "Tile": _tile,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Sum": _fold_binary,
    "Max": _fold_binary,
    "Min": _fold_binary,
    "Resize": _resize,
    "Upsample": _resize,
}
