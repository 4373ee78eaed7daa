"""Smooth: difficulty moved from activations to weights, channel by channel, without a change to the float network.

A few channels of what a norm writes are often many times larger than the rest, and take the resolution of a range that
all share. So channel j is divided by s_j where it is written, and column j of the weights of all that read it is
multiplied by s_j (arXiv:2211.10438, equation 4):

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

Here s_j is rounded to a power of two, so that every product and sum in float comes out with the same bits as before:
float's outputs, and all that is held against them, stay what they are. A place where that can be done (``Spot``) is

- layer_norm or rms_norm, read by dense layers alone: in the constants of the norm;
- the dense layer of the values of an attention, read by dense layers alone: a head's output is a weighted mean of rows
  of values, so what scales these scales it (a cache of int8 rounds the scaled rows, by scales found of them);
- a dense layer without activation whose output is multiplied (the up projection of a gated network), likewise.

A dense layer that writes has a scale for each of its output channels, which takes the factor exactly, so that one place
has no say in another. ``best`` picks alpha by the error that is left in the readers' outputs on calibration samples,
and keeps it only where that of samples held out falls too. NumPy only. Stands before calibrate: ranges are those of the
smoothed network. Used by ``hwq.observe``; what is kept is in the plan.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq import group_scales, numerics, observers, row_scales
from hwq.errors import HwqError
from hwq.graph import Graph, Layer
from hwq.scheme import SCHEMES, QType

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]
# Writer -> the exponent of two that each of its channels is divided by.
Smoothing = Mapping[str, tuple[int, ...]]

ALPHAS = (0.35, 0.5, 0.65, 0.8)
# Exponents beyond this are cut: nothing comes near the ends of float32.
MOST = 12
# Taken where the readers' held-out error falls to this part of what it was, or less.
KEPT = 0.97
NORMS = ("layer_norm", "rms_norm")
# Where attention has its values among its inputs; those of a cache of int8 stand behind the scales of the keys' rows.
_VALUES = {"attention": 2, "attention_cache": 3}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spot:
    """writer: the layer whose channels are divided. tensor: what the readers, dense layers, read; source (K,): the
    writer's channel of each of its channels."""

    writer: str
    tensor: str
    readers: tuple[Layer, ...]
    source: npt.NDArray[np.int64]

    @property
    def channels(self) -> int:
        """How many the writer has."""
        return int(self.source.max()) + 1


def find_spots(graph: Graph) -> tuple[Spot, ...]:
    """Every place of ``graph`` where channels can be smoothed, in its order."""
    users: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        for tensor in dict.fromkeys(layer.inputs):
            users.setdefault(tensor, []).append(layer)
    makers = {layer.output: layer for layer in graph.layers}

    def readers_of(tensor: str) -> list[Layer] | None:
        """The dense layers that read ``tensor``, as it is or in another shape; None where something else does."""
        found: list[Layer] = []
        for layer in users.get(tensor, []):
            if layer.op == "dense" and layer.inputs.count(tensor) == 1 and layer.inputs[0] == tensor:
                found.append(layer)
                continue
            more = readers_of(layer.output) if _keeps_channels(layer) else None
            if more is None:
                return None
            found += more
        return found if found and tensor not in graph.outputs else None

    def plain_writer(tensor: str, readers: int = 1) -> Layer | None:
        """The dense layer that makes ``tensor`` for so many ``readers`` alone, without activation or residual."""
        maker = makers.get(tensor)
        if maker is None or tensor in graph.outputs or len(users[tensor]) != readers:
            return None
        if maker.op == "append_int8":  # reads the values; the second reader of these finds the scales of their rows
            return plain_writer(maker.inputs[0], 2)
        if _keeps_channels(maker):
            return plain_writer(maker.inputs[0])
        plain = maker.op == "dense" and maker.activation.kind == "none" and not maker.residual
        return maker if plain else None

    found: dict[str, Spot] = {}
    for layer in graph.layers:
        writer: Layer | None = None
        width = layer.output_shape[-1] if layer.output_shape else 0
        source = np.arange(width)
        if layer.op in NORMS:
            writer = layer
        elif layer.op in _VALUES:
            values = layer.inputs[_VALUES[layer.op]]
            writer = plain_writer(values) if layer.inputs.count(values) == 1 else None
            heads, kv_heads = layer.attrs["heads"], layer.attrs["kv_heads"]
            each = width // heads
            source = (np.arange(heads) // (heads // kv_heads))[:, None] * each + np.arange(each)
        elif layer.op == "multiply" and layer.activation.kind == "none" and len(set(layer.inputs)) == 2:
            able = [plain_writer(name) for name, shape in zip(layer.inputs, layer.input_shapes, strict=True)
                    if shape == layer.output_shape]  # fmt: skip
            writer = next((one for one in able if one is not None), None)
        readers = None if writer is None else readers_of(layer.output)
        if writer is not None and readers and writer.name not in found:
            found[writer.name] = Spot(
                writer=writer.name, tensor=readers[0].inputs[0], readers=tuple(readers), source=source.reshape(-1)
            )
    return tuple(found.values())


def _keeps_channels(layer: Layer) -> bool:
    """Whether a layer without weights leaves the last axis as it is."""
    same = bool(layer.output_shape) and layer.input_shapes[0][-1:] == layer.output_shape[-1:]
    return layer.op in ("reshape", "append") and same


def smoothed(graph: Graph, smoothing: Smoothing) -> Graph:
    """``graph`` with the channels of each named writer divided by 2^exponent, and its readers' columns multiplied.

    Raises HwqError "plan-invalid" for a name where nothing can be smoothed, and for exponents of another number or
    size than accepted.
    """
    if not smoothing:
        return graph
    spots = {spot.writer: spot for spot in find_spots(graph)}
    layers = {layer.name: layer for layer in graph.layers}
    for name, exponents in smoothing.items():
        spot = spots.get(name)
        if spot is None:
            known = ", ".join(map(repr, list(spots)[:3])) or "no layer of this model"
            raise HwqError("plan-invalid", f"smoothing names layer {name!r}; accepted: {known}")
        if len(exponents) != spot.channels or any(abs(value) > MOST for value in exponents):
            raise HwqError(
                "plan-invalid",
                f"smoothing of layer {name!r} has {len(exponents)} exponents of at most "
                f"{max(map(abs, exponents), default=0)}; accepted: {spot.channels} from -{MOST} to {MOST}",
            )
        factor = np.ldexp(np.float32(1), np.array(exponents)).astype(np.float32)
        layers[name] = _divided(layers[name], factor)
        for reader in spot.readers:
            weight = layers[reader.name].weight
            assert weight is not None
            layers[reader.name] = dataclasses.replace(layers[reader.name], weight=weight * factor[spot.source])
    return dataclasses.replace(graph, layers=tuple(layers[layer.name] for layer in graph.layers))


def _divided(layer: Layer, factor: Array) -> Layer:
    """A writer whose channels are divided by ``factor`` (C,)."""
    if layer.op in NORMS:
        return dataclasses.replace(layer, constants=tuple(value / factor for value in layer.constants))
    assert layer.weight is not None
    bias = None if layer.bias is None else np.asarray(layer.bias / factor, np.float32)
    return dataclasses.replace(layer, weight=np.asarray(layer.weight / factor[:, None], np.float32), bias=bias)


def macs(spot: Spot, schemes: int, rows: int) -> float:
    """About what ``best`` takes in multiply-adds."""
    sizes = sum(layer.weight.size for layer in spot.readers if layer.weight is not None)
    return float(sizes) * schemes * 2 * (len(ALPHAS) + 2) * (rows + 8)


def best(spot: Spot, fitted: Array, held: Array, schemes: Iterable[str], observer: str) -> tuple[int, ...] | None:
    """The exponents of the alpha of least error over ``schemes``; None where none helps rows that it was not fitted to.

    fitted, held (R, K): rows of what the readers read. observer: how static ranges are found: see ``hwq.observers``.
    """
    weights = [layer.weight for layer in spot.readers if layer.weight is not None]
    kinds = [scheme for scheme in schemes if SCHEMES[scheme].weight is not None]
    if not kinds or not len(fitted) or not len(held):
        return None
    if not (np.isfinite(fitted).all() and np.isfinite(held).all()):  # refused by calibrate, which sees whose they are
        return None
    nothing = np.zeros(spot.channels, np.int64)
    ways = {exponents_of(spot, fitted, weights, alpha).tobytes(): alpha for alpha in ALPHAS}
    ways.pop(nothing.tobytes(), None)
    before = [error_left(fitted, weights, nothing[spot.source], kind, observer, fitted) for kind in kinds]
    scores = {}
    for way in ways:
        exponents = np.frombuffer(way, np.int64)[spot.source]
        after = [error_left(fitted, weights, exponents, kind, observer, fitted) for kind in kinds]
        scores[way] = _ratio(after, before)
    if not scores:
        return None
    way = min(scores, key=scores.__getitem__)
    exponents = np.frombuffer(way, np.int64)
    after, before = (
        [error_left(held, weights, values[spot.source], kind, observer, fitted) for kind in kinds]
        for values in (exponents, nothing)
    )
    judged = _ratio(after, before)
    log.debug("%s: alpha %s leaves %.3f of the error, held out %.3f", spot.writer, ways[way], scores[way], judged)
    return tuple(int(value) for value in exponents) if max(judged, scores[way]) <= KEPT else None


def exponents_of(spot: Spot, rows: Array, weights: Sequence[Array], alpha: float) -> npt.NDArray[np.int64]:
    """log2 of s_j of equation 4, rounded, for each of the writer's channels; 0 in the middle, since what all channels
    have in common changes nothing."""
    largest = np.zeros(spot.channels)
    heaviest = np.zeros(spot.channels)
    np.maximum.at(largest, spot.source, np.abs(rows).max(axis=0))
    np.maximum.at(heaviest, spot.source, np.max([np.abs(weight).max(axis=0) for weight in weights], axis=0))
    there = (largest > 0) & (heaviest > 0)
    if not there.any():
        return np.zeros(spot.channels, np.int64)
    wanted = np.zeros(spot.channels)
    wanted[there] = alpha * np.log2(largest[there]) - (1 - alpha) * np.log2(heaviest[there])
    wanted[there] -= np.median(wanted[there])
    return np.clip(np.rint(wanted), -MOST, MOST).astype(np.int64)


def error_left(
    rows: Array, weights: Sequence[Array], exponents: Array, scheme: str, observer: str, seen: Array
) -> float:
    """The readers' squared output error on ``rows`` (R, K), as a part of their squared outputs, summed over readers.

    exponents (K,): of what the rows are divided by, and the columns of weights (O, K) multiplied. seen: the rows that a
    static range follows from.
    """
    factor = np.ldexp(np.float32(1), exponents).astype(np.float32)
    x = np.asarray(rows / factor, np.float32)
    read = _as_read(x, scheme, observer, seen / factor)
    total = 0.0
    for weight in weights:
        w = np.asarray(weight * factor, np.float32)
        clean = x @ w.T
        power = float(np.square(clean, dtype=np.float64).sum())
        missed = float(np.square(read @ _as_stored(w, scheme).T - clean, dtype=np.float64).sum())
        total += missed / power if power > 0 else 0.0
    return total


def _as_read(x: Array, scheme: str, observer: str, seen: Array) -> Array:
    """Activations as a kernel of ``scheme`` reads them, back in float."""
    spec = SCHEMES[scheme]
    if spec.act is None:
        return x
    if spec.dynamic:
        scale = row_scales.row_scale(x)
        return np.asarray(row_scales.quantize_rows(x, scale, "int8") * scale[:, None], np.float32)
    histogram = observers.Histogram()
    histogram.update(np.ascontiguousarray(seen, np.float32))
    low, high = observers.range_of(histogram, observer, QType(bits=8))
    if low == high:
        return x
    q = numerics.choose_qparams(low, high)
    return numerics.dequantize(numerics.quantize(x, q), q)


def _as_stored(w: Array, scheme: str) -> Array:
    """Weights (O, K) to nearest, back in float."""
    spec = SCHEMES[scheme].weight
    assert spec is not None
    if spec.group_size is None:
        return numerics.dequantize_weight(*numerics.quantize_weight(w, spec.qtype.bits))
    return group_scales.dequantize_weight(
        *group_scales.quantize_weight(w, spec.qtype.bits, spec.group_size), spec.group_size
    )


def _ratio(after: Sequence[float], before: Sequence[float]) -> float:
    """The geometric mean over schemes of what is left of the error; 1 where there was none."""
    logs = [math.log(max(one, 1e-30) / max(other, 1e-30)) for one, other in zip(after, before, strict=True)]
    return math.exp(sum(logs) / len(logs))
