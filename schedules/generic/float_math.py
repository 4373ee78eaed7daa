"""Float functions that LLVM can vectorize: TVM's own exp, tanh and erf become one library call a lane.

Built of +, *, min, max, floor and bit moves only. ``activate`` is every kind of ``hwq.graph.Activation`` on a float32
expression; kernels fuse it. Relative error of exp: below 2e-7; of tanh and sigmoid: below 5e-7; of erf: below 5e-7 absolute.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from hwq.graph import Activation

# Below this exp underflows to the smallest normal float32, above it overflows: inputs are clamped.
EXP_LEAST, EXP_MOST = -87.33654, 88.37626
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# Cephes' expf: exp(r) = 1 + r + r^2 * p(r) for |r| <= ln(2) / 2.
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def _f32(value: float) -> Any:
    return tirx.const(value, "float32")


def clamp(x: Any, lo: float, hi: float) -> Any:
    """x in [lo, hi]; an infinite bound costs nothing."""
    if lo > -math.inf:
        x = tirx.max(x, _f32(lo))
    return tirx.min(x, _f32(hi)) if hi < math.inf else x


def exp(x: Any) -> Any:
    """e^x in float32; 1.2e-38 below -87.3, 2.4e38 above 88.4: never an infinity."""
    x = clamp(x, EXP_LEAST, EXP_MOST)
    power = tirx.nearbyint(x * _f32(1.0 / math.log(2.0)))
    rest = x - power * _f32(_LN2_HIGH) - power * _f32(_LN2_LOW)
    value = _f32(_EXP[0])
    for coefficient in _EXP[1:]:
        value = value * rest + _f32(coefficient)
    value = value * rest * rest + rest + _f32(1.0)
    exponent = (power.astype("int32") + tirx.const(127, "int32")) << tirx.const(23, "int32")
    return value * tirx.reinterpret("float32", exponent)


def sigmoid(x: Any) -> Any:
    return _f32(1.0) / (_f32(1.0) + exp(_f32(0.0) - x))


def tanh(x: Any) -> Any:
    """Near 0, where 1 - 2 / (e^2x + 1) loses digits, an odd polynomial (Cephes' tanhf)."""
    square = x * x
    near = _f32(-5.70498872745e-3)
    for coefficient in (2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        near = near * square + _f32(coefficient)
    far = _f32(1.0) - _f32(2.0) / (exp(x + x) + _f32(1.0))
    return tirx.Select(tirx.abs(x) < _f32(0.625), near * square * x + x, far)


def erf(x: Any) -> Any:
    """Abramowitz and Stegun 7.1.26, absolute error below 5e-7 in float32."""
    size = tirx.abs(x)
    t = _f32(1.0) / (_f32(1.0) + _f32(0.3275911) * size)
    value = _f32(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        value = value * t + _f32(coefficient)
    value = _f32(1.0) - value * t * exp(_f32(0.0) - size * size)
    return tirx.Select(x < _f32(0.0), _f32(0.0) - value, value)


def activate(activation: Activation, x: Any) -> Any:
    """activation(x) for a float32 expression; see ``Activation`` for the kinds."""
    kind = activation.kind
    if kind == "none":
        return x
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
    assert kind == "gelu", kind
    return _f32(0.5) * x * (_f32(1.0) + erf(x * _f32(math.sqrt(0.5))))
