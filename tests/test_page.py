"""The page: complete in itself, with every layer and figure of the report, and names that stay names."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from demo_study import demo_artifact

from hwq.numerics import QParams
from hwq.page import cards, front_charts, loss_rows, range_rows, render, time_rows
from hwq.report import seconds, size

VOID = ("meta", "br", "line", "circle", "rect")


class Reader(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or tag == "circle":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> ends another tag"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def page_of(changed: dict[str, Any] | None = None) -> str:
    artifact = demo_artifact()
    return render({**artifact.report, **(changed or {})}, artifact.plan)


def test_page_asks_for_nothing_and_runs_nothing() -> None:
    page = page_of()
    reader = read(page)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & {tag for tag, _ in reader.tags}
    for _, attributes in reader.tags:
        assert not any(name in ("src", "href", "srcset") or name.startswith("on") for name in attributes)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_every_layer_and_figure_is_there() -> None:
    report = demo_artifact().report
    text = " ".join(read(page_of()).text)
    for row in report["layers"]:
        assert row["name"] in text
        assert row["why"] in text
    assert seconds(report["measured"]["latency_s"]) in text
    assert size(report["measured"]["weight_bytes"]) in text
    for heading in ("Certificate", "The front", "Layers", "Sensitivity by layer", "Time by layer", "Ranges by tensor"):
        assert heading in text
    for tensor in demo_artifact().plan.qparams:
        assert tensor in text


def test_names_of_users_files_are_escaped() -> None:
    evil = "\"><script>alert('x')</script><img src=x onerror=alert(1)>"
    artifact = demo_artifact()
    report = copy.deepcopy(artifact.report)
    report |= {"model": evil, "target": evil, "cpu": evil, "verdict": evil, "notes": [evil]}
    first = report["layers"][1]
    times = report["certificate"]["layers"]["times"]
    times[evil] = times.pop(first["name"])
    report["certificate"]["layers"]["worst"] = evil
    first |= {"name": evil, "op": evil, "why": evil}
    report["near"] = [{"latency_s": 1.0, "weight_bytes": 1, "loss": 0.1, "schemes": {evil: evil}}]
    plan = copy.copy(artifact.plan)
    object.__setattr__(plan, "qparams", {evil: QParams(scale=0.1, zero_point=0)})
    page = render(report, plan)
    reader = read(page)
    assert not {"script", "img"} & {tag for tag, _ in reader.tags}
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert page.count("&lt;script&gt;") >= 10


@pytest.mark.parametrize("gone", [("front", "near"), ("certificate",), ("verdict", "alternatives", "notes")])
def test_what_a_report_lacks_is_left_out(gone: tuple[str, ...]) -> None:
    artifact = demo_artifact()
    report = {key: value for key, value in artifact.report.items() if key not in gone}
    text = " ".join(read(render(report, artifact.plan)).text)
    assert ("The front" in text) == ("front" not in gone)
    assert ("Time by layer" in text) == ("certificate" not in gone)


def test_a_report_of_a_given_plan_has_no_alternatives() -> None:
    told = ("candidates", "shares", "cheaper", "forced")
    rows = [{k: v for k, v in row.items() if k not in told} for row in demo_artifact().report["layers"]]
    text = " ".join(read(page_of({"layers": [{**row, "loss": None} for row in rows]})).text)
    assert "Sensitivity" not in text
    assert "next cheaper" not in text


def test_all_that_is_drawn_lies_on_its_axis() -> None:
    artifact = demo_artifact()
    for chart in front_charts(artifact.report):
        places = [*chart["points"], *({"x": one["at"], "y": 0} for one in chart["ticks_x"])]
        assert all(0 <= one["x"] <= 1 and 0 <= one["y"] <= 1 for one in places)
        assert all(0 <= one["at"] <= 1 for one in chart["ticks_y"])
        assert len({one["text"] for one in chart["ticks_x"]}) == len(chart["ticks_x"]) >= 2
        assert [one["kind"] for one in chart["points"]].count("own") == 1
    for row in time_rows(artifact.report):
        assert 0 <= row["low"] <= row["high"] <= 1
        assert 0 <= row["measured"] <= 1
        assert row["low"] <= row["predicted"] <= 1
    for row in loss_rows(artifact.report):
        assert all(0 <= mark["at"] <= 1 for mark in row["marks"])
        order = sorted(row["marks"], key=lambda mark: mark["at"])
        losses = {
            one["scheme"]: one["loss"]
            for one in next(layer["candidates"] for layer in artifact.report["layers"] if layer["name"] == row["name"])
        }
        assert [losses[mark["scheme"]] for mark in order] == sorted(losses[mark["scheme"]] for mark in row["marks"])
    for row in range_rows(artifact.plan.qparams):
        assert 0 <= row["low"] < row["high"] <= 1


def test_range_of_a_tensor() -> None:
    (row,) = range_rows({"x": QParams(scale=0.5, zero_point=-128)})
    assert (row["low"], row["high"], row["text"]) == (0.5, 1.0, "0 to 128")
    assert range_rows({}) == []


def test_cards_of_a_score_of_the_users_own() -> None:
    report = copy.deepcopy(demo_artifact().report)
    report["measured"]["accuracy"] |= {"source": "function"}
    report["measured"]["drop"] = 0.25
    report["predicted"]["drop"] = None
    assert ("drop", "0.25", "by your own score") in cards(report)
    report["measured"] |= {"drop": None, "accuracy": None}
    assert [name for name, _, _ in cards(report)] == ["latency of a call", "weights"]


def test_page_is_the_same_for_the_same_report() -> None:
    assert page_of() == page_of()
    assert re.search(r"<title>.* on .*</title>", page_of())
