"""The certificate: what was predicted of an artifact against what was measured, whole and by layer, intervals of 90%.

Stands in every report, made by ``hwq.deliver`` of plain figures. Of the latency and of each layer's time the interval
is the prediction's, and the measured value should lie in it. Of the drop it is the measurement's, since so many samples
tell no more: the predicted drop should lie in it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from hwq.cost import COLD_S, IN_PLACE
from hwq.scheme import Cost
from hwq.verify import Accuracy

# The standard normal's 95th percentile: 5% on either side are outside.
Z = 1.6449
# What a network takes, of the sum of its kernels as measured alone, with 90%: uniform assignments of four networks took
# 0.97 to 1.09 of it on one thread, 0.99 to 1.17 on two.
WHOLE = (0.96, 1.12)
# Points of the quadrature over a normal distribution; with ten classes 24 give what 96 do to 1e-8.
NODES = 24

Array = npt.NDArray[Any]


def certify(
    *,
    predicted_s: float,
    measured_s: float | None,
    costs: Mapping[str, Cost],
    times_s: Mapping[str, float],
    predicted_bytes: int,
    sizes: Mapping[str, int],
    drop: float | None,
    noise: float | None,
    accuracy: Accuracy | None,
) -> dict[str, Any]:
    """The certificate as a report holds it.

    costs: each layer's prediction, for those with a kernel; times_s and sizes: what the same layers take as built.
    measured_s is None, and times_s empty, where nothing could be timed: then no layer has a row.
    drop: as ``predicted_drop`` has it, None where there is none. noise: the outputs' noise-to-signal
    ratio as predicted, None where nothing is.
    """
    whole = sum_interval(predicted_s, list(costs.values()))
    rows = {
        layer: _figure(cost.latency_s, times_s[layer], in_network(cost))
        for layer, cost in costs.items()
        if measured_s is not None
    }
    stray = {layer: size - costs[layer].weight_bytes for layer, size in sizes.items() if layer in costs}
    errors = {layer: abs(row["error"]) for layer, row in rows.items() if row["error"] is not None}
    found: dict[str, Any] = {
        "latency_s": _figure(predicted_s, measured_s, whole),
        "weight_bytes": _figure(predicted_bytes, sum(sizes.values()), None),
        "layers": {
            "count": len(rows),
            "inside": sum(bool(row["inside"]) for row in rows.values()),
            "median_error": statistics.median(errors.values()) if errors else None,
            "worst": max(errors, key=lambda layer: errors[layer], default=None),
            "other_bytes": {layer: more for layer, more in stray.items() if more},
            "times": rows,
        },
        "drop": None,
        "sqnr_db": None,
    }
    if accuracy is not None:
        interval = drop_interval(accuracy)
        found["drop"] = {
            "predicted": drop,
            "measured": accuracy.drop,
            "interval": interval,
            "samples": accuracy.samples,
            "inside": None if interval is None or drop is None else interval[0] <= drop <= interval[1],
        }
        if noise:
            found["sqnr_db"] = {"predicted": -10 * math.log10(noise), "measured": list(accuracy.sqnr_db)}
    return found


def sum_interval(total: float, costs: Sequence[Cost]) -> tuple[float, float]:
    """The interval around ``total``, which is the sum of ``costs`` and of what is certain.

    Measured kernels are all a little slower in one network and a little faster in another, so their sum, conversions
    and all, has an interval of its own (``WHOLE``). Errors of a model are likely to go the same way, so they add
    themselves.
    """
    unsure = [cost.latency_s for cost in costs if cost.source != "measured"]
    alone_s = total - math.fsum(unsure) if len(unsure) < len(costs) else 0.0
    ends = []
    for end in (0, 1):
        modelled = (abs(cost.interval_s[end] - cost.latency_s) for cost in costs if cost.source != "measured")
        ends.append(abs(WHOLE[end] - 1) * alone_s + math.fsum(modelled))
    return max(0.0, total - ends[0]), total + ends[1]


def in_network(cost: Cost) -> tuple[float, float]:
    """The interval of a layer's time within a network. A record's is that already, a model's is of the kernel alone."""
    low, high = cost.interval_s
    return (low, high) if cost.source == "measured" else (low * IN_PLACE[0], high * IN_PLACE[1] + COLD_S)


def predicted_drop(outputs: Array, labels: Array | None, ratio: float) -> float | None:
    """What noise of this ratio does to float's ``outputs`` (N, classes): the share of right answers lost.

    ratio: noise power over the outputs' power; the noise is taken as normal and independent, and as strong in every
    output: a deviation s with s^2 = ratio * mean(outputs^2). Real noise is stronger in some samples than in others, so
    this tells little more than the order. Right is the class of ``labels`` (N,); without, that of float. None for
    outputs without classes.
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2 or ratio < 0:
        return None
    values = outputs.astype(np.float64)
    best = values.argmax(axis=1)
    right = best if labels is None else np.asarray(labels)
    noise = math.sqrt(ratio * float(np.square(values).mean()))
    return float((best == right).mean()) - float(_winning(values, right, noise).mean()) if noise else 0.0


def _winning(values: Array, index: Array, noise: float) -> Array:
    """For each row of ``values`` (N, classes) with noise the probability that the class at ``index`` (N,) is largest.

    The integral over this class's own noise of the others' distributions, by Gauss and Hermite.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    found = np.empty(len(values))
    for row, (outputs, own) in enumerate(zip(values, index, strict=True)):
        margins = (outputs[own] - np.delete(outputs, own)) / noise
        found[row] = weights @ special.ndtr(margins[None] + nodes[:, None]).prod(axis=1)
    return found


def drop_interval(accuracy: Accuracy) -> tuple[float, float] | None:
    """Where the drop lies for all samples of the same kind, with 90%; None if the samples' changes are not known.

    Of ``lost`` and ``gained`` answers among n: Wald's interval for matched pairs with z^2 / 8 samples more in each of
    the four cells (Agresti and Min 2005, which is for 95%: half a sample). Where nothing can be gained, Wilson's.
    """
    n = accuracy.samples
    if accuracy.changes is None or n == 0:
        return None
    lost, gained = accuracy.changes
    if accuracy.score is None:
        share = lost / n
        middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
        # At the ends they are exact; rounding would leave 1e-17 there, and the measured share outside.
        return 0.0 if lost == 0 else max(0.0, middle - half), 1.0 if lost == n else min(1.0, middle + half)
    more = Z**2 / 8
    total, b, c = n + 4 * more, lost + more, gained + more
    middle = (b - c) / total
    half = Z * math.sqrt(b + c - (b - c) ** 2 / total) / total
    return max(-1.0, middle - half), min(1.0, middle + half)


def _figure(predicted: float, measured: float | None, interval: tuple[float, float] | None) -> dict[str, Any]:
    """One value: error is (predicted - measured) / measured; None, with inside, where nothing was measured."""
    return {
        "predicted": predicted,
        "measured": measured,
        "error": predicted / measured - 1 if measured else None,
        "interval": None if interval is None else list(interval),
        "inside": None if interval is None or measured is None else interval[0] <= measured <= interval[1],
    }
