"""What the other operators' kernels become on NEON equals the reference, on an emulated board, at awkward sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from arm_runs import results
from kernel_runs import CHANNELS, Array, ints, make, numbers

from hwq import device, operators
from hwq.graph import Activation
from hwq.numerics import resize_weights
from hwq.operators import linear_sources
from hwq.reference import evaluate
from hwq.schedule import kernel_for
from hwq.target import Target
from hwq.workload import Workload

WINDOW: dict[str, Any] = {"kernel": (3, 2), "strides": (2, 1), "padding": (1, 0, 1, 1), "dilation": (1, 1)}

PADDING: dict[str, Any] = {"pads": ((0, 0), (1, 2), (0, 1), (0, 0)), "value": 0.0}
SLICE: dict[str, Any] = {"begin": (0, 4, 0, 0), "end": (2, 0, 7, 2**30), "strides": (1, -2, 2, 1)}


def cases(channels: int, rng: np.random.Generator) -> Iterator[tuple[Workload, list[Array], float]]:
    """(a workload, its arguments, what a float may differ by, relative to max(1, it)) of each operator."""
    shape = (2, 5, 7, channels)
    q, floats = numbers(rng, shape, "int8"), numbers(rng, shape, "float32")
    other, factors = numbers(rng, shape, "int8"), np.array([0.31, 0.43], np.float32)
    zero = np.array([-3], np.int32)
    yield make("add", "w8a8", [shape, shape], shape), [q, other, ints("int8"), factors], 0.0
    yield make("multiply", "w8a8", [shape, shape], shape), [q, other, ints("int8"), np.float32([0.013])], 0.0
    yield make("unary", "w8a8", [shape], shape), [q, rng.permutation(256).astype(np.uint8)], 0.0
    yield make("quantize", "w8a8", [shape], shape), [8 * floats, zero, np.float32([2.7])], 0.0
    yield make("dequantize", "w8a8", [shape], shape, out_dtype="float32"), [q, zero, np.float32([0.37])], 0.0
    yield make("concat", "w8a8", [shape, shape], (2, 5, 7, 2 * channels), axis=3), [q, other], 0.0
    yield make("max_pool2d", "w8a8", [shape], (2, 3, 7, channels), **WINDOW), [q], 0.0
    pool = operators.pool_multiplier(0.83, shape, include_pad=False, **WINDOW)
    average = make("avg_pool2d", "w8a8", [shape], (2, 3, 7, channels), count_include_pad=False, **WINDOW)
    yield average, [q, pool, ints("int8")], 0.0
    yield make("softmax", "f32", [shape], shape, axis=3), [floats], 3e-6
    scale, bias = (numbers(rng, (channels,), "float32") for _ in range(2))
    yield make("layer_norm", "f32", [shape], shape, epsilon=1e-5), [floats, scale, bias], 1.5e-5
    yield make("unary", "f32", [shape], shape, activation=Activation(kind="silu")), [floats], 1.5e-5
    yield make("pad", "w8a8", [shape], (2, 8, 8, channels), **PADDING), [q, np.array([-9], np.int32)], 0.0
    yield make("slice", "w8a8", [shape], (2, 2, 4, channels), **SLICE), [q], 0.0
    nearest = {"map_h": tuple(at // 2 for at in range(10)), "map_w": (0, 0, 3, 1, 6, 6, 6, 2, 2)}
    yield make("resize_nearest", "w8a8", [shape], (2, 10, 9, channels), **nearest), [q], 0.0
    lines = [linear_sources(before, after, "half_pixel") for before, after in ((5, 10), (7, 21))]
    whole = [value for places, weights in lines for value in (places, resize_weights(weights))]
    yield make("resize_linear", "w8a8", [shape], (2, 10, 21, channels)), [q, *whole], 0.0
    yield (
        make("resize_linear", "f32", [shape], (2, 10, 21, channels)),
        [floats, *(value for line in lines for value in line)],
        4e-6,
    )
    planes = (2, channels, 5, 7)
    picture = make("quantize", "w8a8", [planes], shape, axes=(0, 2, 3, 1))
    yield picture, [8 * numbers(rng, planes, "float32"), zero, np.float32([2.7])], 0.0
    heads = [(2, 5, 2 * channels), (2, 9, channels), (2, 9, channels)]
    seen = {"heads": 2, "kv_heads": 1, "scale": 0.05 / channels, "causal": True}
    # Scores are sums of up to 127 products of 12 and 12 at most: off by 133 * 2^-24 * 0.05 * 12 * 12; values are 14.
    yield make("attention", "f32", heads, heads[0], **seen), [numbers(rng, each, "float32") for each in heads], 2e-3
    axes = (0, 3, 1, 2)
    yield make("transpose", "f32", [shape], tuple(shape[axis] for axis in axes), axes=axes), [floats], 0.0


def test_operators_equal_the_reference(board: device.Device, tmp_path: Path, rng: np.random.Generator) -> None:
    target = Target.load("arm-cortex-a76")
    drawn = [case for channels in CHANNELS for case in cases(channels, rng)]
    ready = [(workload, kernel_for(workload, target), arguments) for workload, arguments, _ in drawn]
    for (workload, arguments, tolerance), result in zip(drawn, results(board, target, tmp_path, ready), strict=True):
        expected = evaluate(workload, arguments, "int8")
        assert result.dtype == expected.dtype, workload
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance, err_msg=str(workload))
