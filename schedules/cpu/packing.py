"""Weights in the order in which the convolution kernels of CPUs read them (NumPy only).

A kernel walks blocks of ``lanes`` output channels, then steps of the reduction, and reads for each step one vector:
(blocks, steps, lanes, r). Where an instruction takes a step's r inputs in ``parts``, those lie one behind the other:
(blocks, steps, parts * lanes, r / parts). A block never straddles groups; what is beyond the real channels and inputs
is zero.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def pack_blocks(
    weight: Array, *, groups: int, columns: int, blocks: int, lanes: int, r: int, parts: int = 1, hold: int = 1
) -> Array:
    """(O, KH, KW, I / groups), or (O, I), as (groups * blocks, KH * columns * ceil(run / r), lanes, r).

    columns is KW, or 1 where the kernel's columns are part of one run of KW * I. ``blocks`` is per group. hold: a run's
    steps are a multiple.
    """
    weight = weight.reshape(weight.shape[0], 1, 1, -1) if weight.ndim == 2 else weight
    out_c, kernel_h = weight.shape[:2]
    group_out = out_c // groups
    weight = weight.reshape(groups, group_out, kernel_h * columns, -1)
    steps = math.ceil(weight.shape[3] / (r * hold)) * hold
    padded = np.zeros((groups, blocks * lanes, kernel_h * columns, steps * r), weight.dtype)
    padded[:, :group_out, :, : weight.shape[3]] = weight
    cut = padded.reshape(groups, blocks, lanes, kernel_h * columns, steps, parts, r // parts)
    ordered = cut.transpose(0, 1, 3, 4, 5, 2, 6)
    return np.ascontiguousarray(ordered.reshape(groups * blocks, kernel_h * columns * steps, parts * lanes, r // parts))


def pack_stream(weight: Array, *, vectors: int, lanes: int, r: int, parts: int = 1, inputs: int = 0) -> Array:
    """(O, I), or (O, 1, 1, I), as (blocks, ceil(I / r), vectors, lanes, r): what a block reads lies in one piece.

    inputs: as if I were at least so many.
    """
    out_c = weight.shape[0]
    weight = weight.reshape(out_c, -1)
    blocks, steps = math.ceil(out_c / (vectors * lanes)), math.ceil(max(weight.shape[1], inputs) / r)
    padded = np.zeros((blocks * vectors * lanes, steps * r), weight.dtype)
    padded[:out_c, : weight.shape[1]] = weight
    cut = padded.reshape(blocks, vectors, lanes, steps, parts, r // parts).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(cut.reshape(blocks, steps, vectors, parts * lanes, r // parts))


def pack_nibbles(packed: Array, *, axis: int = 1, signed: bool = False) -> npt.NDArray[np.uint8]:
    """Values in [-8, 7], as bytes of two neighbours along ``axis``: w + 8 of an even one low, of the odd one after it
    high, so that unpacking a vector of bytes gives two vectors of weights. The axis halves, rounded up. signed: w in
    four bits, instead of w + 8.
    """
    zero = 0 if signed else 8
    unsigned = ((packed.astype(np.int16) + zero) & 15).astype(np.uint8)
    if unsigned.shape[axis] % 2:
        edge = [(0, 1 if i == axis else 0) for i in range(unsigned.ndim)]
        unsigned = np.pad(unsigned, edge, constant_values=zero)
    even = unsigned.take(range(0, unsigned.shape[axis], 2), axis)
    odd = unsigned.take(range(1, unsigned.shape[axis], 2), axis)
    return np.ascontiguousarray(even | odd << 4)


def pack_taps(weight: Array, channels: int, count: int = 0) -> Array:
    """Depthwise (C, KH, KW, 1) as (KH * KW, ``channels``), zero beyond C; ``count`` taps, where those are more."""
    taps = weight.reshape(weight.shape[0], -1).T
    more = max(0, count - taps.shape[0])
    return np.ascontiguousarray(np.pad(taps, ((0, more), (0, channels - taps.shape[1]))))
