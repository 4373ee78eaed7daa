"""Quantize: from float weights to integer weights, once for each (layer, scheme); stands after calibrate.

Pure NumPy. The activation side of a layer (bias at scale s_x * s_w, multipliers, zero points) is made in ``hwq.lower``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwq import numerics
from hwq.graph import Graph, Layer
from hwq.numerics import QParams
from hwq.scheme import SCHEMES


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntegerWeights:
    """Integer weights of one layer: values int8 in the layout of ``Layer.weight``, scale float32 (O,)."""

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]


Weights = Mapping[tuple[str, str], IntegerWeights]


def quantize_layer(layer: Layer, scheme: str, source: QParams) -> IntegerWeights:
    """Symmetric integer weights of ``layer``, one scale for each output channel, at the width of ``scheme``.

    ``source`` are the parameters of the layer's input: no scale is so small that the bias would leave int32.
    """
    spec = SCHEMES[scheme].weight
    assert spec is not None
    assert layer.weight is not None
    least = None if layer.bias is None else numerics.least_weight_scale(layer.bias, source.scale)
    values, scale = numerics.quantize_weight(layer.weight, spec.qtype.bits, least_scale=least)
    return IntegerWeights(values=values, scale=scale)


def quantize_weights(
    graph: Graph,
    candidates: Mapping[str, Iterable[str]],
    qparams: Mapping[str, QParams],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Weights:
    """The integer weights of every layer with weights, in every integer scheme that ``candidates`` names for it."""
    jobs = [
        (layer, scheme)
        for layer in graph.layers
        if layer.weight is not None
        for scheme in candidates[layer.name]
        if SCHEMES[scheme].weight is not None
    ]
    found: dict[tuple[str, str], IntegerWeights] = {}
    for done, (layer, scheme) in enumerate(jobs):
        progress(done, len(jobs))
        found[layer.name, scheme] = quantize_layer(layer, scheme, qparams[layer.inputs[0]])
    return found
