"""Dispose: what the program proposes is built and measured, beside what could beat it, and the best that fits wins.

Stands between a study and ``hwq.compile``. Proposals whose network misses the latency are made anew within less; what
layers took in the networks that were built corrects the prices, and the program proposes again, until that is stable.
Where there is no machine to time them on, predictions stand for times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from hwq import evaluate as evaluation_of
from hwq.artifact import Artifact
from hwq.assign import assign
from hwq.assignment import Limits, Solution
from hwq.assignment import evaluate as sums
from hwq.choose import Choice, choose, improved, problem_of, uniforms, wants_bytes
from hwq.contest import HOPELESS, NOISE, figures, interleaved, missed, verdict, weighed
from hwq.cost import fit_whole
from hwq.deliver import assemble, board_of, describe, network_input, plan_of, run_of, weight_bytes
from hwq.device import Device, closed_if_it_fails
from hwq.errors import HwqError
from hwq.evaluate import Evaluation
from hwq.graph import WEIGHTED
from hwq.inplace import Unit, corrected, seen_s
from hwq.progress import Stages, silent
from hwq.reanchor import anchored, report_of
from hwq.scheme import Budget
from hwq.settle import settled
from hwq.study import Study, pool_of
from hwq.verify import Accuracy
from hwq.work import Work

# Predicted slower than the proposal by this factor, a uniform assignment is not built to be compared.
WORTH_BUILDING = 1.25
# How often the program may propose, each time within a budget tightened by what the last proposal missed; then how
# often by prices corrected in place.
ROUNDS = 6
CORRECTIONS = 2
# This part of a latency is left free by proposals, and half of it by what is delivered, if that can be: the user's own
# measurement is not the same as this one (the same network took 3.17 to 3.26 ms by this, 3.31 to 3.39 by benchmark()).
MARGIN = 0.05
# What a measured latency is named with when it is offered as a budget: the next measurement is not the same.
HEADROOM = 0.1


def dispose(
    found: Study,
    work: Work,
    budget: Budget,
    evaluation: Evaluation | None,
    progress: Stages,
    seed: int,
    sensitivity_s: float,
) -> Artifact:
    """Build what the program proposes and the uniform assignments that could beat it, and deliver the best that fits.

    That is the least loss among those as fast as the fastest but for ``NOISE``, a drop that nobody allowed weighed in;
    among all of them under a budget of latency; and there, with a budget of drop too, the least bytes. It holds the
    board, if there is one, until it is closed. Raises HwqError "budget-impossible" where what was measured misses the
    budget, and as ``board_of``.
    """
    board = board_of(found)
    with closed_if_it_fails(board):
        return _dispose(found, work, board, budget, evaluation, progress, seed, sensitivity_s)


def _dispose(
    found: Study,
    work: Work,
    board: Device | None,
    budget: Budget,
    evaluation: Evaluation | None,
    progress: Stages,
    seed: int,
    sensitivity_s: float,
) -> Artifact:
    """``dispose`` with the board, which what is delivered holds."""
    choice, artifact = _propose(found, work, board, budget, evaluation, progress, seed, sensitivity_s)
    found = anchored(found, choice.anchors)
    others = {name: Choice(solution=one) for name, one in _others(found, choice.solution).items()}
    each = {name: settled(found, work, one, evaluation, progress) for name, one in {"chosen": choice, **others}.items()}
    studies = {name: study for name, (study, _) in each.items()}
    contenders = {"chosen": artifact} if studies["chosen"] is found else {}
    with progress("compare") as callback:
        for done, (name, (study, mine)) in enumerate(each.items()):
            if name not in contenders:
                contenders[name] = assemble(study, work, plan_of(study, mine), board)
            callback(done + 1, len(each))
        _correct(found, work, board, budget, choice.solution, contenders, studies)
        times = _times(found, contenders, network_input(found))
    pool = pool_of(found, work)
    with progress("verify") as callback:
        accuracies: dict[str, Accuracy | None] = dict.fromkeys(contenders)
        misses: dict[str, list[str]] = {}
        for done, (name, one) in enumerate(contenders.items()):
            # Slower than a proposal that fits, it can be delivered only for a budget of latency.
            hopeless = misses.get("chosen") == [] and times[name] > HOPELESS * times["chosen"]
            judged = not hopeless or budget.latency_s is not None
            if evaluation is not None and judged:
                kernels = pool if studies[name].weights is found.weights else pool_of(studies[name], work)
                accuracies[name] = evaluation_of.judge(evaluation, run_of(studies[name], kernels, one))
            misses[name] = missed(one, times[name], accuracies[name], budget)
            callback(done + 1, len(contenders))
        fitting = [name for name in contenders if not misses[name]]
        if not fitting:
            raise HwqError("budget-impossible", f"what was built misses the budget: {'; '.join(misses['chosen'])}")
        if budget.latency_s is not None:
            enough_s = budget.latency_s * (1 - MARGIN / 2)
            fitting = [name for name in fitting if times[name] <= enough_s] or fitting
        worth = weighed({name: times[name] for name in fitting}, accuracies, budget)
        least_s = min(worth.values())
        fast = [name for name in fitting if budget.latency_s is not None or worth[name] <= least_s * (1 + NOISE)]
        sizes = {name: weight_bytes(contenders[name]) if wants_bytes(budget) else 0 for name in fast}
        picked = min(fast, key=lambda name: (sizes[name], contenders[name].plan.loss, name != "chosen"))
        best = contenders[picked]
        alternatives = {
            name: figures(one, times[name] if found.timed else None, accuracies[name])
            for name, one in contenders.items()
            if name != picked
        }
        limits = Limits(latency_s=budget.latency_s, weight_bytes=budget.weight_bytes)
        measured_s = times[picked] if found.timed else None
        describe(studies[picked], best, measured_s, accuracies[picked], evaluation, limits)
    best.report["verdict"] = verdict(picked, times, misses["chosen"], budget, sizes, found.timed)
    best.report["alternatives"] = alternatives
    problem = problem_of(found)
    summed = {name: sums(problem, one.plan.schemes).latency_s for name, one in contenders.items()}
    pairs = [(summed[name], seconds) for name, seconds in times.items() if summed[name] > 0]
    best.report["fit"] = asdict(fit_whole(pairs)) if found.timed else None
    best.report["scores"] = None if choice.anchors is None else report_of(choice.anchors)
    best.report["budget"] = {"drop": budget.drop, "latency_s": budget.latency_s, "weight_bytes": budget.weight_bytes}
    return best


def _propose(
    found: Study,
    work: Work,
    board: Device | None,
    budget: Budget,
    evaluation: Evaluation | None,
    progress: Stages,
    seed: int,
    sensitivity_s: float,
) -> tuple[Choice, Artifact]:
    """The program's choice, built: the first that meets the latency as measured, or the last one tried."""
    aimed = 1.0 if budget.latency_s is None else 1 - MARGIN
    ratio, anchors = 1 / aimed, None
    built: tuple[Choice, Artifact] | None = None
    x = network_input(found)
    for _ in range(ROUNDS):
        try:
            choice = choose(
                found, work, budget, evaluation, ratio, progress, anchors=anchors, seed=seed, time_s=sensitivity_s
            )
        except HwqError as error:
            if error.code != "budget-impossible":
                raise
            if built is not None:
                break  # nothing meets the tightened budget: what was built will be held against the given one
            if aimed == 1:
                raise _impossible(found, work, board, budget, error) from error
            aimed = ratio = 1.0  # nothing can be left free
            continue
        with progress("build"):
            anchors = choice.anchors
            built = choice, assemble(found, work, plan_of(anchored(found, anchors), choice), board)
            latency_s = _times(found, {"chosen": built[1]}, x)["chosen"]
        if budget.latency_s is None or latency_s <= budget.latency_s * (1 + aimed) / 2:
            break
        # Predictions know nothing of what networks take beyond their kernels.
        ratio = max(latency_s / choice.solution.latency_s / aimed, ratio * 1.02)
    assert built is not None
    return built


def _times(found: Study, contenders: Mapping[str, Artifact], x: Any) -> dict[str, float]:
    """Seconds of a call of each: as measured, or as predicted where there is no machine to time them on."""
    if found.timed:
        return interleaved(contenders, x)
    return {name: one.plan.latency_s for name, one in contenders.items()}


def _correct(
    found: Study,
    work: Work,
    board: Device | None,
    budget: Budget,
    chosen: Solution,
    contenders: dict[str, Artifact],
    studies: dict[str, Study],
) -> None:
    """Add to the contenders what is proposed by prices as the contenders' layers showed them, until that is stable.

    Not where nothing was measured: by prices that are no measurements the same machine must give the same answer.
    """
    if not any(cost.source == "measured" and cost.latency_s for cost in found.costs.values()):
        return
    x = network_input(found)
    seen: dict[Unit, float] = {}
    fresh = list(contenders.values())
    for turn in range(1, 1 + CORRECTIONS):
        for unit, seconds in seen_s(found, fresh, x).items():
            seen[unit] = min(seconds, seen.get(unit, seconds))
        study = replace(found, costs=corrected(found.costs, seen))
        ratio = 1.0
        if budget.latency_s is not None:
            ratio = interleaved({"chosen": contenders["chosen"]}, x)["chosen"]
            ratio /= sums(problem_of(study), chosen.schemes).latency_s * (1 - MARGIN)
        solution = improved(study, budget, chosen, ratio)
        if solution is None or any(solution.schemes == one.plan.schemes for one in contenders.values()):
            return
        name = f"proposal {turn + 1}, by times in place"
        studies[name], choice = settled(study, work, Choice(solution=solution), None, silent)
        fresh = [assemble(studies[name], work, plan_of(studies[name], choice), board)]
        contenders[name] = fresh[0]
        chosen = solution


def _impossible(found: Study, work: Work, board: Device | None, budget: Budget, error: HwqError) -> HwqError:
    """``error``, of a budget that predictions say cannot be met; for a latency, with what the fastest really takes."""
    if budget.latency_s is None or not found.timed:
        return error
    try:
        fastest = assign(problem_of(found), Limits(weight_bytes=budget.weight_bytes), slack=0.0)
    except HwqError:
        return error  # the size cannot be met at any latency
    artifact = assemble(found, work, plan_of(found, Choice(solution=fastest)), board)
    least_s = interleaved({"fastest": artifact}, network_input(found))["fastest"] * (1 + HEADROOM)
    if least_s <= budget.latency_s:
        return error  # not the latency alone
    return HwqError(
        "budget-impossible",
        f"latency {budget.latency_s * 1e3:.4g} ms cannot be met; the closest that can be met is "
        f"{least_s * 1e3:.4g} ms, measured on the fastest assignment",
    )


def _others(found: Study, chosen: Solution) -> dict[str, Solution]:
    """The uniform assignments worth building beside ``chosen``: float always, others if they might be faster.

    One that gives every weight the scheme it has already is no other assignment.
    """
    weighted = [layer.name for layer in found.graph.layers if layer.op in WEIGHTED]
    return {
        f"all {name}": solution
        for name, solution in uniforms(found).items()
        if any(solution.schemes[layer] != chosen.schemes[layer] for layer in weighted)
        and (name == "f32" or solution.latency_s <= WORTH_BUILDING * chosen.latency_s)
    }
