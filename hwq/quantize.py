"""Quantize: from float weights to integer weights, once for each (layer, scheme); stands after calibrate.

Rounding moves each weight a little, and where a channel's errors add up its output is off by about the same on every
sample. The bias takes that back: E[y'] - E[y] = e E[x] (arXiv:1906.04721, section 4.2), e being the weights' error and
E[x] the inputs' channel means, here from calibration and not from batch norms. On networks with depthwise layers this
is most of the error.
Pure NumPy. The activation side of a layer (bias at scale s_x * s_w, multipliers, zero points) is made in ``hwq.lower``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hwq import group_scales, numerics
from hwq.graph import Graph, Layer
from hwq.numerics import QParams
from hwq.progress import Callback
from hwq.scheme import SCHEMES


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntegerWeights:
    """Integer weights of one layer: values int8 in the layout of ``Layer.weight``, scale float32 (O,).

    group_size: with a scale for each so many neighbouring inputs, scale is (O, groups): see ``hwq.group_scales``.
    bias: float32 (O,), the layer's own with the correction for these weights' rounding.
    """

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    group_size: int | None = None

    def real(self) -> npt.NDArray[np.float32]:
        """The weights that the integers stand for."""
        if self.group_size is None:
            return numerics.dequantize_weight(self.values, self.scale)
        return group_scales.dequantize_weight(self.values, self.scale, self.group_size)


Weights = Mapping[tuple[str, str], IntegerWeights]
# tensor -> the mean of each of its channels
Means = Mapping[str, Sequence[float]]


def quantize_layer(layer: Layer, scheme: str, source: QParams, mean: Sequence[float] | None = None) -> IntegerWeights:
    """Symmetric integer weights of ``layer``, a scale for each output channel (and group), at the width of ``scheme``.

    ``source`` are the parameters of the layer's input: no scale is so small that bias or products would leave int32.
    mean: the input's mean of each channel; without it the bias is not corrected.
    """
    spec = SCHEMES[scheme].weight
    assert spec is not None
    assert layer.weight is not None
    bias = np.zeros(len(layer.weight)) if layer.bias is None else layer.bias.astype(np.float64)
    if spec.group_size is not None:  # the sums of a group are small, and the bias is a float
        values, scale = group_scales.quantize_weight(layer.weight, spec.qtype.bits, spec.group_size)
    else:
        least = numerics.least_product_scale(layer.weight)
        if layer.bias is not None:
            least = np.maximum(least, numerics.least_weight_scale(layer.bias, source.scale))
        values, scale = numerics.quantize_weight(layer.weight, spec.qtype.bits, least_scale=least)
    found = IntegerWeights(values=values, scale=scale, bias=bias.astype(np.float32), group_size=spec.group_size)
    if mean is None:
        return found
    bias = bias + mean_error(layer, layer.weight - found.real(), mean)
    return replace(found, bias=bias.astype(np.float32))


def mean_error(layer: Layer, error: npt.NDArray[np.float32], mean: Sequence[float]) -> npt.NDArray[np.float64]:
    """What ``error`` in the weights, of their shape, adds to each output channel (O,) on inputs of mean ``mean`` (I,).

    As if the input were constant: what spatial padding takes off at the rim is not counted.
    """
    inputs = np.asarray(mean, np.float64)
    taps = error.astype(np.float64)
    if layer.op == "dense":
        return np.asarray(taps @ inputs)
    taps = taps.sum(axis=(1, 2))  # (O, I / groups)
    groups = len(inputs) // taps.shape[1]
    return np.asarray((taps.reshape(groups, -1, taps.shape[1]) @ inputs.reshape(groups, -1, 1)).reshape(-1))


def quantize_weights(
    graph: Graph,
    candidates: Mapping[str, Iterable[str]],
    qparams: Mapping[str, QParams],
    means: Means,
    progress: Callback = lambda done, total: None,
) -> Weights:
    """The integer weights of every layer with weights, in every integer scheme that ``candidates`` names for it.

    means: the channel means of the layers' inputs; where one is missing the bias is not corrected.
    """
    jobs = [
        (layer, scheme)
        for layer in graph.layers
        if layer.weight is not None
        for scheme in candidates[layer.name]
        if SCHEMES[scheme].weight is not None
    ]
    found: dict[tuple[str, str], IntegerWeights] = {}
    for done, (layer, scheme) in enumerate(jobs):
        source = layer.inputs[0]
        found[layer.name, scheme] = quantize_layer(layer, scheme, qparams[source], means.get(source))
        progress(done + 1, len(jobs))
    return found
