"""Follow: which elements of one tensor another is made of, through moves, products with constants, and sums.

How the passes that recognize rotary positions and repeated heads read them, however they are spelled: not the operators
are compared, but what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import ir, relax

from hwq import relax_tools as rt
from hwq.relax_numpy import MOVES, moved, tensors_of

# More operators than any spelling of what is looked for has.
_MOST = 48
# Elements beyond which nothing is followed.
_LARGEST = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Term:
    """One summand: each element is that of the source at ``index`` (flat) times ``factor``; both of the sum's shape."""

    index: rt.Array
    factor: rt.Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made:
    """What a tensor is made of: operators in order, and the one variable that they start from."""

    source: rt.Expr
    steps: tuple[tuple[rt.Expr, rt.Expr], ...]

    def stems(self) -> list[rt.Expr]:
        """The source, and the variables after it through which, one after another, all comes."""
        found = [self.source]
        while True:
            readers = [(var, value) for var, value in self.steps if any(found[-1].same_as(arg) for arg in _read(value))]
            if len(readers) != 1 or not _moves(readers[0][1]) or isinstance(readers[0][0].ty, relax.TupleType):
                return found
            found.append(readers[0][0])


def made_of(expr: rt.Expr, scope: rt.Scope, *, moves_only: bool = False, value: Any = None) -> Made | None:
    """Follow ``expr`` (whose definition is ``value`` where it has no binding yet) down to one variable that all of it
    comes from; None where there are several, or none.
    """
    steps: dict[rt.Expr, rt.Expr] = {}
    leaves: list[rt.Expr] = []

    def visit(var: rt.Expr, made: Any) -> bool:
        if var in steps:
            return True
        if made is None or not (_moves(made) or (not moves_only and _linear(made))):
            if not any(var.same_as(leaf) for leaf in leaves):
                leaves.append(var)
            return len(leaves) == 1
        if len(steps) > _MOST or not all(visit(arg, scope.definition(arg)) for arg in _read(made)):
            return False
        steps[var] = made
        return True

    if not visit(expr, scope.definition(expr) if value is None else value) or len(leaves) != 1:
        return None
    return Made(source=leaves[0], steps=tuple(steps.items()))


def terms_of(made: Made, source: rt.Expr, most: int = 2) -> list[Term] | None:
    """What the last step is in elements of ``source``, one of ``made.stems()``; None where that takes more than
    ``most`` terms, or is not known.
    """
    size = int(np.prod(rt.shape_of(source), dtype=np.int64))
    if size > _LARGEST:
        return None
    start = Term(
        index=np.arange(size, dtype=np.int32).reshape(rt.shape_of(source)), factor=np.ones(rt.shape_of(source))
    )
    found: dict[rt.Expr, Any] = {source: [start]}
    for var, value in made.steps:
        if var in found or not all(arg in found for arg in _read(value)):
            continue
        result = _step(value, found)
        if result is None or (isinstance(result, list) and len(result) > most):
            return None
        found[var] = result
    return found.get(made.steps[-1][0])


def _read(value: rt.Expr) -> list[rt.Expr]:
    """The variables that a step reads."""
    if isinstance(value, relax.TupleGetItem):
        return [value.tuple_value]
    return [arg for arg in tensors_of(value) if not rt.is_const(arg)]


def _moves(value: Any) -> bool:
    if isinstance(value, relax.TupleGetItem):
        return True  # of a split, or what reads it is the end
    op = rt.op_name(value)
    if op not in MOVES:
        return False
    consts = [rt.is_const(arg) for arg in tensors_of(value)]
    return consts == [False, True] if op == "take" else not any(consts)


def _linear(value: Any) -> bool:
    op = rt.op_name(value)
    if op == "negative":
        return True
    if op not in ("add", "subtract", "multiply", "divide"):
        return False
    left, right = value.args
    if op in ("add", "subtract"):
        return not (rt.is_const(left) or rt.is_const(right)) and rt.shape_of(left) == rt.shape_of(right)
    data = left if rt.is_const(right) else right
    return (
        rt.is_const(left) != rt.is_const(right)
        and (op == "multiply" or rt.is_const(right))
        and rt.shape_of(data) == rt.shape_of(value)
        and rt.dtype_of(data) == "float32"
    )


def _step(value: rt.Expr, found: dict[rt.Expr, Any]) -> Any:
    """The terms of one step (for a split a list of them for each part), None where they are not known."""
    if isinstance(value, relax.TupleGetItem):
        parts = found[value.tuple_value]
        return parts[value.index] if isinstance(parts, tuple) else None
    op = rt.op_name(value)
    if op in MOVES:
        return _moved(value, [found[arg] for arg in _read(value)])
    if op == "negative":
        return [Term(index=term.index, factor=-term.factor) for term in found[value.args[0]]]
    left, right = value.args
    if op in ("add", "subtract"):
        sign = 1.0 if op == "add" else -1.0
        return [*found[left], *(Term(index=term.index, factor=sign * term.factor) for term in found[right])]
    data, number = (left, right) if rt.is_const(right) else (right, left)
    factor = rt.value_of(number).astype(np.float64)
    if op == "divide":
        if not factor.all():
            return None
        factor = 1.0 / factor
    return [Term(index=term.index, factor=term.factor * factor) for term in found[data]]


def _moved(value: ir.Call, inputs: list[list[Term]]) -> Any:
    """The terms of a move; where its inputs have unlike numbers of terms, those of fewer get terms of factor 0."""
    if any(isinstance(item, tuple) for item in inputs):
        return None
    count = max(len(terms) for terms in inputs)
    shapes = [terms[0].index.shape for terms in inputs]
    extra = [rt.value_of(arg) for arg in tensors_of(value) if rt.is_const(arg)]
    results = []
    for at in range(count):
        full = [
            terms[at] if at < len(terms) else Term(index=np.zeros(shape, np.int32), factor=np.zeros(shape))
            for terms, shape in zip(inputs, shapes, strict=True)
        ]
        index = moved(value, [*(term.index for term in full), *extra])
        factor = moved(value, [*(term.factor for term in full), *extra])
        if index is None or factor is None:
            return None
        results.append((index, factor))
    if rt.op_name(value) == "split":
        return tuple(
            [Term(index=index[part], factor=factor[part]) for index, factor in results]
            for part in range(len(results[0][0]))
        )
    return [Term(index=index, factor=factor) for index, factor in results]
