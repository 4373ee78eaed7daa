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
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tvm import relax

from hwq import relax_tools as rt
from hwq.graph import Shape


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


Result = "list[rt.Expr] | None"


def _spatial_padding(node: Node, size: Shape, kernel: Shape, strides: Shape, dilation: Shape) -> tuple[Shape, Shape]:
    """Explicit padding (before..., after...) for auto_pad or pads, and the output size it gives without ceil_mode."""
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
            data, weight, strides=strides, padding=(*before, *after), dilation=dilation, groups=int(node.attrs.get("group", 1))
        )
    )
    if node.given(2):
        out = node.emit(relax.op.add(out, node.emit(relax.op.reshape(node.inputs[2], (1, kernel_shape[0], 1, 1)))))
    if rank == 1:
        full = rt.shape_of(out)
        out = node.emit(relax.op.reshape(out, (full[0], full[1], full[3])))
    return [out]


def _pool(node: Node) -> Any:
    if node.outputs > 1:
        raise NotImplementedError("the indices of MaxPool are not supported")
    data = node.inputs[0]
    shape = rt.shape_of(data)
    kernel = rt.ints(node.attrs["kernel_shape"])
    rank = len(kernel)
    if rank != 2:
        return None
    strides = rt.ints(node.attrs.get("strides", [1] * rank))
    dilation = rt.ints(node.attrs.get("dilations", [1] * rank))
    before, after = _spatial_padding(node, shape[2:], kernel, strides, dilation)
    include = bool(node.attrs.get("count_include_pad", 0))
    ceil = bool(node.attrs.get("ceil_mode", 0))
    if ceil:
        # Windows that start inside the input (or its leading padding) and reach beyond: padding that counts for nothing.
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
    padding = (*before, *after)
    if node.op == "MaxPool":
        return [relax.op.nn.max_pool2d(data, kernel, strides, padding, dilation)]
    return [relax.op.nn.avg_pool2d(data, kernel, strides, padding, dilation, False, include)]


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
        axis = int(node.attrs.get("axis", 1)) % (rank + 1) if int(node.attrs.get("axis", 1)) < 0 else int(node.attrs.get("axis", 1))
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
    cuts = [slice(*item).indices(shape[axis]) for axis, item in zip(axes, zip(starts, ends, steps, strict=True), strict=True)]
    begin, end, step = ([cut[i] for cut in cuts] for i in range(3))
    return [relax.op.strided_slice(node.inputs[0], list(axes), begin, end, step)]


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
    """Nearest resizing as one gather an axis, the indices taken from ONNX's own reference on a ramp."""
    data = node.inputs[0]
    shape = rt.shape_of(data)
    if node.attrs.get("mode", b"nearest") != b"nearest" or node.attrs.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        return None
    if node.attrs.get("axes") is not None:
        return None
    scales_at, sizes_at = {"Upsample": (1, 9), "Resize": (1, 9) if node.opset < 11 else (2, 3)}[node.op]
    scales = np.array(node.attrs["scales"], np.float32) if "scales" in node.attrs else node.array(scales_at)
    sizes = node.array(sizes_at)
    attrs = {key: value for key, value in node.attrs.items() if key not in ("scales", "mode")}
    if node.op == "Upsample" or node.opset < 11:
        attrs = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    use_scales = scales is not None and scales.size == len(shape)
    if not use_scales and (sizes is None or sizes.size != len(shape)):
        return None
    out = data
    for axis, size in enumerate(shape):
        ramp = np.arange(size, dtype=np.float32)
        feeds = {"x": ramp, "s": scales[axis : axis + 1] if use_scales else sizes[axis : axis + 1]}  # type: ignore[index]
        inputs = ["x", "", "s"] if use_scales else ["x", "", "", "s"]
        single = helper.make_node("Resize", inputs, ["y"], mode="nearest", **attrs)
        infos = [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feeds.items()]
        graph = helper.make_graph([single], "ramp", infos, [helper.make_empty_tensor_value_info("y")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", max(node.opset, 13))])
        index = np.asarray(ReferenceEvaluator(model).run(None, feeds)[0]).astype(np.int64)
        if not np.array_equal(index, np.arange(size)):
            out = node.emit(relax.op.take(out, rt.const(index), axis=axis))
    return [out]


CONVERTERS: Mapping[str, Callable[[Node], Any]] = {
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Clip": _clip,
    "Pad": _pad,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Gemm": _gemm,
    "Sum": _fold_binary,
    "Max": _fold_binary,
    "Min": _fold_binary,
    "Resize": _resize,
    "Upsample": _resize,
}
