"""The study: what each layer may run in, loses and costs; interrupted anywhere, the same call goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_study import anchors, demo_model, demo_study, demo_work, random_schemes

from hwq.demo import load_demo
from hwq.errors import HwqError
from hwq.execute import compile_kernels, packed_constants
from hwq.graph import PASS_THROUGH
from hwq.numerics import QParams
from hwq.observe import KEPT_SAMPLES
from hwq.plan import Plan
from hwq.progress import Callback, silent
from hwq.quantize import quantize_layer
from hwq.scheme import parse_schemes
from hwq.study import Study, find_candidates, roundings_of, study, study_of_plan
from hwq.target import Target
from hwq.work import Work, open_work

HOST = Target.load("host")
FEW = load_demo()[1][:6]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Its own results; compiled kernels are those of all tests."""
    return open_work(demo_model().fingerprint, demo_model().name, tmp_path / "work")


class Watch:
    """Stages that remember their names, and raise KeyboardInterrupt in one of them."""

    def __init__(self, stop: str | None = None, at: int = 1) -> None:
        self.names: list[str] = []
        self.stop, self.at = stop, at

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[Callback]:
        self.names.append(name)

        def callback(done: int, total: int) -> None:
            assert 0 <= done <= total
            if name == self.stop and done >= self.at:
                raise KeyboardInterrupt

        yield callback


def studied(work: Work, calibration: Any = FEW, *, schemes: list[str] | None = None, **options: Any) -> Study:
    values = {"threads": 1, "observer": "mse", "measure": False, "stages": silent} | options
    return study(demo_model(), HOST, work, calibration, parse_schemes(schemes), **values)


def same(one: Study, other: Study) -> None:
    assert (one.candidates, one.qparams, one.means) == (other.candidates, other.qparams, other.means)
    assert one.roundings == other.roundings
    assert (one.losses, one.samples, len(one.kept)) == (other.losses, other.samples, len(other.kept))
    assert one.costs == other.costs
    for unit, weights in one.weights.items():
        np.testing.assert_array_equal(weights.values, other.weights[unit].values)
        np.testing.assert_array_equal(weights.bias, other.weights[unit].bias)


def test_every_candidate_is_priced_and_judged() -> None:
    found = demo_study()
    units = {(layer, scheme) for layer, names in found.candidates.items() for scheme in names}
    assert found.candidates == find_candidates(found.graph, HOST, parse_schemes(("f32", "w8a8", "w4a8")))
    assert units == found.losses.keys() == found.costs.keys()
    for (layer, scheme), loss in found.losses.items():
        assert loss == 0.0 if scheme == "f32" else loss >= 0.0, (layer, scheme)
    for name in anchors(found):
        assert found.losses[name, "w4a8"] > found.losses[name, "w8a8"] > 0
        sizes = [found.costs[name, scheme].weight_bytes for scheme in ("w4a8", "w8a8", "f32")]
        assert sizes == sorted(sizes)
        assert found.means.keys() >= {layer.inputs[0] for layer in found.graph.layers if layer.name == name}
    assert {cost.source for cost in found.costs.values()} == {"learned", "measured"}
    assert all(cost.latency_s == 0 for cost in found.costs.values() if cost.source == "measured"), "views are free"
    assert found.conversions.keys() == found.graph.shapes.keys()
    assert set(found.direct_s) >= {"stem"}
    assert set(found.moved_s) == {layer.output for layer in found.graph.layers if layer.op == "transpose"}


def test_layers_that_pass_values_through_lose_nothing_of_their_own() -> None:
    found = demo_study()
    passing = {layer.name for layer in found.graph.layers if layer.op in PASS_THROUGH}
    assert passing
    for (layer, scheme), loss in found.losses.items():
        assert (loss == 0.0) == (scheme == "f32" or layer in passing), (layer, scheme)


def test_predicted_bytes_are_what_kernels_read(rng: np.random.Generator) -> None:
    found = demo_study()
    for _ in range(5):
        schemes = random_schemes(found, rng)
        program = found.program(schemes)
        kernels = compile_kernels([program], HOST, demo_work().cache)
        layers = {layer.name for layer in found.graph.layers}
        read = sum(
            array.nbytes
            for step in program.steps
            if step.name in layers and step.workload is not None
            for array in packed_constants(step, kernels)
        )
        assert read == sum(found.costs[layer, scheme].weight_bytes for layer, scheme in schemes.items())


def test_what_was_found_is_not_found_again(work: Work) -> None:
    first, again = Watch(), Watch()
    one = studied(work, stages=first)
    same(one, studied(work, stages=again))
    assert "calibrate" in first.names
    assert "calibrate" not in again.names
    other = Watch()
    assert studied(work, observer="minmax", stages=other).qparams != one.qparams
    assert "calibrate" in other.names, "ranges are kept by observer"
    assert studied(work, FEW[:5]).qparams != one.qparams, "and by samples"


@pytest.mark.parametrize(
    ("stage", "at"),
    [("compile float", 1), ("calibrate", 4), ("correct", 7), ("quantize", 3), ("compile", 2), ("sensitivity", 40)],
)
def test_an_interrupt_in_any_stage_leaves_a_work_directory_that_serves(stage: str, at: int, work: Work) -> None:
    with pytest.raises(KeyboardInterrupt):
        studied(work, stages=Watch(stage, at))
    same(studied(work), studied(open_work(demo_model().fingerprint, "demo", work.stages.parent / "other")))


def test_a_generator_is_streamed_once(work: Work) -> None:
    pulled = 0

    def pictures() -> Iterator[Any]:
        nonlocal pulled
        for picture in FEW:
            pulled += 1
            yield picture[None]

    found = studied(work, pictures())
    assert pulled == len(FEW)
    same(found, studied(work))


def test_losses_are_those_of_the_samples_given_even_where_nothing_is_calibrated(work: Work) -> None:
    """Without an int8 candidate a generator is read as well: its samples name the losses, and are counted."""
    if "bf16" not in HOST.schemes:
        pytest.skip("this machine multiplies no bfloat16, the only scheme with losses and without ranges")
    schemes = ["f32", "bf16"]
    many = np.concatenate([FEW, 3 * FEW] * 6)
    found = studied(work, (picture[None] for picture in many), schemes=schemes)
    assert (found.samples, len(found.kept)) == (72, KEPT_SAMPLES)
    other = studied(work, (picture[None] for picture in 1 - FEW), schemes=schemes)
    assert other.losses != found.losses
    assert other.losses == studied(work, 1 - FEW, schemes=schemes).losses


def test_the_first_samples_are_kept(work: Work) -> None:
    found = studied(work, np.concatenate([FEW] * 12), schemes=["f32", "w8a8"])
    assert found.samples == 72
    assert len(found.kept) == KEPT_SAMPLES
    for batch, picture in zip(found.kept, np.concatenate([FEW] * 12), strict=False):
        np.testing.assert_array_equal(batch[found.graph.inputs[0]][0], picture)


def test_float_alone_needs_no_samples(work: Work) -> None:
    found = studied(work, None, schemes=["f32"])
    assert (found.qparams, found.means, found.weights, found.kept, found.samples) == ({}, {}, {}, (), 0)
    assert set(found.losses.values()) == {0.0}


def test_measured_prices_beat_the_roofline(work: Work) -> None:
    watch = Watch()
    found = studied(work, schemes=["w8a8"], measure=True, stages=watch)
    assert "measure" in watch.names
    assert {cost.source for cost in found.costs.values()} == {"measured"}
    assert all(found.costs[name, "w8a8"].latency_s > 0 for name in anchors(found))
    assert all(found.losses[name, "w8a8"] > 0 for name in anchors(found)), "what has no choice is judged too"


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({"observer": "best"}, "observer-unknown", "observer 'best' is not known; accepted: minmax"),
        ({"calibration": None}, "samples-empty", "calibration is missing"),
        ({"calibration": []}, "samples-empty", "calibration holds no samples"),
        ({"calibration": np.zeros((4, 1, 16, 16), np.float32)}, "constant-activation", "has the one value"),
    ],
)
def test_refusals(options: dict[str, Any], code: str, text: str, work: Work) -> None:
    with pytest.raises(HwqError, match=text) as caught:
        studied(work, **options)
    assert caught.value.code == code


# From a plan


def plan_of(found: Study, schemes: dict[str, str], **changed: Any) -> Plan:
    values = {
        "model": found.model.fingerprint,
        "target": "host",
        "threads": 1,
        "schemes": schemes,
        "latency_s": 0.0,
        "weight_bytes": 0,
        "loss": 0.0,
        "qparams": found.qparams,
        "means": found.means,
        "roundings": roundings_of(found.roundings, schemes),
    }
    return Plan(**(values | changed))


def test_a_plan_gives_the_program_it_came_from(rng: np.random.Generator) -> None:
    """By way of its file: the same constants, to the bit."""
    found = demo_study()
    schemes = random_schemes(found, rng)
    plan = Plan.from_dict(plan_of(found, schemes).to_dict())
    again = study_of_plan(demo_model(), HOST, demo_work(), plan, 1, lambda done, total: None)
    one, other = found.program(schemes), again.program(schemes)
    assert [step.name for step in one.steps] == [step.name for step in other.steps]
    for mine, theirs in zip(one.steps, other.steps, strict=True):
        for a, b in zip(mine.constants, theirs.constants, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_plan_without_means_leaves_biases_as_they_were() -> None:
    found = demo_study()
    schemes = dict.fromkeys(found.candidates, "w8a8")
    again = study_of_plan(
        demo_model(), HOST, demo_work(), plan_of(found, schemes, means={}), 1, lambda done, total: None
    )
    stem = next(layer for layer in found.graph.layers if layer.name == "stem")
    np.testing.assert_array_equal(again.weights["stem", "w8a8"].bias, stem.bias)
    assert not np.array_equal(found.weights["stem", "w8a8"].bias, stem.bias)


def test_a_plan_lacking_a_range_is_refused() -> None:
    found = demo_study()
    schemes = dict.fromkeys(found.candidates, "f32") | {"stem": "w8a8"}
    params: dict[str, QParams] = {name: q for name, q in found.qparams.items() if name != "stem"}
    with pytest.raises(HwqError, match="plan runs layer 'stem' in w8a8 but holds no range of tensor 'stem'") as caught:
        study_of_plan(
            demo_model(), HOST, demo_work(), plan_of(found, schemes, qparams=params), 1, lambda done, total: None
        )
    assert caught.value.code == "plan-ranges"
    floats = plan_of(found, dict.fromkeys(found.candidates, "f32"), qparams={}, means={})
    assert not study_of_plan(demo_model(), HOST, demo_work(), floats, 1, lambda done, total: None).weights


def test_an_edited_layer_is_rounded_to_nearest_in_its_new_scheme() -> None:
    found = demo_study()
    name = anchors(found)[1]
    schemes = dict.fromkeys(found.candidates, "f32") | {name: "w8a8"}
    plan = plan_of(found, schemes, roundings={name: ("w4a8", found.roundings[name, "w4a8"])})
    again = study_of_plan(demo_model(), HOST, demo_work(), plan, 1, lambda done, total: None)
    (layer,) = (layer for layer in found.graph.layers if layer.name == name)
    plain = quantize_layer(layer, "w8a8", found.qparams[layer.inputs[0]])
    np.testing.assert_array_equal(again.weights[name, "w8a8"].values, plain.values)
