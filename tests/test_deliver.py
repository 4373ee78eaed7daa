"""What is delivered: an artifact that gives the kernels' bits, and a report whose sums are sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from demo_study import demo_evaluation, demo_pictures, demo_study, demo_work, random_schemes

from hwq import deliver as module
from hwq import execute, library
from hwq.artifact import Artifact
from hwq.choose import Choice, uniforms
from hwq.deliver import (
    assemble,
    deliver,
    describe,
    explain_choices,
    network_input,
    notes,
    packed_sizes,
    plan_of,
    weight_bytes,
)
from hwq.errors import HwqError
from hwq.evaluate import float_call
from hwq.execute import bind, compile_kernels
from hwq.library import pack
from hwq.plan import Plan
from hwq.study import Study, inputs_of
from hwq.verify import Accuracy


def uniform_plan(study: Study, name: str) -> Plan:
    return plan_of(study, Choice(solution=uniforms(study)[name]))


@pytest.fixture(scope="module")
def study() -> Study:
    return demo_study()


@pytest.fixture(scope="module")
def mixed(study: Study) -> Artifact:
    """float, int8 and int4 layers at random, with conversions between."""
    schemes = random_schemes(study, np.random.default_rng(2))
    plan = replace(uniform_plan(study, "w8a8"), schemes=schemes)
    return deliver(study, demo_work(), plan, demo_evaluation())


def test_artifact_gives_the_bits_of_the_kernels(study: Study, mixed: Artifact) -> None:
    program = study.program(mixed.plan.schemes)
    kernels = compile_kernels([program], study.target, demo_work().cache)
    pictures = demo_pictures()[0][:9]
    expected = float_call(bind(program, kernels), inputs_of(study.graph))(pictures)
    np.testing.assert_array_equal(mixed(pictures), expected)
    assert [name for _, name in mixed.calls] == [step.name for step in program.steps if step.workload is not None]


def test_report_adds_up(study: Study, mixed: Artifact) -> None:
    report = mixed.report
    measured = report["measured"]
    program = study.program(mixed.plan.schemes)
    kernels = compile_kernels([program], study.target, demo_work().cache)
    sizes = packed_sizes(program, pack(program, kernels))
    assert measured["weight_bytes"] == sum(sizes.values())
    assert measured["code_bytes"] == len(mixed.library.code) > 0
    assert measured["library_bytes"] == len(mixed.library.code) + len(mixed.library.constants)
    assert len(mixed.library.constants) >= measured["weight_bytes"]
    assert measured["conversions"] == sum(":" in step.name and "quantize" in step.name for step in program.steps) > 0
    assert [row["name"] for row in report["layers"]] == [layer.name for layer in study.graph.layers]
    assert {row["name"]: row["scheme"] for row in report["layers"]} == mixed.plan.schemes
    in_layers = sum(row["measured_s"] for row in report["layers"])
    assert 0.2 < (in_layers + measured["conversions_s"]) / measured["latency_s"] < 2.0, "layers make up the whole"
    for row in report["layers"]:
        assert row["weight_bytes"] == sizes.get(row["name"], 0)
        assert row["predicted_s"] == study.costs[row["name"], row["scheme"]].latency_s
        assert row["loss"] == study.losses[row["name"], row["scheme"]]
    assert report["calibration_samples"] == study.samples
    assert report["threads"] == 1
    assert "sizes" not in report, "that is for the comparison only"


def test_report_says_how_outputs_compare(mixed: Artifact) -> None:
    pictures, labels = demo_pictures()
    accuracy = mixed.report["measured"]["accuracy"]
    score = float((mixed(pictures).argmax(axis=1) == labels).mean())
    assert accuracy["samples"] == len(pictures)
    assert accuracy["source"] == "evaluate"
    assert accuracy["score"] == score
    assert accuracy["drop"] == pytest.approx(accuracy["float_score"] - score)
    assert mixed.report["measured"]["drop"] == accuracy["drop"]


def test_uniform_prediction_is_what_the_library_holds(study: Study) -> None:
    for name in ("f32", "w8a8", "w4a8"):
        artifact = assemble(study, demo_work(), uniform_plan(study, name))
        assert weight_bytes(artifact) == artifact.plan.weight_bytes


def test_without_evaluation_there_is_no_accuracy(study: Study) -> None:
    report = deliver(study, demo_work(), uniform_plan(study, "f32"), None).report
    assert report["measured"]["drop"] is None
    assert "accuracy" not in report["measured"]


def test_kernels_are_verified_where_that_is_wanted(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def refuse(*args: Any) -> None:
        seen.append(args)
        raise HwqError("kernel-differs", "so it is")

    monkeypatch.setattr(module, "require_equal", refuse)
    assemble(study, demo_work(), uniform_plan(study, "w8a8"))
    assert not seen
    monkeypatch.setattr(module, "verify_wanted", lambda: True)
    with pytest.raises(HwqError, match="so it is"):
        assemble(study, demo_work(), uniform_plan(study, "w8a8"))
    with pytest.raises(HwqError, match="so it is"):  # where a plan alone is built there are no samples
        assemble(replace(study, kept=()), demo_work(), uniform_plan(study, "w8a8"))
    monkeypatch.undo()
    monkeypatch.setattr(module, "verify_wanted", lambda: True)
    assemble(study, demo_work(), uniform_plan(study, "w4a8"))  # which are right


def test_the_library_that_ships_is_held_against_its_kernels(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit of a constant altered on its way into the library changes outputs, and kernels one by one do not see it."""
    plan = uniform_plan(study, "w8a8")
    monkeypatch.setattr(module, "build_library", altered(module.build_library))
    assemble(study, demo_work(), plan)
    monkeypatch.setattr(module, "verify_wanted", lambda: True)
    with pytest.raises(HwqError, match="the library gives other outputs than its kernels one by one") as caught:
        assemble(study, demo_work(), plan)
    assert caught.value.code == "kernel-differs"


def altered(build: Any) -> Any:
    """``build_library`` with the constants back to front."""

    def backwards(*args: Any) -> Any:
        built = build(*args)
        return replace(built, constants=built.constants[::-1])

    return backwards


def test_assembling_schedules_nothing_that_the_study_has(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled: list[Any] = []
    packed: list[str] = []
    kernel_for, pack_one = execute.kernel_for, library.packed_constants
    monkeypatch.setattr(execute, "kernel_for", lambda *args: scheduled.append(args[0]) or kernel_for(*args))
    monkeypatch.setattr(library, "packed_constants", lambda *args: packed.append(args[0].name) or pack_one(*args))
    artifact = assemble(study, demo_work(), uniform_plan(study, "f32"))
    assert scheduled == []
    assert packed == [name for _, name in artifact.calls], "each weight once"
    assemble(study, demo_work(), uniform_plan(study, "w8a8"))
    assert all(one not in study.kernels.kernels for one in scheduled)


def test_a_known_latency_is_not_measured_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = assemble(study, demo_work(), uniform_plan(study, "f32"))
    monkeypatch.setattr(Artifact, "benchmark", lambda *_, **__: pytest.fail("measured"))
    describe(study, artifact, 0.125, None, None)
    assert artifact.report["measured"]["latency_s"] == 0.125


def test_every_layer_has_its_reason(study: Study) -> None:
    schemes = uniforms(study)["w8a8"].schemes
    why = explain_choices(study, schemes)
    assert why.keys() == schemes.keys()
    for name, text in why.items():
        layer = next(layer for layer in study.graph.layers if layer.name == name)
        if layer.op == "reshape":
            assert text == "a view of its input, free in any type"
            continue
        assert text.startswith(f"{schemes[name]}: chosen among f32 ")
        for scheme in study.candidates[name]:
            assert f"{scheme} {study.costs[name, scheme].latency_s * 1e6:.1f} us" in text
        assert ("bytes" in text) == (layer.weight is not None)


def test_reasons_of_layers_without_a_choice(study: Study) -> None:
    only8 = replace(study, candidates=dict.fromkeys(study.candidates, ("w8a8",)))
    assert "w8a8: the only scheme allowed" in explain_choices(only8, dict.fromkeys(study.candidates, "w8a8"))["stem"]
    only32 = replace(study, candidates=dict.fromkeys(study.candidates, ("f32",)))
    assert explain_choices(only32, dict.fromkeys(study.candidates, "f32"))["stem"] == "f32: no other scheme was allowed"
    floats = replace(study.target, compute=tuple(row for row in study.target.compute if row.weight == "float32"))
    text = explain_choices(replace(only32, target=floats), dict.fromkeys(study.candidates, "f32"))["stem"]
    assert text == "f32: host has no integer kernel for conv2d"


def test_a_table_says_why_it_is_in_a_scheme_that_was_not_asked_for(study: Study) -> None:
    layers = tuple(replace(layer, op="gather") if layer.name == "stem" else layer for layer in study.graph.layers)
    tables = replace(study, model=replace(study.model, graph=replace(study.graph, layers=layers)))
    found = {scheme: explain_choices(tables, {**uniforms(study)[scheme].schemes})["stem"] for scheme in ("f32", "w4a8")}
    rows = "rows of int4 are held so, whatever the allowed scheme: a table is only looked up; "
    assert found["w4a8"].startswith(f"w4a8: {rows}chosen among f32 ")
    assert found["f32"].startswith("f32: chosen among f32 ")
    only = replace(tables, candidates={**study.candidates, "stem": ("w4a8",)})
    text = explain_choices(only, uniforms(study)["w4a8"].schemes)["stem"]
    assert text.startswith(f"w4a8: {rows}w4a8 "), "no other scheme is allowed for it, and none was asked for"


def test_notes_warn_of_poor_agreement_and_of_what_stays_float(study: Study) -> None:
    poor = Accuracy(score=None, float_score=None, drop=0.2, agreement=0.8, sqnr_db=(9.0,), samples=10)
    assert notes(study, None) == notes(study, replace(poor, agreement=0.99)) == []
    assert "agrees with float on only 80.0%" in notes(study, poor)[0]
    floats = replace(study, model=replace(study.model, float_ops={"Erf": 2, "LRN": 1}))
    assert notes(floats, None) == ["kept in float, no integer kernel: Erf (2), LRN (1)"]


def test_network_input_is_a_real_sample_where_there_is_one(study: Study) -> None:
    given = network_input(study)
    assert list(given) == list(study.graph.inputs)
    assert all(given[name] is study.kept[0][name] for name in given)
    made = network_input(replace(study, kept=()))
    assert {name: value.shape for name, value in made.items()} == {
        name: shape for name, (shape, _) in inputs_of(study.graph).items()
    }
