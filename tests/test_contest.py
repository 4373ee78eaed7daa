"""What is said of the network that is delivered."""

from __future__ import annotations

import pytest

from hwq.contest import NOISE, verdict
from hwq.scheme import Budget

NONE, LATE, BOTH = Budget(), Budget(latency_s=9.0), Budget(latency_s=9.0, drop=0.1)


@pytest.mark.parametrize(
    ("picked", "seconds", "budget", "size", "text"),
    [
        ("chosen", 1.0, NONE, 0, "the proposal: 1000 ms"),
        ("all f32", 0.5, NONE, 0, "uniform f32, faster than the proposal: 500 ms against chosen 1000 ms"),
        ("all f32", 1 + NOISE / 2, NONE, 0, "uniform f32, as fast and with less loss than the proposal"),
        ("all f32", 1.5, NONE, 0, "uniform f32, with less drop than the proposal's lead in time is worth"),
        ("all w4a8", 2.0, BOTH, -1, "uniform w4a8, smaller than the proposal, within the budget"),
        ("all w8a8", 2.0, LATE, 0, "uniform w8a8, with less loss than the proposal, within the budget"),
        ("proposal 2, by times in place", 0.9, NONE, 0, "proposal 2, by times in place, faster than the proposal"),
    ],
)
def test_the_reason_is_the_one_it_was_picked_for(
    picked: str, seconds: float, budget: Budget, size: int, text: str
) -> None:
    times = {"chosen": 1.0, picked: seconds}
    sizes = {"chosen": 100, picked: 100 + size}
    assert verdict(picked, times, [], budget, sizes).startswith(text)


def test_what_the_proposal_misses_is_the_reason_before_all_others() -> None:
    said = verdict("all f32", {"chosen": 1.0, "all f32": 2.0}, ["latency is 1 ms"], LATE, {"all f32": 0})
    assert said.startswith("uniform f32, since the proposal misses the budget (latency is 1 ms): 2000 ms")


def test_predictions_are_called_so() -> None:
    said = verdict("chosen", {"chosen": 1.0, "all f32": 2.0}, [], NONE, {}, timed=False)
    assert said == "the proposal, by predictions: 1000 ms against all f32 2000 ms"
