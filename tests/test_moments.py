"""Moments of inputs that hardly vary around a value far from 0: nothing cancels, and every layer can be rounded."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from transformer_networks import Size, encoder

import hwq
from hwq.cache import default_cache_dir
from hwq.correct import correct_layer
from hwq.execute import bind, compile_kernels, run, seen, to_device
from hwq.lower import lower
from hwq.moments import Moments, Part, rows_of
from hwq.numerics import QParams
from hwq.samples import stream
from hwq.study import inputs_of
from hwq.target import Target

INPUTS = 130


def part_of(rows: np.ndarray) -> Part:  # type: ignore[type-arg]
    part = Part(total=np.zeros((1, INPUTS)), square=np.zeros((1, INPUTS, INPUTS)))
    for block in np.array_split(rows.astype(np.float32), 3):
        part.add(block[None])
        part.settle()
    return part


@pytest.mark.parametrize("spread", [1e-2, 1e-4])
def test_a_small_spread_far_from_zero_does_not_cancel(rng: np.random.Generator, spread: float) -> None:
    """Also about another part's mean."""
    rows = (0.5 + spread * rng.standard_normal((60, INPUTS))).astype(np.float32)
    exact = rows.astype(np.float64)
    found = part_of(rows)
    np.testing.assert_allclose(found.mean[0], exact.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(found.about(found.mean)[0], np.cov(exact.T, bias=True), rtol=0, atol=1e-4 * spread**2)
    other = exact.mean(axis=0) + spread
    away = exact - other
    np.testing.assert_allclose(found.about(other[None])[0], away.T @ away / 60, rtol=0, atol=1e-4 * spread**2)


@pytest.mark.parametrize("spread", [1e-3, 1e-5, 0.0])
@pytest.mark.parametrize("samples", [8, 64])
def test_means_of_a_sigmoid_can_be_rounded_for(rng: np.random.Generator, samples: int, spread: float) -> None:
    """All near 0.5, as global pooling leaves them: once not positive definite."""
    rows = 0.5 + spread * rng.standard_normal((samples, INPUTS))
    held = np.arange(samples) % 4 == 3
    layer = tiny.dense("x", "y", (INPUTS, 8))
    moments = Moments(fitted=part_of(rows[~held]), held=part_of(rows[held]))
    texts = correct_layer(layer, ["w8a8", "w4a8"], QParams(scale=1 / 255, zero_point=-128), moments)
    assert texts.keys() == {"w8a8", "w4a8"}


def test_rows_are_those_of_tokens_that_are_there() -> None:
    """What lies behind them in a buffer of the most is nobody's."""
    size, most = Size(layers=1, width=32, heads=4, inner=64, vocabulary=50), 9
    dynamic = {name: {1: (1, most)} for name in ("input_ids", "attention_mask")}
    model = hwq.load(encoder(size, most), dynamic=dynamic)
    inputs = inputs_of(model.graph)
    words = np.random.default_rng(0).integers(0, size.vocabulary, (8, 3))
    batches = list(stream({"input_ids": words, "attention_mask": np.ones_like(words)}, inputs))
    target = Target.load("host")
    program = lower(model.graph, {}, {}, {}, target, 1)
    runner = bind(program, compile_kernels([program], target, default_cache_dir()))
    run(runner, to_device(next(stream({name: np.ones((1, most), np.int64) for name in dynamic}, inputs))))  # dirt
    (tensor,) = [layer.inputs[0] for layer in model.graph.layers if layer.name == "layer.0.query.matmul"]
    real = {row.tobytes() for batch in batches for row in seen(runner, run(runner, to_device(batch)), tensor)}
    for rows in rows_of(runner, [tensor], batches, 64)[tensor]:
        assert len(rows)
        assert {row.tobytes() for row in rows} <= real
