"""The demo network studied once for all tests: real kernels and losses, prices as learned and not measured."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from hwq import evaluate
from hwq.artifact import Artifact
from hwq.choose import uniforms
from hwq.compiler import compile
from hwq.demo import load_demo
from hwq.evaluate import Evaluation
from hwq.model import Model, load
from hwq.progress import silent
from hwq.scheme import Budget, Cost, parse_schemes
from hwq.study import Study, inputs_of, study
from hwq.target import Target
from hwq.work import Work, open_work

SCHEMES = ("f32", "w8a8", "w4a8")  # what every host has
CALIBRATION = 16
EVALUATION = 60


@functools.cache
def demo_model() -> Model:
    return load(load_demo()[0])


@functools.cache
def demo_work() -> Work:
    return open_work(demo_model().fingerprint, demo_model().name, None)


@functools.cache
def demo_study() -> Study:
    """All schemes, one thread, nothing timed."""
    calibration = load_demo()[1][:CALIBRATION]
    target, allowed = Target.load("host"), parse_schemes(SCHEMES)
    return study(demo_model(), target, demo_work(), calibration, allowed, 1, "mse", False, silent)


@functools.cache
def demo_evaluation() -> Evaluation:
    found = evaluate.prepare(demo_pictures(), (), demo_study().runner, inputs_of(demo_study().graph))
    assert found is not None
    return found


@functools.cache
def demo_artifact() -> Artifact:
    """The demo network compiled within a budget of bytes that takes all three schemes or two; one thread."""
    budget = Budget(weight_bytes=0.8 * uniforms(demo_study())["w8a8"].weight_bytes)
    calibration = load_demo()[1][:CALIBRATION]
    return compile(
        demo_model(),
        calibration=calibration,
        evaluate=demo_pictures(),
        budget=budget,
        schemes=SCHEMES,
        threads=1,
        measure=False,
    )


def demo_pictures() -> tuple[Any, Any]:
    """(pictures, labels) not used for calibration."""
    _, _, (inputs, labels) = load_demo()
    return inputs[:EVALUATION], labels[:EVALUATION]


def anchors(found: Study) -> list[str]:
    return [layer.name for layer in found.graph.layers if layer.weight is not None]


def priced(found: Study, times_us: dict[str, float], *, conversion_us: float = 0.0) -> Study:
    """The study with made-up prices: times_us by scheme, for each anchor; everything else is free."""

    def cost(layer: str, scheme: str) -> Cost:
        time_s = times_us[scheme] * 1e-6 if layer in names else 0.0
        return replace(found.costs[layer, scheme], latency_s=time_s, interval_s=(time_s, time_s))

    names = set(anchors(found))
    conversions = dict.fromkeys(found.conversions, (conversion_us * 1e-6, conversion_us * 1e-6))
    return replace(found, costs={unit: cost(*unit) for unit in found.costs}, conversions=conversions)


def random_schemes(found: Study, rng: np.random.Generator) -> dict[str, str]:
    """Any of its candidates for each layer."""
    return {layer: str(rng.choice(names)) for layer, names in found.candidates.items()}
