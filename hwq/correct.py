"""Correct: integer weights chosen by the error that they leave in their layer's output.

For each (layer, scheme) there are several ways to round (``hwq.rounding``) and several scales. They are fitted to one
part of the calibration samples and held against the plain rounding of ``hwq.quantize`` on the part held out; the least
error wins, so what does not help is not taken. The error is about the mean of what the weights read, since the bias
takes the mean back. Labels are not used.

What wins is kept as a text (``quantize.write_rounding``): in the work directory, one file a layer, so that an
interrupted call goes on, and in the plan. Stands after calibrate; ``quantize`` makes the weights of it.

Measured on mobilenetv2 (128 calibration pictures), resnet20 and resnet32 (256), every layer alike, SQNR of the logits:
w4a8 0.1 -> 5.8, 12.1 -> 20.8 and 14.4 -> 21.5 dB; w8a8 20.3 -> 21.8, 30.7 -> 31.2 and 30.4 -> 30.8 dB. Measured and
not taken: the observer of each tensor by the noise that it alone makes in the outputs (against "mse" for all -0.1, -0.2
and -1.4 dB in w8a8); biases by the means of the quantized network, layer after layer (resnet32: -0.6 dB in w8a8, -3.7
dB in w4a8); channels of residual streams equalized (arXiv:1906.04721, section 4.1: mobilenetv2 +0.4 dB in w8a8, nothing
in w4a8, against a network whose tensors are not the model's any more).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hwq import rounding
from hwq.execute import quiet
from hwq.files import write_atomic
from hwq.graph import ANCHORS, Graph, Layer
from hwq.moments import ROWS, Moments, shape_of
from hwq.numerics import QParams
from hwq.progress import Callback
from hwq.quantize import IntegerWeights, least_scale, quantize_layer, write_rounding
from hwq.rounding import Doubles, Passing
from hwq.scheme import SCHEMES

log = logging.getLogger(__name__)

# Factors of the scale that just holds all weights, in groups those of the side that reaches further, each tried with
# GPTQ: four bits clip to win resolution.
SHRINK = {4: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), 8: (1.0,)}
# Of the mean power, added to every input's: the paper's, and for four bits more too, for layers of few columns.
DAMPS = {4: (rounding.DAMP, 10 * rounding.DAMP), 8: (rounding.DAMP,)}
# Multiply-adds that pay for a network's layers, the cheapest first; mobilenetv2's take 2.5e11, ResNet-50's 5e12.
MOST_MACS = 6e11
# In sweeps over a matrix of weights: what all ways of rounding it to a scheme take.
SWEEPS = 50
# Moments held at a time; layers beyond that wait for another run over the samples.
MOMENT_BYTES = 1 << 30

Roundings = dict[tuple[str, str], str]
Gather = Callable[[Sequence[Layer], Callback], Mapping[str, Moments]]
Way = tuple[Doubles, Doubles]


def correct(
    graph: Graph,
    candidates: Mapping[str, Iterable[str]],
    qparams: Mapping[str, QParams],
    gather: Gather,
    journal: Callable[[Layer, Sequence[str]], Path],
    progress: Callback = quiet,
    most_macs: float = MOST_MACS,
) -> Roundings:
    """For each (layer, scheme) with integer weights the rounding of least held-out output error; "" is the plain one.

    gather: the moments of some layers over the calibration samples. journal: where a layer's result is kept, under its
    schemes; what is there is not made again. Progress counts layers, each first gathered for, then rounded. Layers that
    ``most_macs`` does not pay for, the cheapest first, keep the plain one.
    """
    found: Roundings = {}
    waiting: dict[Layer, tuple[list[str], Path]] = {}
    wanted = {
        layer: [scheme for scheme in candidates[layer.name] if SCHEMES[scheme].weight is not None]
        for layer in graph.layers
        if layer.op in ANCHORS
    }
    wanted = {layer: schemes for layer, schemes in wanted.items() if schemes}
    paid = _cheapest({layer: work_macs(layer, len(schemes)) for layer, schemes in wanted.items()}, most_macs)
    for layer, schemes in wanted.items():
        if layer not in paid:
            found |= {(layer.name, scheme): "" for scheme in schemes}
            continue
        path = journal(layer, schemes)
        kept = _load(path, schemes)
        if kept is None:
            waiting[layer] = schemes, path
        else:
            found |= {(layer.name, scheme): kept[scheme] for scheme in schemes}
    done = 0
    for chunk in _chunks(list(waiting)):

        def gathered(part: int, whole: int, size: int = len(chunk), before: int = done) -> None:
            progress(2 * before + size * part // max(whole, 1), 2 * len(waiting))

        moments = gather(chunk, gathered)
        for at, layer in enumerate(chunk):
            schemes, path = waiting[layer]
            texts = correct_layer(layer, schemes, qparams.get(layer.inputs[0]), moments[layer.name])
            write_atomic(path, json.dumps(texts).encode())
            found |= {(layer.name, scheme): text for scheme, text in texts.items()}
            progress(2 * done + len(chunk) + at + 1, 2 * len(waiting))
        done += len(chunk)
    return found


def work_macs(layer: Layer, schemes: int) -> float:
    """About what correcting a layer takes in multiply-adds: moments, their inverses, and sweeps for each scheme."""
    groups, length = shape_of(layer)
    assert layer.weight is not None
    return groups * length**2 * (ROWS + 4.0 * length + SWEEPS * schemes * len(layer.weight) / groups)


def _cheapest(macs: Mapping[Layer, float], most: float) -> set[Layer]:
    """As many layers as ``most`` pays for, the cheapest first."""
    found: set[Layer] = set()
    for layer in sorted(macs, key=macs.__getitem__):
        most -= macs[layer]
        if most < 0:
            break
        found.add(layer)
    return found


def _chunks(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """``layers`` in order, as many at a time as moments fit; at least one."""
    chunk: list[Layer] = []
    held = 0
    for layer in layers:
        groups, length = shape_of(layer)
        size = 2 * 8 * groups * length * length
        if chunk and held + size > MOMENT_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append(layer)
        held += size
    if chunk:
        yield chunk


def _load(path: Path, schemes: Sequence[str]) -> dict[str, str] | None:
    """A layer's texts of an earlier call; None if there are none, or the file is damaged."""
    try:
        texts = json.loads(path.read_bytes())
        assert texts.keys() == set(schemes)
        assert all(isinstance(text, str) for text in texts.values())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, AssertionError) as error:
        log.debug("%s is damaged (%r): the layer is rounded again", path, error)
        return None
    return {scheme: texts[scheme] for scheme in schemes}


def correct_layer(layer: Layer, schemes: Sequence[str], source: QParams | None, moments: Moments) -> dict[str, str]:
    """The text of the best rounding in each of ``schemes``: see ``correct``. source: as ``quantize_layer`` takes it."""
    assert layer.weight is not None
    if not moments.held.count:
        return dict.fromkeys(schemes, "")
    groups, length = shape_of(layer)
    centre = moments.fitted.mean
    h, held = moments.fitted.about(centre), moments.held.about(centre)
    return rounded_to(layer, schemes, source, layer.weight.astype(np.float64).reshape(groups, -1, length), h, held)


def rounded_to(
    layer: Layer, schemes: Sequence[str], source: QParams | None, w: Doubles, h: Doubles, held: Doubles
) -> dict[str, str]:
    """The text of the best rounding of ``w`` (G, O / G, K), the weights or what shall stand in their place, in each of
    ``schemes``. h, held (G, K, K): moments of the columns to fit to, and to judge by."""
    groups, _, length = w.shape
    bits = {scheme: _bits(scheme) for scheme in schemes}
    ways: dict[str, dict[str, Way]] = {}
    plains = {scheme: quantize_layer(layer, scheme, source) for scheme in schemes}
    floors: dict[str, Doubles] = {}
    for scheme, plain in plains.items():
        scale = plain.scale.astype(np.float64).reshape(groups, w.shape[1], -1)
        floors[scheme] = np.broadcast_to(least_scale(layer, scheme, source).reshape(groups, -1, 1), scale.shape)
        ways[scheme] = {"nearest": (plain.values.astype(np.float64).reshape(w.shape), scale)}
        if bits[scheme] == 4:
            size = SCHEMES[scheme].group_size
            q = rounding.adaround(w, h, rounding.spread(scale, length, size), bits[scheme])
            ways[scheme]["adaround"] = q, rounding.fit_scale(q, w, h, scale, floors[scheme], size)
    for damp in sorted({damp for width in bits.values() for damp in DAMPS[width]}):
        damped = rounding.damped(h, damp)
        passed = rounding.passing(damped)
        for scheme in schemes:
            if damp in DAMPS[bits[scheme]]:
                ways[scheme][f"gptq, damp {damp}"] = _gptq(w, damped, passed, floors[scheme], scheme)
    return {scheme: _best(layer, scheme, w, held, ways[scheme], plains[scheme]) for scheme in schemes}


def _bits(scheme: str) -> int:
    spec = SCHEMES[scheme].weight
    assert spec is not None
    return spec.qtype.bits


def _best(layer: Layer, scheme: str, w: Doubles, held: Doubles, ways: Mapping[str, Way], plain: IntegerWeights) -> str:
    """The text of the way whose output error on ``held`` is least; the plain one where it is no worse."""
    rounded = {way: (q, scale.astype(np.float32)) for way, (q, scale) in ways.items()}
    size = SCHEMES[scheme].group_size
    errors = {
        way: float(_error(w, q, scale.astype(np.float64), held, size).sum()) for way, (q, scale) in rounded.items()
    }
    way = min(errors, key=errors.__getitem__)
    log.debug("%s in %s: %s by held-out output error, %s", layer.name, scheme, way, errors)
    if way == "nearest":
        return ""
    q, scale = rounded[way]
    return write_rounding(
        layer, scheme, q.astype(np.int8).reshape(plain.values.shape), scale.reshape(plain.scale.shape)
    )


def _error(w: Doubles, q: Doubles, scale: Doubles, h: Doubles, size: int | None) -> Doubles:
    return rounding.quadratic(w - q * rounding.spread(scale, w.shape[-1], size), h)


def _gptq(w: Doubles, h: Doubles, passed: Passing, floor: Doubles, scheme: str) -> Way:
    """GPTQ from several clipped scales, of which each channel keeps its best, then descent and fitted scales."""
    groups, outs, length = w.shape
    bits, size = _bits(scheme), SCHEMES[scheme].group_size or length
    count, shrink = floor.shape[-1], np.array(SHRINK[bits])
    padded = np.pad(w, ((0, 0), (0, 0), (0, size * count - length))).reshape(groups, outs, count, size)
    low, high = -padded.min(axis=3), padded.max(axis=3)
    lowest, highest = rounding.bounds(bits)
    if SCHEMES[scheme].group_size is None:
        just = np.maximum(low, high) / highest
    else:  # scales are plain factors there: the sign that has the larger side where integers reach one further
        just = np.where(high > low, high / lowest, low / -lowest)
    # All at once, as further channels. Where all weights are 0 any scale does.
    wanted = just[:, None] * shrink[:, None, None]
    scales = np.where(wanted < 0, np.minimum(wanted, -floor[:, None]), np.maximum(wanted, floor[:, None]))
    scales = scales.reshape(groups, -1, count)
    wide, floors = np.tile(w, (1, len(shrink), 1)), np.tile(floor, (1, len(shrink), 1))
    q = rounding.gptq_with(passed, wide, rounding.spread(scales, length, size), bits)
    scales = rounding.fit_scale(q, wide, h, scales, floors, size)
    best = _error(wide, q, scales, h, size).reshape(groups, len(shrink), outs).argmin(axis=1)[:, None, :, None]
    q, scale = (
        np.take_along_axis(values.reshape(groups, len(shrink), outs, -1), best, axis=1)[:, 0] for values in (q, scales)
    )
    q = rounding.descend(q, w, h, rounding.spread(scale, length, size), bits)
    return q, rounding.fit_scale(q, w, h, scale, floor, size)
