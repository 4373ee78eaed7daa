"""The front: plans that can be built, none beaten by another, with the accuracy that their kernels have."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from demo_study import CALIBRATION, anchors, demo_evaluation, demo_model, demo_pictures, demo_study, demo_work

from hwq import explore as explore_face
from hwq.assignment import evaluate
from hwq.choose import problem_of, uniforms
from hwq.compiler import build
from hwq.compose import Pool
from hwq.demo import load_demo
from hwq.errors import HwqError
from hwq.explore import TOLERANCE, Point, explore, front_of, save_front, within_drop
from hwq.judge import accuracy_of, open_judge
from hwq.plan import Plan
from hwq.progress import silent
from hwq.scheme import Budget

NONE = Budget()


@pytest.fixture(scope="module")
def front() -> tuple[Point, ...]:
    return front_of(demo_study(), demo_work(), demo_evaluation(), NONE, 10, 1, silent)


def test_no_point_is_beaten_and_the_ends_are_there(front: tuple[Point, ...]) -> None:
    assert 5 <= len(front) <= 10
    assert [point.latency_s for point in front] == sorted(point.latency_s for point in front)
    assert len({tuple(point.plan.schemes.values()) for point in front}) == len(front)
    for one, other in itertools.permutations(front, 2):
        assert one.latency_s < other.latency_s or one.weight_bytes < other.weight_bytes or one.loss < other.loss
    assert min(point.weight_bytes for point in front) <= uniforms(demo_study())["w4a8"].weight_bytes
    assert min(point.loss for point in front) == 0.0


def test_accuracy_is_that_of_the_kernels(front: tuple[Point, ...], tmp_path: Path) -> None:
    work = replace(demo_work(), stages=tmp_path)  # nothing is found there
    solution = evaluate(problem_of(demo_study()), front[0].plan.schemes)
    pool = Pool(kernels=demo_study().kernels, target=demo_study().target, cache=demo_work().cache)
    found = accuracy_of(open_judge(demo_study(), work, pool, demo_evaluation()), solution)
    assert front[0].accuracy == found
    assert front[0].drop == found.drop


def test_what_was_found_is_not_run_again(front: tuple[Point, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("it was run already")

    monkeypatch.setattr("hwq.judge.composed", refuse)
    again = front_of(demo_study(), demo_work(), demo_evaluation(), NONE, 10, 1, silent)
    assert [point.accuracy for point in again] == [point.accuracy for point in front]
    assert [point.plan.schemes for point in again] == [point.plan.schemes for point in front]


def test_alternatives_are_as_good_and_other_plans(front: tuple[Point, ...]) -> None:
    assert any(point.alternatives for point in front)
    for point in front:
        for other in point.alternatives:
            assert any(other.schemes[layer] != point.plan.schemes[layer] for layer in anchors(demo_study()))
            assert other.latency_s <= point.latency_s * (1 + TOLERANCE) * (1 + 1e-9)
            assert other.weight_bytes <= point.weight_bytes * (1 + TOLERANCE)
            assert other.loss <= point.loss * (1 + TOLERANCE) * (1 + 1e-9)


def test_budgets_limit_the_front() -> None:
    size = uniforms(demo_study())["w8a8"].weight_bytes
    small = front_of(demo_study(), demo_work(), None, Budget(weight_bytes=size), 6, 0, silent)
    assert all(point.weight_bytes <= size for point in small)
    assert all(point.accuracy is None and point.drop is None for point in small)
    exact = front_of(demo_study(), demo_work(), demo_evaluation(), Budget(drop=0.0), 6, 0, silent)
    assert all(point.drop is not None and point.drop <= 0.0 for point in exact)


@pytest.mark.parametrize(
    ("budget", "evaluated", "code"),
    [
        (Budget(weight_bytes=1.0), True, "budget-impossible"),
        (Budget(drop=0.1), False, "evaluate-missing"),
    ],
)
def test_fronts_that_cannot_be(budget: Budget, evaluated: bool, code: str) -> None:
    with pytest.raises(HwqError) as caught:
        front_of(demo_study(), demo_work(), demo_evaluation() if evaluated else None, budget, 6, 0, silent)
    assert caught.value.code == code


def test_a_drop_that_no_point_meets_names_the_least(front: tuple[Point, ...]) -> None:
    with pytest.raises(HwqError, match=r"the least that one loses is -?\d+\.\d\d%"):
        within_drop(front, -1.0)


@pytest.mark.parametrize("given", [{"points": 2}, {"points": 3.0}, {"alternatives": -1}, {"points": True}])
def test_numbers_that_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(HwqError) as caught:
        explore(demo_model(), **given)
    assert caught.value.code == "points-invalid"


def test_a_point_is_built_as_it_was_predicted(tmp_path: Path) -> None:
    """From the package's face to an artifact whose accuracy is the point's."""
    pictures, labels = demo_pictures()
    found = explore_face(
        demo_model(),
        calibration=load_demo()[1][:CALIBRATION],
        evaluate=(pictures, labels),
        schemes=["f32", "w8a8", "w4a8"],
        points=3,
        threads=1,
        measure=False,
    )
    assert len(found) == 3
    paths = save_front(found, tmp_path / "front")
    assert [path.name for path in paths] == ["plan-01.json", "plan-02.json", "plan-03.json"]
    plan = Plan.load(paths[0])
    assert plan.schemes == found[0].plan.schemes
    artifact = build(demo_model(), plan, evaluate=(pictures, labels))
    assert found[0].accuracy is not None
    assert artifact.report["measured"]["drop"] == found[0].drop
    assert artifact.report["measured"]["accuracy"]["sqnr_db"] == list(found[0].accuracy.sqnr_db)
    row = found[0].to_dict()
    assert json.loads(json.dumps(row)) == row | {"accuracy": json.loads(json.dumps(row["accuracy"]))}


def test_a_folder_that_cannot_be_made(front: tuple[Point, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HwqError) as caught:
        save_front(front, tmp_path / "file" / "front")
    assert caught.value.code == "save-failed"
