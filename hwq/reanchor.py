"""Re-anchor: scores of single layers corrected by whole assignments near the one that they propose.

Stands between the first proposal and the next. Errors of layers meet in common, so isolated scores mis-price an
assignment: random assignments around the proposal are run kernel by kernel on the kept samples, ``hwq.ridge`` fits the
scores to their losses with the isolated ones as prior, and the program proposes again, until it proposes what was run
already or ``ROUNDS`` went by. Where the fit explains too little of assignments left out, terms for pairs of neighbours
are tried, and kept if they explain more.

Every finished run is kept in the work directory: interrupted anywhere, the same call goes on with the next assignment.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwq import loss, ridge
from hwq.assignment import Pair, Problem, Solution, evaluate, members_of, units_of
from hwq.compose import Pool, composed
from hwq.cost import op_macs
from hwq.execute import quiet, run, seen, to_device
from hwq.files import write_atomic
from hwq.graph import PASS_THROUGH, words_of
from hwq.progress import Callback
from hwq.ridge import Quality, Vector
from hwq.samples import count_of
from hwq.sensitivity import Unit
from hwq.study import Study
from hwq.work import Work

log = logging.getLogger(__name__)
Schemes = Mapping[str, str]

# Assignments run around the first proposal and around each later one, and how often the program may propose.
FIRST, MORE = 64, 16
ROUNDS = 3
# Fewer say nothing.
LEAST = 2 * ridge.FOLDS
# The samples that the first ones are run on: what this much work allows (half a minute on one core).
REANCHOR_MACS = 4e12
SAMPLES = (8, 64)
# The stage takes no more than this as a rule: beyond, it fits what has been run.
TIME_S = 120.0
# An assignment is drawn by changing each layer with one of these probabilities, and is near the proposal if what is
# limited stays within this factor.
CHANGES = (0.05, 0.15, 0.3)
NEAR = 1.15
TRIES = 60
# A fit that explains this much of the variance of assignments left out needs no terms for pairs.
ENOUGH = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """Scores by whole assignments. losses: (layer, scheme) -> score; pairs: what neighbours lose beyond theirs.

    fitted: how well such fits predict assignments that they have not seen; isolated: how well the isolated scores
    predict the same ones, ``plans`` of them, each run on ``samples`` batches. rounds: how often the program proposed.
    """

    losses: Mapping[Unit, float]
    pairs: tuple[Pair, ...]
    fitted: Quality
    isolated: Quality
    plans: int
    samples: int
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """Assignments' losses on the first kept samples; ``known`` holds those found: schemes -> the loss of each sample.

    clean: float's outputs. signal: the mean of what ``hwq.loss`` calls so over the samples.
    """

    study: Study
    pool: Pool
    batches: Sequence[Mapping[str, Any]]
    clean: Sequence[Sequence[loss.Array]]
    kind: str
    signal: float
    journal: Path
    known: dict[tuple[str, ...], list[float]] = field(default_factory=dict)


def samples_for(study: Study) -> int:
    """On how many of the kept batches assignments are run."""
    macs = sum(op_macs(bound.step.workload) for bound in study.runner.steps if bound.step.workload is not None)
    least, most = SAMPLES
    return min(len(study.kept), int(min(max(REANCHOR_MACS / (FIRST * max(macs, 1)), least), most)))


def open_runs(study: Study, work: Work, pool: Pool, samples: int) -> Runs:
    """Ready to run assignments on the first ``samples`` kept batches, with what the work directory knows already."""
    clean, batches = [], []
    for batch in study.kept[:samples]:
        env = run(study.runner, to_device(batch))
        clean.append([seen(study.runner, env, name).copy() for name in study.runner.program.outputs])
        batches.append(to_device(batch))
    kind = loss.kind_of(clean[0], count_of(study.kept[0]), words_of(study.graph))
    found = Runs(
        study=study,
        pool=pool,
        batches=batches,
        clean=clean,
        kind=kind,
        signal=float(np.mean([loss.compare(one, one, kind).signal for one in clean])),
        journal=work.file("reanchor", ".json", _digest(study, clean)),
    )
    found.known.update(_kept(found))
    return found


def losses_of(runs: Runs, schemes: Schemes) -> Vector:
    """The loss (S,) of the assignment on each sample, whose mean is the loss of all; run if it is not known."""
    key = tuple(schemes[layer.name] for layer in runs.study.graph.layers)
    if key not in runs.known:
        runner = composed(runs.pool, runs.study.program_here(schemes))
        found = []
        for batch, clean in zip(runs.batches, runs.clean, strict=True):
            env = run(runner, batch)
            sums = loss.compare([seen(runner, env, name) for name in runner.program.outputs], clean, runs.kind)
            found.append(replace(sums, signal=runs.signal).loss)
        runs.known[key] = found
        rows = {" ".join(schemes): values for schemes, values in runs.known.items()}
        write_atomic(runs.journal, json.dumps(rows).encode())
    return np.array(runs.known[key])


def _digest(study: Study, clean: Sequence[Sequence[loss.Array]]) -> str:
    """Of all that assignments' losses follow from: kernels, ranges, weights, samples and what float makes of them."""
    digest = hashlib.sha256(study.kernels_here.code.encode())
    for tensor, q in sorted(study.qparams.items()):
        digest.update(f"{tensor} {float(q.scale)!r} {q.zero_point}".encode())
    for unit, weights in sorted(study.weights.items()):
        digest.update(repr(unit).encode())
        for array in (weights.values, weights.scale, weights.bias):
            digest.update(np.ascontiguousarray(array).tobytes())
    for batch, outputs in zip(study.kept, clean, strict=False):
        for array in (*batch.values(), *outputs):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _kept(runs: Runs) -> dict[tuple[str, ...], list[float]]:
    """What the journal holds; nothing if there is none, or it is damaged."""
    try:
        rows = json.loads(runs.journal.read_bytes())
        known = {tuple(key.split(" ")): [float(value) for value in values] for key, values in rows.items()}
        assert all(len(key) == len(runs.study.graph.layers) for key in known)
        assert all(len(values) == len(runs.batches) and np.isfinite(values).all() for values in known.values())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, AssertionError) as error:
        log.debug("%s is damaged (%r): assignments are run again", runs.journal, error)
        return {}
    return known


def drawn(
    problem: Problem,
    centre: Solution,
    free: Sequence[str],
    limited: Sequence[str],
    count: int,
    rng: np.random.Generator,
) -> list[dict[str, str]]:
    """``count`` random assignments around ``centre``, or fewer where there are not as many; all differ.

    Of the ``free`` layers each may change, those that take one scheme together, to one that does not by itself lose
    more than the whole ``centre`` does: that is nowhere near. What is ``limited`` stays within NEAR of the
    centre's, or less changes.
    """
    ways = {
        members: [one.scheme for one in group if one.loss <= centre.loss]
        for group in units_of(problem.candidates, problem.alike)
        if group and not set(members := members_of(problem.alike, group[0].layer)).isdisjoint(free)
    }
    found: dict[tuple[str, ...], dict[str, str]] = {tuple(centre.schemes.values()): {}}
    for _ in range(count):
        change = float(rng.choice(CHANGES))
        for _ in range(TRIES):
            schemes = dict(centre.schemes)
            for members, names in ways.items():
                others = [name for name in names if name != schemes[members[0]]]
                if others and rng.random() < change:
                    schemes |= dict.fromkeys(members, others[int(rng.integers(len(others)))])
            key = tuple(schemes.values())
            one = evaluate(problem, schemes)
            ratios = [getattr(one, name) / getattr(centre, name) for name in limited if getattr(centre, name)]
            if key not in found and all(1 / NEAR <= ratio <= NEAR for ratio in ratios):
                found[key] = schemes
                break
            change *= 1 - 1 / TRIES
    return list(found.values())[1:]


def reanchor(
    runs: Runs,
    propose: Callable[[Study], tuple[Problem, Sequence[Solution]]],
    limited: Sequence[str],
    seed: int = 0,
    time_s: float = TIME_S,
    progress: Callback = quiet,
    rounds: int = ROUNDS,
) -> Anchors | None:
    """Scores fitted to whole assignments around what ``propose`` makes of a study; None where too few can be run.

    propose: a study -> its problem, and solutions around which to look. limited: those of QUANTITIES that a budget
    limits. rounds: how often it may propose, at most. The same study, seed and proposals give the same scores, unless
    ``time_s`` ends the stage early.
    """
    study, end = runs.study, time.monotonic() + time_s
    units = [unit for unit, value in study.losses.items() if value > 0]
    free = list(dict.fromkeys(layer for layer, _ in units))
    planned: dict[tuple[str, ...], Schemes] = {}
    anchors = None
    problem, centres = propose(study)
    for turn in range(rounds):
        fresh = [one for one in centres if tuple(one.schemes.values()) not in planned]
        if not fresh:
            break
        rng = np.random.default_rng([seed, turn])
        count = (FIRST if turn == 0 else MORE) // len(fresh)
        wanted = [one.schemes for one in fresh]
        wanted += [each for one in fresh for each in drawn(problem, one, free, limited, count, rng)]
        total = len(planned) + len(wanted)
        for schemes in wanted:
            if time.monotonic() >= end and len(planned) >= LEAST:
                log.info("time is up after %d of %d assignments", len(planned), total)
                break
            losses_of(runs, schemes)
            planned[tuple(schemes.values())] = schemes
            progress(len(planned), total)
        anchors = fitted(runs, list(planned.values()), turn + 1)
        if anchors is None or time.monotonic() >= end or turn + 1 == rounds:
            break
        problem, centres = propose(anchored(study, anchors))
    return anchors


def anchored(study: Study, anchors: Anchors | None) -> Study:
    """The study with its scores corrected; as it is without anchors."""
    return study if anchors is None else replace(study, losses=anchors.losses, pairs=anchors.pairs)


def report_of(anchors: Anchors) -> dict[str, Any]:
    """How far the scores are to be trusted, as a report holds it."""
    return {
        "plans": anchors.plans,
        "samples": anchors.samples,
        "rounds": anchors.rounds,
        "pairs": len(anchors.pairs),
        "held_out": {"r2": anchors.fitted.r2, "spearman": anchors.fitted.spearman},
        "isolated": {"r2": anchors.isolated.r2, "spearman": anchors.isolated.spearman},
    }


def fitted(runs: Runs, plans: Sequence[Schemes], rounds: int = 1) -> Anchors | None:
    """The scores that fit the ``plans``, all of which are run if need be; None if there are fewer than LEAST."""
    study = runs.study
    units = [unit for unit, value in study.losses.items() if value > 0]
    prior = np.array([study.losses[unit] for unit in units])
    plans = [one for one in plans if any(one[layer] == scheme for layer, scheme in units)]
    if len(plans) < LEAST:
        return None
    losses = np.array([losses_of(runs, one).mean() for one in plans])
    features = features_of(plans, units)
    edges = _edges(study)
    neighbours = np.array([[_meeting(study, one, edge) for edge in edges] for one in plans]).reshape(len(plans), -1)
    least = _least(edges)
    nothing = np.zeros((len(plans), 0))
    quality = ridge.quality(ridge.held_out(features, nothing, losses, prior), losses)
    paired = None
    if quality.r2 < ENOUGH and edges:
        paired = ridge.quality(ridge.held_out(features, neighbours, losses, prior, least), losses)
    with_pairs = paired is not None and paired.r2 > quality.r2
    if with_pairs:
        found = ridge.fit(features, neighbours, losses, prior, least)
    else:
        found = ridge.fit(features, nothing, losses, prior)
    terms = dict(zip(edges, found.pairs, strict=True)) if with_pairs else {}
    return Anchors(
        losses=dict(study.losses) | dict(zip(units, map(float, found.scores), strict=True)),
        pairs=tuple(pair for edge, term in terms.items() for pair in _pairs(study, edge, float(term))),
        fitted=paired if with_pairs and paired is not None else quality,
        isolated=ridge.quality(features @ prior, losses),
        plans=len(plans),
        samples=len(runs.batches),
        rounds=rounds,
    )


def features_of(plans: Sequence[Schemes], units: Sequence[Unit]) -> Vector:
    """(P, U): 1 where an assignment has a unit."""
    return np.array([[float(one[layer] == scheme) for layer, scheme in units] for one in plans])


def _edges(study: Study) -> list[tuple[str, str]]:
    """The pairs of layers of which the first writes what the second reads, what passes values through left out."""
    makers = {layer.output: layer for layer in study.graph.layers if layer.op not in PASS_THROUGH}
    return [
        (makers[tensor].name, layer.name)
        for layer in study.graph.layers
        for tensor in dict.fromkeys(layer.inputs)
        if tensor in makers and layer.op not in PASS_THROUGH
    ]


def _meeting(study: Study, schemes: Schemes, edge: tuple[str, str]) -> float:
    """What the errors of two layers amount to where they meet: for e = a + b, |e|^2 has 2 a b = 2 cos |a| |b| beyond
    |a|^2 + |b|^2, and losses are such squares; the cosine is to be fitted."""
    return math.sqrt(math.prod(study.losses[layer, schemes[layer]] for layer in edge))


def _least(edges: Sequence[tuple[str, str]]) -> Vector:
    """The least factor of each pair: so low that no assignment loses less than half of ridge.SHARE of what its layers
    lose alone. With f for a layer's factors below 0, in sum over its D edges, the pairs are at least f / 2 times the
    losses a of its layers, since a b <= (a^2 + b^2) / 2 for what meets; each edge has a Dth of f = -SHARE."""
    degree = Counter(layer for edge in edges for layer in edge)
    return np.array([-ridge.SHARE / max(degree[layer] for layer in edge) for edge in edges])


def _pairs(study: Study, edge: tuple[str, str], term: float) -> list[Pair]:
    """One term as what each combination of the two layers' schemes loses."""
    first, second = edge
    found = [
        Pair(layers=edge, schemes=(one, other), loss=term * _meeting(study, {first: one, second: other}, edge))
        for one in study.candidates[first]
        for other in study.candidates[second]
    ]
    return [pair for pair in found if pair.loss != 0.0]
