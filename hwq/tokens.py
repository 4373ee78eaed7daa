"""Tokens: which axis of every tensor runs along the sequence, and what each layer does with it.

The analysis behind sequences of any length in one artifact, and behind step-wise decoding. It follows the token axis
from the network's inputs through its layers. A layer that computes every token's rows from that token's rows alone is
right for any number of tokens, computed on few of them; attention, and reductions over tokens, have their own rules;
whatever else mixes tokens is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hwq.errors import HwqError
from hwq.graph import Graph, Layer, Shape
from hwq.lengths import Dynamic, Length, check_axes, plain
from hwq.token_func import Axes, MixedError, TokenAxis, follow

# What a layer does: "rows" computes each token's values from that token's alone; "view" keeps memory as it is;
# "attention" mixes by its own rule; "reduce" reduces over tokens; "still" has no tokens in what it writes nor, but for
# those that are always there, in what it reads.
RULES = ("rows", "view", "attention", "reduce", "still")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The token axes of a graph's tensors, of ``most`` tokens in its shapes; a tensor that has none is not in ``axes``.

    rules: layer -> one of RULES.
    """

    most: int
    axes: Mapping[str, Axes]
    rules: Mapping[str, str]

    def leading(self, tensor: str, shape: Shape) -> int | None:
        """Rows of a token in ``tensor`` of ``shape``, where nothing but 1s stands before its token axis: its first
        n tokens are then its first n x rows in memory. None where something does, or it has none.
        """
        axes = self.axes.get(tensor, ())
        first = min(axes, key=lambda one: one.axis, default=None)
        if first is None or math.prod(shape[: first.axis]) != 1:
            return None
        return first.inner


def find_tokens(graph: Graph, inputs: Mapping[str, int], least: int = 1) -> Tokens:
    """Follow the token axes, ``inputs`` (input name -> axis), through ``graph``.

    least: how many tokens there are always; a layer may read these by number. Raises HwqError "dynamic-invalid" for
    inputs or axes that the graph lacks, or of different lengths, and "tokens-mixed" naming the layer that mixes tokens.
    """
    most = _length(graph, inputs)
    axes: dict[str, Axes] = {name: (TokenAxis(axis=axis),) for name, axis in inputs.items()}
    rules: dict[str, str] = {}
    for layer in graph.layers:
        given = [axes.get(tensor, ()) for tensor in layer.inputs]
        if not any(given):
            rules[layer.name] = "still"
            continue
        rule = _RULES.get(layer.op, _mixes)
        try:
            rules[layer.name], found = rule(layer, given, most, least)
        except MixedError as reason:
            raise HwqError(
                "tokens-mixed",
                f"layer {layer.name!r} ({_kind(layer)}) cannot run on sequences of any length: {reason}; accepted: "
                "layers that compute each token by itself, attention, and reductions over tokens",
            ) from reason
        if found:
            axes[layer.output] = found
        elif rules[layer.name] == "rows":
            rules[layer.name] = "still"
    return Tokens(most=most, axes=axes, rules=rules)


def with_lengths(graph: Graph, names: Mapping[str, str], dynamic: Dynamic) -> Graph:
    """``graph`` with lengths that vary in the shapes of all tensors that have tokens.

    names: the caller's names of inputs -> the graph's tensors. Raises HwqError "dynamic-invalid" where the network was
    loaded with another length than the most, and as ``find_tokens``.
    """
    ((least, most),) = {pair for axes in dynamic.values() for pair in axes.values()}
    check_axes(dynamic, {name: len(graph.shapes[tensor]) for name, tensor in names.items()})
    for name, axes in dynamic.items():
        ((axis, _),) = axes.items()
        shape = graph.shapes[names[name]]
        if shape[axis] != most:
            message = (
                f"dynamic gives axis {axis} of input {name!r} at most {most}, and the network was loaded with "
                f"{shape[axis]}; accepted: {shape[axis]}, or hwq.load with that axis {most} long (shapes=, of a torch "
                "module example_inputs)"
            )
            raise HwqError("dynamic-invalid", message)
        if any(size != 1 for size in shape[:axis]):
            message = (
                f"dynamic gives axis {axis} of input {name!r}, whose shape is {plain(shape)}; accepted: an axis with "
                "nothing but 1s before it, so a batch of one"
            )
            raise HwqError("dynamic-invalid", message)
    tokens = find_tokens(graph, {names[name]: next(iter(axes)) for name, axes in dynamic.items()}, least)

    def varied(tensor: str, shape: Shape) -> Shape:
        inner = {one.axis: one.inner for one in tokens.axes.get(tensor, ())}
        return tuple(
            Length(most, least, inner[axis]) if axis in inner else int(size) for axis, size in enumerate(shape)
        )

    layers = tuple(
        replace(
            layer,
            input_shapes=tuple(
                varied(name, shape) for name, shape in zip(layer.inputs, layer.input_shapes, strict=True)
            ),
            output_shape=varied(layer.output, layer.output_shape),
        )
        for layer in graph.layers
    )
    shapes = {name: varied(name, shape) for name, shape in graph.shapes.items()}
    return replace(graph, layers=layers, shapes=shapes)


def _length(graph: Graph, inputs: Mapping[str, int]) -> int:
    """The length that the token axes of all inputs have in the graph."""
    check_axes(
        {name: [axis] for name, axis in inputs.items()}, {name: len(graph.shapes[name]) for name in graph.inputs}
    )
    lengths = {name: graph.shapes[name][axis] for name, axis in inputs.items()}
    if len(set(lengths.values())) != 1:
        raise HwqError("dynamic-invalid", f"dynamic axes have lengths {lengths} in the network; accepted: one length")
    return next(iter(lengths.values()))


def _kind(layer: Layer) -> str:
    return str(layer.attrs["operator"]) if layer.op == "float" else layer.op


# Rules of operators: (layer, token axes of its inputs, most, least) -> (rule, token axes of its output)

Found = tuple[str, Axes]


def _mixes(layer: Layer, given: Sequence[Axes], most: int, least: int) -> Found:
    raise MixedError("it mixes them, or it is not known whether it does")


def _joined(layer: Layer, given: Sequence[Axes]) -> Axes:
    """The token axes of elements that broadcast; each input that is as long there must have them."""
    rank = len(layer.output_shape)
    found: dict[int, int] = {}
    for axes, shape in zip(given, layer.input_shapes, strict=True):
        for one in axes:
            at = one.axis + rank - len(shape)
            if found.setdefault(at, one.inner) != one.inner:
                raise MixedError("it joins tensors that lay tokens out differently")
    for axes, shape in zip(given, layer.input_shapes, strict=True):
        shift = rank - len(shape)
        own = {one.axis + shift for one in axes}
        if any(at >= shift and at not in own and shape[at - shift] != 1 for at in found):
            raise MixedError("it joins tokens with an axis whose length does not vary")
    return tuple(TokenAxis(axis=at, inner=inner) for at, inner in sorted(found.items()))


def _elementwise(layer: Layer, given: Sequence[Axes], most: int, least: int) -> Found:
    return "rows", _joined(layer, given)


def _along(*axes: Callable[[Layer], int]) -> Callable[[Layer, Sequence[Axes], int, int], Found]:
    """The rule of operators that mix values along these axes, and along no other."""

    def rule(layer: Layer, given: Sequence[Axes], most: int, least: int) -> Found:
        mixed = {axis(layer) for axis in axes}
        found = _joined(layer, given)
        if any(one.axis in mixed for one in found):
            raise MixedError("it mixes tokens")
        return "rows", found

    return rule


def _last(layer: Layer) -> int:
    return len(layer.output_shape) - 1


def _planes(layer: Layer, given: Sequence[Axes], most: int, least: int) -> Found:
    """Convolutions and pools mix channels (not depthwise), and along an axis of the plane where windows move."""
    attrs = layer.attrs
    padding = attrs["padding"]
    mixed = set() if layer.op == "depthwise_conv2d" or "pool" in layer.op else {3}
    for i in (0, 1):
        if attrs["kernel"][i] != 1 or attrs["strides"][i] != 1 or padding[i] or padding[i + 2]:
            mixed.add(1 + i)
    found = _joined(layer, given)
    if any(one.axis in mixed for one in found):
        raise MixedError("it mixes tokens")
    return "rows", found


def _gather(layer: Layer, given: Sequence[Axes], most: int, least: int) -> Found:
    return "rows", given[0]


def _view(layer: Layer, given: Sequence[Axes], most: int, least: int) -> Found:
    return "view", tuple(reshaped(one, layer.input_shapes[0], layer.output_shape, most) for one in given[0])


def reshaped(one: TokenAxis, before: Shape, after: Shape, most: int) -> TokenAxis:
    """Where a token axis of ``most`` tokens is after a reshape. Raises MixedError where no axis is left to them."""
    outside = math.prod(before[: one.axis])
    places = [axis for axis in range(len(after)) if after[axis] % most == 0 and math.prod(after[:axis]) == outside]
    for axis in sorted(places, key=lambda axis: after[axis] != most):
        return TokenAxis(axis=axis, inner=after[axis] // most)
    raise MixedError(f"it tears tokens apart, reshaping {before} to {after}")


def _transpose(layer: Layer, given: Sequence[Axes], most: int, least: int) -> Found:
    order = [int(axis) for axis in layer.attrs["axes"]]
    found = [TokenAxis(axis=order.index(one.axis), inner=one.inner) for one in given[0]]
    return "rows", tuple(sorted(found, key=lambda one: one.axis))


def _slice(layer: Layer, given: Sequence[Axes], most: int, least: int) -> Found:
    """Whole along tokens; or of tokens that are always there."""
    kept = []
    for one in given[0]:
        begin, end, step = (layer.attrs[key][one.axis] for key in ("begin", "end", "strides"))
        if (begin, end, step) == (0, layer.input_shapes[0][one.axis], 1):
            kept.append(one)
        elif end > least * one.inner:
            raise MixedError(f"it takes tokens by their number, {begin} to {end - 1}, and there may be {least}")
    return "rows", tuple(kept)


def _concat(layer: Layer, given: Sequence[Axes], most: int, least: int) -> Found:
    """Beside each other, token by token."""
    axis = layer.attrs["axis"]
    if any(one.axis == axis for axes in given for one in axes):
        raise MixedError("it joins sequences one behind the other")
    return "rows", _joined(layer, given)


def _pad(layer: Layer, given: Sequence[Axes], most: int, least: int) -> Found:
    if any(any(layer.attrs["pads"][one.axis]) for one in given[0]):
        raise MixedError("it pads sequences")
    return "rows", given[0]


def _reduce(layer: Layer, given: Sequence[Axes], most: int, least: int) -> Found:
    """Over tokens, and no other axis with them. Its axes lie behind 1s only, so tokens beside them lie behind them."""
    axes = layer.attrs["axes"]
    if not any(one.axis in axes for one in given[0]):
        raise MixedError("it reduces beside tokens")
    if len(given[0]) > 1 or len(axes) > 1:
        raise MixedError("it reduces over tokens and another axis at once")
    return "reduce", ()


def _attention(layer: Layer, given: Sequence[Axes], most: int, least: int) -> Found:
    """q, k, v (1, tokens, channels), and a bias along keys, or queries and keys."""
    if any(axes != (TokenAxis(axis=1),) for axes in given[:3]) or layer.input_shapes[0][0] != 1:
        raise MixedError("its queries, keys and values are not one batch of whole sequences")
    if any(one.axis not in (2, 3) or one.inner != 1 for axes in given[3:] for one in axes):
        raise MixedError("its bias has tokens along another axis than those of queries and keys")
    for axes, shape in zip(given[3:], layer.input_shapes[3:], strict=True):
        if not axes and shape[3] != 1:
            raise MixedError("its bias has a length that does not vary")
    return "attention", (TokenAxis(axis=1),)


def _float(layer: Layer, given: Sequence[Axes], most: int, least: int) -> Found:
    found = follow(layer.func, given, least)
    if any(layer.output_shape[one.axis] != most * one.inner for one in found):
        raise MixedError("it makes sequences longer or shorter")
    return "rows", found


_RULES: Mapping[str, Callable[[Layer, Sequence[Axes], int, int], Found]] = {
    "dense": _along(_last),
    "conv2d": _planes,
    "depthwise_conv2d": _planes,
    "max_pool2d": _planes,
    "avg_pool2d": _planes,
    "resize_nearest": _along(lambda layer: 1, lambda layer: 2),
    "resize_linear": _along(lambda layer: 1, lambda layer: 2),
    "add": _elementwise,
    "multiply": _elementwise,
    "unary": _elementwise,
    "softmax": _along(lambda layer: int(layer.attrs["axis"])),
    "layer_norm": _along(_last),
    "rms_norm": _along(_last),
    "rope": _along(_last),
    "gather": _gather,
    "reshape": _view,
    "transpose": _transpose,
    "slice": _slice,
    "concat": _concat,
    "pad": _pad,
    "reduce": _reduce,
    "attention": _attention,
    "float": _float,
}
