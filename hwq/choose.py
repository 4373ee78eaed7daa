"""Choose: from a study to the assignment that meets a budget, propose by the program and dispose by running it.

What a budget leaves free is minimized, latency first; kernel times carry some noise, so within ``SLACK`` of the least
latency the least loss is taken, and where bytes are free fewer bits must lead more of them by ``LEAD`` to be a choice.
A drop budget is held against real outputs: while the proposal's drop is too large the loss is bounded tighter and
proposed again; within a latency as well it is bytes that are left to be minimized. Nothing is built here: candidates
run kernel by kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

from hwq.assign import TIE, assign, near
from hwq.assignment import (
    Border,
    Limits,
    Problem,
    Solution,
    by_layer,
    evaluate,
    form_of,
    members_of,
    only,
    units_of,
    within,
)
from hwq.errors import HwqError
from hwq.evaluate import Evaluation
from hwq.graph import WEIGHTED, Layer
from hwq.judge import accuracy_of, open_judge
from hwq.progress import Stages, silent
from hwq.reanchor import TIME_S, Anchors, anchored, open_runs, reanchor, samples_for
from hwq.scheme import SCHEMES, Budget, Candidate
from hwq.study import Study, pool_of
from hwq.ties import passing_units, projections
from hwq.verify import Accuracy
from hwq.work import Work

SLACK = 0.02
LEAD = 0.05
# Bounds of loss tried for a drop, at most; closer than this nothing lies between them. Then so many assignments that
# should be hardly worse than the best, but faster; and so many, before a drop is given up, that should be hardly worse
# than the one of least loss.
BISECTIONS = 7
CLOSE = 0.01
FEW = 2
LAST = 6
BESIDE = 0.05
# Where scores are re-anchored for a budget of drop: no nearer to no loss at all than this part of the proposal's.
LEAST_PART = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An assignment with its predicted sums, its accuracy where it was run, and the anchors of its prediction."""

    solution: Solution
    accuracy: Accuracy | None = None
    anchors: Anchors | None = None


def problem_of(study: Study, fixed: Mapping[str, str] | None = None) -> Problem:
    """The study as an assignment problem; ``fixed`` leaves the layers it names only that scheme."""
    fixed = fixed or {}
    candidates = tuple(
        Candidate(
            layer=layer.name,
            scheme=scheme,
            loss=study.losses[layer.name, scheme],
            cost=study.costs[layer.name, scheme],
        )
        for layer in study.graph.layers
        for scheme in study.candidates[layer.name]
        if scheme == fixed.get(layer.name, scheme)
    )
    makers = {layer.output: layer for layer in study.graph.layers}
    borders = []
    for tensor, dtype in study.graph.dtypes.items():
        if dtype != "float32":
            continue
        maker = makers.get(tensor)
        maker = None if maker is not None and maker.float_residual else maker  # written in float, whatever it is in
        quantize_s, dequantize_s = study.conversions[tensor]
        moved_s = study.moved_s.get(tensor)
        borders.append(
            Border(
                tensor=tensor,
                producer=None if maker is None else maker.name,
                consumers=tuple(
                    dict.fromkeys(layer.name for layer in study.graph.layers if tensor in _converted(layer))
                ),
                output=tensor in study.graph.outputs or any(tensor in _in_float(layer) for layer in study.graph.layers),
                quantize_s=quantize_s,
                dequantize_s=dequantize_s,
                direct_s=study.direct_s.get(tensor),
                moved_s=None
                if moved_s is None or maker is None
                else moved_s - study.costs[maker.name, "f32"].latency_s,
                by_rows=tuple(
                    layer.name for layer in study.graph.layers if layer.op == "dense" and layer.inputs[0] == tensor
                ),
                rows_s=study.rows_s.get(tensor, 0.0),
            )
        )
    there = {(one.layer, one.scheme) for one in candidates}
    pairs = tuple(pair for pair in study.pairs if there.issuperset(zip(pair.layers, pair.schemes, strict=True)))
    return Problem(
        candidates=candidates,
        borders=tuple(borders),
        ties=passing_units(study.graph),
        pairs=pairs,
        alike=tuple(group for group in projections(study.graph) if _common(study, group)),
    )


def _common(study: Study, group: Sequence[str]) -> set[str]:
    """The schemes that all layers of ``group`` may be in; a plan that was written by hand may have none."""
    return set.intersection(*(set(study.candidates[name]) for name in group))


def _converted(layer: Layer) -> tuple[str, ...]:
    """The inputs of ``layer`` that an integer scheme takes in int8."""
    return layer.inputs[:1] if layer.float_residual else layer.int8_inputs


def _in_float(layer: Layer) -> tuple[str, ...]:
    """The inputs of ``layer`` that it takes as float32 in every scheme."""
    return layer.inputs[len(_converted(layer)) :]


def leading(candidates: Sequence[Candidate], alike: Sequence[tuple[str, ...]] = ()) -> tuple[Candidate, ...]:
    """``candidates`` without those that lead one of less loss, of their layer and form, by no more than ``LEAD``;
    layers that are ``alike`` together."""

    def led(one: Candidate, other: Candidate) -> bool:
        same = form_of(one.scheme) == form_of(other.scheme)
        return same and other.loss < one.loss and other.cost.latency_s <= one.cost.latency_s * (1 + LEAD)

    units = units_of(candidates, alike)
    kept = [one for group in units for one in group if not any(led(one, other) for other in group)]
    return only(candidates, kept, alike)


def uniform(study: Study, scheme: str) -> Solution | None:
    """The network in ``scheme``: all of it in f32, or all weights that can be in another scheme. Of the rest, what may
    is float beside bf16, and as fast as may be beside integers. None if a layer cannot be float, or no weights can be
    in ``scheme``; of layers that take one scheme all have to be able to."""
    tied = projections(study.graph)
    common = {
        layer.name: _common(study, members_of(tied, layer.name)) or set(study.candidates[layer.name])
        for layer in study.graph.layers
    }
    able = [layer for layer in study.graph.layers if scheme in common[layer.name]]
    if scheme == "f32":
        able = able if len(able) == len(study.graph.layers) else []
    else:
        able = [layer for layer in able if layer.op in WEIGHTED]
    fixed = {layer.name: scheme for layer in able}
    if SCHEMES[scheme].domain == "f32":
        fixed = {name: "f32" for name, names in common.items() if "f32" in names} | fixed
    return assign(problem_of(study, fixed)) if able else None


def uniforms(study: Study) -> dict[str, Solution]:
    """Every uniform assignment that the study's candidates allow, by scheme."""
    # A table may be in a scheme that was not asked for, whose integers are as wide.
    layers = [layer for layer in study.graph.layers if layer.op != "gather"] or study.graph.layers
    names = sorted({scheme for layer in layers for scheme in study.candidates[layer.name]})
    found = {name: uniform(study, name) for name in names}
    return {name: solution for name, solution in found.items() if solution is not None}


def choose(
    study: Study,
    work: Work,
    budget: Budget,
    evaluation: Evaluation | None,
    latency_ratio: float = 1.0,
    stages: Stages = silent,
    *,
    anchors: Anchors | None = None,
    seed: int = 0,
    time_s: float = TIME_S,
) -> Choice:
    """The best assignment within ``budget``. ``latency_ratio`` is measured over predicted time, of whole networks.

    Where the loss matters, which is under a budget that the fastest proposal does not keep by itself, scores are
    re-anchored first, in ``time_s`` seconds or a little more (with 0 not at all): see ``hwq.reanchor``. ``anchors`` are
    those of an earlier choice, to be taken as they are. Raises HwqError "budget-impossible" with the closest budget
    that can be met.
    """
    small = wants_bytes(budget)
    bound = None if budget.latency_s is None else budget.latency_s / latency_ratio
    limits = Limits(latency_s=bound, weight_bytes=budget.weight_bytes)
    if budget.drop is not None and evaluation is None:
        raise HwqError(
            "evaluate-missing",
            "a budget of drop needs samples to hold it against; accepted: evaluate, or calibration samples",
        )

    def problem(known: Study) -> Problem:
        found = problem_of(known)
        for_bytes = budget.weight_bytes is not None or small
        return found if for_bytes else replace(found, candidates=leading(found.candidates, found.alike))

    pool = pool_of(study, work)
    judge = None if budget.drop is None or evaluation is None else open_judge(study, work, pool, evaluation)
    tried: dict[tuple[str, ...], Choice] = {}
    with stages("assign") as progress:

        def run(solution: Solution) -> Choice:
            assert judge is not None
            key = tuple(solution.schemes.values())
            if key not in tried:
                tried[key] = Choice(solution=solution, accuracy=accuracy_of(judge, solution))
                progress(len(tried), max(len(tried), BISECTIONS + 2))
            return replace(tried[key], solution=solution)

        known = anchored(study, anchors)
        first = _proposal(problem(known), limits, small)
        lost = None if budget.drop is None else _drop(run(first))
        if lost is not None and budget.drop is not None and lost <= budget.drop:
            return replace(run(first), anchors=anchors)
    free = budget.drop is None and budget.weight_bytes is None and budget.latency_s is None
    if anchors is None and time_s and not free and study.kept and any(study.losses.values()):

        def centres(known: Study) -> tuple[Problem, list[Solution]]:
            """Around what to look: the proposal; for a drop, what loses that part of the proposal's loss by it."""
            found = problem(known)
            proposal = _proposal(found, limits, small)
            if lost is None or budget.drop is None:
                return found, [proposal]
            wanted = proposal.loss * max(budget.drop / lost, LEAST_PART)
            return found, [_proposal(found, limits, small, wanted) or _safest(found, limits)]

        with stages("re-anchor") as progress:
            runs = open_runs(study, work, pool, samples_for(study))
            limited = [name for name in ("latency_s", "weight_bytes") if getattr(limits, name) is not None]
            anchors = reanchor(runs, centres, limited, seed, time_s, progress)
        known = anchored(study, anchors)
        first = _proposal(problem(known), limits, small)
    if budget.drop is None:
        return Choice(solution=first, anchors=anchors)
    with stages("hold drop") as progress:
        return replace(_within_drop(problem(known), limits, small, budget.drop, first, run), anchors=anchors)


def _within_drop(
    problem: Problem, limits: Limits, small: bool, drop: float, first: Solution, run: Callable[[Solution], Choice]
) -> Choice:
    """What the program proposes within the largest bound of loss whose proposal loses no more than ``drop`` when run,
    or one of the few beside it that the program takes for hardly worse. Raises HwqError "budget-impossible"."""
    ran = [run(first)]
    if _drop(ran[0]) <= drop:
        return ran[0]
    ran.append(run(_safest(problem, limits)))
    weighted = [layer for layer, group in by_layer(problem.candidates).items() if any(one.loss for one in group)]
    if _drop(ran[-1]) > drop:  # a drop counts samples: of assignments that should lose as little, some lose fewer
        for beside in near(problem, ran[-1].solution, LAST, tolerance=BESIDE, among=weighted, limits=limits):
            ran.append(run(beside))
            if _drop(ran[-1]) <= drop:
                break
    low, high = max(ran[-1].solution.loss, first.loss * 1e-4), first.loss
    low_drop, high_drop = _drop(ran[-1]), _drop(ran[0])
    if low_drop > drop:
        closest = min(ran, key=_drop)
        raise HwqError(
            "budget-impossible",
            f"drop {drop:.2%} cannot be met within the rest of the budget: the closest assignment found loses "
            f"{_drop(closest):.2%} (predicted {closest.solution.latency_s * 1e3:.3g} ms, "
            f"{closest.solution.weight_bytes} bytes)",
        )
    for turn in range(BISECTIONS):
        if high <= low * (1 + CLOSE):
            break
        middle = _between(low, high, low_drop, high_drop, drop, straight=turn % 2 == 0)
        solution = _proposal(problem, limits, small, middle)
        if solution is None:  # no assignment between: the bound is below what the other limits allow
            low = middle
            continue
        ran.append(run(solution))
        if _drop(ran[-1]) <= drop:
            low, low_drop = middle, _drop(ran[-1])
        else:  # all bounds from its own loss on have this proposal
            high, high_drop = min(middle, solution.loss * (1 - TIE)), _drop(ran[-1])
    name = "weight_bytes" if small else "latency_s"
    best = min((one for one in ran if _drop(one) <= drop), key=lambda one: float(getattr(one.solution, name)))
    better = replace(limits, **{name: getattr(best.solution, name) * (1 - TIE)})
    for solution in near(problem, best.solution, FEW, tolerance=BESIDE, among=weighted, limits=better):
        ran.append(run(solution))
    return min((one for one in ran if _drop(one) <= drop), key=lambda one: float(getattr(one.solution, name)))


def _between(low: float, high: float, low_drop: float, high_drop: float, drop: float, straight: bool) -> float:
    """A bound of loss between two: where a straight line through logarithms of loss and drop says, or in the middle.

    The line is not trusted near its ends, and every other time not at all, so that the bounds do close in.
    """
    part = 0.5
    if straight and 0 < low_drop < drop < high_drop:
        part = min(max(math.log(drop / low_drop) / math.log(high_drop / low_drop), 0.1), 0.9)
    elif straight and drop > 0:  # of a loss that drops nothing: in proportion to the other's
        part = min(max(math.log(high * drop / high_drop / low) / math.log(high / low), 0.1), 0.9)
    return math.exp(math.log(low) + part * math.log(high / low))


def _drop(choice: Choice) -> float:
    if choice.accuracy is None or choice.accuracy.drop is None:
        raise HwqError(
            "evaluate-missing",
            "a budget of drop needs labels or classes; accepted: evaluate=(inputs, labels), or a function",
        )
    return choice.accuracy.drop


@overload
def _proposal(problem: Problem, limits: Limits, small: bool) -> Solution: ...


@overload
def _proposal(problem: Problem, limits: Limits, small: bool, loss: float) -> Solution | None: ...


def _proposal(problem: Problem, limits: Limits, small: bool, loss: float | None = None) -> Solution | None:
    """The program's choice within ``limits`` and a bound of loss; None if there is none, where a bound is given.

    small: bytes are minimized, and of that size the loss, instead of the latency.
    """
    try:
        if not small:
            return assign(problem, replace(limits, loss=loss), slack=SLACK)
        if loss is None:
            assign(problem, limits)  # raises what cannot be met, in the budget's own terms
        most = math.fsum(one.loss for one in problem.candidates) if loss is None else loss
        least = assign(problem, replace(limits, loss=most))
        return assign(problem, replace(limits, weight_bytes=least.weight_bytes))  # of its size the least loss
    except HwqError as error:
        if error.code != "budget-impossible" or loss is None:
            raise
        return None


def _safest(problem: Problem, limits: Limits) -> Solution:
    """The least loss within ``limits``."""
    # A limit beyond every sum frees the program to minimize the loss instead of the latency.
    ceiling = math.fsum([*(one.cost.latency_s for one in problem.candidates), *map(_most_s, problem.borders)])
    return assign(problem, replace(limits, latency_s=ceiling if limits.latency_s is None else limits.latency_s))


def wants_bytes(budget: Budget) -> bool:
    """Whether of latency, loss and bytes it is bytes that ``budget`` leaves to be minimized first."""
    return budget.drop is not None and budget.latency_s is not None and budget.weight_bytes is None


def improved(study: Study, budget: Budget, chosen: Solution, latency_ratio: float = 1.0) -> Solution | None:
    """What the prices of ``study`` have instead of ``chosen``, which other prices had; None if that is hardly better.

    Better is faster with no more loss, or any loss where nothing limits it; within a latency, less loss, or within it
    at all where ``chosen`` is not. Hardly is by no more than ``SLACK``.
    """
    if wants_bytes(budget):  # times are kept there, and bytes are no matter of prices
        return None
    problem = problem_of(study)
    now = evaluate(problem, chosen.schemes)
    limits = Limits(weight_bytes=budget.weight_bytes)
    if budget.latency_s is not None:
        limits = replace(limits, latency_s=budget.latency_s / latency_ratio)
    elif budget.drop is not None:
        limits = replace(limits, loss=now.loss * (1 + TIE))
    elif budget.weight_bytes is None:
        problem = replace(problem, candidates=leading(problem.candidates, problem.alike))
    try:
        found = assign(problem, limits, slack=SLACK)
    except HwqError:  # not within the latency, by these prices
        return None
    if budget.latency_s is not None and not within(now, limits):
        return found
    goal = "loss" if budget.latency_s is not None else "latency_s"
    return found if getattr(found, goal) < getattr(now, goal) * (1 - SLACK) else None


def _most_s(border: Border) -> float:
    return border.quantize_s + border.dequantize_s + abs(border.direct_s or 0.0) + abs(border.moved_s or 0.0)
