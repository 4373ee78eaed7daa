"""Give activations that are spelled out in arithmetic their one name.

Before:  lv = R.add(x, 3); lv1 = R.clip(lv, 0, 6); lv2 = R.divide(lv1, 6); gv = R.multiply(x, lv2)
After:   gv = hard_swish(x)              a private function of the module with that very body, attribute "activation"

Stands before fold_scale, which would pull the arithmetic apart. Likewise hard_sigmoid; ``x * sigmoid(x)`` becomes
R.nn.silu; GELU by erf R.nn.gelu, by tanh R.nn.gelu_tanh; maximum and minimum by constants, and chains of clips, one
R.clip, from 0 to infinity R.nn.relu; ``maximum(x, a * x)`` and a parametric ReLU of one slope R.nn.leakyrelu. Where a
value in between has another reader, the arithmetic is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import IRModule, ir, relax, tirx
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt
from hwq.arithmetic import polynomial
from hwq.numerics import GELU_CUBIC, GELU_LINEAR


@module_pass(opt_level=0, name="RecognizeActivations")
@dataclass(frozen=True)
class RecognizeActivations:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        named = _Named(builder=relax.BlockBuilder(mod))
        out = rt.rewrite(mod, named.rule)
        called = {value.op for _, value in rt.bindings_of(out) if isinstance(value, ir.Call)}
        for gvar in sorted(called & set(named.made.values()), key=lambda gvar: str(gvar.name_hint)):
            out.update_func(gvar, named.builder.get()[gvar])
        return out


@dataclass(slots=True, kw_only=True)
class _Named:
    """One run: ``builder`` holds the module's functions, the new ones of this run too."""

    builder: relax.BlockBuilder
    made: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def rule(self, value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
        if rt.op_name(value) and not _float(value):
            return None
        op = rt.op_name(value)
        if op in ("maximum", "minimum", "clip", "nn.relu", "nn.relu6", "nn.prelu"):
            return rt.first_of((_clamp, self._hard_sigmoid), value, scope)
        if op in ("multiply", "divide"):
            return rt.first_of((_silu, _gelu, _gelu_tanh, self._hard_sigmoid, self._hard_swish), value, scope)
        return None

    def _hard_sigmoid(self, value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
        """clip(a * x + b, 0, 1), or clip(x + b, 0, c) / c."""
        scale, clip = 1.0, value
        if rt.op_name(value) in ("multiply", "divide"):
            data, scale = _scaled(value)
            made = scope.sole_reader(data, "clip")
            if made is None or scale == 1.0:
                return None
            clip = made
        if (
            rt.op_name(clip) != "clip"
            or float(clip.args[1].value) != 0.0
            or not math.isclose(float(clip.args[2].value) * scale, 1.0, rel_tol=1e-6)
        ):
            return None
        added = scope.sole_reader(clip.args[0], "add")
        if added is None:
            return None
        data, shift = _with_scalar(added)
        if shift is None:
            return None
        product = scope.sole_reader(data, "multiply")
        if product is not None and _with_scalar(product)[1] is not None:
            data, factor = _scaled(product)
            scale *= factor
            shift /= factor
        return (
            self._call(data, "hard_sigmoid", alpha=scale, beta=shift * scale)
            if shift == 3.0 or product is not None
            else None
        )

    def _hard_swish(self, value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
        """x * hard_sigmoid(x, 1/6, 1/2), or x * clip(x + 3, 0, 6) / 6."""
        for data, other in _both(value):
            gate = scope.definition(other)
            if (
                isinstance(gate, ir.Call)
                and gate.args[0].same_as(data)
                and self._is_sixth(gate)
                and scope.readers.get(other) == 1
            ):
                return self._call(data, "hard_swish")
        product, scale = _scaled(value)
        inner = scope.sole_reader(product, "multiply")
        if inner is None or not math.isclose(scale * 6.0, 1.0, rel_tol=1e-6):
            return None
        for data, other in _both(inner):
            clip = scope.sole_reader(other, "clip")
            added = scope.sole_reader(clip.args[0], "add") if clip is not None else None
            if clip is None or added is None or (float(clip.args[1].value), float(clip.args[2].value)) != (0.0, 6.0):
                continue
            if _with_scalar(added)[1] == 3.0 and _with_scalar(added)[0].same_as(data):
                return self._call(data, "hard_swish")
        return None

    def _is_sixth(self, gate: ir.Call) -> bool:
        """Whether a call is hard_sigmoid with the slope and offset of hard_swish."""
        if not isinstance(gate.op, ir.GlobalVar):
            return False
        attrs = self.builder.get()[gate.op].attrs
        if attrs is None or attrs.get("activation") != "hard_sigmoid":
            return False
        alpha, beta = (float(attrs[key].value) for key in ("alpha", "beta"))
        return math.isclose(alpha, 1 / 6, rel_tol=1e-5) and math.isclose(beta, 0.5, rel_tol=1e-5)

    def _call(self, data: rt.Expr, kind: str, **numbers: float) -> rt.Expr:
        """A call of the private function of this kind for tensors of this rank."""
        rank = len(rt.shape_of(data))
        key = (kind, rank, *numbers.items())
        if key not in self.made:
            self.made[key] = self.builder.add_func(_function(kind, rank, numbers), kind)
        return ir.Call(self.made[key], [data])


def _function(kind: str, rank: int, numbers: dict[str, float]) -> Any:
    """The activation as Relax arithmetic on a tensor of any shape of this rank."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([tirx.Var(f"d{axis}", "int64") for axis in range(rank)], "float32"))

    def number(value: float) -> rt.Expr:
        return relax.const(value, "float32")

    with builder.function(kind, [x], private=True):
        with builder.dataflow():
            if kind == "hard_swish":
                gate = relax.op.clip(relax.op.add(x, number(3.0)), 0.0, 6.0)
                body = relax.op.divide(relax.op.multiply(x, gate), number(6.0))
            else:
                scaled = relax.op.multiply(x, number(numbers["alpha"]))
                body = relax.op.clip(relax.op.add(scaled, number(numbers["beta"])), 0.0, 1.0)
            out = builder.emit_output(body)
        builder.emit_func_output(out)
    func = builder.get()[kind]
    attrs = {key: tirx.const(value, "float64") for key, value in numbers.items()}
    return func.with_attrs({"activation": kind, **attrs})


def _float(value: rt.Expr) -> bool:
    return isinstance(value.ty, relax.TensorType) and rt.dtype_of(value) == "float32"


def _both(value: rt.Expr) -> list[tuple[rt.Expr, rt.Expr]]:
    left, right = value.args
    return [(left, right), (right, left)]


def _with_scalar(value: rt.Expr) -> tuple[rt.Expr, float | None]:
    """(tensor, number) of a commutative operator with one number; the number is None where there is none."""
    for data, other in _both(value):
        number = rt.scalar_of(other)
        if number is not None and not rt.is_const(data) and rt.shape_of(data) == rt.shape_of(value):
            return data, number
    return value.args[0], None


def _scaled(value: rt.Expr) -> tuple[rt.Expr, float]:
    """``value`` as (tensor, factor); the factor is 1 where it is not a product with, or quotient by, a number."""
    if rt.op_name(value) == "multiply":
        data, number = _with_scalar(value)
        return (data, number) if number is not None else (value, 1.0)
    if rt.op_name(value) == "divide":
        number = rt.scalar_of(value.args[1])
        if number and not rt.is_const(value.args[0]) and rt.shape_of(value.args[0]) == rt.shape_of(value):
            return value.args[0], 1.0 / number
    return value, 1.0


def _bounds(value: rt.Expr) -> tuple[rt.Expr, float, float] | None:
    """(tensor, lo, hi) of whatever clamps."""
    op = rt.op_name(value)
    if op == "clip":
        return value.args[0], float(value.args[1].value), float(value.args[2].value)
    if op in ("nn.relu", "nn.relu6"):
        return value.args[0], 0.0, 6.0 if op == "nn.relu6" else math.inf
    if op in ("maximum", "minimum"):
        data, number = _with_scalar(value)
        if number is not None:
            return (data, number, math.inf) if op == "maximum" else (data, -math.inf, number)
    return None


def _clamp(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    """One clip or relu for clamps, leaky ReLU for the slopes."""
    op = rt.op_name(value)
    if op == "nn.prelu":
        slopes = rt.value_of(value.args[1]) if rt.is_const(value.args[1]) else np.array([])
        return (
            relax.op.nn.leakyrelu(value.args[0], float(slopes.flat[0]))
            if slopes.size and (slopes == slopes.flat[0]).all()
            else None
        )
    found = _bounds(value)
    if found is None:
        return _leaky(value, scope) if op == "maximum" else None
    data, lo, hi = found
    made = scope.definition(data)
    inner = _bounds(made) if isinstance(made, ir.Call) and _float(made) and scope.readers.get(data) == 1 else None
    if inner is not None:
        data, lo, hi = inner[0], min(max(inner[1], lo), hi), min(max(inner[2], lo), hi)
    if (lo, hi) == (0.0, math.inf):
        return None if op == "nn.relu" and inner is None else relax.op.nn.relu(data)
    return None if op == "clip" and inner is None else relax.op.clip(data, lo, hi)


def _leaky(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    for data, other in _both(value):
        product = scope.sole_reader(other, "multiply")
        if product is not None:
            source, slope = _scaled(product)
            if source.same_as(data) and 0.0 <= slope < 1.0:
                return relax.op.nn.leakyrelu(data, slope)
    return None


def _silu(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    if rt.op_name(value) != "multiply":
        return None
    for data, other in _both(value):
        gate = scope.sole_reader(other, "sigmoid")
        if gate is not None and gate.args[0].same_as(data):
            return relax.op.nn.silu(data)
    return None


def _gelu(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    """x / 2 * (1 + erf(x / sqrt 2)), its factors in any order."""
    found = _gated(value, scope, "erf")
    if found is None:
        return None
    data, inner = found
    inside = polynomial(inner, data, scope)
    exact = inside is not None and set(inside) == {1} and math.isclose(inside[1], math.sqrt(0.5), rel_tol=1e-4)
    return relax.op.nn.gelu(data) if exact else None


def _gelu_tanh(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))), its factors in any order."""
    found = _gated(value, scope, "tanh")
    if found is None:
        return None
    data, inner = found
    inside = polynomial(inner, data, scope)
    wanted = {1: GELU_LINEAR, 3: GELU_CUBIC}
    exact = inside is not None and {at for at, factor in inside.items() if factor} == set(wanted)
    close = exact and all(math.isclose((inside or {})[at], factor, rel_tol=1e-4) for at, factor in wanted.items())
    return relax.op.nn.gelu_tanh(data) if close else None


def _gated(value: rt.Expr, scope: rt.Scope, op: str) -> tuple[rt.Expr, rt.Expr] | None:
    """(x, y) of x / 2 * (1 + op(y)), its factors in any order; None for anything else."""
    scale, factors = 1.0, list[rt.Expr]()
    _factors(value, scope, factors)
    gate = None
    rest = []
    for factor in factors:
        number = rt.scalar_of(factor)
        added = scope.sole_reader(factor, "add")
        if number is not None:
            scale *= number
        elif added is not None and _with_scalar(added)[1] == 1.0 and gate is None:
            gate = scope.sole_reader(_with_scalar(added)[0], op)
        else:
            rest.append(factor)
    if gate is None or len(rest) != 1 or not math.isclose(scale, 0.5, rel_tol=1e-6):
        return None
    return rest[0], gate.args[0]


def _factors(value: rt.Expr, scope: rt.Scope, found: list[rt.Expr]) -> None:
    """The leaves of a tree of products that nothing else reads into."""
    for arg in value.args if rt.op_name(value) == "multiply" else ():
        product = scope.sole_reader(arg, "multiply")
        if product is not None:
            _factors(product, scope, found)
        else:
            found.append(arg)
