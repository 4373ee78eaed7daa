"""Real networks through the whole flow: accuracy against float, every integer layer against NumPy, budgets held.

By default on few pictures, with limits for few; HWQ_FULL=1 takes all there are (2,000 of CIFAR-10, 600 of ImageNet) and
holds the limits that the project promises. Skipped where the networks are absent (HWQ_DATA).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import hwq
from hwq import evaluate
from hwq.artifact import Artifact
from hwq.cache import default_cache_dir
from hwq.execute import bind, compile_kernels
from hwq.model import Model
from hwq.numerics import sqnr_db
from hwq.samples import stream
from hwq.study import Study, inputs_of, study_of_plan
from hwq.target import Target
from hwq.verify import differing_steps
from hwq.work import open_work

FULL = os.environ.get("HWQ_FULL", "") not in ("", "0")
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.data


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """pictures and calibrate: how many of each. drop, agreement, sqnr_db: what w8a8 must keep of float on them."""

    pictures: int
    calibrate: int
    sqnr_db: float
    drop: float | None = None
    agreement: float | None = None


# SQNR stands some dB below what was measured. On few pictures one picture is a third of a point, or more: there the
# drop may be three pictures more than on all.
LIMITS = {
    "resnet20": Limit(pictures=2000, calibrate=256, drop=0.005, agreement=0.98, sqnr_db=28.0)
    if FULL
    else Limit(pictures=300, calibrate=64, drop=0.015, agreement=0.97, sqnr_db=27.0),
    "resnet32": Limit(pictures=2000, calibrate=256, drop=0.005, agreement=0.98, sqnr_db=27.0)
    if FULL
    else Limit(pictures=300, calibrate=64, drop=0.015, agreement=0.97, sqnr_db=26.0),
    "mobilenetv2": Limit(pictures=600, calibrate=128, drop=0.015, agreement=0.92, sqnr_db=17.0)
    if FULL
    else Limit(pictures=48, calibrate=24, drop=0.07, agreement=0.9, sqnr_db=16.0),
    "ultraface": Limit(pictures=64, calibrate=64, sqnr_db=20.0)
    if FULL
    else Limit(pictures=24, calibrate=48, sqnr_db=20.0),
}


@functools.cache
def _real_data() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hwq_real_data", ROOT / "benchmarks" / "real_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def case(name: str) -> Any:
    """The network's pictures: see ``benchmarks/real_data.py``."""
    return _real_data().case(name, LIMITS[name].pictures, LIMITS[name].calibrate)


@functools.cache
def model(name: str) -> Model:
    return hwq.load(case(name).model)


@functools.cache
def compiled(name: str, scheme: str) -> Artifact:
    """The network in ``scheme`` throughout. Nothing is timed: there is no choice."""
    return _compile(name, schemes=[scheme], measure=False)


def _compile(name: str, **options: Any) -> Artifact:
    data = case(name)
    evaluate = None if data.labels is None else (data.inputs, data.labels)
    artifact = hwq.compile(model(name), calibration=data.calibration, evaluate=evaluate, threads=1, **options)
    print(f"\n{name}: {artifact.report['verdict']}; {artifact.report['measured']}")
    return artifact


@pytest.fixture(autouse=True)
def _needs_data(data_dir: Path) -> None:
    """Skips, with the reason, where the real networks are absent."""


@pytest.mark.parametrize("name", ["resnet20", "resnet32", "mobilenetv2"])
def test_w8a8_answers_as_float_does(name: str) -> None:
    measured, limit = compiled(name, "w8a8").report["measured"], LIMITS[name]
    accuracy = measured["accuracy"]
    assert accuracy["samples"] == limit.pictures
    assert accuracy["drop"] <= limit.drop
    assert accuracy["agreement"] >= limit.agreement
    assert accuracy["sqnr_db"][0] >= limit.sqnr_db


def test_face_detector_has_both_outputs_right() -> None:
    data = case("ultraface")
    artifact = compiled("ultraface", "w8a8")
    runner = study("ultraface", "w8a8").runner
    clean = evaluate.float_call(runner, inputs_of(model("ultraface").graph))(data.inputs)
    found = artifact(data.inputs)
    ratios = [sqnr_db(good, got) for good, got in zip(clean, found, strict=True)]
    print(f"\nultraface on {len(data.inputs)} pictures: {ratios} dB")
    assert len(ratios) == 2
    assert min(ratios) >= LIMITS["ultraface"].sqnr_db


@functools.cache
def study(name: str, scheme: str) -> Study:
    """What the network's plan was built from."""
    work = open_work(model(name).fingerprint, name, None)
    plan = compiled(name, scheme).plan
    return study_of_plan(model(name), Target.load("host"), work, plan, 1, lambda done, total: None)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("resnet20", "w8a8"), ("resnet32", "w8a8"), ("resnet32", "w4a8"), ("mobilenetv2", "w8a8"), ("ultraface", "w8a8")],
)
def test_every_integer_layer_equals_numpy(name: str, scheme: str) -> None:
    """On real activations, each layer's own kernel alone, element by element."""
    found = study(name, scheme)
    program = found.program(compiled(name, scheme).plan.schemes)
    kernels = found.kernels | compile_kernels([program], found.target, default_cache_dir())
    runner = bind(program, kernels)
    inputs = case(name).inputs[: 3 if FULL else 1]
    for batch in stream(inputs, inputs_of(found.graph)):
        differing = differing_steps(runner, batch, found.target)
        integers = [
            layer.name
            for layer in found.graph.layers
            if found.candidates[layer.name] != ("f32",) and layer.op != "reshape"
        ]
        assert set(integers) <= differing.keys()
        assert len(integers) > 20
        assert not any(differing.values()), {step: count for step, count in differing.items() if count}


def test_a_budget_of_bytes_and_drop_mixes_int4_in() -> None:
    """Within bytes that int8 misses and a drop that int4 throughout misses, only a mix is left."""
    whole, int4 = (compiled("resnet32", scheme).report["measured"] for scheme in ("w8a8", "w4a8"))
    budget = hwq.Budget(weight_bytes=0.7 * whole["weight_bytes"], drop=int4["drop"] / 2)
    mixed = _compile("resnet32", budget=budget)
    measured, chosen = mixed.report["measured"], list(mixed.plan.schemes.values())
    print(f"\nresnet32 within {budget}: {chosen.count('w4a8')} layers in int4, {measured}")
    print(f"in int4 throughout: {int4}")
    assert {"w4a8", "w8a8"} <= set(chosen)
    assert measured["weight_bytes"] <= 0.7 * whole["weight_bytes"]
    assert measured["drop"] <= int4["drop"] / 2
    assert measured["accuracy"]["sqnr_db"][0] > int4["accuracy"]["sqnr_db"][0] + 2


def test_a_budget_of_drop_holds() -> None:
    artifact = _compile("resnet32", budget=hwq.Budget(drop=0.01))
    assert artifact.report["measured"]["drop"] <= 0.01
