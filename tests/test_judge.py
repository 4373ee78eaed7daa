"""Judging assignments: run on the kernels, once, and again where anything that the figures follow from is another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from demo_study import demo_evaluation, demo_study, demo_work

from hwq import judge as module
from hwq.choose import uniforms
from hwq.compose import Pool
from hwq.evaluate import Evaluation
from hwq.judge import Judge, accuracy_of, open_judge
from hwq.study import Study
from hwq.work import Work


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return replace(demo_work(), stages=tmp_path)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for each assignment that is run."""
    found: list[str] = []
    real = module.composed
    monkeypatch.setattr(module, "composed", lambda *args: (found.append("run"), real(*args))[1])
    return found


def judging(work: Work, evaluation: Evaluation, study: Study | None = None) -> Judge:
    study = study or demo_study()
    pool = Pool(kernels=study.kernels, target=study.target, cache=work.cache)
    return open_judge(study, work, pool, evaluation)


def test_accuracy_is_run_on_kernels(work: Work) -> None:
    """Float against itself is exact; int4 loses more than int8."""
    judge = judging(work, demo_evaluation())
    found = {name: accuracy_of(judge, one) for name, one in uniforms(demo_study()).items()}
    assert found["f32"].agreement == 1.0
    assert found["f32"].sqnr_db[0] > 100
    assert found["w8a8"].sqnr_db[0] > found["w4a8"].sqnr_db[0] + 10
    assert found["w8a8"].agreement is not None
    assert found["w8a8"].agreement >= 0.95


def test_kept_for_the_next_process_whatever_the_scores_are(work: Work, runs: list[str]) -> None:
    solution = uniforms(demo_study())["w8a8"]
    first = accuracy_of(judging(work, demo_evaluation()), solution)
    anchored = replace(demo_study(), losses={unit: 2 * value for unit, value in demo_study().losses.items()})
    assert accuracy_of(judging(work, demo_evaluation(), anchored), replace(solution, loss=1.0)) == first
    assert runs == ["run"]


def test_run_again_where_anything_is_another(work: Work, runs: list[str]) -> None:
    study, evaluation = demo_study(), demo_evaluation()
    every = uniforms(study)
    labels = evaluation.labels
    assert labels is not None
    others = [
        judging(work, evaluation),
        judging(work, replace(evaluation, labels=np.roll(labels, 1))),
        judging(work, replace(evaluation, inputs={name: 2 * value for name, value in evaluation.inputs.items()})),
        judging(work, evaluation, replace(study, means={tensor: (0.0, *mean) for tensor, mean in study.means.items()})),
        judging(work, evaluation, replace(study, roundings={unit: "other" for unit in every["w4a8"].schemes.items()})),
    ]
    for judge in others:
        accuracy_of(judge, every["w4a8"])
    accuracy_of(others[0], every["w8a8"])
    assert len(runs) == len(others) + 1


def test_a_users_function_is_asked_each_time(work: Work) -> None:
    scores = iter((0.5, 0.25))
    judge = judging(work, replace(demo_evaluation(), function=lambda _: next(scores), float_score=1.0, labels=None))
    solution = uniforms(demo_study())["w8a8"]
    assert [accuracy_of(judge, solution).drop for _ in range(2)] == [0.5, 0.75]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"changes": 3}'])
def test_what_is_damaged_is_made_again(work: Work, runs: list[str], damage: bytes) -> None:
    judge, solution = judging(work, demo_evaluation()), uniforms(demo_study())["w8a8"]
    first = accuracy_of(judge, solution)
    next(work.stages.glob("accuracy-*")).write_bytes(damage)
    assert accuracy_of(judge, solution) == first
    assert len(runs) == 2
