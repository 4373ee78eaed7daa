"""Quantize: from float weights to integer weights, once for each (layer, scheme); stands after calibrate.

Rounding moves each weight a little, and where a channel's errors add up its output is off by about the same on every
sample. The bias takes that back: E[y'] - E[y] = e E[x] (arXiv:1906.04721, section 4.2), e being the weights' error and
E[x] the inputs' channel means, here from calibration and not from batch norms. On networks with depthwise layers this
is most of the error.
Pure NumPy. The activation side of a layer (bias at scale s_x * s_w, multipliers, zero points) is made in ``hwq.lower``.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hwq import group_scales, numerics
from hwq.errors import HwqError
from hwq.graph import ANCHORS, Graph, Layer
from hwq.numerics import QParams
from hwq.progress import Callback
from hwq.scheme import SCHEMES


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntegerWeights:
    """Integer weights of one layer: values int8 in the layout of ``Layer.weight``, scale float32 (O,).

    group_size: with a scale for each so many neighbouring inputs, scale is (O, groups), and perhaps negative: see
    ``hwq.group_scales``.
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


def quantize_layer(
    layer: Layer, scheme: str, source: QParams | None, mean: Sequence[float] | None = None, rounding: str = ""
) -> IntegerWeights:
    """Symmetric integer weights of ``layer``, a scale for each output channel (and group), at the width of ``scheme``.

    ``source`` are the parameters of the layer's input: no scale is so small that bias or products would leave int32.
    None in schemes whose activations are not int8 of one scale for all: there the bias is a float.
    mean: the input's mean of each channel; without it the bias is not corrected. rounding: what ``write_rounding`` made
    of other integers and scales; "" rounds to nearest. Raises as ``read_rounding``.
    """
    spec = SCHEMES[scheme].weight
    assert spec is not None
    assert layer.weight is not None
    bias = np.zeros(len(layer.weight)) if layer.bias is None else layer.bias.astype(np.float64)
    if rounding:
        values, scale = read_rounding(layer, scheme, rounding)
    elif spec.group_size is not None:  # the sums of a group are small, and the bias is a float
        values, scale = group_scales.quantize_weight(layer.weight, spec.qtype.bits, spec.group_size)
    else:
        values, scale = numerics.quantize_weight(
            layer.weight, spec.qtype.bits, least_scale=least_scale(layer, scheme, source)
        )
    found = IntegerWeights(values=values, scale=scale, bias=bias.astype(np.float32), group_size=spec.group_size)
    if mean is None:
        return found
    bias = bias + mean_error(layer, layer.weight - found.real(), mean)
    return replace(found, bias=bias.astype(np.float32))


def least_scale(layer: Layer, scheme: str, source: QParams | None) -> npt.NDArray[np.float32]:
    """The smallest scales (O,) of ``layer``'s weights with which neither products nor bias leave int32.

    In groups the sums are small, and the bias is a float: there it is float32's least number.
    """
    assert layer.weight is not None
    least = np.full(len(layer.weight), np.finfo(np.float32).tiny, np.float32)
    if SCHEMES[scheme].group_size is not None or layer.op not in ANCHORS:  # rows of a table are not summed
        return least
    least = np.maximum(least, numerics.least_product_scale(layer.weight))
    if layer.bias is not None and SCHEMES[scheme].domain == "int8":
        assert source is not None
        least = np.maximum(least, numerics.least_weight_scale(layer.bias, source.scale))
    return least


def write_rounding(layer: Layer, scheme: str, values: npt.NDArray[np.int8], scale: npt.NDArray[np.float32]) -> str:
    """Integers and scales of ``layer`` as a text: the scales, and how far each integer is from the nearest one.

    That is 0 for most and little for the rest, so the text has about two bits a weight (base64 of zlib).
    """
    away = values.astype(np.int64) - _nearest(layer, scheme, scale)
    blob = scale.astype("<f4").tobytes() + away.astype(np.int8).tobytes()  # modulo 256, undone in reading
    packer = zlib.compressobj(
        strategy=zlib.Z_RLE
    )  # nothing repeats but zeros: looking for more takes ten times as long
    return base64.b64encode(packer.compress(blob) + packer.flush()).decode()


def read_rounding(layer: Layer, scheme: str, text: str) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """The inverse of ``write_rounding``: (values, scale). Raises HwqError "plan-invalid" for any other text."""
    assert layer.weight is not None
    shape = _scale_shape(layer, scheme)
    edge = 4 * math.prod(shape)
    size = edge + layer.weight.size
    try:
        blob = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
        if len(blob) != size:
            raise ValueError(f"{len(blob)} bytes instead of {size}")
        scale = np.frombuffer(blob[:edge], "<f4").astype(np.float32).reshape(shape)
        sizes = scale if SCHEMES[scheme].group_size is None else np.abs(scale)  # of a group it may be negative
        if not (np.isfinite(scale).all() and (sizes > 0).all()):
            raise ValueError("scales that are not positive numbers")
    except (binascii.Error, zlib.error, ValueError) as error:
        message = (
            f"the rounding of layer {layer.name!r} in {scheme} is damaged ({error}); accepted: what hwq.plan wrote"
        )
        raise HwqError("plan-invalid", message) from error
    away = np.frombuffer(blob[edge:], np.int8).reshape(layer.weight.shape)
    values = (_nearest(layer, scheme, scale) + away).astype(np.int8)
    lowest, highest = (-127, 127) if _bits(scheme) == 8 else (-8, 7)
    return np.clip(values, lowest, highest), scale


def _bits(scheme: str) -> int:
    spec = SCHEMES[scheme].weight
    assert spec is not None
    return spec.qtype.bits


def _scale_shape(layer: Layer, scheme: str) -> tuple[int, ...]:
    """(O,), or in groups (O, G)."""
    assert layer.weight is not None
    group = SCHEMES[scheme].group_size
    outs, size = len(layer.weight), layer.weight[0].size
    return (outs,) if group is None else (outs, group_scales.group_count(size, group))


def _nearest(layer: Layer, scheme: str, scale: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """clamp(rint(weight / scale)) in float32, which is the same everywhere."""
    assert layer.weight is not None
    wide = scale.reshape(len(scale), -1)
    group = SCHEMES[scheme].group_size or layer.weight[0].size
    flat = layer.weight.reshape(len(wide), -1)
    steps = np.repeat(wide, group, axis=1)[:, : flat.shape[1]]
    lowest, highest = (-127, 127) if _bits(scheme) == 8 else (-8, 7)
    return np.asarray(np.clip(np.rint(flat / steps), lowest, highest), np.int64).reshape(layer.weight.shape)


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
    roundings: Mapping[tuple[str, str], str] | None = None,
) -> Weights:
    """The integer weights of every layer with weights, in every integer scheme that ``candidates`` names for it.

    means: the channel means of the layers' inputs; where one is missing the bias is not corrected.
    roundings: of (layer, scheme), see ``write_rounding``; to nearest where there is none. Raises as ``read_rounding``.
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
        found[layer.name, scheme] = quantize_layer(
            layer, scheme, qparams.get(source), means.get(source), (roundings or {}).get((layer.name, scheme), "")
        )
        progress(done + 1, len(jobs))
    return found
