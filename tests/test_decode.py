"""hwq.decoder: token by token a network gives the rows that it gives for whole sequences; what cannot is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import language
import numpy as np
import pytest
import tiny

import hwq
from hwq.decode import decoder, plan_for
from hwq.errors import HwqError
from hwq.graph import SPAN
from hwq.lengths import lengths_of
from hwq.lower import legal_schemes
from hwq.model import Model, varying
from hwq.scheme import SCHEMES
from hwq.smooth import find_spots
from hwq.target import Target

HOST = Target.load("host")
# Without records or measuring: what is compiled here is the same everywhere.
PLAIN: dict[str, Any] = {"threads": 1, "measure": False}


def tokens_of(model: Model, count: int = 1, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, language.VOCABULARY, (count, model.inputs[0].shape[1]))


def floats(model: Model) -> hwq.Artifact:
    return hwq.compile(model, "host", schemes=["f32"], **PLAIN)


@pytest.mark.parametrize("model", [language.llama(), language.positions()], ids=lambda model: model.name)
def test_steps_give_the_rows_of_the_whole(model: Model) -> None:
    """Kernels of rows are the same; those of products sum in an order of their own for one row: 64 products of values
    below 4, in six layers one behind the other, differ by 64 * 2^-24 * 16 * 6 = 4e-4 at most, mostly by nothing."""
    ids = tokens_of(model)
    found = floats(decoder(model)).start()(ids)
    np.testing.assert_allclose(found, floats(model)(ids), atol=4e-4, rtol=0)


def test_the_network_of_one_token_has_the_layers_of_the_whole() -> None:
    model = language.llama()
    step = decoder(model, 7)
    names = [layer.name for layer in model.graph.layers]
    more = [layer for layer in step.graph.layers if layer.name not in names]
    assert [layer.name for layer in step.graph.layers if layer.name in names] == names
    assert sorted({layer.op for layer in more}) == ["append", "rows_at"]
    assert [layer.op for layer in more].count("rows_at") == 2  # cosines and sines of all heads and blocks
    assert [layer.output_shape for layer in more if layer.op == "append"] == [(1, 7, 12)] * 4
    assert all(layer.output_shape[-2:-1] in ((), (1,)) for layer in step.graph.layers if layer.op != "append")
    assert step.graph.inputs == ("ids", SPAN)
    assert (step.length, step.whole) == (7, model.fingerprint)
    assert [spec.shape for spec in (*step.inputs, *step.outputs)] == [(1, 1), (1, 1, language.VOCABULARY)]
    assert len({step.fingerprint, decoder(model).fingerprint, model.fingerprint}) == 3


def test_a_shorter_length_is_the_beginning() -> None:
    model = language.llama()
    ids = tokens_of(model)
    long, short = (floats(decoder(model, length)).start() for length in (None, 5))
    np.testing.assert_allclose(short(ids[:, :5]), long(ids)[:, :5], atol=4e-4, rtol=0)


@pytest.mark.parametrize("queries", [1, 9])
def test_constant_biases_are_read_at_the_position(queries: int) -> None:
    """One for each query and key, and one for keys alone."""
    rng = np.random.default_rng(4)
    bias = rng.standard_normal((1, language.HEADS, queries, 9)).astype(np.float32)
    attrs = {"heads": language.HEADS, "kv_heads": language.HEADS, "scale": 0.4, "causal": True, "bias": bias.shape}
    model = language.positions(attrs=attrs, constants=(bias,))
    ids = tokens_of(model)
    whole = floats(model)(ids)
    np.testing.assert_allclose(floats(decoder(model))(ids), whole, atol=4e-4, rtol=0)
    np.testing.assert_allclose(floats(decoder(model, 6))(ids[:, :6]), whole[:, :6], atol=4e-4, rtol=0)
    assert np.abs(whole - floats(language.positions())(ids)).max() > 0.01, "the bias does nothing"


@pytest.mark.parametrize("model", [language.llama(), language.positions()], ids=lambda model: model.name)
def test_caches_of_int8_lose_little_and_take_less(model: Model) -> None:
    """A row of a head is off by half a step in 127 of its largest value, independently: of 6 values some 0.3% of their
    size, and as much of what attention adds to each of two blocks. The scales are a float for 6 bytes here."""
    ids = tokens_of(model)
    full = floats(decoder(model))
    less = floats(decoder(model, cache="int8"))
    expected, found = full(ids), less(ids)
    assert not np.array_equal(found, expected)
    assert np.square(found - expected).mean() < 1e-4 * np.square(expected).mean()
    cached = sum(np.prod(one.output_shape) for one in decoder(model).graph.layers if one.op == "append")
    room = sum(
        np.prod(one.output_shape) * (1 if one.op == "append_int8" else 4)
        for one in decoder(model, cache="int8").graph.layers
        if one.op in ("append", "append_int8")
    )
    assert 6 * room == 10 * cached
    assert less.library.state_bytes < 0.6 * full.library.state_bytes


def test_smoothing_of_the_whole_goes_for_caches_of_int8() -> None:
    """The values' writer among the layers, whose rows are rounded: all channels by the same power of two change no bit,
    since the scales of the rows follow, and each by its own leaves errors of the size that rounding has without."""
    model = language.llama(blocks=1)
    step = decoder(model, cache="int8")
    writers = {spot.writer: spot.channels for spot in find_spots(model.graph)}
    assert {spot.writer for spot in find_spots(step.graph)} == set(writers) >= {"0.v:rows"}
    ids, plan = tokens_of(model), hwq.plan(model, "host", schemes=["f32"], **PLAIN)
    rng = np.random.default_rng(2)
    even, uneven = (
        {name: tuple(int(one) for one in rng.integers(*ends, count)) for name, count in writers.items()}
        for ends in ((3, 4), (-1, 2))
    )
    found, same, other = (
        hwq.build(step, replace(plan, smoothing=smoothing)).start()(ids) for smoothing in ({}, even, uneven)
    )
    np.testing.assert_array_equal(same, found)
    assert 0 < np.square(other - found).mean() < 2e-4 * np.square(found).mean()


def test_samples_belong_to_the_whole() -> None:
    model = language.llama()
    step, ids = decoder(model), tokens_of(model)
    plan = hwq.plan(model, "host", schemes=["f32"], **PLAIN)
    for what, use in (
        ("calibration", lambda: hwq.compile(step, calibration=ids, **PLAIN)),
        ("calibration", lambda: hwq.plan(step, calibration=ids, **PLAIN)),
        ("evaluate", lambda: hwq.compile(step, evaluate=lambda run: 1.0, schemes=["f32"], **PLAIN)),
        ("evaluate", lambda: hwq.compile(step, evaluate=(ids, ids[:, 0]), schemes=["f32"], **PLAIN)),
        ("evaluate", lambda: hwq.build(step, plan, evaluate=lambda run: 1.0)),
    ):
        with pytest.raises(
            HwqError, match=f"{what} is given for .* one token at a time; accepted: {what} for"
        ) as caught:
            use()
        assert caught.value.code == "decoder-samples"


def test_an_unknown_cache_is_refused() -> None:
    with pytest.raises(HwqError, match="cache is 'int4'; accepted: float32, int8") as caught:
        decoder(language.llama(), cache="int4")
    assert caught.value.code == "cache-unknown"


def test_kernels_of_steps_can_be_timed() -> None:
    for cache in ("float32", "int8"):
        step = hwq.compile(decoder(language.llama(), cache=cache), "host", schemes=["f32"], threads=1, measure=True)
        sources = {row["op"]: row["price_source"] for row in step.report["layers"]}
        assert {sources[op] for op in sources if op.startswith(("append", "attention", "rows_at"))} == {"measured"}


def test_a_plan_of_the_whole_is_built_for_steps() -> None:
    """Integer layers, their ranges from calibration of the whole: one step in 256 of what rounds the other way, where a
    float sum before it differs in its last bit."""
    model = language.llama()
    plan = hwq.plan(model, "host", calibration=tokens_of(model, 4), schemes=["w8a8"], **PLAIN)
    assert "w8a8" in plan.schemes.values()
    whole, step = hwq.build(model, plan), hwq.build(decoder(model), plan)
    assert {name: step.plan.schemes[name] for name in plan.schemes} == plan.schemes
    ids = tokens_of(model, seed=9)
    np.testing.assert_allclose(step(ids), whole(ids), atol=0.02 * np.abs(whole(ids)).max(), rtol=0)
    assert np.array_equal(step(ids).argmax(axis=-1), whole(ids).argmax(axis=-1))
    again = hwq.build(decoder(model), step.plan)
    assert np.array_equal(again(ids), step(ids))


@pytest.mark.parametrize("cache", ["float32", "int8"])
def test_attention_on_caches_is_float_whatever_the_plan_says(cache: str) -> None:
    model = language.llama()
    plan = hwq.plan(model, "host", schemes=["f32"], **PLAIN)
    bytes_ = replace(plan, schemes={**plan.schemes, "0.attention": "w8a8", "0.q:rows": "w8a8_dyn"})
    found = plan_for(decoder(model, cache=cache), bytes_).schemes
    assert (found["0.attention"], found["0.q:rows"]) == ("f32", "w8a8_dyn")
    every = tuple(SCHEMES.values())
    for layer in decoder(model, cache=cache).graph.layers:
        legal = legal_schemes(decoder(model, cache=cache).graph, layer, HOST, every)
        assert legal == ("f32",) or not layer.op.startswith(("attention", "append", "rows_at"))


def test_only_a_plan_of_the_same_network_is_taken() -> None:
    model, other = language.llama(), language.llama(seed=3)
    plan = hwq.plan(other, "host", schemes=["f32"], **PLAIN)
    assert plan_for(decoder(model), plan) is plan
    assert plan_for(other, plan) is plan
    with pytest.raises(HwqError) as caught:
        hwq.build(decoder(model), plan)
    assert caught.value.code in ("plan-other", "plan-layers")


def _with(model: Model, **fields: Any) -> Model:
    """``model`` with its attention's fields changed."""
    layers = [replace(one, **fields) if one.op == "attention" else one for one in model.graph.layers]
    return replace(model, graph=replace(model.graph, layers=tuple(layers)))


def test_attention_to_what_comes_is_refused() -> None:
    model = language.positions()
    attrs = {"heads": language.HEADS, "kv_heads": language.HEADS, "scale": 0.4, "causal": False}
    with pytest.raises(HwqError, match=r"'attention' \(attention\).*token sees the tokens behind it.*causal") as caught:
        decoder(_with(model, attrs=attrs))
    assert caught.value.code == "decoder-layer"


def test_a_layer_that_mixes_tokens_is_refused() -> None:
    shapes = {"ids": (1, 8), "x": (1, 8, 4), "y": (1, 8, 4)}
    weight = np.ones((5, 4), np.float32)
    layers = [
        tiny.layer("gather", ("ids",), "x", shapes, weight=weight, attrs={"ids": "int64", "rows": 5}),
        tiny.layer("softmax", ("x",), "y", shapes, attrs={"axis": 1}),
    ]
    with pytest.raises(HwqError, match=r"'y' \(softmax\)") as caught:
        decoder(_language(layers, shapes))
    assert caught.value.code == "tokens-mixed"


def test_a_float_operator_is_refused_by_its_name() -> None:
    shapes = {"ids": (1, 8), "x": (1, 8, 4), "y": (1, 8, 4)}
    model = language.positions()
    odd = [replace(one, attrs={"operator": "atan"}) if one.op == "float" else one for one in model.graph.layers]
    with pytest.raises(HwqError, match=r"'positions' \(atan\) cannot go token by token") as caught:
        decoder(_language(odd, {**model.graph.shapes, **shapes, "y": model.outputs[0].shape}, model.graph.outputs[0]))
    assert caught.value.code == "decoder-layer"


def _language(layers: Any, shapes: Any, output: str = "y") -> Model:
    graph = tiny.graph(layers, ("ids",), [output])
    return language.model_of(replace(graph, dtypes={**graph.dtypes, "ids": "int64"}), "odd")


@pytest.mark.parametrize("length", [0, -1, 1.5, True, "long"])
def test_what_is_no_length_is_refused(length: Any) -> None:
    with pytest.raises(HwqError, match="length is") as caught:
        decoder(language.llama(), length)
    assert caught.value.code == "length-invalid"


def test_more_positions_than_the_constants_have_are_refused() -> None:
    with pytest.raises(
        HwqError, match=r"'0\.q\.turned' has constants for 12 positions; accepted: at most 12"
    ) as caught:
        decoder(language.llama(), 13)
    assert caught.value.code == "length-invalid"


def test_other_inputs_and_outputs_are_refused() -> None:
    model = language.llama()
    spec = model.inputs[0]
    for inputs in ((spec, spec), (replace(spec, dtype="float32"),), (replace(spec, shape=(2, 12)),)):
        with pytest.raises(HwqError, match=r"accepted: one of token ids, whole numbers \(1, T\)") as caught:
            decoder(replace(model, inputs=inputs))
        assert caught.value.code == "decoder-model"
    with pytest.raises(HwqError, match="is a decoder already"):
        decoder(decoder(model))
    graph = replace(model.graph, outputs=("logits:rows",))
    with pytest.raises(HwqError, match="does not have the 12 tokens along axis 1"):
        decoder(replace(model, graph=graph))


def test_a_trained_network_steps_as_the_whole(data_dir: Path) -> None:
    """stories260K on a story of 128 tokens."""
    stories = data_dir / "stories260k"
    with np.load(stories / "tinystories_valid_100_tok128.npz") as pack:
        ids = pack["tokens"][:1].astype(np.int64)
    model = hwq.load(stories / "stories260K_T128.onnx")
    step = decoder(model)
    plan = hwq.plan(model, "host", schemes=["f32"], **PLAIN)
    whole, steps = hwq.build(model, plan), hwq.build(step, plan)
    logits, expected = steps(ids), whole(ids)
    # A rounding of 2^-24 of logits of 25 in each of 36 products, where nothing magnifies it: 5e-5; ten times that.
    np.testing.assert_allclose(logits, expected, atol=5e-4, rtol=0)
    assert steps.library.state_bytes == 2 * 5 * 128 * 32 * 4


DYNAMIC = {"ids": {1: (1, 12)}}


def test_a_decoder_of_lengths_that_vary_is_that_of_the_whole() -> None:
    model = language.llama()
    step, plain = decoder(varying(model, DYNAMIC)), decoder(model)
    assert (step.dynamic, step.whole, step.fingerprint) == ({}, plain.whole, plain.fingerprint)
    assert not lengths_of(shape for layer in step.graph.layers for shape in (*layer.input_shapes, layer.output_shape))
    assert not lengths_of(step.graph.shapes.values())
    ids = tokens_of(model)
    assert np.array_equal(floats(step)(ids), floats(plain)(ids))


def test_a_plan_for_lengths_that_vary_is_built_for_steps() -> None:
    model = language.llama()
    plan = hwq.plan(model, "host", schemes=["f32"], dynamic=DYNAMIC, **PLAIN)
    assert plan.dynamic
    steps = [hwq.build(decoder(one), plan) for one in (model, varying(model, DYNAMIC))]
    assert all(not step.plan.dynamic for step in steps)
    ids = tokens_of(model)
    assert all(np.array_equal(step(ids), floats(decoder(model))(ids)) for step in steps)
    with pytest.raises(HwqError) as caught:
        hwq.build(decoder(language.llama(seed=3)), plan)
    assert caught.value.code in ("plan-other", "plan-layers")


@pytest.mark.parametrize("use", [hwq.plan, hwq.compile])
def test_lengths_of_a_decoder_do_not_vary(use: Any) -> None:
    with pytest.raises(HwqError, match=r"a decoder, .*; accepted: dynamic for the network of whole") as caught:
        use(decoder(language.llama()), "host", schemes=["f32"], dynamic=DYNAMIC, **PLAIN)
    assert caught.value.code == "dynamic-invalid"
