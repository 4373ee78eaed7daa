"""What a value is in arithmetic: products with numbers, squares, roots, means. What the passes that recognize share.

Everything here looks at a binding's value, and at the definitions of what it reads; nothing is changed.
"""

from __future__ import annotations

import itertools
from typing import Any

from tvm import ir

from hwq import relax_tools as rt

_COMMUTE = ("add", "multiply", "maximum", "minimum")


def orders(value: ir.Call) -> list[tuple[rt.Expr, rt.Expr]]:
    """The two arguments of a binary operator, in both orders where it commutes."""
    left, right = value.args
    return [(left, right), (right, left)] if rt.op_name(value) in _COMMUTE else [(left, right)]


def scaled(value: Any) -> tuple[rt.Expr, float] | None:
    """(tensor, factor) of a product with a number, a quotient by one, or a negation; None for anything else."""
    op = rt.op_name(value)
    if op == "negative":
        return value.args[0], -1.0
    if op not in ("multiply", "divide"):
        return None
    for data, other in orders(value):
        number = rt.scalar_of(other)
        if number is None or rt.is_const(data) or rt.shape_of(data) != rt.shape_of(value):
            continue
        if op == "multiply":
            return data, number
        return (data, 1.0 / number) if number else None
    return None


def added_number(value: Any) -> tuple[rt.Expr, float] | None:
    """(tensor, number) of a sum with a number; None for anything else."""
    for data, other in orders(value) if rt.op_name(value) == "add" else []:
        number = rt.scalar_of(other)
        if number is not None and not rt.is_const(data) and rt.shape_of(data) == rt.shape_of(value):
            return data, number
    return None


def mean_of(expr: rt.Expr, scope: rt.Scope) -> Any:
    """What ``expr`` is the mean of along its last axis, which stays; None where it is none."""
    made = scope.definition(expr)
    if rt.op_name(made) != "mean" or made.attrs.axis is None or not made.attrs.keepdims:
        return None
    return made.args[0] if rt.ints(made.attrs.axis) in ((-1,), (len(rt.shape_of(made)) - 1,)) else None


def square_of(expr: rt.Expr, scope: rt.Scope) -> Any:
    """What ``expr`` is the square of, else None."""
    made = scope.definition(expr)
    op = rt.op_name(made)
    if op == "square" or (op == "power" and rt.scalar_of(made.args[1]) == 2.0):
        return made.args[0]
    return made.args[0] if op == "multiply" and made.args[0].same_as(made.args[1]) else None


def root_of(expr: rt.Expr, scope: rt.Scope) -> Any:
    """What ``expr`` is the square root of, else None."""
    made = scope.definition(expr)
    if rt.op_name(made) == "sqrt" or (rt.op_name(made) == "power" and rt.scalar_of(made.args[1]) == 0.5):
        return made.args[0]
    return None


def inverse_root_of(expr: rt.Expr, scope: rt.Scope) -> Any:
    """What ``expr`` is 1 over the square root of, else None."""
    made = scope.definition(expr)
    op = rt.op_name(made)
    if op == "rsqrt" or (op == "power" and rt.scalar_of(made.args[1]) == -0.5):
        return made.args[0]
    if op == "power" and rt.scalar_of(made.args[1]) == -1.0:
        return root_of(made.args[0], scope)
    if op == "divide" and rt.scalar_of(made.args[0]) == 1.0:
        return root_of(made.args[1], scope)
    return None


def under_root(value: Any, scope: rt.Scope) -> list[tuple[rt.Expr, rt.Expr]]:
    """(numerator, what stands under the square root) for each way to read ``value`` as x / sqrt(y), or x * y^-0.5."""
    op = rt.op_name(value)
    found = []
    for data, other in orders(value) if op in ("multiply", "divide") else []:
        inner = inverse_root_of(other, scope) if op == "multiply" else root_of(other, scope)
        if inner is not None:
            found.append((data, inner))
    return found


def polynomial(expr: rt.Expr, x: rt.Expr, scope: rt.Scope) -> dict[int, float] | None:
    """``expr`` as a polynomial in ``x``: degree -> coefficient; None where it is none, or of a degree above 8."""
    if expr.same_as(x):
        return {1: 1.0}
    number = rt.scalar_of(expr)
    if number is not None:
        return {0: number}
    value = scope.definition(expr)
    op = rt.op_name(value)
    if op == "square":
        parts = [polynomial(value.args[0], x, scope)] * 2
    elif op == "power":
        exponent = rt.scalar_of(value.args[1])
        if exponent not in (2.0, 3.0):
            return None
        parts = [polynomial(value.args[0], x, scope)] * int(exponent)
    elif op in ("add", "subtract", "multiply", "divide"):
        parts = [polynomial(arg, x, scope) for arg in value.args]
    else:
        return None
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if op in ("add", "subtract"):
        sign = 1.0 if op == "add" else -1.0
        return {at: known[0].get(at, 0.0) + sign * known[1].get(at, 0.0) for at in {*known[0], *known[1]}}
    if op == "divide":
        if set(known[1]) != {0} or not known[1][0]:
            return None
        known[1] = {0: 1.0 / known[1][0]}
    product = {0: 1.0}
    for part in known:
        terms: dict[int, float] = {}
        for (a, left), (b, right) in itertools.product(product.items(), part.items()):
            terms[a + b] = terms.get(a + b, 0.0) + left * right
        product = terms
    return product if max(product) <= 8 else None
