"""Weights of four bits in groups, activations that stay as good as floats: the numbers of scheme w4a16_g128.

A dense layer (O, I) has G = ceil(I / group) groups, the last perhaps smaller. Within a row's group all activations are
multiples of one step s = max|x| * (1 / 32767): q = rint(x * (1 / s)), whole numbers of 16 bits, every operation in
float32 with one rounding. Their sums of products with the integer weights w are exact, so neither the machine nor the
number of rows nor the order changes a bit; kernels compute, in this order and with one rounding for each operation,

    v = 0;  v = fma(float32(part_g) * s[row, g], m[o, g], v) for g ascending;    part_g = sum of q * w, m: w's scales

then add the bias and the residual. An activation is off by half a step at most, max|x| / 65534 of its group: less than
float16's rounding of the largest makes it, and far below what four bits make of the weights. A group that is zero, or
so near that 1 / s would leave float32, has the step 0. NaN is undefined. Stands beside ``row_scales``; NumPy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hwq import group_scales, numerics
from hwq.row_scales import LEAST

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
# The largest activation of a group, and what a step is of it, in float32.
LARGEST = 32767
SHARE = np.float32(1.0 / LARGEST)


def steps_of(x: Array, group: int) -> Floats:
    """The step of each group of each row of x (..., I): float32 (..., G)."""
    steps = np.asarray(np.abs(_in_groups(x, group)).max(axis=-1) * SHARE, np.float32)
    return np.where(steps < LEAST, np.float32(0), steps)


def in_steps(x: Array, steps: Array, group: int) -> npt.NDArray[np.int32]:
    """x (..., I) in whole steps of its groups, (..., G, group), 0 beyond the inputs."""
    whole = np.where(steps > 0, steps, np.float32(1)).astype(np.float32)
    factor = np.where(steps > 0, np.float32(1) / whole, np.float32(0)).astype(np.float32)
    return np.asarray(np.rint(_in_groups(x, group) * factor[..., None]), np.int32)


def product(x: Array, q: Array, multiplier: Array, group: int) -> Floats:
    """x (..., I), float32, with integer weights q (O, I): float32 (..., O), as the module says. multiplier: (O, G)."""
    steps = steps_of(x, group)
    rows, weights = in_steps(x, steps, group), _in_groups(q, group).astype(np.int32)
    value = np.zeros((*x.shape[:-1], len(q)), np.float32)
    for at in range(steps.shape[-1]):
        part = rows[..., at, :] @ weights[:, at].T
        scaled = part.astype(np.float32) * steps[..., at : at + 1]
        value = numerics.fma32(scaled, multiplier[:, at], value)
    return value


def error_bound(x: Array, q: Array, multiplier: Array, group: int) -> npt.NDArray[np.float64]:
    """How far ``product`` may be from the real product of x with the weights that q stands for: (..., O).

    Half a step of each activation, and a hundredth of one for the rounding of 1 / s and of the product with it; 2^-24
    for each of three roundings a group, of a value that is no larger than the sum of all sizes; LEAST * LARGEST for
    groups taken for zeros.
    """
    real = np.abs(group_scales.dequantize_weight(q, multiplier, group)).astype(np.float64)
    sizes = np.abs(x).astype(np.float64) @ real.T
    steps = np.repeat(np.maximum(steps_of(x, group), LEAST * 2), group, axis=-1)[..., : x.shape[-1]]
    lost = 0.51 * steps.astype(np.float64) @ real.T
    return np.asarray(
        lost + (3 * multiplier.shape[1] + 1) * 2.0**-24 * (sizes + lost) + LEAST * LARGEST * real.sum(axis=1)
    )


def _in_groups(x: Array, group: int) -> Array:
    """(..., I) as (..., G, group), zero beyond the inputs."""
    missing = group_scales.group_count(x.shape[-1], group) * group - x.shape[-1]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return padded.reshape(*x.shape[:-1], -1, group)
