"""Layers drawn at random: shapes, strides, groups and activations as no single test thinks of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from anchor_runs import RELU, RELU6, TABLED, anchor

from hwq.graph import Activation
from hwq.workload import Workload

CHANNELS = (1, 3, 4, 8, 12, 16, 20, 24, 32, 33, 48, 64, 96, 127, 128, 336)
ACTIVATIONS = (Activation(), RELU, RELU6, TABLED, Activation(kind="hard_swish"))


def draw(rng: np.random.Generator, most_macs: float = 1e8) -> Workload:
    """One layer with weights, in int8 or int4."""
    while True:
        found = _draw(rng)
        per_output = np.prod(dict(found.attrs).get("kernel", (1,))) * found.input_shapes[0][-1]
        if min(found.output_shape) > 0 and np.prod(found.output_shape) * per_output <= most_macs:
            return found


def _draw(rng: np.random.Generator) -> Workload:
    channels, out = (int(value) for value in rng.choice(CHANNELS, 2))
    op = str(rng.choice(["conv2d", "conv2d", "conv2d", "depthwise_conv2d", "dense"]))
    given: dict[str, Any] = {
        "activation": ACTIVATIONS[rng.integers(len(ACTIVATIONS))],
        "residual": bool(rng.random() < 0.25),
        "parallel": int(rng.choice([1, 2])),
        "has_bias": bool(rng.random() < 0.9),
    }
    if op != "depthwise_conv2d" and given["activation"].clamps and rng.random() < 0.25:  # see ``lower.writes_float``
        given["out"] = "float32"
    scheme = str(rng.choice(["w8a8", "w4a8"]))
    if op == "dense":
        return anchor(op, scheme, (int(rng.choice([1, 2, 7, 16, 33])), channels), out, **given)
    height, width = (int(value) for value in rng.choice([1, 4, 5, 7, 8, 14, 20, 21, 33, 56, 80], 2))
    kernel = int(rng.choice([1, 1, 3, 3, 5, 7]))
    given |= {
        "kernel": (kernel, kernel),
        "strides": (int(rng.choice([1, 1, 2])),) * 2,
        "padding": tuple(int(value) for value in rng.integers(0, kernel // 2 + 1, 4)),
    }
    if op == "depthwise_conv2d":
        return anchor(op, scheme, (1, height, width, channels), channels, **given)
    given["dilation"] = (int(rng.choice([1, 1, 1, 2])),) * 2
    groups = int(rng.choice([1, 1, 1, 2, 4]))
    grouped = {"groups": groups} if channels % groups == out % groups == 0 else {}
    return anchor(op, scheme, (int(rng.choice([1, 1, 2])), height, width, channels), out, **grouped, **given)


def drawn(count: int, seed: int) -> list[Workload]:
    rng = np.random.default_rng(seed)
    return [draw(rng) for _ in range(count)]
