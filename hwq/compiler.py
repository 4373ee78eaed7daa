"""compile, plan and build: the stages in order, and nothing else.

study (calibrate, quantize, sensitivity, price) -> choose -> assemble, and again while what was built misses the budget
-> compare it with uniform assignments -> describe the best. ``plan`` ends at choose; ``build`` delivers a given plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hwq import evaluate as evaluation_of
from hwq.arguments import (
    check_budget,
    check_model,
    check_plan,
    check_seconds,
    check_threads,
    check_trials,
    machine_here,
    machine_of_plan,
    schemes_on,
)
from hwq.artifact import Artifact
from hwq.assign import assign
from hwq.assignment import Limits, Solution
from hwq.assignment import evaluate as sums
from hwq.choose import Choice, choose, improved, problem_of, uniforms, wants_bytes
from hwq.contest import HOPELESS, NOISE, figures, interleaved, missed, verdict, weighed
from hwq.cost import fit_whole
from hwq.deliver import assemble, deliver, describe, explain_choices, network_input, weight_bytes
from hwq.errors import HwqError
from hwq.evaluate import Evaluation
from hwq.graph import ANCHORS
from hwq.inplace import Unit, correct, seen_s
from hwq.lower import legal_schemes
from hwq.model import Model
from hwq.plan import Plan
from hwq.process import peak_memory_bytes
from hwq.progress import Stages, silent
from hwq.reanchor import TIME_S, anchored, report_of
from hwq.scheme import SCHEMES, Budget
from hwq.study import Study, inputs_of, roundings_of, study, study_of_plan
from hwq.target import Target
from hwq.verify import Accuracy
from hwq.work import Work, open_work

# Predicted slower than the proposal by this factor, a uniform assignment is not built to be compared.
WORTH_BUILDING = 1.25
# How often the program may propose, each time within a budget tightened by what the last proposal missed.
ROUNDS = 3
# What a measured latency is named with when it is offered as a budget: the next measurement is not the same.
HEADROOM = 0.1


def compile(
    model: Model,
    target: Target | str | Path = "host",
    *,
    calibration: Any = None,
    evaluate: Any = None,
    budget: Budget | None = None,
    schemes: Iterable[str] | None = None,
    trials: int = 0,
    work_dir: str | Path | None = None,
    threads: int | None = None,
    seed: int = 0,
    sensitivity_s: float = TIME_S,
    observer: str = "mse",
    measure: bool | None = None,
    progress: Stages = silent,
) -> Artifact:
    """Compile ``model`` for ``target`` with each layer in the scheme that pays, and measure what came out.

    calibration: an array, or an iterable of arrays or of dicts (input name -> array), batch axis first. evaluate:
    (inputs, labels), or a function of a run callable that returns a score, higher is better; without it a budget of
    drop is held against changed classes on calibration samples. budget: None minimizes latency, then loss.
    measure: time kernels on this machine; None does where they can run. sensitivity_s: about how many seconds whole
    assignments are run for, where losses decide which one is best; 0 trusts the losses of single layers. Raises
    HwqError for whatever the caller can mend, "budget-impossible" among them, with the closest that can be met.
    """
    began = time.monotonic()
    budget = check_budget(budget)
    check_seconds("sensitivity_s", sensitivity_s)
    found, work = studied(
        model,
        target,
        calibration=calibration,
        schemes=schemes,
        trials=trials,
        work_dir=work_dir,
        threads=threads,
        observer=observer,
        measure=measure,
        careful=budget != Budget() or schemes is not None,
        progress=progress,
    )
    evaluation = evaluated(found, evaluate, progress)
    artifact = _dispose(found, work, budget, evaluation, progress, seed, sensitivity_s)
    artifact.report["compile"] = {"seconds": time.monotonic() - began, "peak_memory_bytes": peak_memory_bytes()}
    return artifact


def plan(
    model: Model,
    target: Target | str | Path = "host",
    *,
    calibration: Any = None,
    evaluate: Any = None,
    budget: Budget | None = None,
    schemes: Iterable[str] | None = None,
    trials: int = 0,
    work_dir: str | Path | None = None,
    threads: int | None = None,
    seed: int = 0,
    sensitivity_s: float = TIME_S,
    observer: str = "mse",
    measure: bool | None = None,
    progress: Stages = silent,
) -> Plan:
    """The assignment that ``compile`` would start from, without building it. Arguments and errors as ``compile``."""
    budget = check_budget(budget)
    check_seconds("sensitivity_s", sensitivity_s)
    found, work = studied(
        model,
        target,
        calibration=calibration,
        schemes=schemes,
        trials=trials,
        work_dir=work_dir,
        threads=threads,
        observer=observer,
        measure=measure,
        careful=budget != Budget() or schemes is not None,
        progress=progress,
    )
    evaluation = evaluated(found, evaluate, progress) if budget.drop is not None else None
    choice = choose(found, work, budget, evaluation, stages=progress, seed=seed, time_s=sensitivity_s)
    return plan_of(anchored(found, choice.anchors), choice)


def build(
    model: Model,
    plan: Plan,
    target: Target | str | Path | None = None,
    *,
    evaluate: Any = None,
    work_dir: str | Path | None = None,
    threads: int | None = None,
    progress: Stages = silent,
) -> Artifact:
    """Build exactly ``plan``; without a target for its own, which must be host or one that hwq ships.

    Raises HwqError "plan-layers" for a layer that the model lacks or the plan forgets, "plan-illegal" for a scheme that
    the target has no kernel for, "plan-other" for a plan of another model, "plan-ranges" for an integer layer whose
    ranges the plan does not hold, and for model and target as ``compile`` does.
    """
    check_model(model)
    check_plan(plan)
    check_threads(threads)
    machine = machine_of_plan(plan) if target is None else machine_here(target)
    graph = model.graph
    plan.check_layers([layer.name for layer in graph.layers])
    for layer in graph.layers:
        legal = legal_schemes(graph, layer, machine, tuple(SCHEMES.values()))
        if plan.schemes[layer.name] not in legal:
            raise HwqError(
                "plan-illegal",
                f"plan gives layer {layer.name!r} ({layer.op}) scheme {plan.schemes[layer.name]!r}, which "
                f"{machine.name} cannot run it in; accepted: {', '.join(legal)}",
            )
    if plan.model != model.fingerprint:
        raise HwqError(
            "plan-other",
            f"plan was made for a model of fingerprint {plan.model[:8]!r}, this one has {model.fingerprint[:8]!r}: "
            "other weights or another batch size, so its ranges do not hold; accepted: the same model, loaded alike",
        )
    work = open_work(model.fingerprint, model.name, work_dir)
    with progress("compile") as callback:
        found = study_of_plan(model, machine, work, plan, threads or plan.threads, callback)
    evaluation = None if evaluate is None else evaluated(found, evaluate, progress)
    with progress("build"):
        return deliver(found, work, plan, evaluation)


def plan_of(found: Study, choice: Choice) -> Plan:
    """The choice as a plan."""
    solution = choice.solution
    return Plan(
        model=found.model.fingerprint,
        target=found.target.known_as,
        threads=found.threads,
        schemes=dict(solution.schemes),
        layers={
            name: (found.costs[name, scheme], found.losses[name, scheme]) for name, scheme in solution.schemes.items()
        },
        latency_s=solution.latency_s,
        weight_bytes=solution.weight_bytes,
        loss=solution.loss,
        noise_per_loss=found.noise_per_loss,
        why=explain_choices(found, solution.schemes),
        qparams=dict(found.qparams),
        means={tensor: tuple(mean) for tensor, mean in found.means.items()},
        roundings=roundings_of(found.roundings, solution.schemes),
    )


def studied(
    model: Model,
    target: Target | str | Path,
    *,
    calibration: Any,
    schemes: Iterable[str] | None,
    trials: int,
    work_dir: str | Path | None,
    threads: int | None,
    observer: str,
    measure: bool | None,
    careful: bool,
    progress: Stages,
) -> tuple[Study, Work]:
    """The arguments of compile, plan and explore checked, then studied."""
    check_model(model)
    check_trials(trials)
    machine = machine_here(target)
    allowed = schemes_on(machine, schemes)
    check_threads(threads)
    work = open_work(model.fingerprint, model.name, work_dir)
    timed = True if measure is None else measure
    cores = threads or machine.cores
    return study(model, machine, work, calibration, allowed, cores, observer, timed, progress, careful=careful), work


def evaluated(found: Study, evaluate: Any, progress: Stages) -> Evaluation | None:
    """The samples to judge by, with float's outputs on them; None where there are none."""
    with progress("evaluate float"):
        return evaluation_of.prepare(evaluate, found.kept, found.runner, inputs_of(found.graph))


def _dispose(
    found: Study,
    work: Work,
    budget: Budget,
    evaluation: Evaluation | None,
    progress: Stages,
    seed: int = 0,
    sensitivity_s: float = TIME_S,
) -> Artifact:
    """Build what the program proposes and the uniform assignments that could beat it, and deliver the best that fits.

    That is the least loss among those as fast as the fastest but for ``NOISE``, a drop that nobody allowed weighed in;
    among all of them under a budget of latency; and there, with a budget of drop too, the least bytes. Raises HwqError
    "budget-impossible" where what was measured misses the budget.
    """
    choice, artifact = _propose(found, work, budget, evaluation, progress, seed, sensitivity_s)
    found = anchored(found, choice.anchors)
    contenders, studies = {"chosen": artifact}, {"chosen": found}
    with progress("compare") as callback:
        others = _others(found, choice.solution)
        for done, (name, solution) in enumerate(others.items()):
            contenders[name], studies[name] = assemble(found, work, plan_of(found, Choice(solution=solution))), found
            callback(done + 1, len(others))
        _correct(found, work, budget, choice.solution, contenders, studies)
        times = interleaved(contenders, network_input(found))
    with progress("verify") as callback:
        accuracies: dict[str, Accuracy | None] = {}
        misses: dict[str, list[str]] = {}
        for done, (name, one) in enumerate(contenders.items()):
            # Slower than a proposal that fits, it can be delivered only for a budget of latency.
            hopeless = misses.get("chosen") == [] and times[name] > HOPELESS * times["chosen"]
            judged = not hopeless or budget.latency_s is not None
            accuracies[name] = evaluation_of.judge(evaluation, one) if evaluation is not None and judged else None
            misses[name] = missed(one, times[name], accuracies[name], budget)
            callback(done + 1, len(contenders))
        fitting = [name for name in contenders if not misses[name]]
        if not fitting:
            raise HwqError("budget-impossible", f"what was built misses the budget: {'; '.join(misses['chosen'])}")
        worth = weighed({name: times[name] for name in fitting}, accuracies, budget)
        least_s = min(worth.values())
        fast = [name for name in fitting if budget.latency_s is not None or worth[name] <= least_s * (1 + NOISE)]
        sizes = {name: weight_bytes(contenders[name]) if wants_bytes(budget) else 0 for name in fast}
        picked = min(fast, key=lambda name: (sizes[name], contenders[name].plan.loss, name != "chosen"))
        best = contenders[picked]
        alternatives = {
            name: figures(one, times[name], accuracies[name]) for name, one in contenders.items() if name != picked
        }
        limits = Limits(latency_s=budget.latency_s, weight_bytes=budget.weight_bytes)
        describe(studies[picked], best, times[picked], accuracies[picked], evaluation, limits)
    best.report["verdict"] = verdict(picked, times, misses["chosen"])
    best.report["alternatives"] = alternatives
    pairs = [(one.plan.latency_s, times[name]) for name, one in contenders.items() if one.plan.latency_s > 0]
    best.report["fit"] = asdict(fit_whole(pairs))
    best.report["scores"] = None if choice.anchors is None else report_of(choice.anchors)
    best.report["budget"] = {"drop": budget.drop, "latency_s": budget.latency_s, "weight_bytes": budget.weight_bytes}
    return best


def _propose(
    found: Study,
    work: Work,
    budget: Budget,
    evaluation: Evaluation | None,
    progress: Stages,
    seed: int,
    sensitivity_s: float,
) -> tuple[Choice, Artifact]:
    """The program's choice, built: the first that meets the latency as measured, or the last one tried."""
    ratio, anchors = 1.0, None
    x = network_input(found)
    for turn in range(ROUNDS):
        try:
            choice = choose(
                found, work, budget, evaluation, ratio, progress, anchors=anchors, seed=seed, time_s=sensitivity_s
            )
        except HwqError as error:
            if error.code != "budget-impossible":
                raise
            if turn:
                break  # nothing meets the tightened budget: what was built will be held against the given one
            raise _impossible(found, work, budget, error) from error
        with progress("build"):
            anchors = choice.anchors
            artifact = assemble(found, work, plan_of(anchored(found, anchors), choice))
            latency_s = interleaved({"chosen": artifact}, x)["chosen"]
        if budget.latency_s is None or latency_s <= budget.latency_s:
            break
        # Predictions know nothing of what networks take beyond their kernels.
        ratio = max(latency_s / choice.solution.latency_s, ratio * 1.02)
    return choice, artifact


def _correct(
    found: Study,
    work: Work,
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
    for turn in range(1, ROUNDS):
        for unit, seconds in seen_s(found, fresh, x).items():
            seen[unit] = min(seconds, seen.get(unit, seconds))
        study = replace(found, costs=correct(found.costs, seen))
        ratio = 1.0
        if budget.latency_s is not None:
            ratio = interleaved({"chosen": contenders["chosen"]}, x)["chosen"]
            ratio /= sums(problem_of(study), chosen.schemes).latency_s
        solution = improved(study, budget, chosen, ratio)
        if solution is None or any(solution.schemes == one.plan.schemes for one in contenders.values()):
            return
        name = f"proposal {turn + 1}, by times in place"
        fresh = [assemble(study, work, plan_of(study, Choice(solution=solution)))]
        contenders[name], studies[name] = fresh[0], study
        chosen = solution


def _impossible(found: Study, work: Work, budget: Budget, error: HwqError) -> HwqError:
    """``error``, of a budget that predictions say cannot be met; for a latency, with what the fastest really takes."""
    if budget.latency_s is None:
        return error
    try:
        fastest = assign(problem_of(found), Limits(weight_bytes=budget.weight_bytes), slack=0.0)
    except HwqError:
        return error  # the size cannot be met at any latency
    artifact = assemble(found, work, plan_of(found, Choice(solution=fastest)))
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
    weighted = [layer.name for layer in found.graph.layers if layer.op in ANCHORS]
    return {
        f"all {name}": solution
        for name, solution in uniforms(found).items()
        if any(solution.schemes[layer] != chosen.schemes[layer] for layer in weighted)
        and (name == "f32" or solution.latency_s <= WORTH_BUILDING * chosen.latency_s)
    }
