"""Which tensors of a graph hold data: masks do not, and stay float whatever the samples show of them. And its words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx_nets import network, node, weights
from transformer_networks import Size, decoder, encoder

import hwq
from hwq.graph import ANCHORS, data_tensors, table_rows, words_of
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


WORDS, POSITIONS = 29, 64
HEAD = [node("MatMul", ["h", "head"], ["y"])]
TIED = [node("Transpose", ["table"], ["turned"], perm=[1, 0]), node("MatMul", ["h", "turned"], ["y"])]
CAPPED = [node("MatMul", ["h", "head"], ["d"]), node("Div", ["d", "cap"], ["e"]), node("Tanh", ["e"], ["f"])]
CAPPED.append(node("Mul", ["f", "cap"], ["y"]))
SHARES = [node("MatMul", ["h", "head"], ["d"]), node("LogSoftmax", ["d"], ["y"], axis=-1)]
MENDED = [
    node("Less", ["ids", "none"], ["below"]),
    node("Add", ["ids", "all"], ["wrapped"]),
    node("Where", ["below", "wrapped", "ids"], ["rows"]),
]
RESIDUAL = [node("MatMul", ["h", "square"], ["d"]), node("Add", ["d", "h"], ["y"])]


def model(tail: Sequence[Any], width: int, cast: bool, mended: bool = False) -> hwq.Model:
    """Words and positions looked up, both by inputs, added and normalized; then ``tail``, which writes y."""
    nodes = [
        *([node("Cast", ["ids"], ["rows"], to=TensorProto.INT64)] if cast else []),
        *(MENDED if mended else []),
        node("Gather", ["table", "rows" if cast or mended else "ids"], ["a"]),
        node("Gather", ["positions", "at"], ["b"]),
        node("Add", ["a", "b"], ["c"]),
        node("LayerNormalization", ["c", "scale"], ["h"]),
        *tail,
    ]
    shapes = {"table": (WORDS, width), "positions": (POSITIONS, width), "scale": (width,), "cap": ()}
    shapes |= {"head": (width, WORDS), "square": (width, width), "ends": (width, POSITIONS)}
    used = {name for one in nodes for name in one.input}
    consts: dict[str, Any] = {name: weights(*shape) for name, shape in shapes.items() if name in used}
    consts |= {name: np.int64(value) for name, value in (("none", 0), ("all", WORDS)) if name in used}
    dtypes = {"ids": TensorProto.INT32 if cast else TensorProto.INT64, "at": TensorProto.INT64}
    inputs = {"ids": (1, 6), "at": (1, 6)}
    return hwq.load(network(nodes, inputs=inputs, dtypes=dtypes, consts=consts, opset=17, outputs=["y"]))


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("tail", [HEAD, TIED, CAPPED, SHARES], ids=["head", "tied", "capped", "shares"])
def test_the_words_of_a_language_model_are_the_rows_of_the_table_that_its_outputs_are_for(
    tail: Sequence[Any], cast: bool
) -> None:
    """Though there are more positions, and ids are cast."""
    graph = model(tail, 16, cast).graph
    assert words_of(graph) == WORDS
    assert table_rows(graph) == {"at": POSITIONS} | ({} if cast else {"ids": WORDS})


def test_words_are_those_of_the_first_input_alone() -> None:
    """Not of positions, for each of which something is put out; ids may be mended first."""
    tail = [node("MatMul", ["h", "ends"], ["y"])]
    assert words_of(model(tail, 16, False).graph) == 0
    assert words_of(model(HEAD, 16, False, mended=True).graph) == WORDS


@pytest.mark.parametrize("tail", [[node("Identity", ["h"], ["y"])], RESIDUAL], ids=["norm", "residual"])
@pytest.mark.parametrize("width", [WORDS, POSITIONS])
def test_hidden_states_as_wide_as_a_table_has_rows_are_no_words(tail: Sequence[Any], width: int) -> None:
    graph = model(tail, width, False).graph
    assert graph.shapes[graph.outputs[0]] == (1, 6, width)
    assert words_of(graph) == 0


def test_a_decoder_has_the_words_of_its_network() -> None:
    found = hwq.load(decoder(SIZE, 8))
    assert words_of(found.graph) == words_of(hwq.decoder(found).graph) == SIZE.vocabulary
    assert words_of(hwq.load(encoder(SIZE, 8)).graph) == 0
