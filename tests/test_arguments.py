"""What callers give: refused with what is accepted; a plan knows whether its machine is found by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_study import demo_model, demo_study

from hwq import compiler
from hwq.arguments import check_drop, machine_of_plan
from hwq.choose import Choice, uniforms
from hwq.deliver import plan_of
from hwq.errors import HwqError
from hwq.explore import explore, within_drop
from hwq.plan import Plan
from hwq.scheme import Budget
from hwq.target import TARGETS_AT, Target


def plan_for(target: Target) -> Plan:
    """A plan of float for the demo network on ``target``."""
    return plan_of(replace(demo_study(), target=target), Choice(solution=uniforms(demo_study())["f32"]))


def own(folder: Path, name: str) -> Path:
    """A target file of the user's: x86-generic with another number of cores."""
    text = (TARGETS_AT / "x86-generic.toml").read_text().replace('"x86-generic"', f'"{name}"', 1)
    text = text.replace("cores = { value = 2,", "cores = { value = 3,")
    path = folder / "own.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("given", ["demo.onnx", None, object()])
def test_build_takes_models_only(given: Any) -> None:
    with pytest.raises(HwqError, match=r"accepted: what hwq\.load returns") as caught:
        compiler.build(given, plan_for(Target.load("host")))
    assert caught.value.code == "model-type"


@pytest.mark.parametrize("given", ["plan.json", {}, None])
def test_build_takes_plans_only(given: Any) -> None:
    with pytest.raises(HwqError, match=r"accepted: what hwq\.plan or hwq\.Plan\.load returns") as caught:
        compiler.build(demo_model(), given)
    assert caught.value.code == "plan-invalid"


@pytest.mark.parametrize("name", ["host", "x86-generic"])
def test_a_plan_for_a_machine_with_a_name_is_for_that_machine(name: str) -> None:
    plan = plan_for(Target.load(name))
    assert plan.target == name
    assert machine_of_plan(Plan.from_dict(plan.to_dict())) == replace(
        Target.load(name), clock_hz=machine_of_plan(plan).clock_hz
    )


@pytest.mark.parametrize("name", ["mine", "x86-generic", "host"])
def test_a_plan_for_a_file_of_the_user_s_wants_it_again(name: str, tmp_path: Path) -> None:
    """Also one that is named as a shipped machine, which would be built without a word."""
    path = own(tmp_path, name)
    target = Target.load(path)
    assert (target.name, target.cores) == (name, 3)
    plan = Plan.from_dict(plan_for(target).to_dict())
    with pytest.raises(HwqError, match=f"the plan is for target '{name}' of a file of its own.* as target=") as caught:
        compiler.build(demo_model(), plan)
    assert caught.value.code == "target-unknown"
    artifact = compiler.build(demo_model(), plan, path)
    assert artifact.target == target


SAMPLES = np.zeros((1, 1, 16, 16), np.float32)


@pytest.mark.parametrize("call", [compiler.compile, compiler.plan, explore])
@pytest.mark.parametrize(
    ("output", "calibration", "sentence"),
    [
        ((1, 10), None, "needs samples to hold it against"),
        ((1, 4, 10), SAMPLES, "needs labels or classes"),
        ((4, 10), SAMPLES, "needs labels or classes"),
        ((1, 1), SAMPLES, "needs labels or classes"),
    ],
)
def test_a_drop_that_nothing_can_be_held_against_is_refused_before_anything_runs(
    call: Any, output: tuple[int, ...], calibration: Any, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "study", lambda *_, **__: pytest.fail("it ran"))
    graph = demo_model().graph
    model = replace(demo_model(), graph=replace(graph, shapes={**graph.shapes, graph.outputs[0]: output}))
    with pytest.raises(HwqError, match=sentence) as caught:
        call(model, calibration=calibration, budget=Budget(drop=0.01), schemes=["f32"])
    assert caught.value.code == "evaluate-missing"
    if calibration is not None:
        with pytest.raises(HwqError) as late:
            within_drop((), 0.01)
        assert caught.value.message == late.value.message


def test_a_drop_is_held_against_classes_or_the_user_s_samples() -> None:
    graph, drop = demo_model().graph, Budget(drop=0.01)
    check_drop(graph, drop, SAMPLES, None)
    check_drop(graph, drop, iter([SAMPLES]), None)
    check_drop(graph, Budget(weight_bytes=1e6), None, None)
    other = replace(graph, shapes={**graph.shapes, graph.outputs[0]: (1, 4, 10)})
    check_drop(other, drop, None, lambda run: 1.0)
    batch = {graph.inputs[0]: (4, *graph.shapes[graph.inputs[0]][1:])}
    with pytest.raises(HwqError, match="needs labels or classes"):
        check_drop(replace(graph, shapes={**graph.shapes, **batch}), drop, SAMPLES, None)
