"""Sums of products of two tensors in Einstein's notation, as one matmul between moves of axes.

Used by ``hwq.onnx_convert``; torch takes its own apart. A constant comes to stand on the right, where a matrix is the
weight of a dense layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod

from tvm import relax

from hwq import relax_tools as rt

_FORM = re.compile(r"([A-Za-z]+),([A-Za-z]+)(?:->([A-Za-z]*))?")


def matmul_of(equation: str, left: rt.Expr, right: rt.Expr, emit: Callable[[rt.Expr], rt.Expr]) -> rt.Expr | None:
    """einsum(equation, left, right); None where it is no product of matrices: with axes that only one of them has and
    the result lacks, that one has twice, or of lengths that are spread, with an ellipsis, and where nothing is summed,
    as where the angles of positions are made."""
    found = _FORM.fullmatch(equation.replace(" ", ""))
    if found is None:
        return None
    one, two, out = found.groups()
    out = _implied(one + two) if out is None else out
    if rt.is_const(left):
        left, right, one, two = right, left, two, one
    pairs = [*zip(one, rt.shape_of(left), strict=True), *zip(two, rt.shape_of(right), strict=True)]
    sizes = dict(pairs)
    common = [axis for axis in one if axis in two]
    batch, summed = [axis for axis in common if axis in out], [axis for axis in common if axis not in out]
    rows, columns = [axis for axis in one if axis not in two], [axis for axis in two if axis not in one]
    if (
        any(sizes[axis] != size for axis, size in pairs)
        or any(len(set(names)) < len(names) for names in (one, two, out))
        or not {*rows, *columns} <= {*out} <= {*sizes}
        or prod(sizes[axis] for axis in summed) < 2
    ):
        return None

    def moved(expr: rt.Expr, names: list[str] | str, order: list[str], shape: list[int]) -> rt.Expr:
        if order != [*names]:
            expr = emit(relax.op.permute_dims(expr, [names.index(axis) for axis in order]))
        return expr if rt.shape_of(expr) == tuple(shape) else emit(relax.op.reshape(expr, shape))

    def lengths(names: list[str]) -> list[int]:
        return [sizes[axis] for axis in names]

    # Without a batch, rows may lie along any number of axes, and are those of one matrix still.
    flat = [prod(lengths(rows))] if batch else lengths(rows) or [1]
    before, depth, width = lengths(batch), prod(lengths(summed)), prod(lengths(columns))
    left = moved(left, one, [*batch, *rows, *summed], [*before, *flat, depth])
    right = moved(right, two, [*batch, *summed, *columns], [*before, depth, width])
    made = [*batch, *rows, *columns]
    product = moved(emit(relax.op.matmul(left, right)), made, made, lengths(made))
    return moved(product, made, [*out], lengths([*out]))


def _implied(names: str) -> str:
    """The axes of a result that is not said: those that come once, sorted."""
    return "".join(sorted(axis for axis in set(names) if names.count(axis) == 1))
