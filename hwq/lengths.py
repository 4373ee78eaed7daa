"""Lengths that vary: dimensions of tensors that are at most so long, and what follows from them for shapes and steps.

A network for sequences of any length up to a most is the network of the most, whose kernels are told at run time how
many tokens there are (``hwq.schedules.cut``). A ``Length`` in a shape says so: to all that knows nothing of it, it is
the whole number that it is at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.errors import HwqError
from hwq.graph import SPAN, Graph, Shape
from hwq.workload import Workload

Array = npt.NDArray[Any]
# input name -> axis -> (least, most)
Dynamic = Mapping[str, Mapping[int, tuple[int, int]]]
# input name -> axis -> how long it is
Lengths = Mapping[str, Mapping[int, int]]
NO_LENGTHS: Lengths = MappingProxyType({})

# The inputs that a program of such a network takes besides its own: how many tokens there are, int32 (1,), and how many
# queries and keys attention has, int32 (2,).
COUNT = "@tokens"
EXTRA: Mapping[str, tuple[Shape, str]] = {COUNT: ((1,), "int32"), SPAN: ((2,), "int32")}


class Length(int):
    """A dimension of at most ``tokens`` and at least ``least`` tokens, each of ``inner`` rows; as a number the most."""

    tokens: int
    least: int
    inner: int

    def __new__(cls, tokens: int, least: int = 1, inner: int = 1) -> Length:
        """The dimension."""
        made = super().__new__(cls, tokens * inner)
        made.tokens, made.least, made.inner = tokens, least, inner
        return made

    def __getnewargs__(self) -> tuple[int, int, int]:  # type: ignore[override]
        """For copies."""
        return self.tokens, self.least, self.inner


def lengths_of(shapes: Iterable[Shape]) -> list[Length]:
    """Every length that varies in some shapes."""
    return [size for shape in shapes for size in shape if isinstance(size, Length)]


def plain(shape: Shape) -> Shape:
    """``shape`` with ordinary numbers."""
    return tuple(int(size) for size in shape)


def plain_graph(graph: Graph) -> Graph:
    """``graph`` with ordinary numbers in all shapes."""
    layers = tuple(
        replace(
            layer,
            input_shapes=tuple(plain(shape) for shape in layer.input_shapes),
            output_shape=plain(layer.output_shape),
        )
        for layer in graph.layers
    )
    return replace(graph, layers=layers, shapes={name: plain(shape) for name, shape in graph.shapes.items()})


def leading(shape: Shape) -> Length | None:
    """The length before which ``shape`` has nothing but 1s, so that its first tokens come first in memory."""
    for size in shape:
        if isinstance(size, Length):
            return size
        if size != 1:
            return None
    return None


def cut_to(value: Array, shape: Shape, tokens: int | None) -> Array:
    """``value``, which has ``shape``, as far as there are ``tokens`` in it; whole where ``tokens`` is None."""
    if tokens is None:
        return value
    return value[tuple(slice(tokens * size.inner) if isinstance(size, Length) else slice(None) for size in shape)]


def filled_up(value: Array, shape: Shape) -> Array:
    """``value`` in an array of ``shape``, zeros behind it."""
    if value.shape == shape:
        return value
    whole = np.zeros(plain(shape), value.dtype)
    whole[tuple(slice(size) for size in value.shape)] = value
    return whole


def counts(tokens: int) -> dict[str, Array]:
    """The inputs EXTRA for so many tokens."""
    return {COUNT: np.array([tokens], np.int32), SPAN: np.array([tokens, tokens], np.int32)}


def count_at_most(name: str, workload: Workload) -> Array | None:
    """What the input ``name`` of a kernel is where all tokens are there; None for one that is not of EXTRA."""
    if name == COUNT:
        return np.array([workload.cut], np.int32)
    if name == SPAN:
        if workload.op == "rows_at":
            return np.array([1, workload.attr("rows")], np.int32)
        keys = workload.input_shapes[1] if "attention" in workload.op else workload.output_shape
        return np.array([workload.input_shapes[0][1], keys[1]], np.int32)
    return None


def check_dynamic(dynamic: Any) -> Dynamic:
    """``dynamic`` as input name -> axis -> (least, most): all one range. Raises HwqError "dynamic-invalid"."""
    accepted = "input name -> axis -> (least, most), as {'input_ids': {1: (1, 256)}}, one range for all"
    try:
        found = {str(name): dict(axes) for name, axes in dict(dynamic).items()}
        found = {
            name: {int(axis) if isinstance(axis, str) else axis: (least, most) for axis, (least, most) in axes.items()}
            for name, axes in found.items()
        }
    except (TypeError, ValueError) as error:
        raise HwqError("dynamic-invalid", f"dynamic is {dynamic!r}; accepted: {accepted}") from error
    numbers = [each for axes in found.values() for axis, pair in axes.items() for each in (axis, *pair)]
    if not all(isinstance(each, int | np.integer) and not isinstance(each, bool) for each in numbers):
        raise HwqError("dynamic-invalid", f"dynamic is {dynamic!r}; accepted: {accepted}, whole numbers")
    whole = {
        name: {int(axis): (int(least), int(most)) for axis, (least, most) in axes.items()}
        for name, axes in found.items()
    }
    ranges = {pair for axes in whole.values() for pair in axes.values()}
    one_axis = all(len(axes) == 1 for axes in whole.values())
    if not one_axis or len(ranges) != 1 or not all(1 <= least < most for least, most in ranges):
        raise HwqError("dynamic-invalid", f"dynamic is {dynamic!r}; accepted: {accepted}, 1 <= least < most")
    return whole


def check_axes(axes: Mapping[str, Iterable[int]], ranks: Mapping[str, int | None]) -> None:
    """Raises HwqError "dynamic-invalid" for inputs of ``axes`` that ``ranks`` (input name -> number of axes, None where
    it is not known) lacks, and for axes that they lack.
    """
    for name, wanted in axes.items():
        if name not in ranks:
            listed = ", ".join(map(repr, ranks))
            raise HwqError("dynamic-invalid", f"dynamic names input {name!r}; accepted: {listed}")
        rank = ranks[name]
        for axis in wanted:
            if rank is not None and not 0 <= axis < rank:
                accepted = f"0 to {rank - 1}" if rank else "none, it is one number"
                message = f"dynamic names axis {axis} of input {name!r}; accepted: {accepted}"
                raise HwqError("dynamic-invalid", message)


def cut_steps(steps: Iterable[Any], values: Mapping[str, tuple[Shape, str]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Steps of ``hwq.lower`` whose kernels compute the tokens that are there, and the values with those inputs.

    As they are where no length varies. A kernel is cut where the first tokens of its output come first in memory;
    others compute all, whatever it is that lies behind.
    """
    known = dict(values)
    if not lengths_of(shape for shape, _ in known.values()):
        return tuple(steps), known
    known |= EXTRA
    made = []
    for step in steps:
        shape, dtype = known[step.output]
        tensor, _, form = step.output.partition("@")
        base = leading(known[tensor][0]) if tensor in known else None
        if form in ("rows", "scales") and base is not None and not lengths_of([shape]):
            shape = (Length(base.tokens, base.least, shape[0] // base.tokens), *shape[1:])
            known[step.output] = shape, dtype
        made.append(step if step.workload is None else _cut(step, known))
    return tuple(made), known


def _cut(step: Any, values: Mapping[str, tuple[Shape, str]]) -> Any:
    """The step with its kernel cut, if it can be."""
    workload = cut_workload(step.workload, values[step.output][0])
    more = (SPAN,) if len(workload.input_shapes) > len(step.workload.input_shapes) else (COUNT,) if workload.cut else ()
    return replace(step, workload=workload, inputs=(*step.inputs, *more))


def cut_workload(workload: Workload, written: Shape) -> Workload:
    """The kernel as a network has it whose lengths vary, where it writes a tensor of the shape ``written``, or another
    form of that; as it is where none does."""
    found = replace(
        workload,
        input_shapes=tuple(plain(shape) for shape in workload.input_shapes),
        output_shape=plain(workload.output_shape),
    )
    if found.op == "attention":
        if not lengths_of([written]) or dict(found.attrs).get("cut"):
            return found
        attrs = tuple(sorted({**dict(found.attrs), "cut": True}.items()))
        return replace(found, attrs=attrs, input_shapes=(*found.input_shapes, EXTRA[SPAN][0]))
    length = leading(workload.input_shapes[0] if found.op == "reduce" else written)
    return found if length is None else replace(found, cut=length.tokens)
