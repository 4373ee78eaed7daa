"""Side by side: turns, what counts of the times, the bars, and the tables. Nothing here looks at a clock."""

from __future__ import annotations

import json

import pytest
import race
from race import BARS, Result, bars_of, in_turns, summary, table, to_json, usual_s, verdict


def _result(network: str = "resnet50", threads: int = 1, **ms: float) -> Result:
    names = {"w8a8": "hwq w8a8", "f32": "hwq f32", "ort": "ONNX Runtime int8", "ort_f32": "ONNX Runtime f32",
             "ov": "OpenVINO int8"}  # fmt: skip
    return Result(network=network, threads=threads, times={names[key]: [value / 1e3] * 4 for key, value in ms.items()})


def test_contenders_take_turns_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "PAUSE_S", 0.0)
    seen: list[tuple[str, int]] = []

    def contender(name: str) -> race.Contender:
        def run(count: int) -> list[float]:
            seen.append((name, count))
            return [float(len(seen))] * count

        return run

    times = in_turns({"a": contender("a"), "b": contender("b")}, rounds=2, runs=4)
    assert seen == [("a", 3), ("a", 4), ("b", 3), ("b", 4)] * 2
    assert times == {"a": [2.0] * 4 + [6.0] * 4, "b": [4.0] * 4 + [8.0] * 4}


def test_the_median_of_the_faster_half_counts() -> None:
    assert usual_s([9.0, 1.0, 3.0, 2.0, 8.0, 7.0]) == 2.0
    assert usual_s([5.0]) == 5.0


def test_ratios_are_of_the_fastest_peer_or_of_one() -> None:
    result = _result(w8a8=4.0, f32=20.0, ort=8.0, ov=5.0)
    assert result.ratio("hwq w8a8") == pytest.approx(0.8)
    assert result.ratio("hwq w8a8", race.FIRST) == pytest.approx(0.5)
    assert result.ratio("hwq f32", race.SECOND) == pytest.approx(4.0)
    assert result.ratio("hwq mixed") is None
    assert _result(w8a8=4.0, ort=8.0).ratio("hwq w8a8", race.SECOND) is None
    assert _result(w8a8=4.0).fastest() is None


def test_least_times_are_a_second_opinion() -> None:
    noisy = Result(network="vww", threads=1, times={"hwq w8a8": [9.0, 9.0, 2.0], "OpenVINO int8": [4.0, 4.0, 4.0]})
    assert noisy.least_ratio("hwq w8a8") == 0.5
    assert noisy.least_ratio("hwq f32") is None
    assert Result(network="vww", threads=1, times={"hwq w8a8": [1.0]}).least_ratio("hwq w8a8") is None


def test_bars_depend_on_amx_and_threads() -> None:
    one, two = _result(w8a8=4.0, ort=8.0), _result(threads=2, w8a8=4.0, ort=8.0)
    assert [limit for _, limit, _ in bars_of(one, amx=True)] == [0.65, 1.1]
    assert [limit for _, limit, _ in bars_of(two, amx=True)] == pytest.approx([0.7, 1.1])
    assert [limit for _, limit, _ in bars_of(two, amx=False)] == [1.0, 0.85, 1.1]
    assert bars_of(_result(network="vww", w8a8=1.0, ort=2.0), amx=True) == []


@pytest.mark.parametrize(("reached", "word"), [(None, "not run"), (0.65, "met"), (0.66, "missed")])
def test_a_bar_is_met_missed_or_not_run(reached: float | None, word: str) -> None:
    assert verdict(reached, 0.65) == word


def test_the_tables_hold_every_figure() -> None:
    one = _result(w8a8=4.0, f32=30.0, ort=8.0, ort_f32=40.0, ov=5.0)
    two = _result(threads=2, w8a8=2.5, ort=8.0)
    assert "### resnet50, 1 thread\n" in table(one)
    assert "| hwq w8a8 | 4.000 | 4.000 | 4.000 | 1.25 |" in table(one)
    text = summary([one, two], amx=False)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert "| 0.80, 0.50, 0.80 (0.80) |" in text
    assert "| 0.31, 0.31,  (0.31) |" in text
    assert "hwq w8a8 / OpenVINO <= 1.00: met (0.80)" in text
    assert "hwq w8a8 / OpenVINO <= 1.00: not run" in text
    assert "hwq f32 / ONNX Runtime f32 <= 1.10: met (0.75)" in text
    assert "two threads are 1.60 times as fast; >= 1.7: missed" in text


def test_the_json_holds_every_figure() -> None:
    (found,) = json.loads(json.dumps(to_json([_result(w8a8=4.0, ort=8.0)], amx=True)))
    assert found["ms"]["hwq w8a8"] == {"usual": 4.0, "median": 4.0, "min": 4.0}
    assert found["ratios"]["hwq w8a8"] == {
        "fastest": 0.5, "ONNX Runtime": 0.5, "OpenVINO": None, "least times": 0.5,
    }  # fmt: skip
    assert found["bars"][0] == {
        "contender": "hwq w8a8", "peers": "fastest", "bar": 0.65, "ratio": 0.5, "verdict": "met",
    }  # fmt: skip


def test_bars_are_of_networks_that_there_are() -> None:
    from bench_models import NAMES

    assert {name for bar in BARS for name in bar.networks} <= set(NAMES)
