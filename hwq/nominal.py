"""What layers lose where there are no samples to measure it on: noise over signal of each layer's own output.

Weights are known, and so is their rounding's share of their power; of activations that are rounded by rows a nominal
share is taken. As in ``hwq.loss`` it is 0 for float, and grows with the error; but how a layer's error reaches the
network's output is not in it, so it tells schemes of a layer apart, and not what a network loses. Stands in for
``hwq.sensitivity``; schemes that need calibration have no use for it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hwq.graph import Graph
from hwq.quantize import Weights
from hwq.scheme import SCHEMES

# Rows of values as a normal distribution has them, whose largest of some hundred is about three deviations: the step is
# 3 / 127 of a deviation, and rounding to it adds a twelfth of its square.
ROWS_NOISE = (3 / 127) ** 2 / 12


def losses(graph: Graph, weights: Weights, units: Iterable[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """The nominal loss of each (layer, scheme) of ``units``; 0 for a layer without weights, and for zero weights."""
    layers = {layer.name: layer for layer in graph.layers}
    found = dict.fromkeys(units, 0.0)
    for name, scheme in found:
        weight = layers[name].weight
        if weight is None or (name, scheme) not in weights:
            continue
        signal = float(np.square(weight, dtype=np.float64).sum())
        noise = float(np.square(weight - weights[name, scheme].real(), dtype=np.float64).sum())
        rows = ROWS_NOISE if SCHEMES[scheme].dynamic else 0.0
        found[name, scheme] = (noise / signal if signal else 0.0) + rows
    return found
