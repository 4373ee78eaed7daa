"""A target that this CPU cannot run: found out here, priced by predictions, built, looked at, and said to be so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from demo_study import CALIBRATION, SCHEMES, demo_artifact, demo_model, demo_pictures, demo_study

import hwq
from hwq import cli, device
from hwq.artifact import Artifact
from hwq.cpu import cpu_flags
from hwq.demo import load_demo
from hwq.errors import HwqError
from hwq.study import machine_for_samples
from hwq.target import Target

LACKING = "flag_no_cpu_has"
# Code that every CPU that runs these tests can run, of a machine that they do not have: what comes out can be checked.
AVX2 = Target.load("x86-avx2")
FUTURE = replace(AVX2, name="future", cpu_flags=(*AVX2.cpu_flags, LACKING))
CALIB = load_demo()[1][:CALIBRATION]


@pytest.fixture(scope="module")
def made() -> Artifact:
    """Under a budget of drop, with two schemes so that little is built."""
    return hwq.compile(
        demo_model(),
        FUTURE,
        calibration=CALIB,
        evaluate=demo_pictures(),
        budget=hwq.Budget(drop=0.02),
        schemes=["f32", "w8a8"],
        threads=1,
        sensitivity_s=0,
    )


def runnable(artifact: Artifact) -> Artifact:
    """The same library, said to need what it needs."""
    return replace(artifact, target=AVX2).on("local")


def test_samples_run_on_a_machine_that_can() -> None:
    assert machine_for_samples(AVX2) is AVX2
    for foreign in (FUTURE, Target.load("arm-cortex-a76")):
        assert machine_for_samples(foreign) == Target.load("host")


def test_what_is_built_is_right(made: Artifact) -> None:
    """Its accuracy was found by other kernels; its own give the same integers, so the same outputs."""
    x = demo_pictures()[0]
    here = hwq.build(demo_model(), made.plan, "host", threads=1)
    assert set(made.plan.schemes.values()) >= {"w8a8"}
    np.testing.assert_array_equal(runnable(made)(x).argmax(1), here(x).argmax(1))
    top1 = float((runnable(made)(x).argmax(1) == demo_pictures()[1]).mean())
    assert made.report["measured"]["accuracy"]["score"] == top1
    assert made.report["measured"]["drop"] <= 0.02


def test_nothing_is_said_to_be_measured_that_is_not(made: Artifact) -> None:
    assert LACKING not in cpu_flags()
    report = made.report
    assert report["measured"]["latency_s"] is None
    assert report["measured"]["conversions_s"] is None
    assert {row["measured_s"] for row in report["layers"]} == {None}
    assert {row["price_source"] for row in report["layers"] if row["predicted_s"]} == {"learned"}, "it is an x86"
    assert all(one["latency_s"] is None for one in report["alternatives"].values())
    assert report["fit"] is None
    certificate = report["certificate"]
    assert (certificate["latency_s"]["measured"], certificate["latency_s"]["inside"]) == (None, None)
    assert certificate["layers"]["count"] == 0
    assert report["predicted"]["latency_s"] > 0
    assert "by predictions" in report["verdict"]
    notes = " ".join(report["notes"])
    assert "not measured, only predicted: this CPU cannot run code for future" in notes
    assert "accuracy is that of the same plan on this machine" in notes


def test_it_can_be_looked_at_and_not_run(made: Artifact, tmp_path: Any) -> None:
    made.save(tmp_path / "future.hwq")
    loaded = Artifact.load(tmp_path / "future.hwq")
    assert loaded.placed is None
    assert loaded.to_bytes() == made.to_bytes()
    np.savez(tmp_path / "x.npz", x=demo_pictures()[0][:2])
    run = CliRunner().invoke
    shown = run(cli.main, ["explain", str(tmp_path / "future.hwq"), "--html", str(tmp_path / "page.html")])
    assert shown.exit_code == 0
    assert "not measured" in shown.output
    assert "not measured" in (tmp_path / "page.html").read_text()
    for command in (["bench"], ["run", str(tmp_path / "x.npz")]):
        refused = run(cli.main, [command[0], str(tmp_path / "future.hwq"), *command[1:], "--json"])
        assert refused.exit_code == 1
        assert "cpu-lacks" in refused.output
        assert "--device" in refused.output


def test_losses_are_those_of_the_machine_that_runs_the_samples() -> None:
    """A plan for the foreign machine and one for this: the same ranges, the same losses."""
    options: dict[str, Any] = {"calibration": CALIB, "schemes": SCHEMES, "threads": 1, "sensitivity_s": 0}
    plan = hwq.plan(demo_model(), FUTURE, **options)
    study = demo_study()
    assert plan.target == "future (a file)"
    assert plan.qparams == study.qparams
    for layer, scheme in plan.schemes.items():
        assert plan.layers[layer][1] == study.losses[layer, scheme]


def test_a_latency_is_held_against_predictions(made: Artifact) -> None:
    options: dict[str, Any] = {"calibration": CALIB, "schemes": ["f32", "w8a8"], "threads": 1, "sensitivity_s": 0}
    front = hwq.explore(demo_model(), FUTURE, points=3, **options)
    middle_s = (front[0].latency_s + front[-1].latency_s) / 2
    artifact = hwq.compile(demo_model(), FUTURE, budget=hwq.Budget(latency_s=middle_s), **options)
    assert artifact.report["predicted"]["latency_s"] <= middle_s
    assert artifact.report["measured"]["latency_s"] is None
    with pytest.raises(HwqError) as caught:
        hwq.compile(demo_model(), FUTURE, budget=hwq.Budget(latency_s=1e-9), **options)
    assert caught.value.code == "budget-impossible"
    assert "measured" not in caught.value.message


def test_a_board_runs_and_times_what_the_shell_gives_it(near_name: str, tmp_path: Any) -> None:
    demo_artifact().save(tmp_path / "demo.hwq")
    np.savez(tmp_path / "x.npz", x=demo_pictures()[0][:3], labels=demo_pictures()[1][:3])
    run = CliRunner().invoke
    command = ["run", f"{tmp_path}/demo.hwq", f"{tmp_path}/x.npz", "-o", f"{tmp_path}/y.npz", "--device", near_name]
    assert run(cli.main, command).exit_code == 0
    (outputs,) = np.load(tmp_path / "y.npz").values()
    np.testing.assert_array_equal(outputs, demo_artifact()(demo_pictures()[0][:3]))
    timed = run(cli.main, ["bench", f"{tmp_path}/demo.hwq", "--runs", "5", "--device", near_name, "--json"])
    assert 0 < json.loads(timed.stdout)["median_s"] < 0.1
    assert json.loads(timed.stdout)["emulated"] is False
    for command in (["compile", str(load_demo()[0]), "-o", f"{tmp_path}/out.hwq"], ["plan", str(load_demo()[0])]):
        wrong = run(cli.main, [*command, "--schemes", "f32", "--device", near_name.replace("near", "nobody"), "--json"])
        assert wrong.exit_code == 1
        assert "device-missing" in wrong.stdout


def test_measuring_what_cannot_run_is_refused() -> None:
    with pytest.raises(HwqError, match=f"this CPU lacks {LACKING}.*--device") as caught:
        hwq.compile(demo_model(), FUTURE, calibration=CALIB, measure=True)
    assert caught.value.code == "target-not-here"


def test_schemes_that_only_the_target_has_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 is no integer: what it loses cannot be found where nothing computes it. Its plans can be built, unjudged."""
    target = replace(Target.load("x86-avx512-bf16"), name="future", cpu_flags=(LACKING,))
    monkeypatch.setattr("hwq.study.host", lambda: Target.load("x86-avx2"))
    options: dict[str, Any] = {"threads": 1, "sensitivity_s": 0}
    artifact = hwq.compile(demo_model(), target, calibration=CALIB, schemes=["f32", "bf16"], **options)
    assert set(artifact.plan.schemes.values()) == {"f32"}
    assert any(note.startswith("left out: bf16, which future has") for note in artifact.report["notes"])
    mixed = {name: "bf16" if name == "stem" else scheme for name, scheme in artifact.plan.schemes.items()}
    plan = replace(artifact.plan, schemes=mixed)
    assert hwq.build(demo_model(), plan, target).plan.schemes["stem"] == "bf16"
    with pytest.raises(HwqError, match="layers in bf16, which this CPU has no instruction for") as caught:
        hwq.build(demo_model(), plan, target, evaluate=demo_pictures())
    assert caught.value.code == "scheme-not-here"


def test_a_board_that_is_no_emulator_measures(near_name: str) -> None:
    """A network built and timed on a board; prices are the board's records."""
    artifact = hwq.compile(
        demo_model(), AVX2.on(near_name), calibration=CALIB, schemes=["w8a8"], threads=1, sensitivity_s=0
    )
    assert artifact.placed is not None
    assert artifact.placed.remote
    report = artifact.report
    assert report["device"] == near_name
    assert report["measured"]["latency_s"] > 0
    assert {row["price_source"] for row in report["layers"]} == {"measured"}
    assert report["notes"] == []
    x = demo_pictures()[0][:4]
    expected = hwq.build(demo_model(), replace(artifact.plan, target="x86-avx2"), threads=1)(x)
    np.testing.assert_array_equal(artifact(x), expected)
    artifact.close()


def test_a_board_is_free_again_after_a_budget_that_cannot_be_met(near_name: str) -> None:
    """While the error is kept, and all that it refers to; the board is there for the next."""
    options: dict[str, Any] = {"calibration": CALIB, "schemes": ["w8a8"], "threads": 1, "sensitivity_s": 0}
    with pytest.raises(HwqError) as caught:
        hwq.compile(demo_model(), AVX2.on(near_name), budget=hwq.Budget(latency_s=1e-9), **options)
    assert caught.value.code == "budget-impossible"
    assert "measured on the fastest" in caught.value.message
    device.close(device.connect(near_name))


def test_a_board_is_free_again_after_a_build_that_fails(near_name: str) -> None:
    def wrong(run: Any) -> float:
        raise ValueError("no score")

    plan = hwq.build(demo_model(), demo_artifact().plan).plan
    with pytest.raises(Exception, match="no score"):
        hwq.build(demo_model(), replace(plan, target="x86-avx2"), AVX2.on(near_name), evaluate=wrong)
    device.close(device.connect(near_name))
