"""Assign: one scheme for every layer, by a mixed-integer program over their costs and the conversions between them.

Stands after price and sensitivity, before quantize. A layer's candidates differ in latency, bytes, loss; tensors that
cross between int8 and float layers cost a conversion, shared by all who read it. Of latency, loss and size those
without a limit are minimized, in that order, each among the best of the one before. Besides the best there are the
front of all that none beats, what lies near a solution, and what a layer costs that is forced into a scheme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from hwq.assignment import QUANTITIES, Limits, Problem, Solution, within
from hwq.errors import HwqError
from hwq.mixed_integer import Program, formulate, solve

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


def forced(
    problem: Problem, solution: Solution, ways: Iterable[tuple[str, str]], limits: Limits | None = None
) -> dict[tuple[str, str], Solution | None]:
    """For each (layer, scheme) what the other layers make of it if it has to be.

    That is the least loss at no more latency than ``solution``'s, within ``limits``; where there is none, the least
    latency within their size; None where nothing has it.
    """
    size = Limits(weight_bytes=None if limits is None else limits.weight_bytes)
    within_time = replace(size, latency_s=solution.latency_s)
    program = formulate(problem, whole=True)

    def with_it(fixed: Mapping[str, str]) -> Solution | None:
        return solve(program, "loss", within_time, fixed=fixed) or solve(program, "latency_s", size, fixed=fixed)

    return {(layer, scheme): with_it({layer: scheme}) for layer, scheme in ways}


def near(
    problem: Problem,
    solution: Solution,
    count: int,
    *,
    tolerance: float = 0.02,
    among: Sequence[str] | None = None,
    limits: Limits | None = None,
) -> tuple[Solution, ...]:
    """Up to ``count`` distinct solutions as good as ``solution`` but for ``tolerance``, by rising latency.

    They exceed it in no quantity by more than this fraction, keep ``limits``, and differ from it and from one another
    in the scheme of at least one layer of ``among``, which is all layers by default. Each is the fastest of those that
    are left: the ones before are cut off. A candidate that another of its layer beats in every quantity is not taken.
    """
    limits = limits or Limits()
    for name in QUANTITIES:
        reached, limit = getattr(solution, name), getattr(limits, name)
        bound = reached + tolerance * abs(reached)
        limits = replace(limits, **{name: bound if limit is None else min(bound, limit)})
    program = formulate(problem)
    layers = list(solution.schemes if among is None else among)
    found = [solution]
    while len(found) <= count:
        without = [{layer: one.schemes[layer] for layer in layers} for one in found]
        best = solve(program, "latency_s", limits, without=without)
        if best is None:
            break
        found.append(best)
    return tuple(found[1:])


def pareto(problem: Problem, points: int, limits: Limits | None = None) -> tuple[Solution, ...]:
    """At most ``points`` distinct solutions of which none beats another in every quantity, by rising latency.

    The least of each quantity within ``limits``, and between them the least loss for sizes between the extremes, and
    for latencies between those that each size allows; of more than ``points`` those that lie farthest apart are kept.
    """
    limits = limits or Limits()
    program = formulate(problem)
    ends = [_minimize(program, order, limits) for order in _ENDS]
    if None in ends:
        raise _impossible(problem, limits)
    found = [one for one in ends if one is not None]
    sizes = [one.weight_bytes for one in found]
    rows = 1 if min(sizes) == max(sizes) else round(math.sqrt(2 * points))
    for size in _spread(min(sizes), max(sizes), rows):
        within_size = replace(limits, weight_bytes=size)
        row = [_minimize(program, order, within_size) for order in _ENDS[:2]]
        times = [one.latency_s for one in row if one is not None]
        for bound in _spread(min(times), max(times), max(3, -(-2 * points // rows)))[1:-1] if times else ():
            row.append(_minimize(program, ("loss", "latency_s"), replace(within_size, latency_s=bound)))
        found += [one for one in row if one is not None]
    distinct = list({tuple(one.schemes.items()): one for one in found}.values())
    front = [one for one in distinct if not any(_better(other, one) for other in distinct)]
    front = _apart(front, points)
    return tuple(sorted(front, key=lambda one: (one.latency_s, one.loss, one.weight_bytes, *one.schemes.values())))


# What is minimized to find the ends of a front.
_ENDS = (("latency_s", "loss", "weight_bytes"), ("loss", "latency_s", "weight_bytes"), ("weight_bytes", "loss"))


def _spread(low: float, high: float, count: int) -> list[float]:
    """``count`` values between the ends, both among them where there are two, in equal ratios where that can be."""
    between = np.geomspace(low, high, count) if low > 0 else np.linspace(low, high, count)
    return [float(value) for value in between[:-1]] + [float(high)]


def _apart(front: list[Solution], points: int) -> list[Solution]:
    """``points`` of ``front``: the best in each quantity, then again and again the one farthest from those taken.

    Distances are in parts of the front's extent, of the logarithms of latency and size, and of the noise's amplitude:
    what lies far below the rest is hardly to be told apart.
    """
    measures = ((math.log, "latency_s"), (math.log, "weight_bytes"), (math.sqrt, "loss"))
    places = np.array([[take(max(getattr(one, name), 1e-300)) for take, name in measures] for one in front])
    places -= places.min(axis=0)
    places /= np.maximum(places.max(axis=0), 1e-300)
    taken = list(dict.fromkeys(int(i) for i in places.argmin(axis=0)))
    while len(taken) < min(points, len(front)):
        gaps = np.abs(places[:, None] - places[taken]).max(axis=2).min(axis=1)
        gaps[taken] = -1.0
        taken.append(int(gaps.argmax()))
    return [front[i] for i in taken[:points]]


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
