"""Assign: one scheme for every layer, by a mixed-integer program over their costs and the conversions between them.

Stands after price and sensitivity, before quantize. A layer's candidates differ in latency, bytes, loss; tensors that
cross between int8 and float layers cost a conversion, shared by all who read it. Of latency, loss and size those
without a limit are minimized, in that order, each among the best of the one before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hwq.assignment import QUANTITIES, Border, Limits, Problem, Solution, evaluate, prune, within
from hwq.errors import HwqError
from hwq.mixed_integer import Program, formulate, solve

__all__ = ["Border", "Limits", "Problem", "Solution", "assign", "closest", "evaluate", "pareto", "prune"]

# Differences below this part of a quantity are ties, for the next quantity to break.
TIE = 1e-6


def assign(problem: Problem, limits: Limits | None = None, *, slack: float = TIE) -> Solution:
    """The best solution within ``limits``: the unlimited of QUANTITIES are minimized in that order.

    Each may give up ``slack``, a fraction of itself, for the next: 0.01 takes 1% more latency where that lowers the
    loss; what bought the next ones no more than ``slack`` of theirs is then taken back. With everything limited latency
    is minimized first all the same. Same input, same answer.
    Raises HwqError "budget-impossible" with the closest limits that can be met.
    """
    limits = limits or Limits()
    free = [name for name in QUANTITIES if getattr(limits, name) is None]
    program, order = formulate(problem), free or list(QUANTITIES)
    best = _minimize(program, order, limits, slack)
    if best is None:
        raise _impossible(problem, limits)
    if slack <= TIE or len(order) == 1:
        return best
    kept = {name: getattr(best, name) * (1 + slack) for name in order[1:]}
    return _minimize(program, order[:1], replace(limits, **kept)) or best


def closest(problem: Problem, limits: Limits) -> dict[str, Solution]:
    """For each limit in turn, the solution with the least of that quantity within the other limits, where there is one.

    A limit that no solution meets even alone is judged alone, and then only such limits are given.
    """
    program = formulate(problem)
    limited = [name for name in QUANTITIES if getattr(limits, name) is not None]
    alone = {name: _minimize(program, [name], Limits()) for name in limited}
    hopeless = {
        name: one for name, one in alone.items() if one and not within(one, Limits(**{name: getattr(limits, name)}))
    }
    if hopeless:
        return hopeless
    together = {name: _minimize(program, [name], replace(limits, **{name: None})) for name in limited}
    return {name: one for name, one in together.items() if one}


def pareto(problem: Problem, points: int, limits: Limits | None = None) -> tuple[Solution, ...]:
    """Distinct solutions of which none beats another in every quantity, within ``limits``, by rising latency.

    Sweeps ``points`` latencies and ``points`` sizes between the extremes, with the least loss for each.
    """
    limits = limits or Limits()
    program = formulate(problem)
    found: list[Solution] = []
    for name in ("latency_s", "weight_bytes"):
        least = _minimize(program, [name, "loss", "weight_bytes"], limits)
        most = _minimize(program, ["loss", name, "latency_s"], limits)
        if least is None or most is None:
            raise _impossible(problem, limits)
        for bound in np.linspace(getattr(least, name), getattr(most, name), points)[1:-1]:
            between = _minimize(program, ["loss", name, "latency_s"], replace(limits, **{name: float(bound)}))
            found += [between] if between else []
        found += [least, most]
    distinct = {tuple(one.schemes.items()): one for one in found}.values()
    front = [one for one in distinct if not any(_better(other, one) for other in distinct)]
    return tuple(sorted(front, key=lambda one: (one.latency_s, one.loss, one.weight_bytes, *one.schemes.values())))


def _better(other: Solution, one: Solution) -> bool:
    mine = [getattr(one, name) for name in QUANTITIES]
    theirs = [getattr(other, name) for name in QUANTITIES]
    return all(a <= b for a, b in zip(theirs, mine, strict=True)) and theirs != mine


def _impossible(problem: Problem, limits: Limits) -> HwqError:
    ways = []
    for name, solution in closest(problem, limits).items():
        bound, least = getattr(limits, name), _round_up(getattr(solution, name))
        ways.append(f"{name} {bound:.10g} is too low by {least - bound:.10g}, the closest that can be met is {least!r}")
    ways = ways or ["raising one of them alone is not enough"]
    given = [(name, getattr(limits, name)) for name in QUANTITIES if getattr(limits, name) is not None]
    limited = ", ".join(f"{name} {bound:.10g}" for name, bound in given)
    return HwqError("budget-impossible", f"no assignment meets the budget ({limited}): {'; or '.join(ways)}")


def _round_up(value: float) -> float:
    """``value`` in four digits, rounded up, so that a limit typed from the text can be met."""
    if value == 0.0 or isinstance(value, int):
        return value
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    return float(f"{math.ceil(value / unit * (1 - 1e-12)) * unit:.4g}")


def _minimize(program: Program, order: Sequence[str], limits: Limits, slack: float = TIE) -> Solution | None:
    """The solution that minimizes the quantities of ``order``, one after the other; None if ``limits`` allow none."""
    best = None
    for name in dict.fromkeys(order):
        found = solve(program, name, limits)
        if found is None:
            break
        best = found
        reached, limit = getattr(best, name), getattr(limits, name)
        reached += slack * abs(reached)
        limits = replace(limits, **{name: reached if limit is None else min(limit, reached)})
    return best
