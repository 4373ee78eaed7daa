"""Re-anchoring: scores by whole assignments, drawn near the proposal, run once however often the call is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from demo_study import anchors, demo_model, demo_study, demo_work, priced

from hwq import reanchor as module
from hwq import ridge
from hwq.assign import assign
from hwq.assignment import Limits, Problem, Solution, evaluate, keeps_ties
from hwq.choose import problem_of, uniforms
from hwq.compose import Pool
from hwq.reanchor import (
    LEAST,
    NEAR,
    Anchors,
    Runs,
    anchored,
    drawn,
    features_of,
    fitted,
    losses_of,
    open_runs,
    reanchor,
)
from hwq.study import Study
from hwq.work import Work, open_work

TIMES = {"f32": 10.0, "w8a8": 4.0, "w4a8": 5.0}
SAMPLES = 4


def the_study() -> Study:
    return priced(demo_study(), TIMES, conversion_us=0.5)


@pytest.fixture(scope="module")
def study() -> Study:
    return the_study()


def fresh(study: Study, folder: Path) -> Runs:
    """Nothing run yet, but for what ``folder`` holds."""
    work = open_work(demo_model().fingerprint, demo_model().name, folder)
    pool = Pool(kernels=study.kernels, target=study.target, cache=demo_work().cache)
    return open_runs(study, Work(stages=work.stages, cache=demo_work().cache), pool, SAMPLES)


def propose(known: Study) -> tuple[Problem, Sequence[Solution]]:
    problem = problem_of(known)
    return problem, [assign(problem, Limits(weight_bytes=0.75 * uniforms(known)["w8a8"].weight_bytes))]


def free(study: Study) -> list[str]:
    return list(dict.fromkeys(layer for (layer, _), loss in study.losses.items() if loss > 0))


def test_an_assignment_s_loss_is_that_of_its_units_where_it_has_one(study: Study, tmp_path: Path) -> None:
    """One layer integer, between float ones: what sensitivity measured, as far as kernels write what theirs did."""
    runs = fresh(study, tmp_path)
    float_schemes = dict.fromkeys(study.candidates, "f32")
    assert losses_of(runs, float_schemes).max() < 1e-9
    whole = losses_of(runs, uniforms(study)["w4a8"].schemes)
    assert whole.shape == (SAMPLES,)
    assert whole.mean() > losses_of(runs, uniforms(study)["w8a8"].schemes).mean() > 0


def test_draws_are_near_and_differ(study: Study) -> None:
    problem, (centre,) = propose(study)
    layers = free(study)
    found = drawn(problem, centre, layers, ["weight_bytes"], 40, np.random.default_rng(0))
    assert found == drawn(problem, centre, layers, ["weight_bytes"], 40, np.random.default_rng(0))
    assert found != drawn(problem, centre, layers, ["weight_bytes"], 40, np.random.default_rng(1))
    assert len({tuple(one.values()) for one in [*found, dict(centre.schemes)]}) == len(found) + 1 > 30
    for one in found:
        assert 1 / NEAR <= evaluate(problem, one).weight_bytes / centre.weight_bytes <= NEAR
        for layer, scheme in one.items():
            if scheme != centre.schemes[layer]:
                assert layer in layers
                assert study.losses[layer, scheme] <= centre.loss


def test_draws_end_where_there_are_no_more(study: Study) -> None:
    problem, (centre,) = propose(study)
    layer = anchors(study)[0]
    found = drawn(problem, centre, [layer], [], 10, np.random.default_rng(0))
    assert len(found) == sum(study.losses[layer, name] <= centre.loss for name in study.candidates[layer]) - 1


def test_layers_that_take_one_scheme_are_drawn_together(study: Study) -> None:
    """The last has no float: then they change among what both have."""
    problem, _ = propose(study)
    first, *_, last = anchors(study)
    candidates = tuple(one for one in problem.candidates if (one.layer, one.scheme) != (last, "f32"))
    problem = replace(problem, candidates=candidates, alike=((first, last),))
    centre = assign(problem)
    centre = replace(centre, loss=sum(one.loss for one in candidates))
    found = drawn(problem, centre, free(study), [], 40, np.random.default_rng(0))
    assert {one[first] for one in found} == {"w8a8", "w4a8"}
    assert all(keeps_ties(replace(problem, ties=()), one) for one in found)


def mis_scored(study: Study, rng: np.random.Generator) -> Study:
    """Isolated scores of every other layer 10 times too large, in a random order, the rest a third."""
    names = free(study)
    wrong = dict(zip(names, rng.permutation(np.arange(len(names)) % 2 * 10.0 + 1 / 3), strict=True))
    return replace(study, losses={unit: loss * wrong.get(unit[0], 1.0) for unit, loss in study.losses.items()})


def test_scores_that_rank_wrongly_are_mended(
    study: Study, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Assignments lose what the right scores sum to, and a tenth more or less."""

    def made_up(_: Runs, schemes: dict[str, str]) -> np.ndarray:
        lost = sum(study.losses[unit] for unit in schemes.items())
        return lost * np.random.default_rng(list(" ".join(schemes.values()).encode())).normal(1.0, 0.1, SAMPLES)

    monkeypatch.setattr(module, "losses_of", made_up)
    wrong = mis_scored(study, rng)
    runs = fresh(wrong, tmp_path)
    found = reanchor(runs, propose, ["weight_bytes"])
    assert found is not None
    problem, (centre,) = propose(study)
    unseen = drawn(problem, centre, free(study), ["weight_bytes"], 40, np.random.default_rng(99))
    losses = np.array([made_up(runs, one).mean() for one in unseen])
    units = [unit for unit, loss in study.losses.items() if loss > 0]
    rank = {
        name: ridge.spearman(features_of(unseen, units) @ np.array([scores[unit] for unit in units]), losses)
        for name, scores in (("wrong", wrong.losses), ("mended", found.losses))
    }
    assert rank["mended"] > rank["wrong"] + 0.05, rank
    assert found.fitted.r2 > found.isolated.r2
    known = anchored(wrong, found)
    assert all(known.losses[layer, "f32"] == 0.0 for layer in study.candidates if "f32" in study.candidates[layer])
    assert known.losses.keys() == study.losses.keys()


def test_the_same_again_and_nothing_is_run_twice(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    one = reanchor(fresh(study, tmp_path / "a"), propose, ["weight_bytes"], progress=lambda *at: seen.append(at))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert all(done <= total for done, total in seen)
    assert reanchor(fresh(study, tmp_path / "b"), propose, ["weight_bytes"]) == one
    assert reanchor(fresh(study, tmp_path / "b"), propose, ["weight_bytes"], seed=1) != one

    def fail(*_: object) -> None:
        raise AssertionError("run again")

    again = fresh(study, tmp_path / "a")
    monkeypatch.setattr(module, "composed", fail)
    assert reanchor(again, propose, ["weight_bytes"]) == one


def test_other_weights_are_other_runs(study: Study, tmp_path: Path) -> None:
    first, *_ = study.qparams
    other = replace(study, qparams={**study.qparams, first: replace(study.qparams[first], zero_point=3)})
    assert fresh(study, tmp_path).journal != fresh(other, tmp_path).journal
    assert fresh(study, tmp_path).journal == fresh(study, tmp_path).journal


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a b": [1]}', '{"f32": "x"}'])
def test_a_damaged_journal_counts_as_none(text: str, study: Study, tmp_path: Path) -> None:
    runs = fresh(study, tmp_path)
    runs.journal.write_text(text)
    assert fresh(study, tmp_path).known == {}


def test_time_ends_the_stage_but_not_before_a_fit(study: Study, tmp_path: Path) -> None:
    found = reanchor(fresh(study, tmp_path), propose, ["weight_bytes"], time_s=0.0)
    assert found is not None
    assert (found.plans, found.rounds) == (LEAST, 1)


def test_too_few_assignments_say_nothing(study: Study, tmp_path: Path) -> None:
    runs = fresh(study, tmp_path)
    assert fitted(runs, [uniforms(study)["w8a8"].schemes]) is None
    assert anchored(study, None) is study


def test_pairs_are_tried_where_sums_explain_too_little(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses made up: a sum, and much more where two neighbours are int4 both."""
    edges = module._edges(study)
    edge = next(pair for pair in edges if all(layer in anchors(study) for layer in pair))
    runs = fresh(study, tmp_path)
    flat = {(layer, name): loss and (1.0 if name == "w4a8" else 0.1) for (layer, name), loss in study.losses.items()}
    runs = replace(runs, study=replace(study, losses=flat))

    def made_up(_: Runs, schemes: dict[str, str]) -> np.ndarray:
        both = all(schemes[layer] == "w4a8" for layer in edge)
        return np.full(SAMPLES, sum(flat[unit] for unit in schemes.items()) + 20.0 * both)

    monkeypatch.setattr(module, "losses_of", made_up)
    rng = np.random.default_rng(0)
    plans = [{layer: str(rng.choice(names)) for layer, names in study.candidates.items()} for _ in range(60)]
    plans += [{**plan, **dict.fromkeys(edge, "w4a8")} for plan in plans[:30]]
    found = fitted(runs, plans)
    assert found is not None
    assert found.pairs, "sums explain little of it"
    assert max(found.pairs, key=lambda pair: pair.loss).layers == edge
    known = anchored(replace(study, losses=flat), found)
    problem = problem_of(known)
    without, with_it = (dict(uniforms(study)["w8a8"].schemes), dict(uniforms(study)["w8a8"].schemes))
    with_it |= dict.fromkeys(edge, "w4a8")
    assert evaluate(problem, with_it).loss > evaluate(problem, without).loss
    assert evaluate(problem_of(known, fixed={edge[0]: "f32"}), {**without, edge[0]: "f32"}).loss >= 0


def test_pairs_take_no_more_than_a_part_of_what_layers_lose(study: Study, rng: np.random.Generator) -> None:
    """All factors as low as they may be, and scores too: no assignment is predicted to lose nothing."""
    edges = module._edges(study)
    factors = module._least(edges)
    assert np.all(factors < 0)
    for spread in (0.0, 1.0, 4.0):
        flat = {unit: loss and float(np.exp(spread * rng.standard_normal())) for unit, loss in study.losses.items()}
        known = replace(study, losses=flat)
        pairs = [
            pair for edge, factor in zip(edges, factors, strict=True) for pair in module._pairs(known, edge, factor)
        ]
        least = {unit: ridge.SHARE * loss for unit, loss in flat.items()}
        problem = problem_of(replace(study, losses=least, pairs=tuple(pairs)))
        for schemes in (uniforms(study)[name].schemes for name in ("w8a8", "w4a8")):
            alone = sum(flat[unit] for unit in schemes.items())
            assert ridge.SHARE / 2 * alone <= evaluate(problem, schemes).loss < ridge.SHARE * alone


WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import test_reanchor as test
from pathlib import Path
from hwq import reanchor as module
inner = module.composed
def watched(pool, program, *rest):
    with open(sys.argv[3], "a") as log:
        log.write("run\\n")
    return inner(pool, program, *rest)
module.composed = watched
study = test.the_study()
print("ready", flush=True)
found = module.reanchor(test.fresh(study, Path(sys.argv[2])), test.propose, ["weight_bytes"])
print(repr(found), flush=True)
"""


def test_killed_at_any_moment_it_goes_on_without_repeating_what_it_ran(study: Study, tmp_path: Path) -> None:
    """A process is killed at random moments until one lives to the end: each kill costs the one run under way."""
    log, rng, kills = tmp_path / "log", np.random.default_rng(), 0
    command = [sys.executable, "-c", WORKER, str(Path(__file__).parent), str(tmp_path / "work"), str(log)]
    for patience_s in (*rng.uniform(0.0, 0.4, size=2), None):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if patience_s is not None:
                time.sleep(float(patience_s))
                process.send_signal(signal.SIGKILL)
                kills += process.wait() != 0
            else:
                last = process.stdout.readline()
    (journal,) = (tmp_path / "work").glob("reanchor-*.json")
    finished = len(json.loads(journal.read_text()))
    started = len(log.read_text().splitlines())
    assert finished <= started <= finished + kills
    whole = reanchor(fresh(study, tmp_path / "other"), propose, ["weight_bytes"])
    assert isinstance(whole, Anchors)
    assert last.strip() == repr(whole)
