"""Tables for people: they fit their terminal, read names literally, and say times and sizes as people do."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
from demo_study import demo_artifact
from rich.console import Console

from hwq import report
from hwq.report import count, decibels, percent, seconds, size
from hwq.target import Target


def printed(show: Any, *values: Any, width: int = 80) -> str:
    out = io.StringIO()
    show(*values, Console(file=out, width=width, color_system=None, legacy_windows=False))
    return out.getvalue()


def shown(changed: dict[str, Any] | None = None, *, width: int = 80) -> str:
    return printed(report.show, {**demo_artifact().report, **(changed or {})}, width=width)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.00 us"),
        (3e-8, "< 0.1 us"),
        (4.66e-7, "0.47 us"),
        (1.234e-5, "12.3 us"),
        (9.994e-4, "999 us"),
        (9.9951e-4, "1.00 ms"),  # not 1e+03 us
        (4.567e-3, "4.57 ms"),
        (0.4, "400 ms"),
        (0.99951, "1.00 s"),
        (123.4, "123 s"),
    ],
)
def test_times_have_three_figures_and_the_unit_that_fits(value: float | None, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (812, "812 B"),
        (999, "999 B"),
        (4200, "4.20 kB"),
        (999_600, "1.00 MB"),  # not 1e+03 kB
        (36_000_000, "36.0 MB"),
        (2.5e9, "2.50 GB"),
    ],
)
def test_sizes_have_the_unit_that_fits(value: float | None, text: str) -> None:
    assert size(value) == text


def test_small_words() -> None:
    assert [percent(None), percent(0.1234), percent(-0.002)] == ["-", "12.34%", "-0.20%"]
    assert decibels([36.66, math.inf]) == "36.7 dB, equal"
    assert [count(1, "thread"), count(2, "thread")] == ["1 thread", "2 threads"]


# The whole report


@pytest.mark.parametrize("width", [72, 80, 100, 140])
def test_nothing_is_wider_than_the_terminal_and_nothing_is_cut(width: int) -> None:
    text = shown(width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for row in demo_artifact().report["layers"]:
        start = row["name"][:8]  # where there is little room names fold
        lines = [line.split() for line in text.splitlines() if line.strip().startswith(start)]
        assert any(row["scheme"] in line for line in lines)


def test_long_names_fold_and_figures_stay_whole() -> None:
    layers = copy.deepcopy(demo_artifact().report["layers"])
    layers[1] |= {"name": "/features/features.17/conv/conv.0/conv.0.0/Conv_output_0", "measured_s": 0.123456}
    text = shown({"layers": layers}, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "123 ms" in text
    first = [line[1:20].strip() for line in text.splitlines()]
    start = next(i for i, cell in enumerate(first) if cell.startswith("/features"))
    assert "".join(first[start : start + 4]).startswith("/features/features.17/conv/conv.0/conv.0.0/Conv_output_0")


def test_names_are_no_markup() -> None:
    layers = copy.deepcopy(demo_artifact().report["layers"])[:2]
    layers[0] |= {"name": "conv[red]", "why": "[/bold] because"}
    layers[1]["name"] = "x[0]:1"
    changed = {"layers": layers, "model": "net[bold]", "notes": ["kept [in] float"], "verdict": "[link]"}
    text = shown(changed, width=140)
    for part in ("conv[red]", "x[0]:1", "net[bold]", "kept [in] float", "[link]"):
        assert part in text
    text = printed(report.explain, {**demo_artifact().report, **changed}, ())
    assert "conv[red]" in text
    assert "[/bold] because" in text


def test_figures_are_those_of_the_report() -> None:
    text = shown(width=140)
    measured = demo_artifact().report["measured"]
    accuracy = measured["accuracy"]
    assert f"{accuracy['samples']} evaluation samples" in text
    for value in (seconds(measured["latency_s"]), size(measured["weight_bytes"]), percent(accuracy["score"])):
        assert value in text
    for name, one in demo_artifact().report["alternatives"].items():
        named = "the proposal" if name == "chosen" else name
        line = next(line for line in text.splitlines() if line.strip().startswith(named))
        assert seconds(one["latency_s"]) in line
    reason, times = demo_artifact().report["verdict"].rsplit(": ", 1)
    assert f"taken: {reason}\n" in text
    assert times not in text, "which stand in the table"


def test_a_score_of_the_user_s_is_no_percentage() -> None:
    changed = copy.deepcopy(demo_artifact().report)
    changed["measured"]["drop"] = 0.5
    changed["measured"]["accuracy"] |= {"source": "function", "score": 31.0, "float_score": 31.5, "drop": 0.5}
    text = printed(report.show, changed, width=140)
    lines = [line.split() for line in text.splitlines()]
    assert ["score", "of", "float", "-", "31.5"] in lines
    assert ["score", "lost", "-", "0.5"] in lines
    assert any(line[:2] == ["this", "one"] and line[-1] == "0.5" for line in lines)
    assert "calibration samples" in text


def test_a_report_of_little_is_shown() -> None:
    """A plan built without samples has no accuracy, no loss and nothing to compare with."""
    bare = copy.deepcopy(demo_artifact().report)
    del bare["alternatives"], bare["verdict"], bare["measured"]["accuracy"], bare["certificate"]
    bare["measured"] |= {"conversions": 0, "drop": None}
    bare["layers"] = [{**row, "loss": None} for row in bare["layers"]]
    text = printed(report.show, bare)
    assert "SQNR" not in text
    assert "conversion" not in text
    assert "compared" not in text


def test_explain_gives_the_reason_of_the_layers_asked_for() -> None:
    rows = {row["name"]: row for row in demo_artifact().report["layers"]}
    text = printed(report.explain, demo_artifact().report, ("stem",), width=400)
    assert rows["stem"]["why"] in text
    assert "classifier" not in text
    assert all(name in printed(report.explain, demo_artifact().report, ()) for name in rows)


def test_a_layer_is_told_what_else_it_could_do() -> None:
    artifact = demo_artifact().report
    whole = artifact["predicted"]
    row = {
        "why": "w8a8: so",
        "shares": {"latency_s": 0.1, "weight_bytes": 0.25, "loss": 0.5},
        "cheaper": {"scheme": "w4a8", "saves_s": -2e-6, "saves_bytes": 1500, "adds_loss": 1e-3},
        "forced": {
            "latency_s": 1.1 * whole["latency_s"],
            "weight_bytes": whole["weight_bytes"],
            "loss": 0.25,
            "changed": 1,
        },
    }
    told = report.sentences(row, artifact)
    assert told[:3] == [
        "w8a8: so",
        "holds 10.0% of the time, 25.0% of the bytes, 50.0% of the loss",
        "next cheaper: w4a8 saves 1.50 kB, takes 2.00 us more and adds 1.0e-03 of loss, all else as it is",
    ]
    assert told[3].startswith(f"forced to w4a8, the rest chosen anew: {seconds(1.1 * whole['latency_s'])} (+10.0%), ")
    assert told[3].endswith(f"(+0.0%), loss 2.5e-01 instead of {whole['loss']:.1e}; 1 layer otherwise than now")
    assert len(report.sentences({**row, "forced": None}, artifact)) == 3
    assert report.sentences({"why": "w8a8: so"}, artifact) == ["w8a8: so"]


def test_the_certificate_is_told() -> None:
    artifact = copy.deepcopy(demo_artifact().report)
    artifact["certificate"] |= {
        "latency_s": {"predicted": 1e-3, "measured": 2e-3, "interval": [5e-4, 1.5e-3], "inside": False},
        "drop": {"predicted": 0.01, "measured": 0.02, "interval": [0.0, 0.04], "samples": 60, "inside": True},
        "sqnr_db": {"predicted": 20.0, "measured": [19.5]},
    }
    text = printed(report.show, artifact, width=140)
    for line in (
        "latency: predicted 1.00 ms (500 us to 1.50 ms), measured 2.00 ms, outside",
        "drop: predicted 1.00%, measured 2.00% (0.00% to 4.00% by 60 samples), inside",
        "SQNR: predicted 20.0 dB, measured 19.5 dB",
    ):
        assert line in text
    layers = artifact["certificate"]["layers"]
    assert f"layers: {layers['inside']} of {layers['count']} inside their intervals" in text
    assert report.certificate_lines({}) == []


def test_layers_that_hold_the_drop_are_named_first() -> None:
    rows = [{"name": f"l{i}", "shares": {"loss": share}} for i, share in enumerate((0.2, 0.0, 0.5, 0.3))]
    assert report.holders({"layers": rows}) == "l2 50%, l3 30%, l0 20%"
    assert report.holders({"layers": rows}, most=1) == "l2 50%"
    assert report.holders({"layers": [{"name": "a"}]}) is None


def test_a_front_is_shown() -> None:
    point = {
        "latency_s": 1e-3,
        "weight_bytes": 5000,
        "loss": 0.01,
        "accuracy": {"drop": 0.005, "agreement": 0.97},
        "schemes": {"a": "w8a8", "b": "w8a8", "c": "f32"},
        "alternatives": [{}],
    }
    text = printed(report.show_front, [point, {**point, "accuracy": None, "alternatives": []}])
    rows = [line.split() for line in text.splitlines()]
    assert ["01", "1xf32", "2xw8a8", "1.00", "ms", "5.00", "kB", "1.0e-02", "0.50%", "97.00%"] in rows
    assert ["02", "1xf32", "2xw8a8", "1.00", "ms", "5.00", "kB", "1.0e-02", "-", "-"] in rows
    assert "1 other plan as good" in text
    assert max(map(len, text.splitlines())) <= 80


# Plans and targets


@pytest.mark.parametrize("width", [80, 140])
def test_a_plan_is_shown_with_its_sums(width: int) -> None:
    plan = demo_artifact().plan
    text = printed(report.show_plan, plan, width=width)
    assert max(map(len, text.splitlines())) <= width
    rows = [tuple(line.split()[:2]) for line in text.splitlines()]
    assert set(plan.schemes.items()) <= set(rows)
    assert f"{seconds(plan.latency_s)} a call" in text
    for scheme in set(plan.schemes.values()):
        assert f"{list(plan.schemes.values()).count(scheme)} in {scheme}" in text


@pytest.mark.parametrize("name", ["x86-avx2", "x86-generic", "arm-cortex-a76", "cuda-t4"])
def test_a_target_is_shown(name: str) -> None:
    target = Target.load(name)
    text = printed(report.show_target, target.to_dict())
    assert max(map(len, text.splitlines())) <= 80
    assert name in text
    assert ("no, it is only described" in text) == (not target.builds)
    assert all(row.instruction in text for row in target.compute)


def test_targets_are_listed() -> None:
    rows = {"x86-avx2": {"machine": "any", "builds": True}, "t4": {"machine": "[a]", "builds": False}}
    text = printed(report.show_targets, rows)
    assert [line.split() for line in text.splitlines()][-3:-1] == [["x86-avx2", "yes", "any"], ["t4", "no", "[a]"]]


def test_what_it_took_and_how_well_losses_are_known_is_told() -> None:
    text = shown({"compile": {"seconds": 125.0, "peak_memory_bytes": 1_611_669_504}}, width=200)
    assert "compiled in 2 min 05 s; the process held 1.61 GB of memory at most" in text
    assert report.study_lines({"compile": {"seconds": 3.0, "peak_memory_bytes": None}}) == ["compiled in 3.0 s"]
    scores = {"plans": 64, "samples": 8, "held_out": {"r2": 0.84, "spearman": 0.93}}
    (line,) = report.study_lines({"scores": {**scores, "isolated": {"r2": -1.0, "spearman": 0.89}}})
    assert line == (
        "losses: fitted to 64 whole assignments on 8 samples; of such left out R2 0.84 and rank 0.93, by layers alone "
        "-1.00 and 0.89"
    )
    assert report.study_lines({}) == []
