"""In place: prices corrected by what layers really took inside the networks that were built.

Stands between a network that was built and the next proposal. A kernel called again and again finds its operands in
nearer caches than the same kernel between its neighbours: what a layer took in an artifact is its price from then on. A
(layer, scheme) that no artifact had keeps its own price, times what the others of its scheme's domain took of theirs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hwq.artifact import Artifact
from hwq.cost import IN_PLACE
from hwq.scheme import SCHEMES, Cost
from hwq.study import Study

Unit = tuple[str, str]
RUNS = 10


def seen_s(study: Study, artifacts: Iterable[Artifact], x: Any) -> dict[Unit, float]:
    """Seconds of each (layer, scheme) that an artifact ran, the least of them where several did.

    An integer layer that wrote float itself is not among them: that is priced at its border.
    """
    found: dict[Unit, float] = {}
    for artifact in artifacts:
        program = study.program(artifact.plan.schemes)
        outputs = {step.name: step.output for step in program.steps}
        times = artifact.layer_times(x, runs=RUNS)
        for layer in study.graph.layers:
            unit = (layer.name, artifact.plan.schemes[layer.name])
            direct = SCHEMES[unit[1]].domain == "int8" and outputs.get(layer.name) == layer.output
            if layer.name in times and (layer.float_residual or not direct):
                found[unit] = min(times[layer.name], found.get(unit, times[layer.name]))
    return found


def corrected(costs: Mapping[Unit, Cost], seen: Mapping[Unit, float]) -> dict[Unit, Cost]:
    """``costs`` as seen in place, as uncertain as a repetition; the others of a domain times its median of seen over
    price.
    """
    ratios: dict[str, list[float]] = {}
    for unit, seconds in seen.items():
        if costs[unit].latency_s > 0:
            ratios.setdefault(SCHEMES[unit[1]].domain, []).append(seconds / costs[unit].latency_s)
    usual = {domain: statistics.median(values) for domain, values in ratios.items()}
    found = {}
    for unit, cost in costs.items():
        if unit in seen and cost.latency_s > 0:
            again = IN_PLACE[0]
            found[unit] = replace(cost, latency_s=seen[unit], interval_s=(seen[unit] * again, seen[unit] / again))
            continue
        factor = usual.get(SCHEMES[unit[1]].domain, 1.0)
        low, high = cost.interval_s
        found[unit] = replace(cost, latency_s=cost.latency_s * factor, interval_s=(low * factor, high * factor))
    return found
