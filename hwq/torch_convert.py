"""ATen operators that hwq writes as plain Relax itself, in the form in which an ONNX export of the module arrives.

Used by ``hwq.torch_import``. What has no converter here or in ``hwq.torch_views`` goes through TVM's importer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from hwq import relax_tools as rt
from hwq.torch_call import Call, cast, number, through_onnx
from hwq.torch_views import VIEWS, repeated


def _linear(call: Call) -> Any:
    """Two axes: as Gemm; more: a product with a two-dimensional weight, and an addition."""
    data, weight, bias = call["input"], call["weight"], call["bias"]
    if rt.is_const(weight):
        weight = rt.const(rt.value_of(weight).T)
    else:
        weight = call.emit(relax.op.permute_dims(weight, [1, 0]))
    out = call.emit(relax.op.matmul(data, weight))
    return out if bias is None else relax.op.add(out, bias)


def _addmm(call: Call) -> Any:
    beta, alpha = float(call["beta"]), float(call["alpha"])
    out = call.emit(relax.op.matmul(call["mat1"], call["mat2"]))
    if alpha != 1.0:
        out = call.emit(relax.op.multiply(out, number(alpha, call.dtype)))
    addend = call["self"]
    if beta != 1.0:
        addend = call.emit(relax.op.multiply(addend, number(beta, call.dtype)))
    return relax.op.add(out, addend)


def _product(call: Call) -> Any:
    left, right = call.args.values()
    return relax.op.matmul(left, right)


def _conv(call: Call) -> Any:
    weight, bias = call["weight"], call["bias"]
    rank = len(rt.shape_of(weight)) - 2
    if rank not in (1, 2) or call.args.get("transposed", False) or len(call.shape("input")) != rank + 2:
        raise NotImplementedError("this convolution")
    pads = call.ints("padding", rank)
    return through_onnx(
        call, "Conv", [call["input"], weight, bias], strides=call.ints("stride", rank), pads=(*pads, *pads),
        dilations=call.ints("dilation", rank), group=int(call["groups"]),
    )  # fmt: skip


def _pool(call: Call) -> Any:
    rank = 2
    if len(call.shape("self")) != rank + 2 or call.args.get("divisor_override") is not None:
        raise NotImplementedError("this pooling")
    kernel = call.ints("kernel_size", rank)
    pads = call.ints("padding", rank)
    attrs: dict[str, Any] = {
        "kernel_shape": kernel, "pads": (*pads, *pads), "ceil_mode": int(call["ceil_mode"]),
        "strides": call.ints("stride", rank) if call["stride"] else kernel,
    }  # fmt: skip
    if "dilation" in call.args:
        return through_onnx(call, "MaxPool", [call["self"]], dilations=call.ints("dilation", rank), **attrs)
    return through_onnx(call, "AveragePool", [call["self"]], count_include_pad=int(call["count_include_pad"]), **attrs)


def _batch_norm(call: Call) -> Any:
    channels = call.shape("input")[1]
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    scale = rt.const(ones) if call["weight"] is None else call["weight"]
    shift = rt.const(zeros) if call["bias"] is None else call["bias"]
    out = call.emit(
        relax.op.nn.batch_norm(
            call["input"],
            scale,
            shift,
            call["running_mean"],
            call["running_var"],
            1,
            float(call["eps"]),
            training=False,
        )
    )
    return [call.emit(relax.TupleGetItem(out, 0)), None, None]


def _groups(call: Call, data: rt.Expr, groups: int) -> rt.Expr:
    """Norms over groups of channels, the second axis, and all axes behind them."""
    rank, channels = len(rt.shape_of(data)), rt.shape_of(data)[1]
    scale = rt.const(np.ones(channels, np.float32)) if call["weight"] is None else call["weight"]
    shift = rt.const(np.zeros(channels, np.float32)) if call["bias"] is None else call["bias"]
    return relax.op.nn.group_norm(data, scale, shift, groups, 1, list(range(2, rank)), float(call["eps"]))


def _group_norm(call: Call) -> Any:
    return _groups(call, call["input"], int(call["num_groups"]))


def _own_statistics(call: Call) -> Any:
    """A batch norm by its one sample's own mean and variance, which is what an instance norm becomes."""
    if call.shape("input")[0] != 1:
        raise NotImplementedError("norms over the batch")
    return [call.emit(_groups(call, call["input"], call.shape("input")[1])), None, None]


def _layer_norm(call: Call) -> Any:
    size = rt.ints(call["normalized_shape"])
    scale = rt.const(np.ones(size, np.float32)) if call["weight"] is None else call["weight"]
    shift = rt.const(np.zeros(size, np.float32)) if call["bias"] is None else call["bias"]
    return relax.op.nn.layer_norm(call["input"], scale, shift, list(range(-len(size), 0)), float(call["eps"]))


def _attention(call: Call) -> Any:
    """softmax(q k^T * scale + mask) v from primitive operators; query and key take a root of the scale each."""
    query, key, value, mask = call["query"], call["key"], call["value"], call["attn_mask"]
    if float(call["dropout_p"]) != 0.0:
        raise NotImplementedError("attention with dropout")
    shape, rank = rt.shape_of(query), len(rt.shape_of(query))
    if call["enable_gqa"] and rt.shape_of(key)[-3] != shape[-3]:
        times = shape[-3] // rt.shape_of(key)[-3]
        key, value = (repeated(call, item, times, rank - 3) for item in (key, value))
    scale = 1.0 / np.sqrt(np.float32(shape[-1])) if call["scale"] is None else np.float32(call["scale"])
    if scale < 0:
        raise NotImplementedError("attention with a negative scale")
    root = number(np.sqrt(np.float32(scale)), call.dtype)
    order = [*range(rank - 2), rank - 1, rank - 2]
    turned = call.emit(relax.op.permute_dims(key, order))
    scores = call.emit(
        relax.op.matmul(call.emit(relax.op.multiply(query, root)), call.emit(relax.op.multiply(turned, root)))
    )
    if call["is_causal"]:
        rows, columns = shape[-2], rt.shape_of(key)[-2]
        blocked = np.triu(np.ones((rows, columns), bool), 1)
        mask = rt.const(np.where(blocked, -np.inf, 0.0).astype(call.dtype))
    if mask is not None and rt.dtype_of(mask) == "bool":
        if rt.is_const(mask):
            mask = rt.const(np.where(rt.value_of(mask), 0.0, -np.inf).astype(call.dtype))
        else:
            mask = call.emit(relax.op.where(mask, number(0.0, call.dtype), number(-math.inf, call.dtype)))
    if mask is not None:
        scores = call.emit(relax.op.add(scores, cast(call, mask, call.dtype)))
    return relax.op.matmul(call.emit(relax.op.nn.softmax(scores, -1)), value)


def _softmax(call: Call) -> Any:
    return relax.op.nn.softmax(cast(call, call["self"], call.dtype), int(call["dim"]))


def _gelu(call: Call) -> Any:
    make = relax.op.nn.gelu_tanh if call["approximate"] == "tanh" else relax.op.nn.gelu
    return make(call["self"])


def _rsqrt(call: Call) -> Any:
    return relax.op.divide(number(1, call.dtype), call.emit(relax.op.sqrt(call["self"])))


def _reciprocal(call: Call) -> Any:
    return relax.op.divide(number(1, call.dtype), cast(call, call["self"], call.dtype))


def _pow(call: Call) -> Any:
    if not rt.dtype_of(call["self"]).startswith("float"):
        raise NotImplementedError("powers of integers")
    return relax.op.power(call["self"], number(float(call["exponent"]), call.dtype))


def _hard_sigmoid(call: Call) -> Any:
    scaled = call.emit(relax.op.multiply(number(1 / 6, call.dtype), call["self"]))
    return relax.op.clip(call.emit(relax.op.add(scaled, number(0.5, call.dtype))), 0, 1)


def _hard_swish(call: Call) -> Any:
    gate = call.emit(relax.op.add(call["self"], number(3, call.dtype)))
    gate = call.emit(relax.op.divide(call.emit(relax.op.clip(gate, 0, 6)), number(6, call.dtype)))
    return relax.op.multiply(call["self"], gate)


def _clamp(call: Call) -> Any:
    names = ("min", "max") if "min" in call.args or "max" in call.args else ("min_val", "max_val")
    low, high = (call.args.get(name) for name in names)
    if isinstance(low, relax.Expr) or isinstance(high, relax.Expr) or not call.dtype.startswith("float"):
        raise NotImplementedError("this clamp")
    bounds = [-math.inf if low is None else float(low), math.inf if high is None else float(high)]
    return relax.op.clip(call["self"], *bounds)


def _arithmetic(make: Callable[[rt.Expr, rt.Expr], rt.Expr]) -> Callable[[Call], Any]:
    """Both sides in the result's type; ``alpha`` scales the second."""

    def convert(call: Call) -> Any:
        left, right = call["self"], call["other"]
        if call.args.get("rounding_mode") is not None:
            raise NotImplementedError("rounding division")
        right = cast(call, right, call.dtype)
        if call.args.get("alpha", 1) != 1:
            right = call.emit(relax.op.multiply(right, number(call["alpha"], call.dtype)))
        return make(cast(call, left, call.dtype), right)

    return convert


def _extreme(make: Callable[..., rt.Expr]) -> Callable[[Call], Any]:
    """The largest or smallest along some axes, [] for all."""
    return lambda call: make(call["self"], list(call["dim"]) or None, bool(call["keepdim"]))


def _upsample(call: Call) -> Any:
    shape, linear = call.shape("input"), "bilinear" in call.op
    scales, sizes = call["scale_factors"], call["output_size"]
    if sizes is None:
        sizes = [int(size * scale) for size, scale in zip(shape[2:], scales, strict=True)]
    how = b"asymmetric" if not linear else b"align_corners" if call["align_corners"] else b"pytorch_half_pixel"
    wanted = [None, None, None, np.array([*shape[:2], *sizes], np.int64)]
    if scales is not None:
        wanted = [None, None, np.array([1, 1, *scales], np.float32), None]
    wanted[0] = call["input"]
    return through_onnx(
        call, "Resize", wanted, mode=b"linear" if linear else b"nearest", nearest_mode=b"floor",
        coordinate_transformation_mode=how,
    )  # fmt: skip


CONVERTERS: Mapping[str, Callable[[Call], Any]] = {
    **VIEWS,
    **dict.fromkeys(("linear.default",), _linear),
    **dict.fromkeys(("mm.default", "bmm.default", "matmul.default"), _product),
    **dict.fromkeys(("conv1d.default", "conv2d.default", "convolution.default"), _conv),
    **dict.fromkeys(("max_pool2d.default", "avg_pool2d.default"), _pool),
    **dict.fromkeys(("softmax.int", "_softmax.default"), _softmax),
    **dict.fromkeys(("clamp.default", "hardtanh.default"), _clamp),
    **dict.fromkeys(("add.Tensor", "add.Scalar"), _arithmetic(relax.op.add)),
    **dict.fromkeys(("sub.Tensor", "sub.Scalar"), _arithmetic(relax.op.subtract)),
    **dict.fromkeys(("mul.Tensor", "mul.Scalar"), _arithmetic(relax.op.multiply)),
    **dict.fromkeys(("div.Tensor", "div.Scalar"), _arithmetic(relax.op.divide)),
    **dict.fromkeys(("upsample_nearest2d.vec", "upsample_bilinear2d.vec"), _upsample),
    "_native_batch_norm_legit.no_stats": _own_statistics,
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    "addmm.default": _addmm,
    "amax.default": _extreme(relax.op.max),
    "amin.default": _extreme(relax.op.min),
    "gelu.default": _gelu,
    "group_norm.default": _group_norm,
    "hardsigmoid.default": _hard_sigmoid,
    "hardswish.default": _hard_swish,
    "layer_norm.default": _layer_norm,
    "leaky_relu.default": lambda call: relax.op.nn.leakyrelu(call["self"], float(call["negative_slope"])),
    "pow.Tensor_Scalar": _pow,
    "reciprocal.default": _reciprocal,
    "relu6.default": lambda call: relax.op.clip(call["self"], 0.0, 6.0),
    "rsqrt.default": _rsqrt,
    "scaled_dot_product_attention.default": _attention,
    "silu.default": lambda call: relax.op.nn.silu(call["self"]),
}
