"""Activations whose range is found as the network runs, one for each row (of a sequence: token): their numbers.

A tensor (..., K) has as many rows as its other axes have places. Each row has a scale s = max|x| * (1 / 127), and
q = rint(x * (1 / s)) in [-127, 127], every operation in float32 with one rounding; real = q * s. A row that is zero, or
so near that 1 / s would leave float32, has the scale 0, and zeros.

A dense layer on them, with u the stored bytes (q, or q + 128) and w the integer weights (O, K), is

    v = fma(float32(acc) * m[o], s[row], bias[o]),    acc = start[o] + sum of u * w,    m the weights' scales

with acc an int32, exact, start[o] taking back what storage adds. With groups of inputs the first factor is the float32
sum of ``group_scales.product`` instead, and start a float32. The residual, a float, is added to v; then comes the
activation, in float. NaN is undefined, as in ``numerics``: of a row that has some, bytes and outputs may be any finite
numbers. Stands beside ``group_scales``; NumPy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hwq import group_scales, numerics

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
# The scale of a row is its largest size times this, in float32.
SHARE = np.float32(1.0 / 127.0)
# Scales below this, of rows that are below 127 times this, are 0.
LEAST = np.float32(2.0**-100)


def row_scale(x: Array) -> Floats:
    """The scale of each row of x (..., K): float32 (rows,)."""
    rows = np.asarray(x, np.float32).reshape(-1, x.shape[-1])
    scale = np.asarray(np.abs(rows).max(axis=1) * SHARE, np.float32)
    return np.where(scale < LEAST, np.float32(0), scale)


def quantize_rows(x: Array, scale: Array, storage: str) -> Array:
    """x (..., K) in bytes, each row by its own of the scales (rows,), in ``storage``, "uint8" or "int8"."""
    rows = np.asarray(x, np.float32).reshape(-1, x.shape[-1])
    whole = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    factor = np.where(scale > 0, np.float32(1) / whole, np.float32(0)).astype(np.float32)
    q = np.rint(rows * factor[:, None]).astype(np.int32) + (128 if storage == "uint8" else 0)
    return np.asarray(q.astype(storage)).reshape(x.shape)


def start_values(q: Array, scale: Array, offset: int, group: int | None) -> Array:
    """What the sums of products start at, (O,), for weights q (O, K): int32, or in groups, of scale (O, G), float32.

    offset: what storage adds to an activation.
    """
    if group is not None:
        return group_scales.start_values(np.zeros(len(q)), q, scale, offset, group)
    return np.asarray(-offset * q.sum(axis=1, dtype=np.int64), np.int32)


def product(
    rows: Array, scales: Array, q: Array, start: Array, multiplier: Array, bias: Array, group: int | None
) -> Floats:
    """rows (..., K) in storage with q (O, K): float32 (..., O), as the module says. multiplier: (O,), or (O, G)."""
    if group is not None:
        value = group_scales.product(rows, q, multiplier, start, group)
    else:
        acc = rows.astype(np.int32) @ q.astype(np.int32).T + start
        value = np.asarray(acc.astype(np.float32) * multiplier, np.float32)
    by_row = scales.reshape((*rows.shape[:-1], 1)).astype(np.float32)
    return numerics.fma32(value, by_row, bias.astype(np.float32))
