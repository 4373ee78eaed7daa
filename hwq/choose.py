"""Choose: from a study to the assignment that meets a budget, propose by the program and dispose by running it.

What a budget leaves free is minimized, latency first; kernel times carry some noise, so within ``SLACK`` of the least
latency the least loss is taken, and where bytes are free fewer bits must lead more of them by ``LEAD`` to be a choice.
A drop budget is held against real outputs: while the proposal's drop is too large the loss is bounded tighter and
proposed again; within a latency as well it is bytes that are left to be minimized. Nothing is built here: candidates
run kernel by kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hwq.assign import TIE, assign
from hwq.assignment import Border, Limits, Problem, Solution, by_layer, evaluate
from hwq.errors import HwqError
from hwq.evaluate import Evaluation, float_call, judge
from hwq.execute import bind, compile_kernels, quiet
from hwq.graph import ANCHORS
from hwq.progress import Callback
from hwq.scheme import SCHEMES, Budget, Candidate
from hwq.study import Study, inputs_of
from hwq.ties import passing_units
from hwq.verify import Accuracy
from hwq.work import Work

SLACK = 0.02
LEAD = 0.05
BISECTIONS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An assignment with its predicted sums, and its accuracy where it was run."""

    solution: Solution
    accuracy: Accuracy | None = None


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
        quantize_s, dequantize_s = study.conversions[tensor]
        moved_s = study.moved_s.get(tensor)
        borders.append(
            Border(
                tensor=tensor,
                producer=None if maker is None else maker.name,
                consumers=tuple(dict.fromkeys(layer.name for layer in study.graph.layers if tensor in layer.inputs)),
                output=tensor in study.graph.outputs,
                quantize_s=quantize_s,
                dequantize_s=dequantize_s,
                direct_s=study.direct_s.get(tensor),
                moved_s=None
                if moved_s is None or maker is None
                else moved_s - study.costs[maker.name, "f32"].latency_s,
            )
        )
    return Problem(candidates=candidates, borders=tuple(borders), ties=passing_units(study.graph))


def leading(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """``candidates`` without those that lead one of less loss, of their layer and domain, by no more than ``LEAD``."""

    def led(one: Candidate, other: Candidate) -> bool:
        same = SCHEMES[one.scheme].domain == SCHEMES[other.scheme].domain
        return same and other.loss < one.loss and other.cost.latency_s <= one.cost.latency_s * (1 + LEAD)

    groups = by_layer(candidates)
    return tuple(one for one in candidates if not any(led(one, other) for other in groups[one.layer]))


def uniform(study: Study, scheme: str) -> Solution | None:
    """The network in ``scheme``: all of it in f32, or all weights that can be in another scheme. Of the rest, what may
    is float beside bf16, and as fast as may be beside integers. None if a layer cannot be float, or no weights can be
    in ``scheme``."""
    able = [layer for layer in study.graph.layers if scheme in study.candidates[layer.name]]
    if scheme == "f32":
        able = able if len(able) == len(study.graph.layers) else []
    else:
        able = [layer for layer in able if layer.op in ANCHORS]
    fixed = {layer.name: scheme for layer in able}
    if SCHEMES[scheme].domain == "f32":
        fixed = {name: "f32" for name, names in study.candidates.items() if "f32" in names} | fixed
    return assign(problem_of(study, fixed)) if able else None


def uniforms(study: Study) -> dict[str, Solution]:
    """Every uniform assignment that the study's candidates allow, by scheme."""
    names = sorted({scheme for schemes in study.candidates.values() for scheme in schemes})
    found = {name: uniform(study, name) for name in names}
    return {name: solution for name, solution in found.items() if solution is not None}


def run_accuracy(study: Study, work: Work, solution: Solution, evaluation: Evaluation) -> Accuracy:
    """How the assignment's outputs compare with float's, run kernel by kernel."""
    program = study.program(solution.schemes)
    kernels = compile_kernels([program], study.target, work.cache, known=study.kernels)
    return judge(evaluation, float_call(bind(program, kernels), inputs_of(study.graph)))


def choose(
    study: Study,
    work: Work,
    budget: Budget,
    evaluation: Evaluation | None,
    latency_ratio: float = 1.0,
    progress: Callback = quiet,
) -> Choice:
    """The best assignment within ``budget``. ``latency_ratio`` is measured over predicted time, of whole networks.

    Raises HwqError "budget-impossible" with the closest budget that can be met.
    """
    problem = problem_of(study)
    small = wants_bytes(budget)
    if budget.weight_bytes is None and not small:
        problem = replace(problem, candidates=leading(problem.candidates))
    bound = None if budget.latency_s is None else budget.latency_s / latency_ratio
    limits = Limits(latency_s=bound, weight_bytes=budget.weight_bytes)
    if budget.drop is None:
        return Choice(solution=assign(problem, limits, slack=SLACK))
    if evaluation is None:
        raise HwqError(
            "evaluate-missing",
            "a budget of drop needs samples to hold it against; accepted: evaluate, or calibration samples",
        )
    tried: dict[tuple[str, ...], Choice] = {}

    def run(solution: Solution) -> Choice:
        key = tuple(solution.schemes.values())
        if key not in tried:
            tried[key] = Choice(solution=solution, accuracy=run_accuracy(study, work, solution, evaluation))
            progress(len(tried), BISECTIONS + 2)
        return tried[key]

    def drop(choice: Choice) -> float:
        if choice.accuracy is None or choice.accuracy.drop is None:
            raise HwqError(
                "evaluate-missing",
                "a budget of drop needs labels or classes; accepted: evaluate=(inputs, labels), or a function",
            )
        return choice.accuracy.drop

    def propose(loss: float | None) -> Solution:
        if not small:
            return assign(problem, replace(limits, loss=loss), slack=SLACK)
        if loss is None:
            assign(problem, limits)  # raises what cannot be met, in the budget's own terms
            loss = math.fsum(one.loss for one in problem.candidates)
        least = assign(problem, replace(limits, loss=loss))
        return assign(problem, replace(limits, weight_bytes=least.weight_bytes))  # of its size the least loss

    first = propose(None)
    if drop(run(first)) <= budget.drop:
        return run(first)
    # A limit beyond every sum frees the program to minimize the loss instead of the latency.
    ceiling = math.fsum([*(one.cost.latency_s for one in problem.candidates), *map(_most_s, problem.borders)])
    safest = assign(problem, replace(limits, latency_s=ceiling if bound is None else bound))
    good = [run(safest)] if drop(run(safest)) <= budget.drop else []
    low, high = max(safest.loss, first.loss * 1e-4), first.loss
    for _ in range(BISECTIONS if good else 0):
        middle = math.sqrt(low * high)
        try:
            solution = propose(middle)
        except HwqError as error:
            if error.code != "budget-impossible":
                raise
            low = middle  # no assignment between: the bound is below what the other limits allow
            continue
        choice = run(solution)
        if drop(choice) <= budget.drop:
            good.append(choice)
            low = middle
        else:
            high = middle
    if not good:
        closest = min(tried.values(), key=drop)
        raise HwqError(
            "budget-impossible",
            f"drop {budget.drop:.2%} cannot be met within the rest of the budget: the closest assignment found loses "
            f"{drop(closest):.2%} (predicted {closest.solution.latency_s * 1e3:.3g} ms, "
            f"{closest.solution.weight_bytes} bytes)",
        )
    return min(good, key=lambda choice: choice.solution.weight_bytes if small else choice.solution.latency_s)


def wants_bytes(budget: Budget) -> bool:
    """Whether of latency, loss and bytes it is bytes that ``budget`` leaves to be minimized first."""
    return budget.drop is not None and budget.latency_s is not None and budget.weight_bytes is None


def improved(study: Study, budget: Budget, chosen: Solution, latency_ratio: float = 1.0) -> Solution | None:
    """What the prices of ``study`` have instead of ``chosen``, which other prices had; None if that is hardly better.

    Better is faster with no more loss, or any loss where nothing limits it; within a latency, less loss. Hardly is by
    no more than ``SLACK``.
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
        problem = replace(problem, candidates=leading(problem.candidates))
    try:
        found = assign(problem, limits, slack=SLACK)
    except HwqError:  # not within the latency, by these prices
        return None
    goal = "loss" if budget.latency_s is not None else "latency_s"
    return found if getattr(found, goal) < getattr(now, goal) * (1 - SLACK) else None


def _most_s(border: Border) -> float:
    return border.quantize_s + border.dequantize_s + abs(border.direct_s or 0.0) + abs(border.moved_s or 0.0)
