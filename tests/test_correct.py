"""Corrections: what is taken has the least held-out output error, equals its text, and is not made twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from demo_study import anchors, demo_model, demo_study

from hwq import correct as stage
from hwq import numerics
from hwq.correct import correct, correct_layer, work_macs
from hwq.demo import load_demo
from hwq.graph import Graph, Layer
from hwq.moments import Moments, Part, collect, columns, positions, shape_of
from hwq.numerics import QParams
from hwq.operators import correlate
from hwq.progress import Callback
from hwq.quantize import IntegerWeights, quantize_layer
from hwq.samples import stream
from hwq.scheme import SCHEMES
from hwq.study import inputs_of

SOURCE = QParams(scale=0.02, zero_point=-128)
LAYERS = {
    "conv": tiny.conv("x", "y", (6, 8)),
    "strided": dataclasses.replace(
        tiny.conv("x", "y", (6, 8)),
        output_shape=(1, 3, 2, 8),
        attrs=tiny.WINDOW | {"groups": 1, "strides": (2, 2), "padding": (1, 0, 0, 1)},
    ),
    "grouped": dataclasses.replace(
        tiny.conv("x", "y", (6, 8)),
        attrs=tiny.WINDOW | {"groups": 2},
        weight=np.random.default_rng(5).standard_normal((8, 3, 3, 3)).astype(np.float32),
    ),
    "depthwise": tiny.depthwise("x", "y", 8),
    "dense": tiny.dense("x", "y", (130, 8)),
}


def smooth(layer: Layer, count: int = 40) -> np.ndarray[Any, Any]:
    """Inputs as networks have them: not negative, neighbours alike, channels with common causes."""
    rng = np.random.default_rng(1)
    _, *size, channels = layer.input_shapes[0]
    hidden = rng.standard_normal((count, *size, 3))
    for axis in range(1, 1 + len(size)):
        hidden = hidden + np.roll(hidden, 1, axis)
    x = hidden @ rng.standard_normal((3, channels)) + 0.2 * rng.standard_normal((count, *size, channels))
    return np.asarray(np.maximum(x, 0), np.float32)


def moments_of(layer: Layer, x: np.ndarray[Any, Any]) -> Moments:
    """All columns of every sample, every fourth held out."""
    groups, length = shape_of(layer)
    parts = [Part(total=np.zeros((groups, length)), square=np.zeros((groups, length, length))) for _ in range(2)]
    for i, sample in enumerate(x):
        parts[i % 4 == 3].add(columns(layer, sample[None], np.arange(positions(layer))))
    for part in parts:
        part.settle()
    return Moments(fitted=parts[0], held=parts[1])


def output_error(layer: Layer, found: IntegerWeights, x: np.ndarray[Any, Any]) -> float:
    """The variance that the weights' error adds to the outputs, by the convolution itself."""
    assert layer.weight is not None
    error = (layer.weight - found.real()).astype(np.float64)
    if layer.op == "dense":
        return float((x @ error.T).var(axis=0).sum())
    window = {key: layer.attrs[key] for key in ("strides", "padding", "dilation", "groups")}
    return float(correlate(x, error, **window).var(axis=(0, 1, 2)).sum())


@pytest.mark.parametrize("name", LAYERS)
def test_columns_are_what_the_convolution_multiplies(name: str) -> None:
    layer = LAYERS[name]
    assert layer.weight is not None
    x = smooth(layer, 1)
    groups, length = shape_of(layer)
    weight = layer.weight.astype(np.float64).reshape(groups, -1, length)
    found = np.concatenate(columns(layer, x, np.arange(positions(layer))) @ weight.transpose(0, 2, 1), axis=1)
    if layer.op == "dense":
        expected = x @ layer.weight.T.astype(np.float64)
    else:
        window = {key: layer.attrs[key] for key in ("strides", "padding", "dilation", "groups")}
        expected = correlate(x, layer.weight, **window).reshape(-1, len(layer.weight))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_covariance_is_numpys(name: str) -> None:
    layer = LAYERS[name]
    x = smooth(layer, 8)
    found = moments_of(layer, x).fitted
    rows = np.concatenate(
        [columns(layer, x[i : i + 1], np.arange(positions(layer))) for i in range(8) if i % 4 != 3], 1
    )
    assert found.count == rows.shape[1]
    for group in range(len(rows)):
        expected = np.cov(rows[group].astype(np.float64).T, bias=True).reshape(rows.shape[2], -1)
        np.testing.assert_allclose(found.about(found.mean)[group], expected, rtol=1e-3, atol=1e-4)


OF_DENSE = ("w4a8_g64", "w8a8_dyn", "w4a8_g64_dyn", "w4a16_g128")


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", *OF_DENSE])
@pytest.mark.parametrize("name", LAYERS)
def test_output_error_beats_that_of_nearest(name: str, scheme: str) -> None:
    layer = LAYERS[name]
    if scheme in OF_DENSE and layer.op != "dense":
        pytest.skip("groups of inputs and of rows are for dense layers")
    x = smooth(layer)
    source = SOURCE if SCHEMES[scheme].domain == "int8" else None
    text = correct_layer(layer, [scheme], source, moments_of(layer, x))[scheme]
    plain, found = (quantize_layer(layer, scheme, source, rounding=one) for one in ("", text))
    before, after = output_error(layer, plain, x), output_error(layer, found, x)
    print(f"{name} {scheme}: {10 * np.log10(before / after):.1f} dB")
    assert after < 0.9 * before
    assert np.square(layer.weight - found.real()).sum() > np.square(layer.weight - plain.real()).sum() or "w8" in scheme


@pytest.mark.parametrize("scheme", ["w4a8_g64", "w4a8_g64_dyn", "w4a16_g128"])
def test_scales_of_groups_take_the_sign_that_reaches_further(scheme: str) -> None:
    """Integers go from -8 to 7: a group whose largest weight is positive has a negative scale, and loses no more than
    its mirror image."""
    layer = LAYERS["dense"]
    assert layer.weight is not None
    mirrored = dataclasses.replace(layer, weight=-layer.weight)
    x, source = smooth(layer), SOURCE if SCHEMES[scheme].domain == "int8" else None
    found = []
    for one in (layer, mirrored):
        text = correct_layer(one, [scheme], source, moments_of(one, x))[scheme]
        found.append(quantize_layer(one, scheme, source, rounding=text))
    assert found[0].scale.min() < 0 < found[0].scale.max()
    np.testing.assert_array_equal(found[0].values, found[1].values)
    np.testing.assert_array_equal(found[0].scale, -found[1].scale)


def test_scales_hold_bias_and_products() -> None:
    plain = LAYERS["conv"]
    assert plain.weight is not None
    weight = plain.weight * np.array([1e-9] + [1.0] * 7, np.float32)[:, None, None, None]
    layer = dataclasses.replace(plain, weight=weight, bias=np.full(8, 3.0, np.float32))
    texts = correct_layer(layer, ["w8a8", "w4a8"], SOURCE, moments_of(layer, smooth(layer)))
    for scheme, text in texts.items():
        found = quantize_layer(layer, scheme, SOURCE, rounding=text)
        back = numerics.quantize_bias(found.bias, SOURCE.scale, found.scale) * SOURCE.scale * found.scale
        np.testing.assert_allclose(back, layer.bias, rtol=0, atol=SOURCE.scale * float(found.scale.max()))


def test_tables_are_not_rounded_by_what_reads_them(tmp_path: Path) -> None:
    """A table's rows are picked, not multiplied: there are no inputs whose moments could say anything."""
    table = Layer(
        name="table", op="gather", inputs=("ids",), output="y", input_shapes=((1, 4),), output_shape=(1, 4, 8),
        attrs={"ids": "int64", "rows": 6}, weight=np.ones((6, 8), np.float32),
    )  # fmt: skip
    graph = Graph(
        inputs=("ids",), outputs=("y",), shapes={"ids": (1, 4), "y": (1, 4, 8)},
        dtypes={"ids": "int64", "y": "float32"}, layers=(table,),
    )  # fmt: skip
    assert correct(graph, {"table": ("f32", "w8a8_dyn")}, {}, gather, lambda *_: tmp_path / "none") == {}


def test_what_does_not_help_is_not_taken() -> None:
    """The inputs held out have no correlation, or there are none: nothing beats rounding to nearest with its scale."""
    layer = LAYERS["dense"]
    seen = moments_of(layer, smooth(layer))
    seen.held.total[:], seen.held.shift = 0.0, None
    seen.held.square[:] = seen.held.count * np.diag(np.linspace(1.0, 1.01, 130))
    other = dataclasses.replace(seen, held=dataclasses.replace(seen.held, total=seen.fitted.mean * seen.held.count))
    other.held.square[:] += seen.held.count * (seen.fitted.mean[:, :, None] * seen.fitted.mean[:, None])
    assert correct_layer(layer, ["w4a8"], SOURCE, other) == {"w4a8": ""}
    nothing = Part(total=np.zeros((1, 130)), square=np.zeros((1, 130, 130)))
    assert correct_layer(layer, ["w4a8"], SOURCE, Moments(fitted=seen.fitted, held=nothing)) == {"w4a8": ""}


# The stage


def gather(layers: Sequence[Layer], progress: Callback) -> Mapping[str, Moments]:
    study = demo_study()
    batches = list(stream(load_demo()[1][:16], inputs_of(study.graph)))
    return collect(study.runner, layers, study.qparams, batches, 16, progress)


def test_an_interrupt_keeps_the_layers_that_are_done(tmp_path: Path) -> None:
    study = demo_study()
    asked: list[list[str]] = []

    def watched(layers: Sequence[Layer], progress: Callback) -> Mapping[str, Moments]:
        asked.append([layer.name for layer in layers])
        return gather(layers, progress)

    def stop(done: int, total: int) -> None:
        assert 0 <= done <= total
        if done > total // 2 + 1:
            raise KeyboardInterrupt

    def journal(layer: Layer, schemes: Sequence[str]) -> Path:
        return tmp_path / f"{layer.name}-{'-'.join(schemes)}"

    arguments = (study.graph, study.candidates, study.qparams)
    whole = correct(*arguments, gather, lambda layer, schemes: journal(layer, [*schemes, "whole"]))
    with pytest.raises(KeyboardInterrupt):
        correct(*arguments, watched, journal, stop)
    (tmp_path / f"{asked[0][1]}-w8a8-w4a8").write_text("damaged")
    assert correct(*arguments, watched, journal) == whole
    assert asked[1] == asked[0][1:], "the first was done, the second damaged"
    assert correct(*arguments, watched, journal) == whole
    assert len(asked) == 2
    assert any(whole.values())


def test_moments_beyond_the_memory_are_gathered_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = demo_study()
    monkeypatch.setattr(stage, "MOMENT_BYTES", 1)
    turns: list[int] = []

    def watched(layers: Sequence[Layer], progress: Callback) -> Mapping[str, Moments]:
        turns.append(len(layers))
        return gather(layers, progress)

    found = correct(study.graph, study.candidates, study.qparams, watched, lambda layer, schemes: tmp_path / layer.name)
    assert found == study.roundings
    assert set(turns) == {1}
    assert len(turns) == sum(layer.weight is not None for layer in study.graph.layers)


def test_the_studys_weights_have_less_output_error_on_other_pictures() -> None:
    study = demo_study()
    pictures = load_demo()[1][16:32]
    layers = [layer for layer in study.graph.layers if layer.weight is not None]
    batches = list(stream(pictures, inputs_of(demo_model().graph)))
    fresh = collect(study.runner, layers, study.qparams, batches, 16)
    for scheme, most in (("w4a8", 0.7), ("w8a8", 1.0)):
        errors = []
        for layer in layers:
            groups, length = shape_of(layer)
            seen = fresh[layer.name].fitted
            plain = quantize_layer(layer, scheme, study.qparams[layer.inputs[0]])
            for weights in (plain, study.weights[layer.name, scheme]):
                error = (layer.weight - weights.real()).astype(np.float64).reshape(groups, -1, length)
                errors.append(np.einsum("grk,gkl,grl->", error, seen.about(seen.mean), error))
        ratio = np.exp(np.mean(np.log(np.array(errors[1::2]) / np.array(errors[::2]))))
        print(f"{scheme}: output error {ratio:.2f} of nearest's")
        assert ratio < most


def test_the_cheapest_layers_are_corrected_as_far_as_that_is_paid_for(tmp_path: Path) -> None:
    study = demo_study()
    schemes = {name: ("w8a8", "w4a8") for name in anchors(study)}
    layers = {layer.name: layer for layer in study.graph.layers if layer.name in schemes}
    macs = {name: work_macs(layer, 2) for name, layer in layers.items()}
    cheap = sorted(macs, key=macs.__getitem__)[:2]
    asked: list[str] = []

    def watched(part: Sequence[Layer], progress: Callback) -> Mapping[str, Moments]:
        asked.extend(layer.name for layer in part)
        return gather(part, progress)

    most = sum(macs[name] for name in cheap)
    found = correct(
        study.graph, study.candidates, study.qparams, watched, lambda layer, _: tmp_path / layer.name, most_macs=most
    )
    assert sorted(asked) == sorted(cheap)
    assert {name for name, scheme in found if scheme == "w8a8"} == schemes.keys(), "the others are rounded plainly"
    assert not any(text for (name, _), text in found.items() if name not in cheap)
