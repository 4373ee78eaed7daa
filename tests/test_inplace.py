"""Prices by what layers took in place: what was seen is taken, and what was not moves with its kind."""

from __future__ import annotations

import pytest
from demo_study import anchors, demo_artifact, demo_study, demo_work

from hwq.choose import Choice, uniforms
from hwq.deliver import assemble, network_input, plan_of
from hwq.inplace import corrected, seen_s
from hwq.scheme import Cost


def cost(seconds: float) -> Cost:
    return Cost(latency_s=seconds, weight_bytes=8, source="measured", interval_s=(0.5 * seconds, 2 * seconds))


def test_others_of_a_domain_move_with_what_was_seen() -> None:
    costs = {("a", "w8a8"): cost(1.0), ("b", "w8a8"): cost(2.0), ("b", "w4a8"): cost(4.0), ("b", "f32"): cost(8.0)}
    found = corrected(costs, {("a", "w8a8"): 1.5, ("b", "w8a8"): 2.2})
    seconds = {unit: one.latency_s for unit, one in found.items()}
    factor = (1.5 + 1.1) / 2
    assert seconds == pytest.approx(
        {("a", "w8a8"): 1.5, ("b", "w8a8"): 2.2, ("b", "w4a8"): 4 * factor, ("b", "f32"): 8.0}
    )
    assert found["b", "w4a8"].interval_s == pytest.approx((2 * factor, 8 * factor))


def test_what_is_free_stays_free() -> None:
    assert corrected({("view", "f32"): cost(0.0)}, {("view", "f32"): 1e-7})["view", "f32"].latency_s == 0.0


def test_layers_of_an_artifact_are_seen_in_its_schemes() -> None:
    artifact, study = demo_artifact(), demo_study()
    seen = seen_s(study, [artifact], network_input(study))
    layers = dict(seen.keys())
    assert all(artifact.plan.schemes[layer] == scheme for layer, scheme in layers.items())
    assert all(seconds > 0 for seconds in seen.values())
    assert anchors(study)[0] in layers


def test_a_layer_that_writes_float_itself_is_not_seen() -> None:
    study = demo_study()
    artifact = assemble(study, demo_work(), plan_of(study, Choice(solution=uniforms(study)["w8a8"])))
    assert anchors(study)[-1] not in dict(seen_s(study, [artifact], network_input(study)).keys())
