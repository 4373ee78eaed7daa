"""Evaluation: what is held against float, on which samples, and what cannot be."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from demo_study import demo_pictures, demo_study

from hwq import evaluate
from hwq.errors import HwqError
from hwq.evaluate import Evaluation, float_call, judge, prepare, summary
from hwq.samples import Batch
from hwq.study import inputs_of

PICTURES, LABELS = demo_pictures()


@pytest.fixture(scope="module")
def given() -> tuple[tuple[Batch, ...], Any, Any]:
    """(kept calibration batches, float runner, inputs) of the demo network."""
    study = demo_study()
    return study.kept, study.runner, inputs_of(study.graph)


def prepared(given: Any, value: Any) -> Evaluation:
    found = prepare(value, *given)
    assert found is not None
    return found


def test_pictures_and_labels(given: Any) -> None:
    found = prepared(given, (PICTURES, LABELS))
    assert found.source == "evaluate"
    np.testing.assert_array_equal(found.float_outputs[0], float_call(*given[1:])(PICTURES))
    accuracy = judge(found, float_call(*given[1:]))
    assert accuracy.drop == 0.0
    assert accuracy.score == float((found.float_outputs[0].argmax(axis=1) == LABELS).mean()) > 0.9
    assert accuracy.samples == len(PICTURES)


def test_without_an_evaluation_the_kept_calibration_samples_serve(given: Any) -> None:
    found = prepared(given, None)
    assert found.source == "calibration"
    assert found.labels is None
    assert len(next(iter(found.inputs.values()))) == len(given[0])
    assert prepare(None, (), *given[1:]) is None, "nor without those"


def test_a_function_is_asked_for_float_and_for_each_that_is_judged(given: Any) -> None:
    calls = []

    def score(run: Any) -> float:
        calls.append(run(PICTURES[:3]).shape)
        return 0.5 + len(calls)

    found = prepared(given, score)
    assert (found.source, found.float_score) == ("function", 1.5)
    accuracy = judge(found, float_call(*given[1:]))
    assert (accuracy.score, accuracy.float_score, accuracy.drop) == (2.5, 1.5, -1.0)
    assert calls == [(3, 10), (3, 10)]


def test_a_function_serves_without_any_samples(given: Any) -> None:
    found = prepare(lambda run: np.float32(run(PICTURES[:2]).mean()), (), *given[1:])
    assert found is not None
    assert judge(found, float_call(*given[1:])).drop == 0.0


def test_networks_without_a_batch_axis_are_judged_on_one_sample(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples of two inputs that share no axis cannot be joined to one call."""
    kept = tuple({"image": np.ones((1, 3), np.float32), "size": np.float32([i, 4])} for i in range(2))
    inputs = {"image": ((1, 3), "float32"), "size": ((2,), "float32")}
    monkeypatch.setattr(evaluate, "float_call", lambda *_: lambda batch: batch["size"] * batch["image"].sum())
    found = prepare(None, kept, given[1], inputs)
    assert found is not None
    np.testing.assert_array_equal(found.float_outputs[0], [0, 12])


def test_a_call_takes_any_number_of_samples(given: Any) -> None:
    call = float_call(*given[1:])
    one_by_one = np.concatenate([call(PICTURES[i : i + 1]) for i in range(5)])
    np.testing.assert_array_equal(call(PICTURES[:5]), one_by_one)


def test_a_summary_is_json(given: Any) -> None:
    accuracy = judge(prepared(given, (PICTURES, LABELS)), lambda x: float_call(*given[1:])(x) + np.float32(0.1))
    found = summary(accuracy, "evaluate")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["samples"] == len(PICTURES)
    assert found["source"] == "evaluate"
    assert len(found["sqnr_db"]) == 1


@pytest.mark.parametrize(
    ("value", "code", "text"),
    [
        (PICTURES, "evaluate-invalid", "evaluate is ndarray; accepted: "),
        ((PICTURES,), "evaluate-invalid", "evaluate is tuple"),
        ("accuracy", "evaluate-invalid", "evaluate is str"),
        ((PICTURES[:, :, :8], LABELS), "input-shape", "evaluate for input"),
        ((PICTURES.astype(int), LABELS), "input-type", "evaluate for input"),
        ((PICTURES * np.float32("nan"), LABELS), "input-nan", "evaluate for input"),
        ((PICTURES[:0], LABELS[:0]), "samples-empty", "evaluate for input"),
        ((PICTURES, LABELS[:-1]), "labels-invalid", r"accepted: integers of shape \(60,\)"),
        ((PICTURES, LABELS + 1), "labels-invalid", "accepted: 0 to 9"),
        (lambda _: None, "evaluate-invalid", "the evaluate function returned None; accepted: a finite number"),
        (lambda _: float("nan"), "evaluate-invalid", "returned nan"),
        (lambda _: np.ones(2), "evaluate-invalid", "accepted: a finite number, higher is better"),
    ],
)
def test_what_cannot_be_used_is_named(given: Any, value: Any, code: str, text: str) -> None:
    with pytest.raises(HwqError, match=text) as caught:
        prepare(value, *given)
    assert caught.value.code == code


def test_what_a_user_s_function_raises_comes_through(given: Any) -> None:
    def score(run: Any) -> float:
        raise ZeroDivisionError("the user's own")

    with pytest.raises(ZeroDivisionError, match="the user's own"):
        prepare(score, *given)
