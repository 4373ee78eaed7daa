"""What a kernel must return: any ``Workload`` evaluated in NumPy on the very arguments that its kernel takes.

Arguments are those of the kernel without the output, in its order and in storage units; weights unpacked, as in
``Layer.weight`` (int4 as int8 values). Integer results are to be equal; float ones are computed in float64 and rounded
once, so a float kernel differs from them by its own rounding. None for ``op`` "float": its PrimFunc defines it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hwq import group_scales, integer_attention, numerics, operators, row_scales, transformer, weight_only
from hwq.graph import ANCHORS, PASS_THROUGH, Activation
from hwq.numerics import Array, QParams
from hwq.scheme import SCHEMES
from hwq.workload import Workload

_CONV = ("strides", "padding", "dilation")
_POOL = ("kernel", "strides", "padding", "dilation")


def evaluate(workload: Workload, arguments: Sequence[Array], storage: str = "uint8") -> Array:
    """The output of ``workload``'s kernel; ``storage`` is the type of int8 activations ("uint8" or "int8").

    Of a kernel that is cut the output of all tokens, however many its argument says there are.
    """
    if workload.cut:
        count = len(workload.input_shapes)
        return evaluate(replace(workload, cut=0), [*arguments[:count], *arguments[count + 1 :]], storage)
    if workload.op in ("quantize", "dequantize"):
        return _convert(workload, arguments, storage)
    if workload.op == "row_scale":
        return row_scales.row_scale(arguments[0])
    if workload.op == "quantize_rows":
        return row_scales.quantize_rows(arguments[0], arguments[1], storage)
    if workload.op in ANCHORS and SCHEMES[workload.scheme].dynamic:
        return _dynamic(workload, arguments)
    if workload.op in ANCHORS and _weight_only(workload):
        return _activated(workload, _weight_only_sums(workload, arguments))
    if workload.op == "append_int8":
        x, scales, span = arguments
        heads = x.reshape(*x.shape[:2], len(scales) // x.shape[1], -1)
        return _at_position(workload, row_scales.quantize_rows(heads, scales, "int8").reshape(x.shape), span)
    integer = SCHEMES[workload.scheme].domain == "int8"
    if workload.op in PASS_THROUGH:
        y = _pass_through(workload, arguments)
        return y if integer else numerics.activate(workload.activation, y)
    return _integer(workload, arguments) if integer else _float(workload, arguments)


def float_bound(workload: Workload, arguments: Sequence[Array]) -> Array:
    """By how much each element of a float kernel's output may differ from ``evaluate``'s; for float schemes.

    With weights: a sum of n products in any order, fused or not, errs by at most (n + 2) * 2^-24 times the sum of their
    absolute values to first order (Higham, Accuracy and Stability, 3.1), here doubled; in bf16 the products are of
    rounded values, in the reference as in the kernel, and exact. In dynamic schemes, and those of integer weights with
    float activations, all is exact up to the activation, whose own few operations remain. The activations' slopes are
    at most 1.5 (hard_swish's); their polynomials add 1e-6 of values below 1, and as much relative to larger ones.
    Without weights: 1e-4 of max(1, |value|), the sum of a whole picture of 56 x 56 pixels in any order.
    """
    if workload.cut:
        count = len(workload.input_shapes)
        return float_bound(replace(workload, cut=0), [*arguments[:count], *arguments[count + 1 :]])
    if workload.op in ("row_scale", "quantize_rows"):
        return np.zeros(())
    exact = SCHEMES[workload.scheme].dynamic or _weight_only(workload)
    if workload.op in ANCHORS and exact:
        if workload.activation.clamps:
            return np.zeros(())
        sums = _weight_only_sums if _weight_only(workload) else _dynamic_sums
        sizes = np.abs(sums(workload, arguments))
        return np.asarray(1.5 * 4 * 2.0**-23 * sizes + 1e-6 * np.maximum(sizes, 1.0))
    if workload.op not in ANCHORS:
        return np.asarray(1e-4 * np.maximum(np.abs(evaluate(workload, arguments)), 1.0))
    plain = replace(workload, activation=Activation())
    sizes = evaluate(plain, [np.abs(argument) for argument in arguments])
    terms = math.prod(arguments[len(workload.input_shapes)].shape[1:]) + 4
    return np.asarray(1.5 * terms * 2.0**-23 * sizes + 1e-6 * np.maximum(sizes, 1.0))


def _some(workload: Workload, names: Sequence[str]) -> dict[str, Any]:
    """The attributes in ``names`` that the workload has."""
    return {key: value for key, value in workload.attrs if key in names}


def _convert(workload: Workload, arguments: Sequence[Array], storage: str) -> Array:
    op, (x, ints, floats) = workload.op, arguments
    offset = 128 if storage == "uint8" else 0
    if op == "quantize":
        lo, hi = -128 + offset - int(ints[0]), 127 + offset - int(ints[0])
        q = np.clip(np.rint(x.astype(np.float32) * floats[0]), lo, hi).astype(np.int32) + ints[0]
        axes = dict(workload.attrs).get("axes", range(x.ndim))
        return np.ascontiguousarray(q.transpose(axes), np.dtype(storage))
    return numerics.dequantize(x, QParams(scale=float(floats[0]), zero_point=int(ints[0])))


def _pass_through(workload: Workload, arguments: Sequence[Array]) -> Array:
    x = arguments[0]
    attr = workload.attr
    if workload.op == "max_pool2d":
        return operators.max_pool2d(x, **_some(workload, _POOL))
    if workload.op == "concat":
        return np.concatenate(arguments, axis=attr("axis"))
    if workload.op == "pad":
        return operators.pad(x, attr("pads"), attr("value") if len(arguments) == 1 else int(arguments[1][0]))
    if workload.op == "slice":
        steps = zip(attr("begin"), attr("end"), attr("strides"), strict=True)
        return x[tuple(slice(*step) for step in steps)].reshape(workload.output_shape)
    if workload.op == "resize_nearest":
        return operators.resize_nearest(x, attr("map_h"), attr("map_w"))
    if workload.op == "resize_linear":
        return operators.resize_linear(x, *arguments[1:])
    assert workload.op == "reshape", workload.op
    return x.reshape(workload.output_shape)


def _integer(workload: Workload, arguments: Sequence[Array]) -> Array:
    x = arguments[0]
    if workload.op in ANCHORS:
        return _integer_anchor(workload, arguments)
    if workload.op == "unary":
        return numerics.lookup(x, arguments[1])
    if workload.op == "attention":
        return _integer_attention(workload, arguments)
    if workload.op == "avg_pool2d":
        zero_x, _, zero_y, lo, hi = map(int, arguments[2])
        return operators.avg_pool2d(x, arguments[1], (zero_x, zero_y), lo, hi, **_some(workload, _POOL))
    zero_a, zero_b, zero_y, lo, hi = map(int, arguments[2])
    zeros = (zero_a, zero_b, zero_y)
    if workload.op == "add":
        return operators.add(x, arguments[1], zeros, [float(m) for m in arguments[3]], lo, hi)
    assert workload.op == "multiply", workload.op
    return operators.multiply(x, arguments[1], zeros, float(arguments[3][0]), lo, hi)


def _integer_anchor(workload: Workload, arguments: Sequence[Array]) -> Array:
    """Convolution, depthwise convolution or product with its epilogue; the bias has the zero point folded in.

    In schemes with a group size it is the float32 start of ``group_scales``, and the multiplier lies in lanes."""
    x, rest = arguments[0], list(arguments[1:])
    residual = rest.pop(0) if workload.residual else None
    weight, bias, multiplier, ints, floats = rest[:5]
    zero_x, zero_r, zero_y, lo, hi = map(int, ints)
    group = SCHEMES[workload.scheme].group_size
    if group is not None:
        scales = group_scales.out_of_lanes(multiplier, len(weight))
        value = group_scales.product(x, weight.reshape(len(weight), -1), scales, bias, group)
    else:
        sums = _sums(workload, x, weight, bias, zero_x).astype(np.float32)
        value = sums * multiplier
    if residual is None or not workload.float_residual:
        value = numerics.add_residual(value, residual, zero_r, float(floats[0]))
    elif group is None:
        value = numerics.fma32(sums, multiplier, residual)
    else:
        value = value + residual
    if workload.out_dtype == "float32":
        return np.asarray(np.minimum(np.maximum(value, floats[1]), floats[2]))
    q = numerics.settle(value, zero_y, lo, hi, x.dtype)
    return q if workload.activation.clamps else numerics.lookup(q, rest[5])


def _dynamic(workload: Workload, arguments: Sequence[Array]) -> Array:
    """A product on rows of bytes with a scale each: see ``hwq.row_scales``."""
    return _activated(workload, _dynamic_sums(workload, arguments))


def _activated(workload: Workload, value: Array) -> Array:
    """The activation of float32 values, rounded once."""
    return np.asarray(numerics.activate(workload.activation, value.astype(np.float64)).astype(np.float32))


def _dynamic_sums(workload: Workload, arguments: Sequence[Array]) -> Array:
    """What the activation is taken of; exact in every bit."""
    x, scales, rest = arguments[0], arguments[1], list(arguments[2:])
    residual = rest.pop(0) if workload.residual else None
    weight, start, multiplier, bias = rest
    group = SCHEMES[workload.scheme].group_size
    factors = multiplier if group is None else group_scales.out_of_lanes(multiplier, len(weight))
    value = row_scales.product(x, scales, weight, start, factors, bias, group)
    return value if residual is None else np.asarray(value + residual)


def _weight_only(workload: Workload) -> bool:
    """Whether weights are integers, and activations floats."""
    scheme = SCHEMES[workload.scheme]
    return scheme.weight is not None and scheme.act is None


def _weight_only_sums(workload: Workload, arguments: Sequence[Array]) -> Array:
    """What the activation is taken of, see ``hwq.weight_only``; exact in every bit."""
    x, rest = arguments[0], list(arguments[1:])
    residual = rest.pop(0) if workload.residual else None
    weight, multiplier, *bias = rest
    group = SCHEMES[workload.scheme].group_size
    assert group is not None
    value = weight_only.product(x, weight, group_scales.out_of_lanes(multiplier, len(weight)), group)
    value = value + bias[0] if bias else value
    return value if residual is None else np.asarray(value + residual)


def _sums(workload: Workload, x: Array, weight: Array, folded: Array, zero_x: int) -> Array:
    """The int32 sums of an anchor; ``folded`` is its bias with the zero point folded in."""
    bias = numerics.fold_zero_point(folded, weight, -zero_x)  # unfolded: exact modulo 2^32
    if workload.op == "dense":
        return operators.dense(x, weight, zero_point=zero_x, bias=bias)
    if workload.op == "depthwise_conv2d":
        return operators.depthwise_conv2d(x, weight, zero_point=zero_x, bias=bias, **_some(workload, _CONV))
    return operators.conv2d(x, weight, zero_point=zero_x, bias=bias, **_some(workload, (*_CONV, "groups")))


def _float(workload: Workload, arguments: Sequence[Array]) -> Array:
    """The float operators, computed in float64."""
    if workload.op == "gather":
        return _gather(workload, *arguments)
    if workload.op == "attention":
        return _attention(workload, arguments)
    values = [argument.astype(np.float64) for argument in arguments]
    x, rest = values[0], values[1:]
    y = _float_anchor(workload, x, rest) if workload.op in ANCHORS else _float_plain(workload, x, rest)
    return numerics.activate(workload.activation, y).astype(np.float32)


def _float_anchor(workload: Workload, x: Array, rest: list[Array]) -> Array:
    residual = rest.pop(0) if workload.residual else None
    weight = rest[0]
    if SCHEMES[workload.scheme].floats == "bfloat16":
        x, weight = (numerics.round_bf16(value).astype(np.float64) for value in (x, weight))
    if workload.op == "dense":
        y = x @ weight.T
    elif workload.op == "depthwise_conv2d":
        y = operators.correlate(x, weight, groups=x.shape[3], **_some(workload, _CONV))
    else:
        y = operators.correlate(x, weight, **_some(workload, (*_CONV, "groups")))
    y = y + rest[1] if workload.has_bias else y
    return np.asarray(y if residual is None else y + residual)


def _float_plain(workload: Workload, x: Array, rest: list[Array]) -> Array:
    op = workload.op
    if op == "add":
        return np.asarray(x + rest[0])
    if op == "multiply":
        return np.asarray(x * rest[0])
    if op == "unary":
        return x
    if op == "avg_pool2d":
        pool = _some(workload, _POOL)
        taps = operators.pool_multiplier(1.0, x.shape, include_pad=workload.attr("count_include_pad"), **pool)
        return np.asarray(operators.window_sum(x, **pool) * taps[:, :, None])
    if op == "softmax":
        power = np.exp(x - x.max(axis=workload.attr("axis"), keepdims=True))
        return np.asarray(power / power.sum(axis=workload.attr("axis"), keepdims=True))
    if op == "reduce":
        joined = getattr(x, workload.attr("kind"))(axis=workload.attr("axes"))
        return np.asarray(joined).reshape(workload.output_shape)
    if op == "layer_norm":
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        return np.asarray(centred / np.sqrt(variance + workload.attr("epsilon")) * rest[0] + rest[1])
    if op == "rms_norm":
        return transformer.rms_norm(x, rest[0], epsilon=workload.attr("epsilon"))
    if op == "rope":
        return transformer.rope(x, rest[0], rest[1], **_some(workload, ("heads", "style")))
    if op in ("append", "rows_at"):
        return _at_position(workload, x, rest[0])
    if op == "attention_cache":
        return _attention_cache(workload, x, rest)
    assert op == "transpose", f"no reference for {op}"
    return np.asarray(x.transpose(workload.attr("axes")))


def _without_span(workload: Workload, arguments: Sequence[Array]) -> tuple[list[Array], tuple[int, int] | None]:
    """The other arguments of attention, and its span, if lengths are cut."""
    rest = list(arguments)
    if not dict(workload.attrs).get("cut", False):
        return rest, None
    found = rest.pop(len(workload.input_shapes) - 1)
    return rest, (int(found[0]), int(found[1]))


def _integer_attention(workload: Workload, arguments: Sequence[Array]) -> Array:
    """Inputs as those of ``_attention``, q, k and v in storage; last its whole numbers and its floats."""
    (q, k, v, *rest, ints, floats), span = _without_span(workload, arguments)
    bias = rest[0] if rest else None
    zeros, steps = (int(ints[0]), int(ints[1]), int(ints[2])), (float(floats[0]), float(floats[1]))
    some = _some(workload, ("heads", "kv_heads", "causal"))
    value = integer_attention.attention(q, k, v, bias, zeros, steps, span=span, **some)
    limits = np.iinfo(q.dtype)
    out = int(ints[3])
    return value if workload.out_dtype == "float32" else numerics.settle(value, out, limits.min, limits.max, q.dtype)


def _attention(workload: Workload, arguments: Sequence[Array]) -> Array:
    """Inputs q, k, v, perhaps a bias, and the span if lengths are cut; then perhaps a constant bias."""
    (q, k, v, *rest), span = _without_span(workload, arguments)
    tensors = [value.astype(np.float64) for value in (q, k, v, *rest)]
    assert len(tensors) <= 4, workload
    return transformer.attention(
        *tensors, span=span, **_some(workload, ("heads", "kv_heads", "scale", "causal"))
    ).astype(np.float32)


def _attention_cache(workload: Workload, q: Array, rest: list[Array]) -> Array:
    """Keys and values in int8, each with its scales; then perhaps a bias, the span, perhaps a constant bias."""
    groups = workload.attr("kv_heads")

    def floats(values: Array, scales: Array) -> Array:
        apart = values.reshape(*values.shape[:2], groups, -1)
        return np.asarray((apart * scales[..., None]).reshape(values.shape))

    k, v = floats(rest[0], rest[1]), floats(rest[2], rest[3])
    span = rest.pop(len(workload.input_shapes) - 2)
    bias = rest[4] if len(rest) > 4 else None
    where = (1, int(span[1]))
    if bias is not None:
        bias = np.broadcast_to(bias, (*bias.shape[:3], k.shape[1]))
    return transformer.attention(
        q, k, v, bias, span=where, causal=False, **_some(workload, ("heads", "kv_heads", "scale"))
    )


def _at_position(workload: Workload, x: Array, other: Array) -> Array:
    """append: a cache of zeros with the rows of ``x`` written. rows_at: rows of ``other``."""
    span = x if workload.op == "rows_at" else other
    taken, first = int(span[0]), int(span[1] - span[0])
    if workload.op == "rows_at":
        count = math.prod(workload.output_shape) // other.shape[-1]
        rows = np.clip(first + np.arange(count), 0, len(other) - 1)
        return np.asarray(other[rows].reshape(workload.output_shape))
    cache = np.zeros(workload.output_shape, x.dtype)
    for row in range(min(taken, x.shape[1])):
        if 0 <= first + row < cache.shape[1]:
            cache[:, first + row] = x[:, row]
    return cache


def _gather(workload: Workload, ids: Array, table: Array, scales: Array | None = None) -> Array:
    """Rows of integers are each times its scale, or its groups', in float32."""
    group = SCHEMES[workload.scheme].group_size
    if scales is not None and group is None:
        table = numerics.dequantize_weight(table, scales)
    elif scales is not None and group is not None:
        table = group_scales.dequantize_weight(table, scales, group)
    return np.asarray(transformer.gather(ids, table), np.float32)
