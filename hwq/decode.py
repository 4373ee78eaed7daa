"""``hwq.decoder``: from a causal network of whole sequences to the network of one token, with the others in caches.

Stands between load and compile, plan, build. Every layer that computes each token by itself is the same layer at one
token: names, weights and schemes stay. Constants along tokens are read at the position; keys and values are appended to
caches, of which attention reads as many rows as there are tokens by now:

    k (1, T, C) -> attention          k (1, 1, C), SPAN -> append -> k@cache (1, length, C), SPAN -> attention, cut
    x, cos (T, D), sin -> rope        SPAN -> rows_at -> cos@row (1, D); x, cos@row, sin@row -> rope

Refused, naming the layer: attention that is not causal, and whatever else mixes tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.arguments import check_model
from hwq.errors import HwqError
from hwq.graph import SPAN, STATE_OPS, Graph, Layer, Shape
from hwq.lengths import plain_graph
from hwq.model import Model, varied_fingerprint
from hwq.plan import Plan
from hwq.token_func import TokenAxis
from hwq.tokens import Tokens, find_tokens

Array = npt.NDArray[Any]
# What a decoder has in float whatever the plan of the whole network says, or besides it.
STATEFUL_OPS = (*STATE_OPS, "rows_at", "row_scale", "attention", "attention_cache")
CACHES = ("float32", "int8")
# Operators with a constant that "float" layers compute element by element, as the layers of two tensors they are.
_ELEMENTWISE = ("add", "multiply")


@dataclass(slots=True, kw_only=True, eq=False)
class _Found:
    """The step network so far; ``rows``: digest of a constant -> the tensor of its row."""

    graph: Graph
    tokens: Tokens
    length: int
    cache: str
    layers: list[Layer] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)

    def add(self, layer: Layer, dtype: str = "float32") -> None:
        self.layers.append(layer)
        self.shapes[layer.output] = layer.output_shape
        self.dtypes[layer.output] = dtype

    def small(self, tensor: str, shape: Shape) -> Shape:
        """The shape of a tensor at one token."""
        axes = {one.axis: one.inner for one in self.tokens.axes.get(tensor, ())}
        return tuple(axes.get(axis, size) for axis, size in enumerate(shape))


def decoder(model: Model, length: int | None = None, *, cache: str = "float32") -> Model:
    """The network of one token that computes what ``model`` computes for whole sequences, row by row.

    model: token ids (1, T) to outputs with the tokens along axis 1, such as logits (1, T, V). length: how many tokens a
    session can hold; None is T, and T is the most where the network has constants along tokens (positions). What is
    built of it is called by ``Artifact.start``. A plan of ``model`` is one of the result too, ranges included, and
    with lengths that vary (dynamic=), which mean nothing here. cache: "float32", or "int8": a quarter of the bytes,
    each row of a head of keys and values rounded by a scale of its own.

    Raises HwqError "cache-unknown", "model-type", "decoder-model" for inputs or outputs of another kind,
    "length-invalid", "tokens-mixed" and "decoder-layer" naming the layer that cannot go token by token.
    """
    check_model(model)
    whole = model.whole if model.dynamic and model.whole else model.fingerprint
    if cache not in CACHES:
        raise HwqError("cache-unknown", f"cache is {cache!r}; accepted: {', '.join(CACHES)}")
    name = _ids(model)
    graph = plain_graph(model.graph)
    tokens = find_tokens(graph, {name: 1}, least=0)
    most = tokens.most
    length = _check_length(most if length is None else length)
    for spec, tensor in zip(model.outputs, graph.outputs, strict=True):
        if tokens.axes.get(tensor) != (TokenAxis(axis=1),):
            message = f"output {spec.name!r} of shape {spec.shape} does not have the {most} tokens along axis 1"
            raise HwqError("decoder-model", f"{message}; accepted: outputs (1, T, ...), a row for each token")
    found = _Found(graph=graph, tokens=tokens, length=length, cache=cache)
    found.shapes |= {name: (1, 1), SPAN: (2,)}
    found.dtypes |= {name: graph.dtypes[name], SPAN: "int32"}
    for layer in graph.layers:
        _step(found, layer)
    small = replace(graph, inputs=(name, SPAN), shapes=found.shapes, dtypes=found.dtypes, layers=tuple(found.layers))
    key = json.dumps([whole, "decoder", length, cache])
    return replace(
        model,
        graph=small,
        fingerprint=hashlib.sha256(key.encode()).hexdigest(),
        inputs=(replace(model.inputs[0], shape=(1, 1)),),
        outputs=tuple(
            replace(spec, shape=found.shapes[tensor]) for spec, tensor in zip(model.outputs, graph.outputs, strict=True)
        ),
        whole=whole,
        length=length,
        dynamic={},
    )


def _ids(model: Model) -> str:
    """The graph's only input: token ids (1, T)."""
    shown = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in model.inputs)
    if model.length is not None:
        raise HwqError("decoder-model", f"model {model.name!r} is a decoder already; accepted: what hwq.load returns")
    spec = model.inputs[0]
    if len(model.inputs) != 1 or np.dtype(spec.dtype).kind not in "iu" or len(spec.shape) != 2 or spec.shape[0] != 1:
        message = f"model {model.name!r} has the inputs {shown}; accepted: one of token ids, whole numbers (1, T)"
        raise HwqError("decoder-model", message)
    return model.graph.inputs[0]


def _check_length(length: Any) -> int:
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise HwqError("length-invalid", f"length is {length!r}; accepted: a whole number of at least 1, or None")
    return length


def _refuse(layer: Layer, reason: str, accepted: str) -> HwqError:
    kind = layer.attrs["operator"] if layer.op == "float" else layer.op
    message = f"layer {layer.name!r} ({kind}) cannot go token by token: {reason}; accepted: {accepted}"
    return HwqError("decoder-layer", message)


def _step(found: _Found, layer: Layer) -> None:
    """``layer`` at one token, behind what it then needs."""
    rule = found.tokens.rules[layer.name]
    if rule == "still" and layer.output not in found.tokens.axes:
        found.add(layer, found.graph.dtypes[layer.output])
        return
    if rule == "reduce":
        raise _refuse(layer, "it reduces over tokens", "layers that compute each token by itself, and causal attention")
    found.add(_MAKERS.get(layer.op, _rows)(found, layer), found.graph.dtypes[layer.output])


def _rows(found: _Found, layer: Layer, **changes: Any) -> Layer:
    """A layer that computes each token by itself."""
    pairs = zip(layer.inputs, layer.input_shapes, strict=True)
    fields = {
        "input_shapes": tuple(found.small(name, shape) for name, shape in pairs),
        "output_shape": found.small(layer.output, layer.output_shape),
    }
    return replace(layer, **(fields | changes))


def _slice(found: _Found, layer: Layer) -> Layer:
    """Whole along tokens, of which there is one."""
    small = _rows(found, layer)
    kept = {one.axis for one in found.tokens.axes.get(layer.inputs[0], ())}
    end = tuple(small.input_shapes[0][axis] if axis in kept else last for axis, last in enumerate(layer.attrs["end"]))
    return replace(small, attrs={**layer.attrs, "end": end})


def _attention(found: _Found, layer: Layer) -> Layer:
    """Keys and values from caches, as many rows as there are tokens by now."""
    if not layer.attrs["causal"]:
        raise _refuse(layer, "each token sees the tokens behind it", "causal attention")
    q, k, v, *rest = layer.inputs
    if rest:
        raise _refuse(layer, f"its bias {rest[0]!r} is not constant", "a constant bias, or none")
    caches = [_cached(found, tensor, layer.attrs["kv_heads"]) for tensor in (k, v)]
    names: tuple[str, ...] = (q, *caches[0], *caches[1])
    attrs = {key: value for key, value in layer.attrs.items() if key != "bias"} | {"cut": True}
    op = layer.op if found.cache == "float32" else "attention_cache"
    constants = layer.constants
    if constants:
        bias = constants[0][..., : found.length]
        _, heads, queries, keys = bias.shape
        if 1 < keys < found.length:
            raise _too_long(found, layer, keys)
        if queries > 1:
            table = np.moveaxis(bias[0], 1, 0).reshape(queries, -1)
            names, constants = (*names, _row(found, layer, "bias", table, (1, heads, 1, keys))), ()
        else:
            attrs, constants = attrs | {"bias": bias.shape}, (np.ascontiguousarray(bias),)
    names = (*names, SPAN)
    shapes = (found.small(q, layer.input_shapes[0]), *(found.shapes[name] for name in names[1:]))
    return _rows(found, layer, op=op, inputs=names, input_shapes=shapes, attrs=attrs, constants=constants)


def _cached(found: _Found, tensor: str, heads: int) -> tuple[str, ...]:
    """The cache of a tensor (1, T, C) of ``heads``, written at the token's position; of int8 its scales' too."""
    cache = f"{tensor}@cache"
    width = found.graph.shapes[tensor][-1]
    if found.cache == "float32":
        _made(found, "append", (tensor, SPAN), cache, (1, found.length, width))
        return (cache,)
    apart, scale, row, scales = (f"{cache}:{name}" for name in ("heads", "scale", "row", "scales"))
    _made(found, "reshape", (tensor,), apart, (heads, width // heads))
    _made(found, "row_scale", (apart,), scale, (heads,))
    _made(found, "reshape", (scale,), row, (1, 1, heads))
    _made(found, "append", (row, SPAN), scales, (1, found.length, heads))
    _made(found, "append_int8", (tensor, scale, SPAN), cache, (1, found.length, width), "int8")
    return cache, scales


def _made(found: _Found, op: str, inputs: tuple[str, ...], output: str, shape: Shape, dtype: str = "float32") -> None:
    """A layer that the whole network has not; once, however often it is read."""
    if output not in found.shapes:
        shapes = tuple(found.shapes[name] for name in inputs)
        layer = Layer(name=output, op=op, inputs=inputs, output=output, input_shapes=shapes, output_shape=shape)
        found.add(layer, dtype)


def _rope(found: _Found, layer: Layer) -> Layer:
    rows = [
        _row(found, layer, name, table, (1, table.shape[-1]))
        for name, table in zip(("cos", "sin"), layer.constants, strict=True)
    ]
    small = _rows(found, layer)
    shapes = tuple(found.shapes[name] for name in rows)
    return replace(small, inputs=(*small.inputs, *rows), input_shapes=(*small.input_shapes, *shapes), constants=())


def _float(found: _Found, layer: Layer) -> Layer:
    """An element by element operator with a constant along tokens."""
    operator = layer.attrs["operator"]
    if operator not in _ELEMENTWISE or len(layer.inputs) != 1 or len(layer.constants) != 1:
        raise _refuse(layer, "hwq has no kernel of its own for it", "other operators")
    shape = found.small(layer.output, layer.output_shape)
    whole = np.broadcast_to(layer.constants[0].astype(np.float32), layer.output_shape)
    (axis,) = [one.axis for one in found.tokens.axes[layer.output]]
    table = np.ascontiguousarray(np.moveaxis(whole, axis, 0).reshape(whole.shape[axis], -1))
    row = _row(found, layer, "constant", table, shape)
    return _rows(
        found, layer, op=operator, inputs=(layer.inputs[0], row), input_shapes=(shape, shape), attrs={}, func=None,
        constants=(),
    )  # fmt: skip


def _row(found: _Found, layer: Layer, what: str, table: Array, shape: Shape) -> str:
    """The tensor, of ``shape``, of the row of ``table`` (T, C) at the token's position; one for all that read it."""
    if found.length > len(table):
        raise _too_long(found, layer, len(table))
    table = np.ascontiguousarray(table[: found.length])
    key = hashlib.sha256(repr((shape, table.shape)).encode() + table.tobytes()).hexdigest()
    if key not in found.rows:
        found.rows[key] = f"{layer.name}:{what}@row"
        found.add(
            Layer(
                name=found.rows[key],
                op="rows_at",
                inputs=(SPAN,),
                output=found.rows[key],
                input_shapes=((2,),),
                output_shape=shape,
                attrs={"rows": table.shape[0], "width": table.shape[1]},
                constants=(table,),
            )
        )
    return found.rows[key]


def _too_long(found: _Found, layer: Layer, rows: int) -> HwqError:
    return HwqError(
        "length-invalid",
        f"length is {found.length}, but layer {layer.name!r} has constants for {rows} positions; accepted: at most "
        f"{rows}",
    )


_MAKERS: Mapping[str, Callable[[_Found, Layer], Layer]] = {
    "attention": _attention,
    "rope": _rope,
    "slice": _slice,
    "float": _float,
}


def plan_for(model: Model, plan: Plan) -> Plan:
    """``plan`` as one of ``model``: that of the network of whole sequences gets the layers that a decoder has besides.

    They are float, and so is attention, whose caches hold floats or have scales of their own; any other plan, and any
    other model, is left as it is. Lengths that vary in the plan of the whole are left out.
    """
    if model.length is None or model.whole is None:
        return plan
    if plan.model not in (model.whole, varied_fingerprint(model.whole, plan.dynamic)):
        return plan
    more = {
        layer.name: "f32"
        for layer in model.graph.layers
        if layer.op in STATEFUL_OPS or (layer.name not in plan.schemes and "@cache" in layer.name)
    }
    return replace(plan, model=model.fingerprint, schemes={**plan.schemes, **more}, dynamic={})


def check_samples(model: Model, what: str, given: Any) -> None:
    """Raises HwqError "decoder-samples" for samples, called ``what``, of a decoder: it sees one token at a time."""
    if model.length is not None and given is not None:
        raise HwqError(
            "decoder-samples",
            f"{what} is given for {model.name!r}, a decoder, which takes one token at a time; accepted: {what} for "
            "hwq.plan of the network of whole sequences, then hwq.build of the decoder and that plan",
        )
