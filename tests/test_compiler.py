"""compile, plan and build on the demo network: budgets held by what was measured, and the verdict's arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import language
import numpy as np
import pytest
from demo_study import CALIBRATION, anchors, demo_evaluation, demo_model, demo_pictures, demo_study

from hwq.choose import uniforms
from hwq.compiler import build, compile, plan
from hwq.contest import NOISE
from hwq.demo import load_demo
from hwq.errors import HwqError
from hwq.explore import explore
from hwq.numerics import sqnr_db
from hwq.plan import Plan
from hwq.scheme import Budget

SAMPLES = load_demo()[1][:CALIBRATION]
GIVEN: dict[str, Any] = {"calibration": SAMPLES, "threads": 1, "measure": False}


def size_of(scheme: str) -> int:
    return uniforms(demo_study())[scheme].weight_bytes


# The whole flow


def test_compiled_with_nothing_asked() -> None:
    artifact = compile(demo_model(), evaluate=demo_pictures(), calibration=SAMPLES, threads=1)
    report = artifact.report
    assert report["budget"] == {"drop": None, "latency_s": None, "weight_bytes": None}
    assert "all f32" in report["alternatives"] or set(artifact.plan.schemes.values()) == {"f32"}
    times = {name: one["latency_s"] for name, one in report["alternatives"].items()}
    assert report["measured"]["latency_s"] <= min(times.values()) * (1 + NOISE), "never slower than a uniform scheme"
    for name, value in times.items():
        assert f"{name} {value * 1e3:.4g} ms" in report["verdict"]
    assert {row["price_source"] for row in report["layers"]} == {"measured"}
    assert artifact.plan.weight_bytes <= report["measured"]["weight_bytes"]
    assert artifact.plan.why.keys() == artifact.plan.schemes.keys()
    assert report["compile"]["seconds"] > 0
    assert report["compile"]["peak_memory_bytes"] > 5e7
    fit = report["fit"]
    assert fit["count"] == 1 + len(times)
    assert fit["scale"] > 0


def test_drop_budget() -> None:
    artifact = compile(demo_model(), evaluate=demo_pictures(), budget=Budget(drop=0.0), **GIVEN)
    assert artifact.report["measured"]["drop"] <= 0.0


def test_drop_budget_by_a_function_of_the_user() -> None:
    """Which may score by anything: here by how near logits are to float's, in dB, so that only float is good enough."""
    pictures, _ = demo_pictures()
    clean = demo_evaluation().float_outputs[0]

    def score(run: Any) -> float:
        return min(sqnr_db(clean, run(pictures)), 100.0)

    artifact = compile(demo_model(), evaluate=score, budget=Budget(drop=1.0), **GIVEN)
    assert {artifact.plan.schemes[name] for name in anchors(demo_study())} == {"f32"}
    assert artifact.report["measured"]["accuracy"]["float_score"] == 100.0


@pytest.mark.parametrize("share", [0.7, 0.85])
def test_weight_budget_is_held_by_what_is_measured(share: float) -> None:
    budget = share * size_of("w8a8")
    artifact = compile(demo_model(), budget=Budget(weight_bytes=budget), evaluate=demo_pictures(), **GIVEN)
    assert artifact.report["measured"]["weight_bytes"] <= budget
    assert "w4a8" in artifact.plan.schemes.values()
    assert artifact.report["budget"]["weight_bytes"] == budget


def test_latency_budget() -> None:
    fastest = compile(demo_model(), **GIVEN).report["measured"]["latency_s"]
    artifact = compile(demo_model(), budget=Budget(latency_s=20 * fastest), **GIVEN)
    assert artifact.report["measured"]["latency_s"] <= 20 * fastest
    assert {artifact.plan.schemes[name] for name in anchors(demo_study())} == {"f32"}, "the least loss that fits"


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (Budget(latency_s=1e-9), "closest that can be met"),
        (Budget(weight_bytes=1000), "closest that can be met"),
        (Budget(weight_bytes=30_000, drop=1.0), "the closest assignment found loses"),
    ],
)
def test_impossible_budgets(budget: Budget, text: str) -> None:
    def score(run: Any) -> float:  # no integer network is good enough
        return min(sqnr_db(demo_evaluation().float_outputs[0], run(demo_pictures()[0])), 99.0)

    with pytest.raises(HwqError, match=text) as caught:
        compile(demo_model(), budget=budget, evaluate=score, **GIVEN)
    assert caught.value.code == "budget-impossible"


def test_plan_is_what_compile_starts_from_and_build_gives_its_bits() -> None:
    budget = Budget(weight_bytes=0.8 * size_of("w8a8"))
    proposed = plan(demo_model(), budget=budget, **GIVEN)
    artifact = build(demo_model(), Plan.from_dict(proposed.to_dict()), evaluate=demo_pictures())
    compiled = compile(demo_model(), budget=budget, schemes=["w8a8", "w4a8"], **GIVEN)
    again = build(demo_model(), compiled.plan)
    pictures, _ = demo_pictures()
    np.testing.assert_array_equal(again(pictures), compiled(pictures))
    assert artifact.plan.schemes == proposed.schemes
    assert artifact.report["measured"]["accuracy"]["samples"] == len(pictures)
    assert artifact.report["measured"]["weight_bytes"] <= budget.weight_bytes + 8 * 20


def test_an_edited_plan_is_built_as_it_says() -> None:
    proposed = plan(demo_model(), schemes=["w8a8"], **GIVEN)
    edited = replace(proposed, schemes={**proposed.schemes, "classifier": "f32", "stem": "w4a8"})
    artifact = build(demo_model(), edited)
    rows = {row["name"]: row for row in artifact.report["layers"]}
    whole = artifact.report["predicted"]["latency_s"]
    assert sum(row["predicted_s"] for row in rows.values()) <= whole, "and conversions"
    assert whole != proposed.latency_s
    assert artifact.plan.layers["classifier"][0].latency_s == rows["classifier"]["predicted_s"]
    assert (rows["classifier"]["scheme"], rows["stem"]["scheme"]) == ("f32", "w4a8")
    assert artifact.report["measured"]["weight_bytes"] > 0


# Refusals


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"trials": -1}, "trials-invalid"),
        ({"trials": 1.5}, "trials-invalid"),
        ({"trials": True}, "trials-invalid"),
        ({"sensitivity_s": -1.0}, "quantity-invalid"),
        ({"sensitivity_s": "2min"}, "quantity-invalid"),
        ({"threads": 0}, "threads-invalid"),
        ({"threads": 1.5}, "threads-invalid"),
        ({"schemes": ["w3a3"]}, "scheme-unknown"),
        ({"target": "cuda-t4"}, "target-no-build"),
        ({"target": "pdp-11"}, "target-unknown"),
        ({"observer": "none"}, "observer-unknown"),
        ({"calibration": None}, "samples-empty"),
        ({"evaluate": 3}, "evaluate-invalid"),
        ({"model": "digits.onnx"}, "model-type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_are_refused(options: dict[str, Any], code: str) -> None:
    given: dict[str, Any] = {"model": demo_model(), **GIVEN} | options
    with pytest.raises(HwqError) as caught:
        compile(**given)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("schemes", "code"),
    [({"stm": "w8a8"}, "plan-layers"), ({"stem": None}, "plan-layers"), ({"flatten": "w4a8"}, "plan-illegal")],
)
def test_plans_that_do_not_fit_the_model(schemes: dict[str, Any], code: str) -> None:
    whole = {**dict.fromkeys(demo_study().candidates, "w8a8"), **schemes}
    given = {layer: scheme for layer, scheme in whole.items() if scheme is not None}
    with pytest.raises(HwqError) as caught:
        build(
            demo_model(),
            Plan(model="", target="host", threads=1, schemes=given, latency_s=0.0, weight_bytes=0, loss=0.0),
        )
    assert caught.value.code == code


def test_ids_beyond_a_table_are_refused_before_anything_runs() -> None:
    """Of calibration and of evaluation, however given; a generator's when they come."""
    model = language.llama(blocks=1)
    right = np.zeros((3, 12), np.int64)
    wrong = right + np.array([[0], [29], [0]])
    labels = np.zeros(3, np.int64)

    def started(stage: str) -> Any:
        raise AssertionError(f"{stage} began")

    def refused(what: str, found: int = 29) -> Any:
        text = rf"^{what} for input 'ids' holds {found}, which is beyond a table of 29 rows; accepted: -29 to 28$"
        return pytest.raises(HwqError, match=text)

    for given, found in ((wrong, 29), ([right, {"ids": wrong}], 29), ({"ids": right - 30}, -30)):
        with refused("calibration", found) as caught:
            plan(model, calibration=given, progress=started)
        assert caught.value.code == "input-range"
    for judged in (
        lambda: compile(model, evaluate=(wrong, labels), progress=started),
        lambda: plan(model, evaluate=(wrong, labels), budget=Budget(drop=0.1), progress=started),
        lambda: explore(model, evaluate=(wrong, labels), progress=started),
    ):
        with refused("evaluate"):
            judged()
    once: Any = {"threads": 1, "measure": False, "schemes": ["f32"]}
    with refused("calibration"):
        plan(model, calibration=(one for one in (right, wrong)), **once)
    with refused("the argument"):
        plan(model, evaluate=lambda run: float(run(wrong).max()), budget=Budget(drop=0.1), **once)
    made = plan(model, calibration=right - 29, **once)
    with refused("evaluate"):
        build(model, made, evaluate=(wrong, labels), progress=started)
