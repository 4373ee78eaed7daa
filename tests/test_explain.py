"""Explained: steps and forced layers equal what the problem gives, and the report has all that is told."""

from __future__ import annotations

import time

import numpy as np
import pytest
from assign_problems import candidate, network, random_problem
from demo_study import anchors, demo_artifact, demo_study

from hwq.assign import assign
from hwq.assignment import Border, Limits, Problem, evaluate
from hwq.explain import FORCED, NEAR, POINTS, TOLERANCE, explain, next_cheaper
from hwq.report import sentences


@pytest.mark.parametrize("seed", range(12))
def test_a_step_is_the_difference_of_two_evaluations(seed: int) -> None:
    problem = random_problem(seed, 5)
    layers = ["l0", "l1", "l2", "l3", "l4"]
    chosen = assign(problem)
    told = explain(problem, chosen, Limits(), layers)
    for layer, row in told["layers"].items():
        step = row["cheaper"]
        if step is None:
            assert row["forced"] is None
            continue
        after = evaluate(problem, {**chosen.schemes, layer: step["scheme"]})
        assert step["saves_s"] == pytest.approx(chosen.latency_s - after.latency_s)
        assert step["saves_bytes"] == chosen.weight_bytes - after.weight_bytes
        assert step["adds_loss"] == pytest.approx(after.loss - chosen.loss)
        if row["forced"] is not None and row["forced"]["latency_s"] > chosen.latency_s * (1 + 1e-6):
            assert row["forced"]["changed"] >= 1, "no time is won by it, so another layer moved, or it did alone"


def test_shares_sum_to_one() -> None:
    problem = random_problem(3, 5)
    chosen = assign(problem, Limits())
    rows = explain(problem, chosen, Limits(), ["l0"])["layers"].values()
    for name in ("latency_s", "weight_bytes", "loss"):
        total = sum(row["shares"][name] for row in rows)
        assert total == pytest.approx(1.0) or (total == 0.0 and getattr(chosen, name) == 0.0)


GROUP = (
    candidate("a", "f32", 4.0, 0.0, 40),
    candidate("a", "bf16", 3.5, 0.2, 20),
    candidate("a", "w8a8", 1.0, 0.1, 10),
    candidate("a", "w4a8", 1.5, 0.3, 5),
    candidate("a", "w4a8_g64", 1.0, 0.2, 6),
)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("f32", "w8a8"), ("bf16", "w8a8"), ("w8a8", "w4a8_g64"), ("w4a8", "w8a8"), ("w4a8_g64", "w4a8")],
)
def test_the_next_cheaper_scheme(scheme: str, expected: str) -> None:
    """The least lossy of the faster ones; where none is faster, of the smaller ones."""
    problem = Problem(candidates=GROUP)
    found = next_cheaper(problem, evaluate(problem, {"a": scheme}), GROUP)
    assert found is not None
    assert found["scheme"] == expected


def test_nothing_is_cheaper_than_the_cheapest_or_saves_next_to_nothing() -> None:
    group = (*GROUP[:3], candidate("a", "w4a8", 0.99, 0.0, 10))
    problem = Problem(candidates=group)
    assert next_cheaper(problem, evaluate(problem, {"a": "w8a8"}), group) is None


def test_what_conversions_eat_is_not_saved() -> None:
    pair = (candidate("a", "f32", 4.0), candidate("a", "w8a8", 1.0, 0.1))
    for quantize_s, expected in ((1.0, "w8a8"), (3.5, None)):
        border = Border(tensor="x", producer=None, consumers=("a",), quantize_s=quantize_s)
        problem = Problem(candidates=pair, borders=(border,))
        found = next_cheaper(problem, evaluate(problem, {"a": "f32"}), pair)
        assert (found and found["scheme"]) == expected


def test_forcing_a_layer_moves_others() -> None:
    """Two layers and room for the bytes of one of them in int8: forced to int4, the other may be int8 instead."""
    candidates = [
        candidate(layer, scheme, 1.0, loss, size)
        for layer, factor in (("a", 2.0), ("b", 1.0))
        for scheme, loss, size in (("w8a8", 0.0, 10), ("w4a8", factor, 5))
    ]
    problem, limits = Problem(candidates=tuple(candidates)), Limits(weight_bytes=15)
    chosen = assign(problem, limits)
    assert chosen.schemes == {"a": "w8a8", "b": "w4a8"}
    told = explain(problem, chosen, limits, ["a", "b"])
    assert told["layers"]["a"]["cheaper"] == {"scheme": "w4a8", "saves_s": 0.0, "saves_bytes": 5, "adds_loss": 2.0}
    assert told["layers"]["a"]["forced"] == {"latency_s": 2.0, "weight_bytes": 15, "loss": 2.0, "changed": 2}
    assert told["layers"]["b"]["cheaper"] is None
    assert [one["loss"] for one in told["near"]] == []


def test_layers_that_take_one_scheme_step_together() -> None:
    """Of the two only k has int4, and alone neither may be in another scheme than the other."""
    candidates = [
        candidate(layer, scheme, cost, loss, 8)
        for layer in ("a", "q", "k")
        for scheme, cost, loss in (("f32", 4.0, 0.0), ("w8a8", 1.0, 0.1), ("w4a8", 0.5, 0.05))
        if (layer, scheme) != ("q", "w4a8")
    ]
    problem = Problem(candidates=tuple(candidates), alike=(("q", "k"),))
    chosen = evaluate(problem, dict.fromkeys("aqk", "f32"))
    rows = explain(problem, chosen, Limits(), ["a", "q", "k"])["layers"]
    together = {"together": ["q", "k"], "scheme": "w8a8", "saves_s": 6.0, "saves_bytes": 0, "adds_loss": 0.2}
    assert rows["q"]["cheaper"] == rows["k"]["cheaper"] == together
    assert rows["a"]["cheaper"]["scheme"] == "w4a8"
    assert rows["q"]["forced"] == rows["k"]["forced"] is not None
    said = sentences({"why": "", **rows["k"]}, {"predicted": {"latency_s": 12.0, "weight_bytes": 24, "loss": 1.0}})
    assert "next cheaper: w8a8 for q, k together saves" in said[-2]


def test_sixty_layers_are_explained_in_seconds(rng: np.random.Generator) -> None:
    """Seconds of this process: two to four on a core that other processes load, and no more layers than ``FORCED``."""
    problem = network(rng, 60)
    layers = [f"l{i}" for i in range(60)]
    limits = Limits(weight_bytes=0.7 * evaluate(problem, dict.fromkeys(layers, "w8a8")).weight_bytes)
    chosen = assign(problem, limits)
    begin = time.process_time()
    told = explain(problem, chosen, limits, layers)
    taken_s = time.process_time() - begin
    print(f"60 layers x 4 schemes explained: {taken_s:.2f} s")
    assert taken_s < 6.0
    assert 0 < sum(row["forced"] is not None for row in told["layers"].values()) <= FORCED
    assert 3 <= len(told["front"]) <= POINTS
    assert len(told["near"]) <= NEAR
    for one in told["near"]:
        assert one["schemes"]
        assert one["latency_s"] <= chosen.latency_s * (1 + TOLERANCE)
        assert one["weight_bytes"] <= limits.weight_bytes


def test_the_report_of_an_artifact_explains_it() -> None:
    artifact = demo_artifact()
    rows = {row["name"]: row for row in artifact.report["layers"]}
    assert sum(row["shares"]["loss"] for row in rows.values()) == pytest.approx(1.0)
    assert any(row["cheaper"] is not None for row in rows.values())
    assert any(row["forced"] is not None for row in rows.values())
    for name, row in rows.items():
        assert {one["scheme"] for one in row["candidates"]} >= set(demo_study().candidates[name])
    assert len(artifact.report["front"]) >= 3
    for one in artifact.report["front"]:
        assert one["schemes"].keys() == set(anchors(demo_study()))
