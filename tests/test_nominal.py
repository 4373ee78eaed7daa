"""Losses without samples: they order schemes as their errors do, and are what rounding really adds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tiny import alone, dense

from hwq import nominal, row_scales
from hwq.quantize import quantize_layer


def test_losses_are_the_noise_of_weights_and_rows(rng: np.random.Generator) -> None:
    layer = dense("x", "y", (384, 96))
    schemes = ("w8a8_dyn", "w4a8_g64_dyn", "w4a16_g128")
    weights = {(layer.name, scheme): quantize_layer(layer, scheme, None) for scheme in schemes}
    found = nominal.losses(alone(layer), weights, [*weights, (layer.name, "f32")])
    assert found[layer.name, "f32"] == 0
    assert found[layer.name, "w8a8_dyn"] < found[layer.name, "w4a8_g64_dyn"] < found[layer.name, "w4a16_g128"]
    x = rng.standard_normal((200, 384)).astype(np.float32)
    scale = row_scales.row_scale(x)
    bytes_ = row_scales.quantize_rows(x, scale, "int8") * scale[:, None]
    for scheme, inputs in zip(schemes, (bytes_, bytes_, x), strict=True):
        assert layer.weight is not None
        clean, mine = x @ layer.weight.T, inputs @ weights[layer.name, scheme].real().T
        ratio = float(np.square(mine - clean).sum() / np.square(clean).sum())
        assert 0.7 < found[layer.name, scheme] / ratio < 1.4


def test_nothing_is_lost_of_nothing() -> None:
    layer = replace(dense("x", "y", (8, 3)), weight=np.zeros((3, 8), np.float32))
    weights = {(layer.name, "w4a16_g128"): quantize_layer(layer, "w4a16_g128", None)}
    assert nominal.losses(alone(layer), weights, weights) == {(layer.name, "w4a16_g128"): 0.0}
