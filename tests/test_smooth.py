"""Smoothing: the same bits in float, less error in integers, and only where that is so."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tiny

from hwq import transformer
from hwq.errors import HwqError
from hwq.graph import Activation, Graph, Layer
from hwq.smooth import MOST, best, error_left, exponents_of, find_spots, smoothed

Array = np.ndarray[Any, Any]
ROWS, WIDTH, HEADS, KV = 6, 16, 4, 2


def dense(x: str, output: str, ins: int, outs: int, seed: int, **fields: Any) -> Layer:
    rng = np.random.default_rng(seed)
    shapes = {x: (ROWS, ins), output: (ROWS, outs)}
    return tiny.layer(
        "dense", (x,), output, shapes, weight=rng.standard_normal((outs, ins)).astype(np.float32),
        bias=rng.standard_normal(outs).astype(np.float32), **fields,
    )  # fmt: skip


def norm(op: str = "rms_norm") -> Layer:
    """With channel 3 forty times the others."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2.0, WIDTH).astype(np.float32)
    scale[3] *= 40
    more = () if op == "rms_norm" else (rng.standard_normal(WIDTH).astype(np.float32),)
    shapes = {"x": (1, ROWS, WIDTH), "n": (1, ROWS, WIDTH)}
    return tiny.layer(op, ("x",), "n", shapes, attrs={"epsilon": 1e-6}, constants=(scale, *more))


def view(x: str, output: str, before: tuple[int, ...], after: tuple[int, ...]) -> Layer:
    return tiny.layer("reshape", (x,), output, {x: before, output: after})


def block() -> Graph:
    """A norm, an attention with fewer heads of keys and values, a gated network: all three kinds of places."""
    flat, wide = (ROWS, WIDTH), (1, ROWS, WIDTH)
    half = WIDTH * KV // HEADS
    shapes = {"q3": wide, "k3": (1, ROWS, half), "v3": (1, ROWS, half), "a": wide}
    layers = [
        norm(),
        view("n", "r", wide, flat),
        dense("r", "q", WIDTH, WIDTH, 1),
        dense("r", "k", WIDTH, half, 2),
        dense("r", "v", WIDTH, half, 3),
        view("q", "q3", flat, wide),
        *(view(name, f"{name}3", (ROWS, half), (1, ROWS, half)) for name in ("k", "v")),
        tiny.layer(
            "attention", ("q3", "k3", "v3"), "a", shapes,
            attrs={"heads": HEADS, "kv_heads": KV, "scale": 0.5, "causal": True},
        ),
        view("a", "a2", wide, flat),
        dense("a2", "o", WIDTH, WIDTH, 4),
        dense("o", "gate", WIDTH, 24, 5, activation=Activation(kind="silu")),
        dense("o", "up", WIDTH, 24, 6),
        tiny.layer("multiply", ("gate", "up"), "m", dict.fromkeys(("gate", "up", "m"), (ROWS, 24))),
        dense("m", "y", 24, WIDTH, 7),
    ]  # fmt: skip
    return tiny.graph(layers, ["x"], ["y"])


def run(graph: Graph, x: Array) -> dict[str, Array]:
    """Every tensor, in float32."""
    env: dict[str, Array] = {"x": x}
    for layer in graph.layers:
        given = [env[name] for name in layer.inputs]
        if layer.op == "reshape":
            found = given[0].reshape(layer.output_shape)
        elif layer.op == "rms_norm":
            found = transformer.rms_norm(given[0], layer.constants[0], epsilon=layer.attrs["epsilon"])
        elif layer.op == "attention":
            found = transformer.attention(*given, **dict(layer.attrs))
        elif layer.op == "multiply":
            found = given[0] * given[1]
        else:
            assert layer.weight is not None
            # One product after the other: the order of a BLAS may differ with the values' places in memory.
            found = sum(given[0][:, i, None] * layer.weight[:, i] for i in range(given[0].shape[1])) + layer.bias
            found = found / (1 + np.exp(-found)) if layer.activation.kind == "silu" else found
        env[layer.output] = np.asarray(found, np.float32)
    return env


def test_places_are_found() -> None:
    spots = {spot.writer: spot for spot in find_spots(block())}
    assert {name: [layer.name for layer in spot.readers] for name, spot in spots.items()} == {
        "n": ["q", "k", "v"],
        "v": ["o"],
        "up": ["y"],
    }
    assert spots["v"].source.tolist() == [*range(4), *range(4), *range(4, 8), *range(4, 8)]
    assert (spots["n"].tensor, spots["v"].tensor, spots["up"].tensor) == ("r", "a2", "m")


@pytest.mark.parametrize("what", ["output", "residual", "activation", "squared"])
def test_no_place_where_something_else_reads(what: str) -> None:
    """A residual of the norm's output, a curve behind the values, a square: channels are read as they are."""
    graph = block()
    layers = {layer.name: layer for layer in graph.layers}
    if what == "output":
        graph = dataclasses.replace(graph, outputs=("y", "r"))
    elif what == "residual":
        more = dataclasses.replace(layers["o"], inputs=("a2", "r"), input_shapes=((ROWS, WIDTH),) * 2, residual=True)
        graph = dataclasses.replace(graph, layers=tuple(more if one.name == "o" else one for one in graph.layers))
    else:
        changes = {
            "activation": {"v": {"activation": Activation(kind="relu")}, "up": {"activation": Activation(kind="gelu")}},
            "squared": {"r": {"inputs": ("x",)}, "m": {"inputs": ("up", "up")}, "v3": {"inputs": ("k",)}},
        }[what]
        graph = dataclasses.replace(
            graph, layers=tuple(dataclasses.replace(one, **changes.get(one.name, {})) for one in graph.layers)
        )
    left = {"output": {"v", "up"}, "residual": {"v", "up"}, "activation": {"n"}, "squared": set()}[what]
    assert {spot.writer for spot in find_spots(graph)} == left


def test_float_keeps_its_bits(rng: np.random.Generator) -> None:
    graph = block()
    x = rng.standard_normal((1, ROWS, WIDTH)).astype(np.float32)
    smoothing = {
        spot.writer: tuple(int(one) for one in rng.integers(-3, 4, spot.channels)) for spot in find_spots(graph)
    }
    other = smoothed(graph, smoothing)
    before, after = run(graph, x), run(other, x)
    for name in ("q", "k", "o", "gate", "y"):
        np.testing.assert_array_equal(before[name], after[name])
    for name in ("n", "v", "a", "m"):
        assert not np.array_equal(before[name], after[name])
    back = smoothed(other, {name: tuple(-one for one in values) for name, values in smoothing.items()})
    for one, two in zip(graph.layers, back.layers, strict=True):
        assert one.weight is None or np.array_equal(one.weight, two.weight)
    assert smoothed(graph, {}) is graph


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dyn", "w4a8_g64_dyn"])
@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
def test_one_large_channel_is_smoothed(op: str, scheme: str, rng: np.random.Generator) -> None:
    graph = tiny.graph(
        [norm(op), view("n", "r", (1, ROWS, WIDTH), (ROWS, WIDTH)), dense("r", "y", WIDTH, 24, 1)], ["x"], ["y"]
    )
    (spot,) = find_spots(graph)
    fitted, held = ((rng.standard_normal((256, WIDTH)) * norm(op).constants[0]).astype(np.float32) for _ in range(2))
    found = best(spot, fitted, held, ["f32", scheme], "mse")
    assert found is not None
    assert found[3] == max(found) >= 2
    weights = [layer.weight for layer in spot.readers if layer.weight is not None]
    before, after = (error_left(held, weights, np.array(one), scheme, "minmax", fitted) for one in ([0] * WIDTH, found))
    print(f"{op} {scheme}: {before / after:.1f} times less")
    assert after < 0.8 * before


def test_rows_are_read_as_kernels_read_them(rng: np.random.Generator) -> None:
    """A row too small for a scale is zeros, and all its output is lost."""
    weight = rng.standard_normal((5, WIDTH)).astype(np.float32)
    rows = np.full((3, WIDTH), 1e-30, np.float32)
    assert error_left(rows, [weight], np.zeros(WIDTH, np.int64), "w8a8_dyn", "minmax", rows) == 1.0


def test_nothing_is_smoothed_without_need(rng: np.random.Generator) -> None:
    (spot,) = find_spots(
        tiny.graph(
            [norm(), view("n", "r", (1, ROWS, WIDTH), (ROWS, WIDTH)), dense("r", "y", WIDTH, 24, 1)], ["x"], ["y"]
        )
    )
    even, other = (rng.uniform(-1, 1, (256, WIDTH)).astype(np.float32) for _ in range(2))
    assert best(spot, even, other, ["w8a8"], "mse") is None
    large = np.where(np.arange(WIDTH) == 3, np.float32(64), np.float32(1)) * even
    assert best(spot, large, large, ["w8a8"], "mse") is not None
    large[5, 2] = np.inf
    assert best(spot, large, large, ["w8a8"], "mse") is None, "this is for calibration to refuse, which knows the layer"
    large = even * norm().constants[0]
    assert best(spot, large, other, ["w8a8_dyn"], "mse") is None, "the rows held out are even"
    assert best(spot, large, large, ["f32"], "mse") is None
    assert best(spot, large[:0], large, ["w8a8"], "mse") is None
    still = np.zeros((4, WIDTH), np.float32)
    assert not exponents_of(spot, still, [spot.readers[0].weight], 0.5).any()
    assert best(spot, still, still, ["w8a8", "w8a8_dyn"], "mse") is None


@pytest.mark.parametrize(
    "smoothing", [{"q": (0,) * WIDTH}, {"none": ()}, {"n": (0,) * 3}, {"n": (MOST + 1,) * WIDTH}], ids=str
)
def test_what_cannot_be_smoothed_is_refused(smoothing: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(HwqError, match="smoothing") as caught:
        smoothed(block(), smoothing)
    assert caught.value.code == "plan-invalid"
