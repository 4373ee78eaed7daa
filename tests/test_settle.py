"""Settling: of a choice the weights in groups are rounded anew in its schemes, kept where the network loses less."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import language
import numpy as np
import pytest

import hwq
from hwq import settle as module
from hwq.assign import assign
from hwq.choose import Choice, problem_of
from hwq.compiler import studied
from hwq.deliver import assemble, plan_of
from hwq.moments import HELD
from hwq.progress import silent
from hwq.reanchor import losses_of, open_runs
from hwq.scheme import Budget
from hwq.settle import settled
from hwq.study import Study, pool_of
from hwq.verify import Accuracy
from hwq.work import Work

MODEL = language.llama()
RNG = np.random.default_rng(5)
SAMPLES = [{"ids": RNG.integers(0, language.VOCABULARY, (1, 12))} for _ in range(24)]
GROUPS = "w4a8_g64_dyn"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def given(folder: Path) -> tuple[Study, Work, Choice]:
    """The network in a mix: the first block in int8, the rest in int4 by groups."""
    study, work = studied(
        MODEL,
        "host",
        calibration=SAMPLES,
        evaluate=None,
        budget=Budget(),
        schemes=["w8a8_dyn", GROUPS],
        trials=0,
        work_dir=folder,
        threads=1,
        observer="mse",
        measure=False,
        dynamic=None,
        careful=True,
        progress=silent,
    )
    dense = [layer.name for layer in study.graph.layers if layer.op == "dense"]
    fixed = {name: "w8a8_dyn" if name.startswith("0") else GROUPS for name in dense}
    return study, work, Choice(solution=assign(problem_of(study, fixed)))


def loss(study: Study, work: Work, choice: Choice) -> float:
    """What the assignment loses on the samples that nothing was fitted to."""
    runs = open_runs(study, replace(work, changed="another journal"), pool_of(study, work), len(study.kept))
    return float(losses_of(runs, choice.solution.schemes)[HELD - 1 :: HELD].mean())


def journals(folder: Path) -> list[Path]:
    return sorted(folder.glob("sequence-*.json"))


def test_the_network_loses_less_and_the_plan_says_how_much(given: tuple[Study, Work, Choice]) -> None:
    study, work, choice = given
    new, settled_choice = settled(study, work, choice, None, silent)
    changed = {unit for unit, text in new.roundings.items() if text != study.roundings.get(unit, "")}
    assert changed
    assert changed <= set(choice.solution.schemes.items())
    assert {unit for unit, weights in new.weights.items() if weights is not study.weights[unit]} == changed
    part = loss(new, work, choice) / loss(study, work, choice)
    assert part < 1.0
    for one in choice.solution.schemes.items():
        assert new.losses[one] == pytest.approx(part * study.losses[one], rel=1e-6)
    others = study.losses.keys() - choice.solution.schemes.items()
    assert others
    assert all(new.losses[unit] == study.losses[unit] for unit in others)
    assert settled_choice.solution.schemes == choice.solution.schemes
    assert settled_choice.solution.loss == pytest.approx(part * choice.solution.loss, rel=1e-6)


def test_what_is_built_of_the_plan_has_these_weights(given: tuple[Study, Work, Choice], folder: Path) -> None:
    study, work, choice = given
    new, choice = settled(study, work, choice, None, silent)
    plan = plan_of(new, choice)
    built = hwq.build(MODEL, plan, work_dir=folder, threads=1)
    assert built(SAMPLES[0]).tobytes() == assemble(new, work, plan)(SAMPLES[0]).tobytes()
    assert built(SAMPLES[0]).tobytes() != assemble(study, work, plan)(SAMPLES[0]).tobytes()


def test_kept_for_the_next_call_and_made_again_where_damaged(
    given: tuple[Study, Work, Choice], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, work, choice = given
    first, _ = settled(study, work, choice, None, silent)
    (journal,) = journals(folder)
    kept = journal.read_bytes()
    made: list[int] = []

    def in_sequence(*_: Any) -> Mapping[tuple[str, str], str]:
        made.append(1)
        return {(name, scheme): text for name, scheme, text in json.loads(kept)}

    monkeypatch.setattr(module, "in_sequence", in_sequence)
    assert settled(study, work, choice, None, silent)[0].roundings == first.roundings
    assert not made
    rows = [[name, scheme, "AAAA"] for name, scheme, _ in json.loads(kept)]
    for damage in (b"[", b'[["no layer", "f32", ""]]', b"7", json.dumps(rows).encode()):
        journal.write_bytes(damage)
        assert settled(study, work, choice, None, silent)[0].roundings == first.roundings
        assert made.pop()
        assert journal.read_bytes() == kept
    others = replace(study, kept=study.kept[: HELD + 1])
    settled(others, work, choice, None, silent)
    assert made.pop(), "other samples have a journal of their own"


def test_nothing_changes_where_nothing_is_won_or_there_is_nothing_to_go_by(
    given: tuple[Study, Work, Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, work, choice = given
    floats = replace(choice, solution=replace(choice.solution, schemes=dict.fromkeys(choice.solution.schemes, "f32")))
    unsampled = replace(study, kept=())
    for one, mine in ((study, floats), (unsampled, choice)):
        assert settled(one, work, mine, None, silent) == (one, mine)
    quick = replace(study, careful=False)
    assert settled(quick, work, choice, None, silent) == (quick, choice)
    monkeypatch.setattr(module, "_loss", lambda *_: 1.0)
    assert settled(study, work, choice, None, silent) == (study, choice)


@pytest.mark.parametrize(("drop", "taken"), [(0.01, True), (0.02, True), (0.03, False)])
def test_a_choice_that_was_held_to_a_drop_loses_no_more_of_it(
    given: tuple[Study, Work, Choice], drop: float, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, work, choice = given

    def accuracy(drop: float) -> Accuracy:
        return Accuracy(score=None, float_score=None, drop=drop, agreement=None, sqnr_db=(), samples=1)

    monkeypatch.setattr(module, "open_judge", lambda *_: None)
    monkeypatch.setattr(module, "accuracy_of", lambda *_: accuracy(drop))
    held = replace(choice, accuracy=accuracy(0.02))
    evaluation: Any = SimpleNamespace()
    new, found = settled(study, work, held, evaluation, silent)
    assert (new is not study) == taken
    assert found.accuracy == accuracy(drop if taken else 0.02)


def test_a_compile_delivers_settled_weights(given: tuple[Study, Work, Choice], folder: Path) -> None:
    """In a scheme throughout, where the choice is known; the plan alone has the same."""
    arguments: dict[str, Any] = {"calibration": SAMPLES, "schemes": [GROUPS], "threads": 1, "measure": False}
    artifact = hwq.compile(MODEL, work_dir=folder, **arguments)
    plan = hwq.plan(MODEL, work_dir=folder, **arguments)
    assert plan.roundings == artifact.plan.roundings
    assert (plan.loss, plan.schemes) == (artifact.plan.loss, artifact.plan.schemes)
    assert artifact(SAMPLES[0]).tobytes() == hwq.build(MODEL, plan, threads=1, work_dir=folder)(SAMPLES[0]).tobytes()
    alone = {name: (scheme, given[0].roundings[name, scheme]) for name, (scheme, _) in plan.roundings.items()}
    assert dict(plan.roundings) != alone, "those before the choice"
