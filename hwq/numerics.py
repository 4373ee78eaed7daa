"""The numbers of quantization in NumPy: formats, rounding, requantization, tables.

With ``hwq.operators`` this is the reference: what NumPy computes, every integer kernel computes too, equal, not close.
``real = (q - zero_point) * scale`` and 0.0 is exact. Quantized activations may be in any storage, logical int8 (offset
0) or uint8 (offset 128), as long as zero points and clamps are given in the same units. All scaling is float32, one
rounding for each operation written, to nearest even; the only fused operation is ``fma32``. NaN is undefined here:
calibration refuses it. Stands below every other stage; imports NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hwq.errors import HwqError
from hwq.scheme import QType

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

INT8 = QType(bits=8)
# |bias| of an int32 accumulator stays below this, which leaves the other half of the range to the products.
BIAS_LIMIT = 1 << 30
# Factors of the plain scale that the int4 search tries: the best for bell-shaped weights lies near 0.65 to 0.9.
SHRINK = tuple(1.0 - 0.05 * step for step in range(12))
# Weights that it takes at a time.
SEARCHED_AT_ONCE = 1 << 20

# gelu_tanh is x / 2 * (1 + tanh(GELU_LINEAR * x + GELU_CUBIC * x^3)) (arXiv:1606.08415, section 2).
GELU_LINEAR = math.sqrt(2.0 / math.pi)
GELU_CUBIC = 0.044715 * GELU_LINEAR

# A weight of linear resizing has this many bits behind the point, on each axis: a byte times both fills 30 bits.
RESIZE_BITS = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class QParams:
    """Scale and zero point of one activation tensor: x ~ (q - zero_point) * scale; ``scale`` is a float32 value."""

    scale: float
    zero_point: int = 0


def choose_qparams(lo: float, hi: float, qtype: QType = INT8, *, symmetric: bool = False) -> QParams:
    """Scale and zero point for values in [lo, hi], widened to include 0.

    The scale is a float32 value; symmetric sets the zero point to 0. A range that is only {0} gives scale 1: whether a
    constant tensor is an error is the caller's to say. Raises HwqError "range-invalid" for NaN, infinities or lo > hi.
    """
    if not (np.isfinite(lo) and np.isfinite(hi) and lo <= hi):
        raise HwqError("range-invalid", f"the range of values is [{lo}, {hi}]; accepted: finite bounds, lower first")
    lo, hi = min(float(lo), 0.0), max(float(hi), 0.0)
    tiny = float(np.finfo(np.float32).tiny)  # 1 / scale must be a finite float32
    if symmetric:
        width, steps = max(-lo, hi), qtype.qmax
    else:
        width, steps = hi - lo, qtype.qmax - qtype.qmin
    if width == 0.0:
        return QParams(scale=1.0, zero_point=0)
    if width / steps > float(np.finfo(np.float32).max):
        raise HwqError("range-invalid", f"the range of values is [{lo}, {hi}]; accepted: ranges that float32 can hold")
    scale = float(np.float32(max(width / steps, tiny)))
    zero_point = 0 if symmetric else round(min(max(qtype.qmin - lo / scale, qtype.qmin), qtype.qmax))
    return QParams(scale=scale, zero_point=zero_point)


def quantize(x: Array, qparams: QParams, qtype: QType = INT8, *, offset: int = 0) -> Array:
    """clamp(rint(x * float32(1 / scale))) + zero_point, as int8; or, with an ``offset`` of 128 added, as uint8."""
    inverse = np.float32(1.0 / qparams.scale)
    lo, hi = qtype.qmin - qparams.zero_point, qtype.qmax - qparams.zero_point
    q = _round_clamp(x.astype(np.float32) * inverse, lo, hi) + (qparams.zero_point + offset)
    return q.astype(np.uint8 if offset else np.int8)


def dequantize(q: Array, qparams: QParams, *, offset: int = 0) -> Floats:
    """float32(q - zero_point) * scale, ``offset`` being the storage's."""
    return np.asarray(centre(q, qparams.zero_point + offset).astype(np.float32) * np.float32(qparams.scale))


def centre(q: Array, zero_point: int) -> Ints:
    """q - zero_point as int32, both in the same storage."""
    return np.asarray(q.astype(np.int32) - np.int32(zero_point))


# bfloat16: the upper half of a float32. Its tensors are held as uint16, which every NumPy has.


def to_bf16(x: Array) -> npt.NDArray[np.uint16]:
    """x, as float32, rounded to bfloat16, to nearest even: its 16 bits. NaN stays NaN; beyond the range lies inf."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    nearest = (bits + (np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1)))) >> 16
    quiet_nan = bits >> 16 | np.uint32(0x40)
    return np.asarray(np.where(np.isnan(x), quiet_nan, nearest), np.uint16)


def from_bf16(bits: npt.NDArray[np.uint16]) -> Floats:
    """The float32 values of bfloat16 bits, exact."""
    return np.asarray(bits.astype(np.uint32) << 16, np.uint32).view(np.float32)


def round_bf16(x: Array) -> Floats:
    """x rounded to bfloat16, in float32. A kernel may take a value below float32's least normal one for 0."""
    return from_bf16(to_bf16(x))


# Weights


def least_weight_scale(bias: Array, input_scale: float) -> Floats:
    """The smallest weight scales (O,) with which an int32 bias fits: a channel of tiny weights may have a large one."""
    least = np.abs(bias.astype(np.float64)) / (input_scale * BIAS_LIMIT) * (1 + 1e-6)
    return np.asarray(least, np.float32)


def least_product_scale(weight: Array) -> Floats:
    """The smallest weight scales (O,) with which no sum of products leaves int32: |q - zero point| is at most 255.

    Each rounds by half a step at most, which is counted in; it binds for tens of thousands of products a sum only.
    """
    flat = np.abs(weight.reshape(weight.shape[0], -1).astype(np.float64))
    room = BIAS_LIMIT / 255 - flat.shape[1] / 2
    assert room > 0, "more than 8 million products a sum"
    return np.asarray(flat.sum(axis=1) / room * (1 + 1e-6), np.float32)


def quantize_weight(
    weight: Array, bits: int, *, search: bool = True, least_scale: Array | None = None
) -> tuple[npt.NDArray[np.int8], Floats]:
    """Symmetric weights per channel of axis 0: (int8 array of weight's shape, float32 scales (O,)).

    8 bits fill [-127, 127] with scale max|w| / 127. 4 bits fill [-8, 7]: from scale max|w| / 7, shrunk by the factor of
    SHRINK with the least squared error and then fitted by least squares (so never worse than max|w| / 7), unless
    ``search`` is False. ``least_scale`` (O,) is a lower bound; a channel of zeros takes it as it is, or 1 without.
    """
    assert bits in (4, 8), bits
    lo, hi = (-127, 127) if bits == 8 else (-8, 7)
    flat = np.ascontiguousarray(weight, np.float32).reshape(weight.shape[0], -1)
    largest = np.abs(flat).max(axis=1, initial=0.0)
    floor = np.full(len(flat), np.finfo(np.float32).tiny, np.float32)
    if least_scale is not None:
        floor = np.maximum(floor, least_scale.astype(np.float32))
    # Without weights the scale only serves the bias: the finest that holds it.
    empty = np.where(floor > np.finfo(np.float32).tiny, floor, 1)
    scale = np.where(largest > 0, np.maximum(largest / np.float32(hi), floor), empty).astype(np.float32)
    if bits == 4 and search:
        scale = _search_scale(flat, scale, floor, lo, hi)
    q = np.clip(np.rint(flat / scale[:, None]), lo, hi).astype(np.int8)
    return q.reshape(weight.shape), scale


def dequantize_weight(q: Array, scale: Array) -> Floats:
    """q (O, ...) times its channel's scale (O,), in float32."""
    return q.astype(np.float32) * scale.astype(np.float32).reshape(-1, *(1,) * (q.ndim - 1))


def _search_scale(flat: Floats, plain: Floats, floor: Floats, lo: int, hi: int) -> Floats:
    """The scales (O,) of least squared error over SHRINK, then two rounds of least squares, kept only where better.

    By blocks of rows: a vocabulary's table has hundreds of millions of weights.
    """
    rows = max(1, SEARCHED_AT_ONCE // max(flat.shape[1], 1))
    blocks = [slice(at, at + rows) for at in range(0, len(flat), rows)]
    found = [_search_block(flat[block], plain[block], floor[block], lo, hi) for block in blocks]
    return np.concatenate(found) if found else plain


def _search_block(flat: Floats, plain: Floats, floor: Floats, lo: int, hi: int) -> Floats:
    """``_search_scale`` of some rows."""
    best = plain
    best_error = np.full(len(flat), np.inf)

    def keep_better(scale: Floats) -> Floats:
        """Takes ``scale`` where its error is less, and returns its least-squares successor."""
        nonlocal best, best_error
        q = np.clip(np.rint(flat / scale[:, None]), lo, hi)
        error = np.square(q * scale[:, None] - flat).sum(axis=1, dtype=np.float64)
        best = np.where(error < best_error, scale, best)
        best_error = np.minimum(error, best_error)
        power = np.square(q).sum(axis=1)
        fitted = (q * flat).sum(axis=1) / np.maximum(power, 1)
        return np.where(power > 0, np.maximum(fitted, floor), scale).astype(np.float32)

    for shrink in SHRINK:
        keep_better(np.maximum(plain * np.float32(shrink), floor))
    fitted = keep_better(best)
    for _ in range(2):
        fitted = keep_better(fitted)
    return best


def quantize_bias(bias: Array, input_scale: float, weight_scale: Array) -> Ints:
    """round(bias / (input_scale * weight_scale)), int32 (O,), saturated at BIAS_LIMIT: see ``least_weight_scale``."""
    value = np.rint(bias.astype(np.float64) / (input_scale * weight_scale.astype(np.float64)))
    return np.asarray(np.clip(value, -BIAS_LIMIT, BIAS_LIMIT), np.int32)


def fold_zero_point(bias: Ints, weight: Array, zero_point: int) -> Ints:
    """bias - zero_point * sum(weight) per channel of axis 0, wrapped to int32; ``zero_point`` in storage units.

    sum(u * w) + this equals sum((u - zero_point) * w) + bias, modulo 2^32.
    """
    sums = weight.reshape(weight.shape[0], -1).sum(axis=1, dtype=np.int64)
    return np.asarray(bias.astype(np.int64) - zero_point * sums).astype(np.int32)


# Requantization


def fma32(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> Floats:
    """a * b + c of float32 values with one rounding, as a fused multiply-add gives it.

    The float64 product is exact. TwoSum yields the float64 sum's error, with which the sum is rounded to odd; rounding
    that to float32 is correct, since float64 has more than two bits to spare (Boldo and Melquiond, 2008).
    """
    product = np.asarray(a, np.float32).astype(np.float64) * np.asarray(b, np.float32)
    addend = np.asarray(c, np.float32).astype(np.float64)
    total = np.asarray(product + addend)
    with np.errstate(invalid="ignore", over="ignore"):
        part = total - product
        error = (product - (total - part)) + (addend - part)
        bits = total.view(np.int64)
        step = np.where((error > 0) == (total > 0), 1, -1)
        inexact_even = (error != 0) & (bits & 1 == 0) & np.isfinite(total)
        odd = np.where(inexact_even, bits + step, bits).view(np.float64)
        return np.asarray(odd.astype(np.float32))


def resize_weights(fraction: Array) -> Ints:
    """The weights of linear resizing, in [0, 1], in steps of 2^-RESIZE_BITS."""
    return np.asarray(np.rint(fraction.astype(np.float64) * (1 << RESIZE_BITS)), np.int32)


def requantize(
    acc: Array,
    multiplier: Array | float,
    zero_point: int,
    lo: int,
    hi: int,
    *,
    residual: Array | None = None,
    residual_zero_point: int = 0,
    residual_multiplier: float = 0.0,
    dtype: npt.DTypeLike = np.int8,
) -> Array:
    """clamp(rint(float32(acc) * multiplier [+ (residual - zp_r) * m_r, fused]), lo - zp, hi - zp) + zp.

    acc: int32 (..., O); multiplier: float32, broadcast; [lo, hi] in the units of ``zero_point``: the storage's range or
    the activation's clamp within it. residual has acc's shape.
    """
    v = rescale(acc, multiplier, residual, residual_zero_point, residual_multiplier)
    return settle(v, zero_point, lo, hi, dtype)


def settle(v: Floats, zero_point: int, lo: int, hi: int, dtype: npt.DTypeLike) -> Array:
    """clamp(rint(v), lo - zp, hi - zp) + zp: the end of every requantization."""
    return (_round_clamp(v, lo - zero_point, hi - zero_point) + zero_point).astype(dtype)


def rescale(
    acc: Array,
    multiplier: Array | float,
    residual: Array | None = None,
    residual_zero_point: int = 0,
    residual_multiplier: float = 0.0,
) -> Floats:
    """float32(acc) * multiplier [+ (residual - zp_r) * m_r, fused]: a layer's float output, before its clamp."""
    return add_residual(
        acc.astype(np.float32) * np.asarray(multiplier, np.float32), residual, residual_zero_point, residual_multiplier
    )


def add_residual(v: Floats, residual: Array | None, residual_zero_point: int, residual_multiplier: float) -> Floats:
    """v [+ (residual - zp_r) * m_r, fused]."""
    if residual is None:
        return v
    return fma32(centre(residual, residual_zero_point), np.float32(residual_multiplier), v)


def _round_clamp(v: Floats, lo: int, hi: int) -> Ints:
    return np.clip(np.rint(v), np.float32(lo), np.float32(hi)).astype(np.int32)


# Activations, tables and measures


class ActivationLike(Protocol):
    """What ``hwq.graph.Activation`` holds; said here because nothing imports upward."""

    @property
    def kind(self) -> str: ...
    @property
    def lo(self) -> float: ...
    @property
    def hi(self) -> float: ...
    @property
    def alpha(self) -> float: ...
    @property
    def beta(self) -> float: ...


def activate(activation: ActivationLike, x: Array) -> Array:
    """The activation function in x's own float type; its kinds are listed at ``hwq.graph.Activation``."""
    kind = activation.kind
    if kind == "none":
        return x
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "clip":
        return np.clip(x, activation.lo, activation.hi)
    if kind == "leaky_relu":
        return np.where(x < 0, x * x.dtype.type(activation.alpha), x)
    if kind == "hard_sigmoid":
        return np.asarray(np.clip(x * x.dtype.type(activation.alpha) + x.dtype.type(activation.beta), 0, 1))
    if kind == "hard_swish":
        return np.asarray(x * (np.clip(x + 3, 0, 6) / x.dtype.type(6)))
    if kind == "sigmoid":
        return _sigmoid(x)
    if kind == "silu":
        return x * _sigmoid(x)
    if kind == "tanh":
        return np.asarray(np.tanh(x))
    if kind == "gelu_tanh":
        inner = x * (x.dtype.type(GELU_LINEAR) + x.dtype.type(GELU_CUBIC) * np.square(x))
        return np.asarray(x * ((1 + np.tanh(inner)) / 2))
    assert kind == "gelu", kind
    erf = np.frompyfunc(math.erf, 1, 1)(x * x.dtype.type(math.sqrt(0.5))).astype(x.dtype)
    return np.asarray(x * ((1 + erf) / 2))


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow, whatever x."""
    return np.asarray((1 + np.tanh(x / 2)) / 2)


def make_table(function: Callable[[Array], Array], source: QParams, target: QParams) -> npt.NDArray[np.int8]:
    """int8 (256,): entry q + 128 is function(dequantized q), quantized. ``function`` is given float64."""
    q = np.arange(-128, 128)
    y = function((q - source.zero_point) * np.float64(source.scale)) / np.float64(target.scale)
    return np.asarray(np.clip(np.rint(y) + target.zero_point, -128, 127), np.int8)


def store_table(table: npt.NDArray[np.int8], offset: int) -> npt.NDArray[np.uint8]:
    """The table as kernels read it: uint8 (256,), indexed by the byte that storage holds, its entries such bytes."""
    if offset:
        return (table.astype(np.int32) + offset).astype(np.uint8)
    return np.roll(table, -128).view(np.uint8)


def lookup(q: Array, table: npt.NDArray[np.uint8]) -> Array:
    """table[q's byte], in q's storage; ``table`` from ``store_table``."""
    return table[q.view(np.uint8)].view(q.dtype)


def sqnr_db(reference: Array, value: Array) -> float:
    """10 log10 of signal over noise power, in dB; inf when equal, -inf when only the reference is all zero."""
    signal = float(np.square(reference.astype(np.float64)).sum())
    noise = float(np.square(reference.astype(np.float64) - value.astype(np.float64)).sum())
    if noise == 0.0:
        return float("inf")
    return 10.0 * float(np.log10(signal / noise)) if signal > 0.0 else float("-inf")
