"""Which tensors of a graph hold data: masks do not, and stay float whatever the samples show of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformer_networks import Size, encoder

import hwq
from hwq.graph import ANCHORS, data_tensors
from hwq.numerics import sqnr_db

SIZE = Size(layers=1, width=32, heads=4, inner=64, vocabulary=50)


def test_a_mask_is_no_data_until_something_with_weights_is_masked() -> None:
    graph = hwq.load(encoder(SIZE, 8)).graph
    found = data_tensors(graph)
    assert {layer.output for layer in graph.layers if layer.op in (*ANCHORS, "gather", "attention")} <= found
    masks = {layer.output for layer in graph.layers} - found
    (attention,) = [layer for layer in graph.layers if layer.op == "attention"]
    assert attention.inputs[3] in masks
    assert not masks & {name for layer in graph.layers if layer.op in ANCHORS for name in layer.inputs}


def test_samples_that_show_all_words_serve_for_others(tmp_path: Path) -> None:
    """On every sample the mask was all ones; the artifact is right where it is not."""
    proto = encoder(SIZE, 8)
    rng = np.random.default_rng(0)
    words = rng.integers(0, SIZE.vocabulary, (16, 8))
    samples = {"input_ids": words, "attention_mask": np.ones_like(words)}
    made = {
        scheme: hwq.compile(
            hwq.load(proto), calibration=samples, schemes=[scheme], measure=False, work_dir=tmp_path, sensitivity_s=0.0
        )
        for scheme in ("f32", "w8a8")
    }
    shown = (np.arange(8) < rng.integers(2, 8, (16, 1))).astype(np.int64)
    masked = {"input_ids": words, "attention_mask": shown}
    exact, found = (made[scheme](masked) for scheme in ("f32", "w8a8"))
    assert sqnr_db(exact, made["f32"](samples)) < 20.0  # the mask matters
    assert sqnr_db(exact, found) > 25.0
