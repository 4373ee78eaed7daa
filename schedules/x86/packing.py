"""Weights in the order in which the x86 convolution kernels read them (NumPy only).

A kernel walks blocks of ``lanes`` output channels, then steps of the reduction, and reads for each step one vector:
(blocks, steps, lanes, r). A block never straddles groups; what is beyond the real channels and inputs is zero.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def pack_blocks(weight: Array, *, groups: int, columns: int, blocks: int, lanes: int, r: int) -> Array:
    """(O, KH, KW, I / groups), or (O, I), as (groups * blocks, KH * columns * ceil(run / r), lanes, r).

    columns is KW, or 1 where the kernel's columns are part of one run of KW * I. ``blocks`` is per group.
    """
    weight = weight.reshape(weight.shape[0], 1, 1, -1) if weight.ndim == 2 else weight
    out_c, kernel_h = weight.shape[:2]
    group_out = out_c // groups
    weight = weight.reshape(groups, group_out, kernel_h * columns, -1)
    steps = math.ceil(weight.shape[3] / r)
    padded = np.zeros((groups, blocks * lanes, kernel_h * columns, steps * r), weight.dtype)
    padded[:, :group_out, :, : weight.shape[3]] = weight
    padded = padded.reshape(groups, blocks, lanes, kernel_h * columns, steps, r).transpose(0, 1, 3, 4, 2, 5)
    return np.ascontiguousarray(padded.reshape(groups * blocks, kernel_h * columns * steps, lanes, r))


def pack_nibbles(packed: Array) -> npt.NDArray[np.uint8]:
    """(blocks, steps, lanes, r) in [-8, 7] as bytes (blocks, ceil(steps / 2), lanes, r): w + 8 of an even step low, of the
    odd one after it high, so that unpacking a vector of bytes gives two vectors of weights."""
    if packed.shape[1] % 2:
        packed = np.concatenate([packed, np.zeros_like(packed[:, :1])], axis=1)
    unsigned = (packed.astype(np.int16) + 8).astype(np.uint8)
    return np.ascontiguousarray(unsigned[:, 0::2] | unsigned[:, 1::2] << 4)


def pack_taps(weight: Array, channels: int) -> Array:
    """Depthwise (C, KH, KW, 1) as (1, KH * KW, ``channels``, 1), zero beyond C."""
    taps = weight.reshape(weight.shape[0], -1).T
    padded = np.zeros((1, taps.shape[0], channels, 1), weight.dtype)
    padded[0, :, : taps.shape[1], 0] = taps
    return padded
