"""The numbers that a layer's kernel takes beside its tensors, in the kernel's order: weights, biases, multipliers, zero
points, clamps and tables, in the target's storage. Stands below ``hwq.lower``, which makes steps of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq import group_scales, integer_attention, numerics, row_scales
from hwq.graph import ANCHORS, Layer
from hwq.numerics import QParams
from hwq.operators import pool_multiplier
from hwq.quantize import IntegerWeights, Weights
from hwq.scheme import SCHEMES

Array = npt.NDArray[Any]


def kernel_constants(
    layer: Layer, scheme: str, qparams: Mapping[str, QParams], weights: Weights, offset: int, direct: bool
) -> tuple[tuple[Array, ...], int | None]:
    """The constant arguments of a layer's kernel, in the kernel's order, and which of them is the weight."""
    if SCHEMES[scheme].dynamic and layer.op == "dense":
        return _dynamic_constants(weights[layer.name, scheme], offset), 0
    if SCHEMES[scheme].domain == "f32":
        if layer.weight is None:
            return layer.constants, None
        if layer.op == "gather" and SCHEMES[scheme].weight is not None:
            found = weights[layer.name, scheme]
            return (found.values, found.scale), 0
        if layer.op in ANCHORS and SCHEMES[scheme].weight is not None and not SCHEMES[scheme].dynamic:
            found = weights[layer.name, scheme]
            return (found.values, group_scales.in_lanes(found.scale), found.bias), 0
        return (layer.weight, layer.bias) if layer.bias is not None else (layer.weight,), 0
    ins = [qparams[tensor] for tensor in layer.int8_inputs]
    out = ins[0] if layer.float_residual else qparams[layer.output]  # of no use where float is written
    if layer.op == "attention":
        return (*layer.constants, *_attention_numbers(layer, ins, out, offset, direct)), None
    if layer.op in ANCHORS:
        return _anchor_constants(
            layer, ins, out, qparams.get(f"{layer.name}:pre"), weights[layer.name, scheme], offset, direct
        ), 0
    if layer.op == "pad":
        fill = numerics.quantize(np.array([layer.attrs["value"]], np.float32), out).astype(np.int32)
        return (fill + np.int32(offset),), None
    if layer.op == "resize_linear":
        rows, down, columns, right = layer.constants
        return (rows, numerics.resize_weights(down), columns, numerics.resize_weights(right)), None
    if layer.op == "unary":
        return (_table(layer, ins[0], out, offset),), None
    low, high = _clamp(layer, out)
    if layer.op == "avg_pool2d":
        ints = _ints(ins[0].zero_point, 0, out.zero_point, low, high, offset=offset)
        pool = {key: layer.attrs[key] for key in ("kernel", "strides", "padding", "dilation")}
        include = layer.attrs["count_include_pad"]
        ratio = ins[0].scale / out.scale
        return (pool_multiplier(ratio, layer.input_shapes[0], include_pad=include, **pool), ints), None
    if layer.op in ("add", "multiply"):
        a, b = ins
        ints = _ints(a.zero_point, b.zero_point, out.zero_point, low, high, offset=offset)
        ratios = [a.scale / out.scale, b.scale / out.scale] if layer.op == "add" else [a.scale * b.scale / out.scale]
        return (ints, np.array(ratios, np.float32)), None
    return (), None


def _clamp(layer: Layer, out: QParams) -> tuple[int, int]:
    """The activation's clamp as int8 values of the output; everything where the activation is a table."""

    def bound(value: float) -> int:
        return int(numerics.quantize(np.array([value], np.float32), out)[0])

    kind = layer.activation.kind
    low = bound(0.0) if kind == "relu" else bound(layer.activation.lo) if kind == "clip" else -128
    high = bound(layer.activation.hi) if kind == "clip" else 127
    return low, high


def takes_bytes(layer: Layer) -> bool:
    """Whether the attention ``layer`` has an integer form."""
    depth, width = (shape[-1] // layer.attrs["kv_heads"] for shape in layer.input_shapes[1:3])
    return integer_attention.takes(depth, width, layer.attrs["scale"], layer.input_shapes[1][1])


def _attention_numbers(layer: Layer, ins: list[QParams], out: QParams, offset: int, direct: bool) -> tuple[Array, ...]:
    """The zero points of q, k, v and the output; what a step of a score is, and of v: see ``integer_attention``."""
    q, k, v = ins
    shape = next((shape for shape in layer.input_shapes[3:] if len(shape) == 4), layer.attrs.get("bias"))
    powers = 1.0 if integer_attention.counts(shape) else integer_attention.LOG2_E
    step = np.float64(q.scale) * k.scale * layer.attrs["scale"] * powers
    floats = np.array([step, v.scale / np.float64(1.0 if direct else out.scale)], np.float32)
    return _ints(q.zero_point, k.zero_point, v.zero_point, out.zero_point, offset=offset), floats


def _anchor_constants(
    layer: Layer,
    ins: list[QParams],
    out: QParams,
    pre: QParams | None,
    weights: IntegerWeights,
    offset: int,
    direct: bool,
) -> tuple[Array, ...]:
    x, residual = ins[0], ins[-1] if layer.residual and not layer.float_residual else None
    assert layer.weight is not None
    table = not layer.activation.clamps
    target = pre if table and pre is not None else out
    low, high = _clamp(layer, out)
    acc_scale = np.float64(x.scale) * weights.scale.astype(np.float64)
    out_scale = np.float64(1.0 if direct else target.scale)
    multiplier = (acc_scale / out_scale).astype(np.float32)
    zero = x.zero_point + offset
    bias: Array
    if weights.group_size is None:
        bias = numerics.fold_zero_point(
            numerics.quantize_bias(weights.bias, x.scale, weights.scale), weights.values, zero
        )
    else:
        steps = weights.bias.astype(np.float64) / out_scale
        bias = group_scales.start_values(steps, weights.values, multiplier, zero, weights.group_size)
        multiplier = group_scales.in_lanes(multiplier)
    residual_scale = 0.0 if residual is None else np.float64(residual.scale) / out_scale
    lo_f = 0.0 if layer.activation.kind == "relu" else layer.activation.lo
    hi_f = layer.activation.hi
    arrays: tuple[Array, ...] = (
        weights.values,
        bias,
        multiplier,
        _ints(
            x.zero_point, 0 if residual is None else residual.zero_point, target.zero_point, low, high, offset=offset
        ),
        np.array([residual_scale, lo_f, hi_f], np.float32),
    )
    return (*arrays, _table(layer, target, out, offset)) if table else arrays


def _dynamic_constants(weights: IntegerWeights, offset: int) -> tuple[Array, ...]:
    """Weights, start, multiplier and bias: see ``hwq.row_scales``."""
    start = row_scales.start_values(weights.values, weights.scale, offset, weights.group_size)
    multiplier = weights.scale if weights.group_size is None else group_scales.in_lanes(weights.scale)
    return weights.values, start, multiplier.astype(np.float32), weights.bias


def _ints(*values: int, offset: int) -> Array:
    return np.array([value + offset for value in values], np.int32)


def _table(layer: Layer, source: QParams, out: QParams, offset: int) -> Array:
    """The layer's activation as 256 stored bytes, indexed by the stored byte."""
    return numerics.store_table(
        numerics.make_table(lambda x: numerics.activate(layer.activation, x), source, out), offset
    )
