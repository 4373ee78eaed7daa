"""The plan's file: what is saved comes back, one line a layer; what a hand may break is refused by key and value."""

from __future__ import annotations

import json
import math
import os
import re
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwq.errors import HwqError
from hwq.numerics import QParams
from hwq.plan import Plan
from hwq.scheme import SCHEMES, Cost

COST = Cost(latency_s=1.5e-5, weight_bytes=2304, source="measured", interval_s=(1.4e-5, 1.6e-5))


def _plan(**changed: Any) -> Plan:
    values: dict[str, Any] = {
        "model": "3f2a",
        "target": "host",
        "threads": 2,
        "schemes": {"conv1": "f32", "conv2": "w8a8", "fc": "w4a8"},
        "layers": {"conv1": (COST, 0.0), "conv2": (COST, 0.25)},
        "why": {"conv1": 'first "layer", ü'},
        "latency_s": 1e-4,
        "weight_bytes": 12345,
        "loss": 0.25,
        "qparams": {"x": QParams(scale=0.05, zero_point=-128)},
        "means": {"x": (0.5, -1.0)},
        "roundings": {"fc": ("w4a8", "eJw=")},
    }
    return Plan(**(values | changed))


finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=8)


@given(
    st.dictionaries(texts, st.sampled_from(list(SCHEMES)), max_size=5),
    finite,
    st.dictionaries(texts, st.tuples(st.floats(2.0**-99, 2.0**99, width=32), st.integers(-128, 127)), max_size=3),
    texts,
)
def test_values_come_back_as_they_were(
    schemes: dict[str, str], number: float, ranges: dict[str, tuple[float, int]], text: str
) -> None:
    cost = Cost(latency_s=number, weight_bytes=7, source=text, interval_s=(number, number))
    plan = _plan(
        model=text,
        schemes=schemes,
        layers=dict.fromkeys(schemes, (cost, number)),
        why=dict.fromkeys(schemes, text),
        loss=number,
        qparams={name: QParams(scale=scale, zero_point=zero) for name, (scale, zero) in ranges.items()},
    )
    back = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert back == plan
    assert list(back.schemes) == list(schemes)  # the network's order


def test_smoothing_comes_back(tmp_path: Path) -> None:
    path, plan = tmp_path / "plan.json", replace(_plan(), smoothing={"norm": (1, -2, 0), "up": (3,)})
    plan.save(path)
    assert Plan.load(path).to_dict() == plan.to_dict()
    assert Plan.load(path).smoothing == plan.smoothing
    assert "smoothing" not in _plan().to_dict(), "a plan without is what it was"


def test_file_comes_back_with_one_line_a_layer(tmp_path: Path) -> None:
    path, plan = tmp_path / "plan.json", _plan()
    plan.save(path)
    text = path.read_text()
    lines = [line for line in text.splitlines() if '"scheme"' in line]
    assert len(lines) == 3 + len(plan.roundings)
    assert re.match(
        r' *"conv2": \{"scheme": "w8a8", "latency_s": 1.5e-05, .*"weight_bytes": 2304, "loss": 0.25', lines[1]
    )
    back = Plan.load(path)
    assert back.to_dict() == plan.to_dict()
    assert back.layers == plan.layers
    assert (back.why["conv1"], back.why["fc"]) == ('first "layer", ü', "")
    _plan(schemes={}, layers={}, qparams={}).save(path)
    assert Plan.load(path).schemes == {}


def test_edited_line_may_hold_the_scheme_alone(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    _plan().save(path)
    text = re.sub(r'"conv2": \{.*\}', '"conv2": {"scheme": "w4a8"}', path.read_text(), count=1)
    path.write_text(text)
    back = Plan.load(path)
    assert back.schemes == {"conv1": "f32", "conv2": "w4a8", "fc": "w4a8"}
    assert list(back.layers) == ["conv1"]


def _broken(change: Any) -> HwqError:
    data = json.loads(json.dumps(_plan().to_dict()))
    data = change(data) or data
    with pytest.raises(HwqError) as caught:
        Plan.from_dict(data, "my.json")
    return caught.value


def _set(*keys: Any) -> Any:
    """A change that sets data[keys[0]]...[keys[-2]] to keys[-1]."""

    def change(data: Any) -> None:
        for key in keys[:-2]:
            data = data[key]
        data[keys[-2]] = keys[-1]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: [1], r"my\.json is \[1\]; accepted: an object with the keys format, model"),
        (_set("format", 99), r"format is 99; accepted: 1"),
        (_set("layers", []), r"layers is \[\]; accepted: an object"),
        (_set("qparams", 3), r"qparams is 3; accepted: an object"),
        (_set("model", None), r"model is null; accepted: a text"),
        (_set("threads", 0), r"threads is 0; accepted: a whole number of at least 1"),
        (_set("weight_bytes", 1.5), r"weight_bytes is 1\.5; accepted: a whole number"),
        (_set("weight_bytes", True), r"weight_bytes is true; accepted"),
        (_set("loss", "low"), r'loss is "low"; accepted: a finite number'),
        (_set("latency_s", math.nan), r"latency_s is NaN; accepted: a finite number"),
        (_set("note", "x"), r"key 'note' is not known; accepted: format, model"),
        (lambda data: {k: v for k, v in data.items() if k != "target"}, r"key 'target' is missing"),
        (_set("layers", "conv1", "f32"), r"layer 'conv1' is \"f32\"; accepted: an object with the keys scheme"),
        (_set("layers", "conv1", {}), r"layer 'conv1': key 'scheme' is missing"),
        (_set("layers", "conv1", "sheme", "f32"), r"layer 'conv1': key 'sheme' is not known"),
        (_set("layers", "conv1", "why", 1), r"layer 'conv1': why is 1; accepted: a text"),
        (_set("layers", "conv1", {"scheme": "f32", "loss": 1}), r"layer 'conv1': key 'latency_s' is missing"),
        (_set("layers", "conv1", "interval_s", 1), r"interval_s is 1; accepted: a list of two numbers"),
        (_set("layers", "conv1", "interval_s", [1, "a" * 99]), r'interval_s is "a{56}\.\.\.; accepted: a finite'),
        (_set("qparams", "x", "scale", 0), r"qparams 'x': scale is 0\.0; accepted: a positive number"),
        (_set("qparams", "x", "zero_point", 128), r"zero_point is 128; accepted: a whole number from -128 to 127"),
        (_set("qparams", "x", "zero_point", 1.0), r"zero_point is 1\.0; accepted"),
        (_set("means", "x", 1), r"means 'x' is 1; accepted: a list of numbers"),
        (_set("roundings", []), r"roundings is \[\]; accepted: an object"),
        (_set("roundings", "fc", "eJw="), r"roundings 'fc' is .*; accepted: an object with the keys scheme, text"),
        (_set("roundings", "fc", "text", 3), r"roundings 'fc': text is 3; accepted: a text"),
        (_set("smoothing", []), r"smoothing is \[\]; accepted: an object"),
        (_set("smoothing", {"norm": [1.5]}), r"smoothing 'norm' is \[1\.5\]; accepted: a list of whole numbers"),
    ],
)
def test_broken_value_is_named(change: Any, said: str) -> None:
    error = _broken(change)
    assert error.code == "plan-invalid"
    assert error.message.startswith("my.json")
    assert re.search(said, error.message), error.message


@pytest.mark.parametrize("scheme", ["w2a8", "F32", None, ["f32"], 8])
def test_unknown_scheme_is_named(scheme: Any) -> None:
    error = _broken(_set("layers", "conv2", "scheme", scheme))
    assert error.code == "scheme-unknown"
    accepted = ", ".join(SCHEMES)
    assert error.message == f"my.json: layer 'conv2': scheme is {json.dumps(scheme)}; accepted: {accepted}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"format": 1,\n "model": }', "is not JSON at line 2, column 11"),
        (b"", "is not JSON at line 1"),
        (b'{"layers": {"a": 1, "a": 2}}', "has the key 'a' twice"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[" * 100_000, "is nested too deeply"),
    ],
)
def test_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(HwqError, match=said) as caught:
        Plan.load(path)
    assert caught.value.code == "plan-invalid"
    assert "plan.json" in caught.value.message


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HwqError, match=r"no\.json.*No such file") as caught:
        Plan.load(tmp_path / "no.json")
    assert caught.value.code == "plan-missing"


def test_layers_are_held_against_the_model() -> None:
    plan = _plan()
    plan.check_layers(["conv1", "conv2", "fc"])
    for names, said in (
        (["conv1", "conv2a", "fc"], "names layer 'conv2', which the model lacks; did you mean 'conv2a'"),
        (["conv1", "conv2", "fc", "x", "y"], "lacks 'x', 'y' of the model"),
        (["one"], "names layer 'conv1', which the model lacks; accepted: its layers, 'one'"),
        (["conv1", "conv2", "fc", *"abcde"], "lacks 'a', 'b', 'c' and 2 more of the model"),
    ):
        with pytest.raises(HwqError, match=said) as caught:
            plan.check_layers(names)
        assert caught.value.code == "plan-layers"


def test_disk_full_leaves_the_old_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    _plan().save(path)
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
    try:
        with pytest.raises(HwqError) as caught:
            _plan(why={"fc": "x" * 9999}).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "save-failed"
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["plan.json"]
