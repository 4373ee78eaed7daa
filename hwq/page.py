"""The page of an artifact: one HTML file that needs nothing else, with what its report and its plan hold.

Names come from users' files: everything goes through the template, which escapes it, and the page allows no script and
no request. Bars and points are placed here, in parts of their axes; words and figures are those of ``hwq.report``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2

from hwq import report as reports
from hwq.numerics import INT8, QParams
from hwq.plan import Plan
from hwq.report import percent, seconds, size

TEMPLATE = "data/explain.html.j2"
# A loss of this is drawn as none: 120 dB.
LEAST_LOSS = 1e-12


def render(report: Mapping[str, Any], plan: Plan) -> str:
    """The page as text. What an older report or one of a given plan lacks is left out."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(resources.files("hwq").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        report=report,
        threads=reports.count(report["threads"], "thread"),
        used=Counter(row["scheme"] for row in report["layers"]).most_common(),
        cards=cards(report),
        certificate=[*reports.certificate_lines(report), *reports.study_lines(report)],
        charts=front_charts(report),
        near=[{**one, "figures": _sums(one)} for one in report.get("near", ())],
        layers=[_layer(row, report) for row in report["layers"]],
        times=time_rows(report),
        losses=loss_rows(report),
        ranges=range_rows(plan.qparams),
    )


def cards(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, value, what stands beside it) of the whole network."""
    measured, predicted = report["measured"], report["predicted"]
    accuracy = measured.get("accuracy") or {}
    found = [
        ("latency of a call", seconds(measured["latency_s"]), f"predicted {seconds(predicted['latency_s'])}"),
        ("weights", size(measured["weight_bytes"]), f"predicted {size(predicted['weight_bytes'])}"),
    ]
    if measured.get("drop") is not None:
        own = accuracy.get("source") == "function"
        shown = f"{measured['drop']:.4g}" if own else percent(measured["drop"])
        expected = predicted.get("drop")
        beside = "by your own score" if own else f"{accuracy.get('samples', 0)} samples"
        found.append(("drop", shown, beside if expected is None else f"predicted {percent(expected)}, {beside}"))
    if accuracy.get("agreement") is not None:
        found.append(("same class as float", percent(accuracy["agreement"]), f"{accuracy['samples']} samples"))
    if accuracy.get("sqnr_db"):
        expected_db = _decibels(predicted["loss"], report)
        beside = "no noise predicted" if expected_db is None else f"predicted {expected_db:.1f} dB"
        found.append(("SQNR of the outputs", reports.decibels(accuracy["sqnr_db"]), beside))
    return found


def _decibels(loss: float, report: Mapping[str, Any]) -> float | None:
    """The SQNR that goes with a loss; None for none."""
    return -10 * math.log10(loss * report["noise_per_loss"]) if loss > LEAST_LOSS else None


def front_charts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """SQNR over latency, and SQNR over size: the front and the artifact itself, as predicted, in parts of the axes."""
    if not report.get("front"):
        return []
    own = {"kind": "own", **{name: report["predicted"][name] for name in ("latency_s", "weight_bytes", "loss")}}
    points = [*({"kind": "front", **one} for one in report["front"]), own]
    known = [value for one in points if (value := _decibels(one["loss"], report)) is not None] or [0.0]
    low, high = min(known), max(known)
    ceiling = high + 0.15 * max(high - low, 10.0)  # where what loses nothing is drawn
    charts = []
    for name, axis, shown in (("latency_s", "latency of a call", seconds), ("weight_bytes", "weights", size)):
        most = max(one[name] for one in points) * 1.05 or 1.0
        drawn = []
        for one in points:
            value = _decibels(one["loss"], report)
            drawn.append(
                {
                    "x": one[name] / most,
                    "y": _part(ceiling if value is None else value, low, ceiling),
                    "kind": one["kind"],
                    "title": _sums(one),
                }
            )
        ticks_x = [{"at": value / most, "text": shown(value) if value else "0"} for value in _ticks(0.0, most)]
        ticks_y = [{"at": _part(value, low, ceiling), "text": f"{value:g} dB"} for value in _ticks(low, high)]
        if any(_decibels(one["loss"], report) is None for one in points):
            ticks_y.append({"at": 1.0, "text": "no loss"})
        charts.append({"axis": axis, "points": drawn, "ticks_x": ticks_x, "ticks_y": ticks_y})
    return charts


def _sums(one: Mapping[str, Any]) -> str:
    return f"{seconds(one['latency_s'])}, {size(one['weight_bytes'])}, loss {one['loss']:.1e}"


def _part(value: float, low: float, high: float) -> float:
    """Where ``value`` lies between the ends, as a part."""
    return 0.5 if high <= low else (value - low) / (high - low)


def _ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round values from ``low`` to ``high``, at most so many."""
    if high <= low:
        return [low]
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(unit * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (unit * factor) <= most)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)][: most + 1]


def _layer(row: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    shares = row.get("shares") or {}
    return {
        "name": row["name"],
        "op": row["op"],
        "scheme": row["scheme"],
        "predicted": seconds(row["predicted_s"] or None),
        "measured": seconds(row["measured_s"] or None),
        "weights": size(row["weight_bytes"] or None),
        "loss": f"{row['loss']:.1e}" if row["loss"] else reports.DASH,
        "share": percent(shares["loss"]) if shares.get("loss") else reports.DASH,
        "sentences": reports.sentences(row, report),
    }


def time_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each layer with a kernel its measured time, the predicted one and its interval, in parts of the longest."""
    times = (report.get("certificate") or {}).get("layers", {}).get("times", {})
    most = max([1e-12, *(max(one["measured"], one["predicted"]) for one in times.values())]) * 1.02
    return [
        {
            "name": name,
            "measured": one["measured"] / most,
            "predicted": one["predicted"] / most,
            "low": min(one["interval"][0] / most, 1.0),
            "high": min(one["interval"][1] / most, 1.0),
            "text": f"{seconds(one['measured'])}, predicted {seconds(one['predicted'])}",
            "inside": one["inside"],
        }
        for name, one in times.items()
    ]


def loss_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each layer what each of its schemes loses, on a logarithmic axis; what loses nothing has no mark."""
    rows = [row for row in report["layers"] if any(one["loss"] > LEAST_LOSS for one in row.get("candidates", ()))]
    values = [one["loss"] for row in rows for one in row["candidates"] if one["loss"] > LEAST_LOSS]
    low, high = (math.log10(min(values)) - 0.2, math.log10(max(values)) + 0.2) if values else (0.0, 1.0)
    return [
        {
            "name": row["name"],
            "marks": [
                {
                    "scheme": one["scheme"],
                    "at": _part(math.log10(one["loss"]), low, high),
                    "chosen": one["scheme"] == row["scheme"],
                }
                for one in row["candidates"]
                if one["loss"] > LEAST_LOSS
            ],
            "text": f"{row['scheme']} {row['loss']:.1e}" if row["loss"] else f"{row['scheme']} loses nothing",
        }
        for row in rows
    ]


def range_rows(qparams: Mapping[str, QParams]) -> list[dict[str, Any]]:
    """For each quantized tensor what int8 holds of it, around zero, on an axis that grows as asinh does."""
    ends = {
        name: ((INT8.qmin - one.zero_point) * one.scale, (INT8.qmax - one.zero_point) * one.scale)
        for name, one in qparams.items()
    }
    most = max([1e-12, *(abs(end) for pair in ends.values() for end in pair)])
    least = min([most, *(max(abs(low), abs(high)) for low, high in ends.values())])

    def place(value: float) -> float:
        return 0.5 + 0.5 * math.asinh(value / least) / math.asinh(most / least)

    return [
        {"name": name, "low": place(low), "high": place(high), "text": f"{low:.3g} to {high:.3g}"}
        for name, (low, high) in ends.items()
    ]
