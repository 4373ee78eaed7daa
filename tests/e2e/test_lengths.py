"""Sequences of any length in one artifact: each length's output has the bits of the artifact of that length."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_nets import network, node, weights

import hwq
from hwq.errors import HwqError
from hwq.verify import outputs_of

MOST, C, V, HEADS = 9, 32, 50, 2
FULL = os.environ.get("HWQ_FULL") == "1"
LENGTHS = range(1, MOST + 1) if FULL else (1, 6)
CASES = [("plain", "w8a8"), ("masked", "w8a8_dyn"), ("causal", "f32")]
ALL = list(itertools.product(("plain", "masked", "causal"), ("f32", "w8a8", "w8a8_dyn")))
OUTLIER = 30.0  # a channel so large that smoothing pays
DYNAMIC = {"ids": {1: (1, MOST)}}
MASKED = {"ids": {1: (1, MOST)}, "mask": {1: (1, MOST)}}


def _consts(size: int) -> dict[str, Any]:
    shapes = {"words": (V, C), "pos": (MOST, C), "w1": (C, 2 * C), "b1": (2 * C,), "w2": (2 * C, C), "b2": (C,)}
    shapes |= {name: (C, C) for name in ("wq", "wk", "wv", "wo")}
    consts = {name: weights(*shape, seed=at) * np.float32(0.3) for at, (name, shape) in enumerate(shapes.items())}
    consts["pos"] = consts["pos"][:size]
    consts |= {"s": np.ones(C, np.float32), "t": np.zeros(C, np.float32)}
    consts |= {"future": np.triu(np.full((size, size), -1e9, np.float32), 1)}
    for name, value in {"one": 1.0, "far": -1e4, "root": (C / HEADS) ** 0.5}.items():
        consts[name] = np.array(value, np.float32)
    whole = {
        "split": (1, size, HEADS, C // HEADS),
        "join": (1, size, C),
        "keys": (1, 1, 1, size),
        "column": (1, size, 1),
    }
    return consts | {name: np.array(shape, np.int64) for name, shape in whole.items()} | {"over": np.array([1])}


ATTENTION = [
    *(node("MatMul", ["n0", f"w{x}"], [f"p{x}"], name=x) for x in "qkv"),
    *(node("Reshape", [f"p{x}", "split"], [f"r{x}"]) for x in "qkv"),
    *(node("Transpose", [f"r{x}"], [f"t{x}"], perm=[0, 2, 3, 1] if x == "k" else [0, 2, 1, 3]) for x in "qkv"),
    node("MatMul", ["tq", "tk"], ["qk"]),
    node("Div", ["qk", "root"], ["scores"]),
    node("Add", ["scores", "bias"], ["seen"]),
    node("Softmax", ["seen"], ["shares"], axis=-1),
    node("MatMul", ["shares", "tv"], ["context"]),
    node("Transpose", ["context"], ["back"], perm=[0, 2, 1, 3]),
    node("Reshape", ["back", "join"], ["flat"]),
    node("MatMul", ["flat", "wo"], ["mixed"], name="out"),
    node("Add", ["mixed", "n0"], ["n"]),
]
BLOCK = [
    node("MatMul", ["n", "w1"], ["m1"], name="up"),
    node("Add", ["m1", "b1"], ["a1"]),
    node("Relu", ["a1"], ["r"]),
    node("MatMul", ["r", "w2"], ["m2"], name="down"),
    node("Add", ["m2", "b2"], ["a2"]),
    node("Add", ["a2", "n"], ["z"]),
    node("LayerNormalization", ["z", "s", "t"], ["y"], axis=-1),
]
MASK = [
    node("Cast", ["mask"], ["m"], to=1),
    node("Reshape", ["m", "keys"], ["m4"]),
    node("Sub", ["one", "m4"], ["hidden"]),
    node("Mul", ["hidden", "far"], ["bias"]),
]
POOL = [
    node("Reshape", ["m", "column"], ["m3"]),
    node("Mul", ["y", "m3"], ["real"]),
    node("ReduceSum", ["real", "over"], ["total"], keepdims=0),
    node("ReduceSum", ["m", "over"], ["count"], keepdims=1),
    node("Div", ["total", "count"], ["pooled"]),
]


def _network(kind: str, length: int | str, outlier: float = 1.0) -> Any:
    """Embedding, positions, norm, a feed-forward block with a residual; "masked": with attention whose keys an input
    hides, and the mean of what it shows; "causal": with attention that sees what was before. outlier: how much larger
    than the others the norms write one channel.
    """
    size = MOST if isinstance(length, str) else length
    start = [
        node("Gather", ["words", "ids"], ["e"]),
        node("Add", ["e", "pos"], ["h"]),
        node("LayerNormalization", ["h", "s", "t"], ["n" if kind == "plain" else "n0"], axis=-1),
    ]
    causal = [node("Identity", ["future"], ["bias"])]
    middle = {"plain": [], "masked": [*MASK, *ATTENTION], "causal": [*causal, *ATTENTION]}[kind]
    nodes = [*start, *middle, *BLOCK, *(POOL if kind == "masked" else [])]
    read = {name for item in nodes for name in item.input}
    consts = _consts(size)
    consts["s"][5] = outlier
    given = {"ids": (1, length)} | ({"mask": (1, length)} if kind == "masked" else {})
    return network(
        nodes, inputs=given, consts={name: value for name, value in consts.items() if name in read},
        dtypes=dict.fromkeys(given, 7), opset=17, outputs=["y", "pooled"] if kind == "masked" else ["y"],
    )  # fmt: skip


def _encoder(length: int | str) -> Any:
    return _network("plain", length)


def _masked(x: Any) -> dict[str, Any]:
    return {"ids": x, "mask": (np.arange(x.shape[1]) < max(1, x.shape[1] - 2)).astype(np.int64)[None]}


def _samples() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, V, (1, 1 + at % MOST)) for at in range(12)]


@pytest.mark.parametrize(("kind", "scheme"), ALL if FULL else CASES)
def test_every_length_is_the_artifact_of_that_length(kind: str, scheme: str, tmp_path: Path) -> None:
    masked = kind == "masked"
    model = hwq.load(_network(kind, "n" if kind == "plain" else MOST), dynamic=MASKED if masked else DYNAMIC)
    assert [layer.op for layer in model.graph.layers].count("attention") == (kind != "plain")
    samples = [_masked(x) if masked else x for x in _samples()]
    made = hwq.compile(model, "host", calibration=samples, schemes=[scheme], threads=1)
    assert scheme in made.plan.schemes.values()
    made.save(tmp_path / "any.hwq")
    artifact = hwq.Artifact.load(tmp_path / "any.hwq")
    for n in LENGTHS:
        fixed = hwq.load(_network(kind, n))
        plan = replace(artifact.plan, model=fixed.fingerprint, dynamic={})
        expected, found = (outputs_of(each, samples[n - 1]) for each in (hwq.build(fixed, plan, threads=1), artifact))
        assert found[0].shape == (1, n, C)
        assert [each.tobytes() for each in found] == [each.tobytes() for each in expected]
    assert artifact.benchmark(samples[0], runs=2).runs == 2
    assert any(f"'ids' may be 1 to {MOST} long" in note for note in artifact.report["notes"])


@pytest.mark.parametrize("n", [MOST, 6])
def test_ranges_and_smoothing_are_those_of_the_network_of_that_length(n: int) -> None:
    """Calibrated on samples of one length: what lies behind the tokens that are there counts for nothing."""
    samples = [_masked(x) for x in np.random.default_rng(1).integers(0, V, (8, 1, n))]
    any_length, fixed = (
        hwq.plan(
            hwq.load(_network("masked", size, OUTLIER)), "host", calibration=samples, schemes=["w8a8"], dynamic=dynamic,
            measure=False, threads=1,
        )
        for size, dynamic in ((MOST, MASKED), (n, None))
    )  # fmt: skip
    assert fixed.qparams
    assert fixed.smoothing
    assert any_length.schemes == fixed.schemes
    assert any_length.qparams == fixed.qparams
    assert any_length.smoothing == fixed.smoothing
    assert any_length.roundings == fixed.roundings


def test_a_plan_keeps_what_varies(tmp_path: Path) -> None:
    model = hwq.load(_encoder(MOST))
    plan = hwq.plan(model, "host", calibration=_samples(), dynamic=DYNAMIC, measure=False, threads=1)
    plan.save(tmp_path / "plan.json")
    again = hwq.Plan.load(tmp_path / "plan.json")
    assert again.dynamic == DYNAMIC
    artifact = hwq.build(model, again, threads=1)
    (x,) = _samples()[2:3]
    assert artifact(x).tobytes() == hwq.build(hwq.load(_encoder(MOST), dynamic=DYNAMIC), plan)(x).tobytes()


@pytest.mark.parametrize("shape", [(1, MOST + 1), (1, 0), (1,), (1, 2, 2)])
def test_a_length_out_of_range_is_refused(shape: Any) -> None:
    artifact = hwq.compile(hwq.load(_encoder("n"), dynamic=DYNAMIC), "host", schemes=["f32"], measure=False, threads=1)
    with pytest.raises(HwqError, match=r"'ids' has shape .*accepted: \(N, 1\.\.9\)") as caught:
        artifact(np.zeros(shape, np.int64))
    assert caught.value.code == "input-shape"
