"""Made-up arguments of a kernel, on which its result is certain: integers as they come, floats that are small whole
numbers, whose sums and products float32 holds exactly in whatever order they are taken.
"""

from __future__ import annotations

import math

import numpy as np

from hwq import group_scales, numerics, row_scales
from hwq.graph import ANCHORS, Shape
from hwq.numerics import Array
from hwq.scheme import SCHEMES
from hwq.workload import Workload

# Operators that ``arguments`` knows: the weighted ones, and those that a target's rows name first.
OPS = (*ANCHORS, "add", "multiply", "max_pool2d", "concat", "unary", "gather")
# Of the float arguments. Of so many products of them a sum stays below 2^24.
_LARGEST, _TERMS = 8, 1 << 18


def arguments(workload: Workload, storage: str, rng: np.random.Generator) -> list[Array]:
    """What the kernel of ``workload`` takes before its output, weights unpacked; ``storage`` is that of activations.

    Only without residual and activation, and for an operator of OPS.
    """
    assert workload.op in OPS, workload
    assert not workload.residual, workload
    if workload.op == "gather":
        return _table(workload, rng)
    if SCHEMES[workload.scheme].dynamic:
        return _dynamic(workload, storage, rng)
    if SCHEMES[workload.scheme].domain == "f32":
        shapes = [*workload.input_shapes]
        if workload.op in ANCHORS and SCHEMES[workload.scheme].weight is not None:
            return _weight_only(workload, rng)
        if workload.op in ANCHORS:
            shapes += [weight_shape(workload), *([workload.output_shape[-1:]] if workload.has_bias else [])]
            assert math.prod(shapes[1][1:]) <= _TERMS, workload
        return [rng.integers(-_LARGEST, _LARGEST + 1, shape).astype(np.float32) for shape in shapes]
    offset = 128 if storage == "uint8" else 0
    inputs = [rng.integers(0, 256, shape).astype(np.uint8).view(storage) for shape in workload.input_shapes]
    if workload.op in ANCHORS:
        return [*inputs, *_anchor(workload, offset, rng)]
    if workload.op == "unary":
        return [*inputs, rng.permutation(256).astype(np.uint8).view(storage)]
    ints = np.array([-5, 7, 1, -100, 90], np.int32) + np.int32(offset)
    if workload.op == "add":
        return [*inputs, ints, np.array([0.6, 0.7], np.float32)]
    if workload.op == "multiply":
        return [*inputs, ints, np.array([0.01], np.float32)]
    return inputs


def _table(workload: Workload, rng: np.random.Generator) -> list[Array]:
    """Row numbers, a table of whole numbers, and their scales."""
    rows, columns, scheme = int(workload.attr("rows")), workload.output_shape[-1], SCHEMES[workload.scheme]
    ids = rng.integers(-rows, rows, workload.input_shapes[0]).astype(workload.attr("ids"))
    if scheme.weight is None:
        return [ids, rng.integers(-_LARGEST, _LARGEST + 1, (rows, columns)).astype(np.float32)]
    most = scheme.weight.qtype.qmax
    table = rng.integers(-most, most + 1, (rows, columns)).astype(np.int8)
    groups = () if scheme.group_size is None else (group_scales.group_count(columns, scheme.group_size),)
    return [ids, table, rng.uniform(0.5, 1.5, (rows, *groups)).astype(np.float32)]


def _weight_only(workload: Workload, rng: np.random.Generator) -> list[Array]:
    """Rows of floats, and weight, multiplier and bias of a dense layer whose activations stay floats."""
    scheme, shape = SCHEMES[workload.scheme], weight_shape(workload)
    assert scheme.group_size is not None
    rows = rng.standard_normal(workload.input_shapes[0]).astype(np.float32)
    scales = rng.uniform(0.5, 1.5, (shape[0], group_scales.group_count(shape[1], scheme.group_size)))
    weight = rng.integers(-8, 8, shape).astype(np.int8)
    bias = [rng.standard_normal(shape[0]).astype(np.float32)] if workload.has_bias else []
    return [rows, weight, group_scales.in_lanes(scales.astype(np.float32)), *bias]


def _dynamic(workload: Workload, storage: str, rng: np.random.Generator) -> list[Array]:
    """Rows, scales, weight, start, multiplier and bias of a dynamic layer; every operation on them has one result."""
    rows, scales = workload.input_shapes[:2]
    shape, group = weight_shape(workload), SCHEMES[workload.scheme].group_size
    most = 127 if group is None else 7
    weight = rng.integers(-most, most + 1, shape).astype(np.int8)
    factors = rng.uniform(
        0.5, 1.5, (shape[0],) if group is None else (shape[0], group_scales.group_count(shape[1], group))
    )
    factors = factors.astype(np.float32)
    start = row_scales.start_values(weight, factors, 128 if storage == "uint8" else 0, group)
    bytes_ = rng.integers(0, 256, rows).astype(np.uint8).view(storage)
    lanes = factors if group is None else group_scales.in_lanes(factors)
    return [
        *(bytes_, rng.uniform(0, 0.1, scales).astype(np.float32), weight, start, lanes),
        rng.uniform(-9, 9, shape[0]).astype(np.float32),
    ]


def weight_shape(workload: Workload) -> Shape:
    """(O, KH, KW, I / groups), (C, KH, KW, 1) or (O, I)."""
    in_c, out_c = workload.input_shapes[0][-1], workload.output_shape[-1]
    if workload.op == "dense":
        return (out_c, in_c)
    groups = in_c if workload.op == "depthwise_conv2d" else workload.attr("groups")
    return (out_c, *workload.attr("kernel"), in_c // groups)


def _anchor(workload: Workload, offset: int, rng: np.random.Generator) -> list[Array]:
    """Weight, bias, multiplier, integers and floats of an integer layer; its outputs spread over the whole range."""
    shape, out_c = weight_shape(workload), workload.output_shape[-1]
    bits = SCHEMES[workload.scheme].weight_type
    least, most = (-127, 127) if bits == "int8" else (-8, 7)
    weight = rng.integers(least, most + 1, shape).astype(np.int8)
    zero_x, zero_y = 3 + offset, -4 + offset
    spread = 128 * most * math.sqrt(math.prod(shape[1:])) / 3  # of uniform bytes times uniform weights
    ints = np.array([zero_x, offset, zero_y, offset - 128, offset + 127], np.int32)
    floats = np.array([0.0, -30.0, 35.0], np.float32)
    group = SCHEMES[workload.scheme].group_size
    if group is not None:
        scales = (rng.uniform(0.5, 1.5, (out_c, -(-shape[1] // group))) * 40 / spread).astype(np.float32)
        start = group_scales.start_values(rng.uniform(-9, 9, out_c), weight, scales, zero_x, group)
        return [weight, start, group_scales.in_lanes(scales), ints, floats]
    multiplier = (rng.uniform(0.5, 1.5, out_c) * 40 / spread).astype(np.float32)
    bias = numerics.fold_zero_point(rng.integers(-999, 999, out_c).astype(np.int32), weight, zero_x)
    return [weight, bias, multiplier, ints, floats]
