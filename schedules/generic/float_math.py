"""Float functions that LLVM can vectorize: TVM's own exp, tanh and erf become one library call a lane.

Built of arithmetic, rounding, selects and bit moves only. ``activate`` is every kind of ``hwq.graph.Activation`` on a
float32 expression; kernels fuse it. Relative error of exp: below 2e-7; of tanh and sigmoid: below 5e-7; of erf: below
3e-7 absolute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tvm import tirx

from hwq.graph import Activation
from hwq.numerics import GELU_CUBIC, GELU_LINEAR

# Below this exp underflows to the smallest normal float32, above it overflows: inputs are clamped.
EXP_LEAST, EXP_MOST = -87.33654, 88.37626
# 1.5 * 2^23 as a float32, around which neighbouring floats are 1 apart, and its bits; see ``rounder_bits``.
ROUNDER, ROUNDER_BITS = 12582912.0, 0x4B400000
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# Cephes' expf: exp(r) = 1 + r + r^2 * p(r) for |r| <= ln(2) / 2.
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# Cephes' tanhf: tanh(x) = x + x^3 * p(x^2) for |x| < 0.625.
_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
_ERF_END = 3.8
# erf(x) / x by powers of 2 (x / 3.8)^2 - 1, fitted for the least largest error (Lawson's algorithm); 1 at the end.
_ERF = (
    *(1.0284984353e-03, -2.6744073709e-03, 2.3465678898e-03, -3.3635349238e-03, 9.9756141723e-03),
    *(-1.8259851183e-02, 2.6676857363e-02, -3.8979709879e-02, 5.5061654272e-02, -7.2504979098e-02),
    *(9.0831952771e-02, -1.1118674561e-01, 1.3773955789e-01, -1.8564116454e-01, 3.7210762018e-01),
)


def _f32(value: float) -> Any:
    return tirx.const(value, "float32")


def clamp(x: Any, lo: float, hi: float) -> Any:
    """x in [lo, hi]; an infinite bound costs nothing."""
    if lo > -math.inf:
        x = tirx.max(x, _f32(lo))
    return tirx.min(x, _f32(hi)) if hi < math.inf else x


def let(value: Any, body: Callable[[Any], Any], dtype: str = "float32") -> Any:
    """body(v) with v bound once to ``value``, so that functions of functions do not grow exponentially."""
    name = tirx.Var("v", dtype)
    return tirx.Let(name, value, body(name))


def rounder_bits(x: Any, lanes: int = 1) -> Any:
    """nearbyint(x) + ROUNDER_BITS as int32, for x, one number or ``lanes``, within 2^22 of zero.

    The addition rounds to nearest even and leaves the integer in the low bits: one instruction on any processor, where
    rounding and conversion take two, or on those before SSE4.1 a call.
    """
    if lanes > 1:
        return tirx.reinterpret(f"int32x{lanes}", x + tirx.Broadcast(_f32(ROUNDER), lanes))
    return tirx.reinterpret("int32", x + _f32(ROUNDER))


def exp(x: Any) -> Any:
    """e^x in float32; 1.2e-38 below -87.3, 2.4e38 above 88.4: never an infinity."""

    def powered(x: Any) -> Any:
        bits = rounder_bits(x * _f32(1.0 / math.log(2.0)))
        return let(bits - tirx.const(ROUNDER_BITS, "int32"), partial(_exp, x), "int32")

    return let(clamp(x, EXP_LEAST, EXP_MOST), powered)


def _exp(x: Any, power: Any) -> Any:
    """e^x, where power = rint(x / ln(2)), int32."""

    def scaled(rest: Any) -> Any:
        value = polynomial(rest, _EXP) * rest * rest + rest + _f32(1.0)
        return value * tirx.reinterpret("float32", (power + tirx.const(127, "int32")) << tirx.const(23, "int32"))

    whole = power.astype("float32")
    return let(x - whole * _f32(_LN2_HIGH) - whole * _f32(_LN2_LOW), scaled)


def polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    """Horner's scheme, the highest power's coefficient first."""
    value = _f32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + _f32(coefficient)
    return value


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    return _f32(1.0) / (_f32(1.0) + exp(_f32(0.0) - x))


def tanh(x: Any) -> Any:
    """Near 0, where 1 - 2 / (e^2x + 1) loses digits, an odd polynomial (Cephes' tanhf)."""

    def either(x: Any, square: Any) -> Any:
        far = _f32(1.0) - _f32(2.0) / (exp(x + x) + _f32(1.0))
        return tirx.Select(tirx.abs(x) < _f32(0.625), polynomial(square, _TANH) * square * x + x, far)

    return let(x, lambda x: let(x * x, partial(either, x)))


def erf(x: Any) -> Any:
    """A polynomial up to 3.8, behind which it is 1 or -1; absolute error below 3e-7 in float32.

    No exponential and no division: GELU behind a product of 64 x 384 x 1536 takes 48 us on Zen 4, with those 71.
    """

    def odd(x: Any) -> Any:
        return let(x * x * _f32(2.0 / _ERF_END**2) - _f32(1.0), lambda at: clamp(polynomial(at, _ERF) * x, -1.0, 1.0))

    return let(clamp(x, -_ERF_END, _ERF_END), odd)


def activate(activation: Activation, x: Any) -> Any:
    """activation(x) for a float32 expression; see ``Activation`` for the kinds."""
    return x if activation.kind == "none" else let(x, partial(_activate, activation))


def _activate(activation: Activation, x: Any) -> Any:
    kind = activation.kind
    if kind == "relu":
        return clamp(x, 0.0, math.inf)
    if kind == "clip":
        return clamp(x, activation.lo, activation.hi)
    if kind == "leaky_relu":
        return tirx.Select(x < _f32(0.0), x * _f32(activation.alpha), x)
    if kind == "hard_sigmoid":
        return clamp(x * _f32(activation.alpha) + _f32(activation.beta), 0.0, 1.0)
    if kind == "hard_swish":
        return x * clamp(x * _f32(1.0 / 6.0) + _f32(0.5), 0.0, 1.0)
    if kind == "sigmoid":
        return sigmoid(x)
    if kind == "silu":
        return x * sigmoid(x)
    if kind == "tanh":
        return tanh(x)
    if kind == "gelu_tanh":
        # (1 + tanh(z)) / 2 is sigmoid(2 z), which loses no digits where it is small.
        return x * sigmoid(x * (_f32(2.0 * GELU_LINEAR) + _f32(2.0 * GELU_CUBIC) * x * x))
    assert kind == "gelu", kind
    return _f32(0.5) * x * (_f32(1.0) + erf(x * _f32(math.sqrt(0.5))))
