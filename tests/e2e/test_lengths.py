"""Sequences of any length in one artifact: each length's output has the bits of the artifact of that length."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_nets import network, node, weights

import hwq
from hwq.errors import HwqError

MOST, C, V = 9, 32, 50
LENGTHS = range(1, MOST + 1) if os.environ.get("HWQ_FULL") == "1" else (1, 4, MOST)
DYNAMIC = {"ids": {1: (1, MOST)}}


def _encoder(length: int | str) -> Any:
    """Embedding, positions, norm, a feed-forward block with a residual; positions end where the sequence does."""
    scaled = lambda *shape, seed: weights(*shape, seed=seed) * np.float32(0.3)  # noqa: E731
    size = MOST if isinstance(length, str) else length
    consts = {
        "words": scaled(V, C, seed=1), "pos": scaled(MOST, C, seed=2)[:size], "w1": scaled(C, 2 * C, seed=3),
        "b1": scaled(2 * C, seed=4), "w2": scaled(2 * C, C, seed=5), "b2": scaled(C, seed=6),
        "s": np.ones(C, np.float32), "t": np.zeros(C, np.float32),
    }  # fmt: skip
    nodes = [
        node("Gather", ["words", "ids"], ["e"]),
        node("Add", ["e", "pos"], ["h"]),
        node("LayerNormalization", ["h", "s", "t"], ["n"], axis=-1),
        node("MatMul", ["n", "w1"], ["m1"], name="up"),
        node("Add", ["m1", "b1"], ["a1"]),
        node("Relu", ["a1"], ["r"]),
        node("MatMul", ["r", "w2"], ["m2"], name="down"),
        node("Add", ["m2", "b2"], ["a2"]),
        node("Add", ["a2", "n"], ["z"]),
        node("LayerNormalization", ["z", "s", "t"], ["y"], axis=-1),
    ]
    return network(nodes, inputs={"ids": (1, length)}, consts=consts, dtypes={"ids": 7}, opset=17)


def _samples() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, V, (1, 1 + at % MOST)) for at in range(12)]


@pytest.mark.parametrize("scheme", ["f32", "w8a8"])
def test_every_length_is_the_artifact_of_that_length(scheme: str, tmp_path: Path) -> None:
    model = hwq.load(_encoder("n"), dynamic=DYNAMIC)
    made = hwq.compile(model, "host", calibration=_samples(), schemes=[scheme], threads=1)
    assert scheme in made.plan.schemes.values()
    made.save(tmp_path / "any.hwq")
    artifact = hwq.Artifact.load(tmp_path / "any.hwq")
    for x in [_samples()[n - 1] for n in LENGTHS]:
        fixed = hwq.load(_encoder(x.shape[1]))
        plan = replace(artifact.plan, model=fixed.fingerprint, dynamic={})
        expected = hwq.build(fixed, plan, "host", threads=1)(x)
        assert artifact(x).shape == (1, x.shape[1], C)
        assert artifact(x).tobytes() == expected.tobytes()
    assert artifact.benchmark(_samples()[0], runs=2).runs == 2


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
