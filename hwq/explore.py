"""Explore: the front of plans over latency, size and loss, from one study of the network.

Stands beside ``hwq.compile``: the same stages up to the program, which is then asked again and again. Nothing is built;
the accuracy of each point is that of its kernels run one by one, and is kept in the work directory as it is found.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hwq.arguments import check_budget, check_seconds
from hwq.assign import near, pareto
from hwq.assignment import Limits, Problem, Solution
from hwq.choose import Choice, problem_of
from hwq.compiler import evaluated, studied, tuned
from hwq.deliver import plan_of
from hwq.errors import HwqError
from hwq.evaluate import Evaluation
from hwq.graph import WEIGHTED
from hwq.judge import accuracy_of, open_judge
from hwq.model import Model
from hwq.plan import Plan
from hwq.progress import Stages, silent
from hwq.reanchor import TIME_S, anchored, open_runs, reanchor, samples_for
from hwq.scheme import Budget
from hwq.study import Study, pool_of
from hwq.target import Target
from hwq.verify import Accuracy
from hwq.work import Work

log = logging.getLogger(__name__)

POINTS = 12
# Scores are re-anchored around what a front of so many points between its ends has.
AROUND = 4
# Plans told beside each point, and how much worse than it each may be in any quantity.
ALTERNATIVES = 1
TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One plan of the front, with its accuracy on the samples (None where there are none), kernel by kernel.

    alternatives: other plans that are as good in every quantity but for ``TOLERANCE``.
    """

    plan: Plan
    accuracy: Accuracy | None
    alternatives: tuple[Plan, ...] = ()

    @property
    def latency_s(self) -> float:
        """Predicted seconds of a call."""
        return self.plan.latency_s

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self.plan.weight_bytes

    @property
    def loss(self) -> float:
        """What the outputs lose, as predicted: see ``hwq.loss``."""
        return self.plan.loss

    @property
    def drop(self) -> float | None:
        """Accuracy lost as measured, a fraction; without labels the share of samples whose class changed."""
        return None if self.accuracy is None else self.accuracy.drop

    def to_dict(self) -> dict[str, Any]:
        """The figures and schemes as JSON values."""
        return {
            "latency_s": self.latency_s,
            "weight_bytes": self.weight_bytes,
            "loss": self.loss,
            "accuracy": None if self.accuracy is None else asdict(self.accuracy),
            "schemes": dict(self.plan.schemes),
            "alternatives": [
                {
                    "latency_s": one.latency_s,
                    "weight_bytes": one.weight_bytes,
                    "loss": one.loss,
                    "schemes": {name: s for name, s in one.schemes.items() if s != self.plan.schemes[name]},
                }
                for one in self.alternatives
            ],
        }


def explore(
    model: Model,
    target: Target | str | Path = "host",
    *,
    calibration: Any = None,
    evaluate: Any = None,
    budget: Budget | None = None,
    schemes: Iterable[str] | None = None,
    points: int = POINTS,
    alternatives: int = ALTERNATIVES,
    trials: int = 0,
    work_dir: str | Path | None = None,
    threads: int | None = None,
    seed: int = 0,
    sensitivity_s: float = TIME_S,
    observer: str = "mse",
    measure: bool | None = None,
    dynamic: Any = None,
    progress: Stages = silent,
) -> tuple[Point, ...]:
    """At most ``points`` plans of which none is beaten in predicted latency, size and loss at once, by rising latency.

    budget: only plans within it; a drop is held against what is measured. alternatives: how many near-optimal plans to
    name for each point. Their weights are rounded layer by layer; ``hwq.plan`` and ``hwq.compile`` within the same
    budget round those in groups once more, in the network's order. The other arguments as ``hwq.compile``. Each plan
    can be edited, saved, and built by ``hwq.build``. Raises HwqError as ``hwq.compile``, "points-invalid" for less than
    3 points or 0 alternatives.
    """
    for name, value, least in (("points", points, 3), ("alternatives", alternatives, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise HwqError("points-invalid", f"{name} is {value!r}; accepted: a whole number of at least {least}")
    limit = check_budget(budget)
    check_seconds("sensitivity_s", sensitivity_s)
    found, work = studied(
        model,
        target,
        calibration=calibration,
        evaluate=evaluate,
        schemes=schemes,
        trials=trials,
        work_dir=work_dir,
        threads=threads,
        observer=observer,
        measure=measure,
        dynamic=dynamic,
        budget=limit,
        careful=True,
        progress=progress,
    )
    evaluation = evaluated(found, evaluate, progress)
    found = tuned(found, work, limit, evaluation, trials, seed, progress)
    found = _anchored(found, work, limit, seed, sensitivity_s, progress)
    return front_of(found, work, evaluation, limit, points, alternatives, progress)


def _anchored(found: Study, work: Work, budget: Budget, seed: int, time_s: float, progress: Stages) -> Study:
    """The study with scores re-anchored once, around a few points of the front that isolated ones make."""
    limits = Limits(latency_s=budget.latency_s, weight_bytes=budget.weight_bytes)

    def spread(known: Study) -> tuple[Problem, list[Solution]]:
        problem = problem_of(known)
        return problem, [one for one in pareto(problem, AROUND, limits) if one.loss > 0]

    if not time_s or not found.kept or not any(found.losses.values()):
        return found
    pool = pool_of(found, work)
    with progress("re-anchor") as callback:
        runs = open_runs(found, work, pool, samples_for(found))
        return anchored(found, reanchor(runs, spread, [], seed, time_s, callback, rounds=1))


def front_of(
    found: Study,
    work: Work,
    evaluation: Evaluation | None,
    budget: Budget,
    points: int,
    alternatives: int,
    progress: Stages,
) -> tuple[Point, ...]:
    """The front of a study. Raises HwqError "budget-impossible", "evaluate-missing"."""
    problem = problem_of(found)
    limits = Limits(latency_s=budget.latency_s, weight_bytes=budget.weight_bytes)
    weighted = [layer.name for layer in found.graph.layers if layer.op in WEIGHTED]
    with progress("front") as callback:
        front = pareto(problem, points, limits)
        others = []
        for done, one in enumerate(front):
            others.append(near(problem, one, alternatives, tolerance=TOLERANCE, among=weighted, limits=limits))
            callback(done + 1, len(front))
    accuracies: list[Accuracy | None] = [None] * len(front)
    if evaluation is not None:
        pool = pool_of(found, work)
        with progress("accuracy") as callback:
            judge = open_judge(found, work, pool, evaluation)
            for done, one in enumerate(front):
                accuracies[done] = accuracy_of(judge, one)
                callback(done + 1, len(front))
    result = tuple(
        Point(
            plan=plan_of(found, Choice(solution=one)),
            accuracy=accuracy,
            alternatives=tuple(plan_of(found, Choice(solution=other)) for other in close),
        )
        for one, accuracy, close in zip(front, accuracies, others, strict=True)
    )
    return result if budget.drop is None else within_drop(result, budget.drop)


def within_drop(front: Sequence[Point], most: float) -> tuple[Point, ...]:
    """The points whose measured drop is at most this. Raises HwqError "budget-impossible", "evaluate-missing"."""
    known = [point for point in front if point.drop is not None]
    if not known:
        raise HwqError(
            "evaluate-missing",
            "a budget of drop needs labels or classes; accepted: evaluate=(inputs, labels), or a function",
        )
    kept = tuple(point for point in known if point.drop is not None and point.drop <= most)
    if not kept:
        least = min(point.drop for point in known if point.drop is not None)
        message = f"drop {most:.2%} is met by no point of the front: the least that one loses is {least:.2%}"
        raise HwqError("budget-impossible", message)
    return kept


def save_front(front: Sequence[Point], folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write each plan to a file of its own, numbered in order: plan-01.json, ... Raises HwqError "save-failed"."""
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the folder {str(place)!r}: {error.strerror}; accepted: a writable folder"
        raise HwqError("save-failed", message) from error
    paths = tuple(place / f"plan-{number:02d}.json" for number in range(1, len(front) + 1))
    for path, point in zip(paths, front, strict=True):
        point.plan.save(path)
    return paths
