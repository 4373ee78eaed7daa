"""Contest: artifacts timed in turns, held against a budget, and what is said of the one that is delivered."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from hwq.artifact import Artifact
from hwq.choose import SLACK
from hwq.deliver import weight_bytes
from hwq.scheme import Budget
from hwq.verify import Accuracy

# Times closer than this are the same, and of those the least loss is delivered: what a proposal may give up for less
# loss, and what the times of whole networks vary by on a machine that does other things too.
NOISE = SLACK + 0.03
# What a point of top-1, lost without a budget that allows it, must save: this part of the time.
POINT = 0.05
# No noise makes up for this factor.
HOPELESS = 2.0
# Networks of microseconds are measured for more rounds: until so many seconds went by, or so many times the rounds.
LEAST_S = 0.5
MOST_ROUNDS = 8


def interleaved(contenders: Mapping[str, Artifact], x: Any, rounds: int = 5, runs: int = 8) -> dict[str, float]:
    """Seconds of a call of each artifact, measured in turns so that a load on the machine falls on all.

    The median of the faster half, as for single kernels: whatever else runs here only adds. What is ``HOPELESS`` times
    slower than the fastest after a round is not run again. Rounds go on, up to ``MOST_ROUNDS`` times as many, until
    ``LEAST_S`` were measured: a burst of other work must not be all that a fast network is judged by.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds * MOST_ROUNDS):
        if turn >= rounds and math.fsum(value for values in times.values() for value in values) >= LEAST_S:
            break
        least_s = min((min(values) for values in times.values() if values), default=math.inf)
        for name, one in contenders.items():
            if min(times[name], default=0.0) <= HOPELESS * least_s:
                times[name] += one.times(x, runs=runs, warm_up=2)
    return {name: statistics.median(sorted(values)[: (len(values) + 1) // 2]) for name, values in times.items()}


def weighed(times: Mapping[str, float], accuracies: Mapping[str, Accuracy | None], budget: Budget) -> dict[str, float]:
    """The times to compare by: each point of drop more than the least costs ``POINT`` of a time.

    As they are under a budget of drop, within which any is as good, and under one of latency. A user who limits
    neither asked for the fastest, but hardly for a tenth less time at thirty points of accuracy.
    """
    drops = {name: one.drop for name in times if (one := accuracies[name]) is not None and one.drop is not None}
    if budget.drop is not None or budget.latency_s is not None or not drops:
        return dict(times)
    least = min(drops.values())
    return {name: value * (1 + POINT * 100 * (drops.get(name, least) - least)) for name, value in times.items()}


def missed(artifact: Artifact, latency_s: float, accuracy: Accuracy | None, budget: Budget) -> list[str]:
    """What of the budget the measured artifact misses, as sentences that name the least budget it would meet."""
    size = weight_bytes(artifact)
    found = []
    if budget.latency_s is not None and latency_s > budget.latency_s:
        known = "as predicted" if artifact.placed is None else "as measured"
        found.append(f"latency is {latency_s * 1e3:.4g} ms {known}, the budget {budget.latency_s * 1e3:.4g} ms")
    if budget.weight_bytes is not None and size > budget.weight_bytes:
        found.append(f"weights are {size} bytes, the budget {budget.weight_bytes:.0f}")
    drop = None if accuracy is None else accuracy.drop
    if budget.drop is not None and (drop is None or drop > budget.drop):
        lost = "not known" if drop is None else f"{drop:.2%}"
        found.append(f"drop is {lost} as measured, the budget {budget.drop:.2%}")
    return found


def verdict(
    picked: str,
    times: Mapping[str, float],
    misses: list[str],
    budget: Budget,
    sizes: Mapping[str, int],
    timed: bool = True,
) -> str:
    """What was delivered and why. misses: what of the budget the proposal misses; sizes: bytes, where they decided.

    timed: times were measured; else they are predictions.
    """
    others = ", ".join(f"{name} {value * 1e3:.4g} ms" for name, value in times.items() if name != picked)
    what = "the proposal"
    if picked != "chosen":
        why = f"since {what} misses the budget ({'; '.join(misses)})" if misses else _why(picked, times, budget, sizes)
        uniform = picked.startswith("all ")
        what = f"uniform {picked.removeprefix('all ')}, {why}" if uniform else f"{picked}, {why}"
    known = "" if timed else ", by predictions"
    return f"{what}{known}: {times[picked] * 1e3:.4g} ms" + (f" against {others}" if others else "")


def _why(picked: str, times: Mapping[str, float], budget: Budget, sizes: Mapping[str, int]) -> str:
    """By what it beat a proposal that is within the budget."""
    if sizes.get(picked, 0) < sizes.get("chosen", 0):
        return "smaller than the proposal, within the budget"
    if budget.latency_s is not None:
        return "with less loss than the proposal, within the budget"
    if times[picked] < times["chosen"]:
        return "faster than the proposal"
    if times[picked] <= times["chosen"] * (1 + NOISE):
        return "as fast and with less loss than the proposal"
    return "with less drop than the proposal's lead in time is worth"


def figures(artifact: Artifact, latency_s: float | None, accuracy: Accuracy | None) -> dict[str, Any]:
    """What a report says of a contender that was not delivered. latency_s: None where it was not measured."""
    return {
        "latency_s": latency_s,
        "weight_bytes": weight_bytes(artifact),
        "drop": None if accuracy is None else accuracy.drop,
        "agreement": None if accuracy is None else accuracy.agreement,
        "sqnr_db": None if accuracy is None else list(accuracy.sqnr_db),
    }
