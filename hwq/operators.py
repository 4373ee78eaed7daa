"""The integer operators in NumPy, NHWC: with ``hwq.numerics`` the reference that every kernel equals.

Quantized arrays may be in any storage (int8, or uint8 = q + 128), zero points and clamps in the same units; what comes
out has the storage of what came in. Convolutions give int32 accumulators, which ``numerics.requantize`` finishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.numerics import RESIZE_BITS, Array, Floats, Ints, centre, requantize

Pair = Sequence[int]

# ONNX's names for where the pixels of a resized picture lie in the old one.
COORDINATES = ("asymmetric", "align_corners", "half_pixel", "pytorch_half_pixel")
# Elements that a block of windows may hold (32 MB of float64).
_BLOCK = 1 << 22


def correlate(
    x: Array,
    weight: Array,
    *,
    strides: Pair = (1, 1),
    padding: Pair = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> npt.NDArray[np.float64]:
    """Convolution in float64, zero padded: x (N, H, W, I), weight (O, KH, KW, I / groups) -> (N, OH, OW, O).

    padding is (top, left, bottom, right). Exact for integers whose sums stay below 2^53. Works in blocks of rows.
    """
    out_channels, kernel_h, kernel_w, group_in = weight.shape
    group_out = out_channels // groups
    windows = _windows(x, (kernel_h, kernel_w), strides, padding, dilation, 0)  # (N, OH, OW, KH, KW, I)
    count, out_h, out_w = windows.shape[:3]
    columns = kernel_h * kernel_w * group_in
    matrix = weight.astype(np.float64).reshape(groups, group_out, columns).transpose(0, 2, 1)
    out = np.empty((count, out_h, out_w, out_channels), np.float64)
    rows = max(1, _BLOCK // (out_w * columns))
    for image in range(count):
        for group in range(groups):
            channels = slice(group * group_in, (group + 1) * group_in)
            for row in range(0, out_h, rows):
                block = windows[image, row : row + rows, ..., channels].astype(np.float64).reshape(-1, columns)
                result = (block @ matrix[group]).reshape(-1, out_w, group_out)
                out[image, row : row + rows, :, group * group_out : (group + 1) * group_out] = result
    return out


def conv2d(
    x: Array,
    weight: Array,
    *,
    zero_point: int,
    bias: Ints | None = None,
    strides: Pair = (1, 1),
    padding: Pair = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Ints:
    """int32 accumulators sum((x - zero_point) * weight) + bias, wrapped: (N, H, W, I) -> (N, OH, OW, O).

    weight (O, KH, KW, I / groups), bias (O,) without zero points folded. Padding holds the zero point, the real 0.
    """
    out = correlate(centre(x, zero_point), weight, strides=strides, padding=padding, dilation=dilation, groups=groups)
    return _add_bias(out, bias)


def depthwise_conv2d(
    x: Array,
    weight: Array,
    *,
    zero_point: int,
    bias: Ints | None = None,
    strides: Pair = (1, 1),
    padding: Pair = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
) -> Ints:
    """As ``conv2d`` with one filter a channel: x (N, H, W, C), weight (C, KH, KW, 1) -> (N, OH, OW, C)."""
    _, kernel_h, kernel_w, _ = weight.shape
    windows = _windows(centre(x, zero_point), (kernel_h, kernel_w), strides, padding, dilation, 0)
    out = np.zeros((*windows.shape[:3], x.shape[3]), np.int64)
    for row in range(kernel_h):
        for column in range(kernel_w):
            out += windows[:, :, :, row, column] * weight[:, row, column, 0].astype(np.int32)
    return _add_bias(out, bias)


def dense(x: Array, weight: Array, *, zero_point: int, bias: Ints | None = None) -> Ints:
    """int32 accumulators of x (..., I) and weight (O, I) -> (..., O); see ``conv2d``."""
    return _add_bias(centre(x, zero_point).astype(np.float64) @ weight.astype(np.float64).T, bias)


def _add_bias(sums: Array, bias: Ints | None) -> Ints:
    total = sums.astype(np.int64)
    return (total if bias is None else total + bias).astype(np.int32)


def _windows(x: Array, kernel: Pair, strides: Pair, padding: Pair, dilation: Pair, fill: float) -> Array:
    """A view (N, OH, OW, KH, KW, C) of the windows of x (N, H, W, C), padded with ``fill``."""
    top, left, bottom, right = padding
    if any(padding):
        x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    span = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, tuple(span), axis=(1, 2))  # (N, H', W', C, span_h, span_w)
    view = view[:, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]
    return np.asarray(view.transpose(0, 1, 2, 4, 5, 3))


# Operators without weights. Quantized arrays in, quantized arrays of the same storage out.


def add(a: Array, b: Array, zero_points: Sequence[int], multipliers: Sequence[float], lo: int, hi: int) -> Array:
    """fma(a - zp_a, m_a, float32(b - zp_b) * m_b), rounded, clamped; zero_points (a, b, y), multipliers (m_a, m_b)."""
    return requantize(
        centre(b, zero_points[1]),
        multipliers[1],
        zero_points[2],
        lo,
        hi,
        residual=a,
        residual_zero_point=zero_points[0],
        residual_multiplier=multipliers[0],
        dtype=a.dtype,
    )


def multiply(a: Array, b: Array, zero_points: Sequence[int], multiplier: float, lo: int, hi: int) -> Array:
    """float32((a - zp_a) * (b - zp_b)) * m, rounded and clamped; b may broadcast; zero_points (a, b, y)."""
    product = centre(a, zero_points[0]) * centre(b, zero_points[1])
    return requantize(product, multiplier, zero_points[2], lo, hi, dtype=a.dtype)


def pool_multiplier(
    ratio: float,
    shape: Pair,
    *,
    kernel: Pair,
    strides: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
    include_pad: bool = False,
) -> Floats:
    """float32 (OH, OW): ratio / (taps in the window); ratio is s_x / s_y, ``shape`` the input's (N, H, W, C)."""
    inside = np.ones((1, shape[1], shape[2], 1))
    taps = _windows(inside, kernel, strides, padding, dilation, float(include_pad)).sum(axis=(3, 4))[0, :, :, 0]
    return np.asarray(ratio / np.maximum(taps, 1), np.float32)


def window_sum(x: Array, *, kernel: Pair, strides: Pair, padding: Pair, dilation: Pair = (1, 1)) -> Array:
    """The sum of each window of x (N, H, W, C), zero padded: (N, OH, OW, C)."""
    return np.asarray(_windows(x, kernel, strides, padding, dilation, 0).sum(axis=(3, 4)))


def avg_pool2d(
    x: Array,
    multiplier: Floats,
    zero_points: Sequence[int],
    lo: int,
    hi: int,
    *,
    kernel: Pair,
    strides: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
) -> Array:
    """float32(sum(x - zp_x)) * multiplier (OH, OW) of ``pool_multiplier``, rounded, clamped; zero_points (x, y)."""
    centred = centre(x, zero_points[0])
    sums = window_sum(centred, kernel=kernel, strides=strides, padding=padding, dilation=dilation)
    return requantize(sums, multiplier[:, :, None], zero_points[1], lo, hi, dtype=x.dtype)


def max_pool2d(x: Array, *, kernel: Pair, strides: Pair, padding: Pair, dilation: Pair = (1, 1)) -> Array:
    """The largest of each window, padding left out; integers or floats, same qparams in and out."""
    least = np.iinfo(x.dtype).min if np.issubdtype(x.dtype, np.integer) else -np.inf
    return np.asarray(_windows(x, kernel, strides, padding, dilation, least).max(axis=(3, 4)))


def pad(x: Array, pads: Sequence[Pair], fill: float) -> Array:
    """x with ((before, after), ...) of ``fill`` around: in quantized units for integers."""
    return np.pad(x, [tuple(pair) for pair in pads], constant_values=fill)


def resize_nearest(x: Array, map_h: Pair, map_w: Pair) -> Array:
    """x (N, H, W, C) -> (N, len(map_h), len(map_w), C): the source row and column of each output row and column."""
    return np.asarray(x[:, np.asarray(map_h)][:, :, np.asarray(map_w)])


def resize_places(old: int, new: int, scale: np.floating[Any], coordinates: str) -> Array:
    """Where each of ``new`` positions lies among ``old`` by ONNX's coordinate transformations, in scale's own type.

    Raises NotImplementedError for a transformation that is none of asymmetric, align_corners, half_pixel and
    pytorch_half_pixel.
    """
    at, half = np.arange(new, dtype=scale.dtype), scale.dtype.type(0.5)
    if coordinates == "asymmetric":
        return np.asarray(at / scale)
    if coordinates == "align_corners":
        return np.asarray(at * scale.dtype.type(old - 1) / scale.dtype.type(new - 1)) if new > 1 else np.zeros_like(at)
    if coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and new > 1):
        return np.asarray((at + half) / scale - half)
    if coordinates == "pytorch_half_pixel":
        return np.zeros_like(at)
    raise NotImplementedError(f"coordinate_transformation_mode {coordinates}")


def linear_sources(old: int, new: int, coordinates: str) -> tuple[Ints, Floats]:
    """For each of ``new`` positions the one among ``old`` at or before its place, and the weight of the one behind."""
    places = np.clip(resize_places(old, new, np.float64(new) / np.float64(old), coordinates), 0, old - 1)
    before = np.floor(places)
    return before.astype(np.int32), (places - before).astype(np.float32)


def resize_linear(x: Array, rows: Ints, down: Array, columns: Ints, right: Array) -> Array:
    """x (N, H, W, C) -> (N, len(rows), len(columns), C): each between row rows[i] and the next, and two columns.

    down and right are the weights of the second, as in ``linear_sources``; to integers int32, of
    ``numerics.resize_weights``, and the result is the int32 sum of u * w_down * w_right, shifted, halves up.
    """
    wide = x.astype(np.int32 if np.issubdtype(x.dtype, np.integer) else np.float64)
    one = wide.dtype.type(1 << RESIZE_BITS if wide.dtype == np.int32 else 1)
    for axis, (first, weight) in ((1, (rows, down)), (2, (columns, right))):
        w = weight.astype(wide.dtype).reshape([-1 if at == axis else 1 for at in range(4)])
        second = np.minimum(first + 1, x.shape[axis] - 1)
        wide = wide.take(first, axis) * (one - w) + wide.take(second, axis) * w
    if wide.dtype == np.int32:
        wide = np.right_shift(wide + (1 << 2 * RESIZE_BITS - 1), 2 * RESIZE_BITS)
    return np.asarray(wide, x.dtype)
