"""Padding: what short sentences are filled up with has no say in ranges, means, moments and rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from transformer_networks import Size, decoder, encoder

import hwq
from hwq.cache import default_cache_dir
from hwq.calibrate import collect
from hwq.execute import Runner, bind, compile_kernels, run, seen, to_device
from hwq.graph import Graph, Layer
from hwq.lower import lower
from hwq.moments import collect as moments_of
from hwq.moments import rows_of
from hwq.padding import find_padding
from hwq.samples import Batch, stream
from hwq.study import inputs_of
from hwq.target import Target

SIZE, TOKENS, COUNT = Size(layers=1, width=32, heads=4, inner=64, vocabulary=50), 12, 8
QUERY, NORM = "layer.0.query.matmul", "layer.0.norm2"


@pytest.fixture(scope="module")
def graph() -> Graph:
    return hwq.load(encoder(SIZE, TOKENS)).graph


@pytest.fixture(scope="module")
def runner(graph: Graph) -> Runner:
    target = Target.load("host")
    program = lower(graph, {}, {}, {}, target, 1)
    return bind(program, compile_kernels([program], target, default_cache_dir()))


@pytest.fixture(scope="module")
def batches(graph: Graph) -> list[Batch]:
    """Of 3 to 10 tokens each, what is behind them words by chance."""
    words = np.random.default_rng(0).integers(0, SIZE.vocabulary, (COUNT, TOKENS))
    mask = (np.arange(TOKENS) < np.arange(3, 3 + COUNT)[:, None]).astype(np.int64)
    return list(stream({"input_ids": words, "attention_mask": mask}, inputs_of(graph)))


def shown_rows(runner: Runner, batches: list[Batch], tensor: str) -> list[np.ndarray]:
    values = [seen(runner, run(runner, to_device(one)), tensor).copy() for one in batches]
    return [value.reshape(TOKENS, -1)[: 3 + at] for at, value in enumerate(values)]


def test_tokens_are_followed_from_attention(graph: Graph) -> None:
    """To all that has a row for each, from the words on; masks and heads have none."""
    found = find_padding(graph)
    along = {layer.output for layer in graph.layers if layer.op in ("gather", "dense", "layer_norm", "attention")}
    assert along <= found.masks.keys()
    (mask,) = {mask for masks in found.masks.values() for mask in masks}
    assert graph.shapes[mask] == (1, 1, 1, TOKENS)
    assert mask not in found.masks


def test_ranges_and_means_are_of_the_tokens_shown(graph: Graph, runner: Runner, batches: list[Batch]) -> None:
    (tensor,) = {layer.inputs[0] for layer in graph.layers if layer.name == QUERY}
    found = collect(runner, [tensor], batches, padding=find_padding(graph))
    rows = np.concatenate(shown_rows(runner, batches, tensor))
    histogram = found.histograms[tensor]
    assert (histogram.total, histogram.low, histogram.high) == (rows.size, rows.min(), rows.max())
    assert found.rows[tensor] == len(rows)
    np.testing.assert_allclose(found.sums[tensor], rows.sum(axis=0, dtype=np.float64))


def test_moments_are_of_the_tokens_shown(graph: Graph, runner: Runner, batches: list[Batch]) -> None:
    (layer,) = (layer for layer in graph.layers if layer.name == QUERY)
    found = moments_of(runner, [layer], {}, batches, COUNT, padding=find_padding(graph))[QUERY]
    rows = shown_rows(runner, batches, layer.inputs[0])
    held, fitted = (
        np.concatenate([one for at, one in enumerate(rows) if (at % 4 == 3) == is_held]) for is_held in (1, 0)
    )
    assert (found.held.count, found.fitted.count) == (len(held), len(fitted))
    np.testing.assert_allclose(found.fitted.mean[0], fitted.mean(axis=0), atol=1e-6)
    drawn = rows_of(runner, [layer.inputs[0]], batches, 64, padding=find_padding(graph))[layer.inputs[0]]
    real = {row.tobytes() for one in rows for row in one}
    for part in drawn:
        assert len(part)
        assert {row.tobytes() for row in part} <= real


def test_what_pads_changes_no_plan(batches: list[Batch]) -> None:
    """Other words behind the same sentences: the same parameters of every layer that reads tokens."""
    model, found = hwq.load(encoder(SIZE, TOKENS)), []
    for seed in (1, 2):
        other = np.random.default_rng(seed).integers(0, SIZE.vocabulary, (1, TOKENS))
        filled = [one | {"input_ids": np.where(one["attention_mask"] == 1, one["input_ids"], other)} for one in batches]
        made = hwq.compile(model, calibration=filled, schemes=["w8a8"], observer="minmax", measure=False, threads=1)
        found.append(made.plan)
    padded = find_padding(model.graph).masks
    assert "w8a8" in found[0].schemes.values()
    assert {name: found[0].qparams[name] for name in padded} == {name: found[1].qparams[name] for name in padded}


def test_a_sample_of_nothing_but_padding_counts(graph: Graph, runner: Runner, batches: list[Batch]) -> None:
    (tensor,) = {layer.inputs[0] for layer in graph.layers if layer.name == QUERY}
    nothing = [batches[0] | {"attention_mask": np.zeros((1, TOKENS), np.int64)}]
    assert collect(runner, [tensor], nothing, padding=find_padding(graph)).rows[tensor] == TOKENS


def test_what_moves_tokens_is_not_followed() -> None:
    """As many channels as tokens: turned round, the rows are the channels."""
    square = hwq.load(encoder(replace(SIZE, width=TOKENS), TOKENS)).graph
    last = next(layer for layer in square.layers if layer.name == NORM)
    shape = last.output_shape
    for axes, followed in (((0, 2, 1), False), ((0, 1, 2), True)):
        turn = Layer(
            name="turn", op="transpose", inputs=(last.output,), output="turned", input_shapes=(shape,),
            output_shape=shape, attrs={"axes": axes},
        )  # fmt: skip
        graph = replace(
            square,
            layers=(*square.layers, turn),
            shapes={**square.shapes, "turned": shape},
            dtypes={**square.dtypes, "turned": "float32"},
        )
        found = find_padding(graph).masks
        assert last.output in found
        assert ("turned" in found) == followed


def test_without_a_mask_of_the_sample_there_is_none(graph: Graph) -> None:
    """Nor where one attention of several goes without."""
    assert not find_padding(hwq.load(decoder(replace(SIZE, kv_heads=2), TOKENS)).graph).masks
    two = hwq.load(encoder(replace(SIZE, layers=2), TOKENS)).graph
    first = next(layer for layer in two.layers if layer.op == "attention")
    bare = replace(first, inputs=first.inputs[:3], input_shapes=first.input_shapes[:3])
    assert find_padding(two).masks
    assert not find_padding(replace(two, layers=tuple(bare if layer is first else layer for layer in two.layers))).masks
