"""Weights with a scale for each output channel and group of neighbouring inputs: their numbers in NumPy.

A layer (O, I) has G = ceil(I / group) groups, the last perhaps smaller. With u the stored activations and z their zero
point in storage units, the value of an output, in steps of the output's scale s_y, is

    bias / s_y + sum over g of m[o, g] * sum over i in g of (u[i] - z) * w[o, i],    m = s_x * s_w / s_y

The part with z does not depend on u, so it joins the bias in ``start``. Kernels compute, in this order and every
operation in float32 with one rounding, v = 0; v = fma(float32(acc_g), m[o, g], v) for g ascending; v = v + start[o].
acc_g, an int32 sum of u * w, is exact in float32 for groups of up to 8,224. Stands beside ``numerics``; NumPy only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq import numerics

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
# Channels whose scales lie side by side: what a kernel reads of a group is one piece.
LANES = 16


def group_count(inputs: int, group: int) -> int:
    """Groups of ``inputs`` inputs."""
    return math.ceil(inputs / group)


def quantize_weight(weight: Array, bits: int, group: int) -> tuple[npt.NDArray[np.int8], Floats]:
    """``numerics.quantize_weight`` of each group by itself: (int8 array of weight's shape, float32 scales (O, G))."""
    flat = _in_groups(np.asarray(weight, np.float32), group)
    q, scale = numerics.quantize_weight(flat.reshape(-1, group), bits)
    inputs = weight[0].size
    return q.reshape(len(weight), -1)[:, :inputs].reshape(weight.shape), scale.reshape(flat.shape[:2])


def dequantize_weight(q: Array, scale: Array, group: int) -> Floats:
    """q (O, ...) times the scale (O, G) of each weight's group, in float32."""
    values = _in_groups(q, group).astype(np.float32) * scale.astype(np.float32)[:, :, None]
    return np.asarray(values.reshape(len(q), -1)[:, : q[0].size].reshape(q.shape), np.float32)


def start_values(bias: Array, q: Array, multiplier: Array, zero_point: int, group: int) -> Floats:
    """What the sums of products are added to, (O,): the bias (O,), in steps of the output, less the zero point's part.

    multiplier: (O, G). Rounded once, from float64.
    """
    sums = _in_groups(q, group).sum(axis=2, dtype=np.int64)
    products = multiplier.astype(np.float32).astype(np.float64) * sums
    return np.asarray(bias.astype(np.float64) - zero_point * products.sum(axis=1), np.float32)


def product(x: Array, q: Array, multiplier: Array, start: Array, group: int) -> Floats:
    """x (..., I) in storage units with q (O, I): float32 (..., O), as the module says. multiplier: (O, G)."""
    value = np.zeros((*x.shape[:-1], len(q)), np.float32)
    for at, part in enumerate(_in_groups(q, group).transpose(1, 0, 2)):
        inputs = x[..., at * group : (at + 1) * group].astype(np.int32)
        acc = inputs @ part[:, : inputs.shape[-1]].astype(np.int32).T
        value = numerics.fma32(acc.astype(np.float32), multiplier[:, at], value)
    return np.asarray(value + start.astype(np.float32))


def in_lanes(multiplier: Array) -> Floats:
    """(O, G) as kernels take it: (ceil(O / LANES), G, LANES), zero beyond O."""
    channels, groups = multiplier.shape
    padded = np.zeros((math.ceil(channels / LANES) * LANES, groups), np.float32)
    padded[:channels] = multiplier
    return np.ascontiguousarray(padded.reshape(-1, LANES, groups).transpose(0, 2, 1))


def out_of_lanes(multiplier: Array, channels: int) -> Floats:
    """The inverse of ``in_lanes``."""
    return np.asarray(multiplier.transpose(0, 2, 1).reshape(-1, multiplier.shape[1])[:channels])


def _in_groups(weight: Array, group: int) -> Array:
    """(O, ...) as (O, G, group), zero beyond the inputs."""
    flat = weight.reshape(len(weight), -1)
    missing = group_count(flat.shape[1], group) * group - flat.shape[1]
    return np.pad(flat, ((0, 0), (0, missing))).reshape(len(weight), -1, group)
