"""Explain: what each layer of an assignment runs in, what the next cheaper scheme would do, and who holds the drop.

Stands beside deliver, on the same problem that the choice was made from: no model is run. What is found goes into the
report, so that an artifact explains itself without its network. Figures are predictions; ``hwq.report`` has the words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hwq.assign import forced, near, pareto
from hwq.assignment import Limits, Problem, Solution, by_layer, evaluate, members_of, units_of
from hwq.scheme import Candidate

# How many layers are tried in their next cheaper scheme by solving the whole again, those first that hold most of the
# time, the bytes or the loss; how many points the front of a report has, and how many assignments nearly as good as the
# chosen one it names: in all about two seconds for 60 layers of four schemes.
FORCED = 16
POINTS = 6
NEAR = 3
TOLERANCE = 0.02
# What saves less than this part of a layer's time or bytes is not cheaper.
WORTH = 0.02


def explain(problem: Problem, chosen: Solution, limits: Limits, weighted: Sequence[str]) -> dict[str, Any]:
    """What a report says of the choice: "layers" (name -> figures), "front" and "near" (assignments with their sums).

    limits: what the choice was held to. weighted: the layers with weights, by which assignments are told apart.
    """
    groups = by_layer(problem.candidates)
    units = {unit[0].layer: unit for unit in units_of(problem.candidates, problem.alike) if unit}
    steps = {first: next_cheaper(problem, chosen, unit) for first, unit in units.items()}
    first = {layer: members_of(problem.alike, layer)[0] for layer in groups}
    cheaper = {layer: steps.get(first[layer]) for layer in groups}
    shares = _shares(groups, chosen)
    matter = sorted(groups, key=lambda layer: -max(shares[layer].values()))
    firsts = dict.fromkeys(first[layer] for layer in matter)
    ways = [(layer, step["scheme"]) for layer in firsts if (step := cheaper[layer]) is not None][:FORCED]
    solved = forced(problem, chosen, ways, limits)
    layers = {}
    for layer, group in groups.items():
        step = cheaper[layer]
        layers[layer] = {
            "candidates": [_figures(one) for one in group],
            "shares": shares[layer],
            "cheaper": step,
            "forced": None if step is None else _change(chosen, solved.get((first[layer], step["scheme"])), weighted),
        }
    front = [
        {**_sums(one), "schemes": {layer: one.schemes[layer] for layer in weighted}} for one in pareto(problem, POINTS)
    ]
    alike = near(problem, chosen, NEAR, tolerance=TOLERANCE, among=weighted, limits=limits)
    return {
        "layers": layers,
        "front": front,
        "near": [{**_sums(one), "schemes": _differing(chosen, one, weighted)} for one in alike],
    }


def next_cheaper(problem: Problem, chosen: Solution, group: Sequence[Candidate]) -> dict[str, Any] | None:
    """The scheme of a unit's candidates ``group`` to go to for less: what it saves and adds, other layers as they are.

    A unit is a layer, or several that take one scheme, which are then listed under "together".
    Of those that save a part worth naming of the unit's time, conversions at its borders counted, the one that adds
    the least loss; where none does, the same for bytes; None where neither is to be had.
    """
    now = next((one for one in group if one.scheme == chosen.schemes[one.layer]), None)
    if now is None:  # a plan written by hand, in which layers that go together do not
        return None
    steps = [_step(problem, chosen, one) for one in group if one is not now]
    faster = [step for step in steps if step["saves_s"] > WORTH * now.cost.latency_s]
    smaller = [step for step in steps if step["saves_bytes"] > WORTH * now.cost.weight_bytes]
    return min(faster or smaller, key=lambda step: (step["adds_loss"], -step["saves_s"], step["scheme"]), default=None)


def _shares(groups: Mapping[str, Sequence[Candidate]], chosen: Solution) -> dict[str, dict[str, float]]:
    """Each layer's part of the time of all layers, of the bytes, and of the loss."""
    taken = {
        layer: next(one for one in group if one.scheme == chosen.schemes[layer]) for layer, group in groups.items()
    }
    sums = {
        "latency_s": {layer: one.cost.latency_s for layer, one in taken.items()},
        "weight_bytes": {layer: float(one.cost.weight_bytes) for layer, one in taken.items()},
        "loss": {layer: max(one.loss, 0.0) for layer, one in taken.items()},
    }
    totals = {name: sum(values.values()) or 1.0 for name, values in sums.items()}
    return {layer: {name: values[layer] / totals[name] for name, values in sums.items()} for layer in groups}


def _figures(one: Candidate) -> dict[str, Any]:
    return {"scheme": one.scheme, "loss": one.loss, **asdict(one.cost)}


def _sums(one: Solution) -> dict[str, Any]:
    return {"latency_s": one.latency_s, "weight_bytes": one.weight_bytes, "loss": one.loss}


def _step(problem: Problem, chosen: Solution, way: Candidate) -> dict[str, Any]:
    members = members_of(problem.alike, way.layer)
    after = evaluate(problem, {**chosen.schemes, **dict.fromkeys(members, way.scheme)})
    together = {"together": list(members)} if len(members) > 1 else {}
    return together | {
        "scheme": way.scheme,
        "saves_s": chosen.latency_s - after.latency_s,
        "saves_bytes": chosen.weight_bytes - after.weight_bytes,
        "adds_loss": after.loss - chosen.loss,
    }


def _change(chosen: Solution, solved: Solution | None, weighted: Sequence[str]) -> dict[str, Any] | None:
    return None if solved is None else {**_sums(solved), "changed": len(_differing(chosen, solved, weighted))}


def _differing(chosen: Solution, other: Solution, weighted: Sequence[str]) -> dict[str, str]:
    """The layers of ``weighted`` that are otherwise in ``other``, as they are there."""
    return {layer: other.schemes[layer] for layer in weighted if other.schemes[layer] != chosen.schemes[layer]}
