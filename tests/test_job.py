"""Jobs on the demo network with a made-up timer: what is tuned, what counts, what is noted and told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from demo_study import demo_model, demo_study
from made_up_trials import DEFAULT_S, HOST, candidates_of, kernel_of, timer
from shell_runs import DEMO, write_samples

from hwq import device, job, rounds, store
from hwq.errors import HwqError
from hwq.job import MADE_UP, run_job
from hwq.job_file import Job, JobModel, JobTarget
from hwq.progress import silent
from hwq.target import Target
from hwq.tune import Standing

MODEL = JobModel(path=Path(DEMO), schemes=("w8a8",))
HERE = JobTarget(name="host", threads=1)


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test has a store of its own, and a made-up space."""
    monkeypatch.setattr(job, "default_store_path", lambda: tmp_path / "records.sqlite")
    monkeypatch.setattr(
        rounds, "kernel_for", lambda workload, target, func, decision: kernel_of(workload, decision, target)
    )


def given(folder: Path, **fields: Any) -> Job:
    values = {"models": (MODEL,), "targets": (HERE,), "trials": 24, "hours": None} | fields
    return Job(path=folder / "job.toml", work_dir=folder / "work", **values)


def done(todo: Job, **options: Any) -> dict[str, Any]:
    return run_job(todo, **({"try_them": timer(), "candidates_of": convolutions_only} | options))


def convolutions_only(workload: Any, *rest: Any) -> Any:
    """Candidates for convolutions."""
    return candidates_of(workload, *rest) if workload.op == "conv2d" else []


def test_the_kernels_of_a_network_are_tuned_and_told_of(tmp_path: Path) -> None:
    told: list[tuple[str, Standing]] = []
    report = done(given(tmp_path), tell=lambda name, standing: told.append((name, standing)))
    (found,) = report["targets"]
    keys = {row.key.workload for row in store.trials(tmp_path / "records.sqlite", HOST, store.tool_versions())}
    assert found["standing"]["trials"] == 24 == told[-1][1].trials
    assert {name for name, _ in told} == {"host"}
    assert keys <= {task["workload"] for task in found["tasks"]}
    (network,) = found["networks"]
    assert (network["model"], network["scheme"]) == (DEMO, "w8a8")
    counted = sum(task["count"] for task in found["tasks"])
    assert network["tuned"] == counted < network["kernels"]
    assert network["default_s"] == pytest.approx(counted * DEFAULT_S)
    assert network["default_s"] - network["best_s"] == pytest.approx(found["standing"]["won_s"])
    assert found["standing"]["won_s"] > 0
    assert json.loads((tmp_path / "work" / "report.json").read_text()) == json.loads(json.dumps(report))


def test_made_up_ranges_give_the_kernels_that_a_compile_needs(tmp_path: Path) -> None:
    study = demo_study()
    schemes = {name: "w8a8" if "w8a8" in names else names[-1] for name, names in study.candidates.items()}
    todo = given(tmp_path)
    network = job._Network(given=MODEL, model=demo_model(), ranges=job._ranges(MODEL, demo_model(), todo, silent))
    ((_, scheme, program),) = job._programs([network], HOST, 1)
    needed, found = ([step.workload for step in one.steps] for one in (study.program(schemes), program))
    assert (scheme, found) == ("w8a8", needed)


def test_ranges_are_those_of_samples_where_there_are_any(tmp_path: Path) -> None:
    todo = given(tmp_path)
    made_up = job._ranges(MODEL, demo_model(), todo, silent)
    assert set(made_up.values()) == {MADE_UP}
    calibration, _ = write_samples(tmp_path)
    found = job._ranges(replace(MODEL, calibration=calibration), demo_model(), todo, silent)
    assert found.keys() == made_up.keys()
    assert all(found[name] == one for name, one in demo_study().qparams.items())


def test_a_job_is_done_once(tmp_path: Path) -> None:
    first = done(given(tmp_path))
    seen: list[tuple[str, tuple[str, ...]]] = []
    again = done(given(tmp_path), try_them=timer(seen=seen))
    assert seen == []
    assert again["targets"][0]["tasks"] == first["targets"][0]["tasks"]


def test_hours_are_those_of_all_calls(tmp_path: Path) -> None:
    todo = given(tmp_path, trials=None, hours=1.0)
    (found,) = done(todo)["targets"]
    assert found["standing"]["trials"] > 0
    notes = tmp_path / "work" / "spent.json"
    noted = json.loads(notes.read_text())
    (name,) = noted
    assert 0 < noted[name] < 3600
    notes.write_text(json.dumps({name: 3600.0}))
    store_before = store.contents(tmp_path / "records.sqlite")
    (late,) = done(todo)["targets"]
    assert store.contents(tmp_path / "records.sqlite") == store_before
    assert found["networks"][0]["unreached"] == late["networks"][0]["tuned"] == 0
    assert late["networks"][0]["unreached"] == found["networks"][0]["tuned"] > 0
    notes.write_text("damaged")
    (found,) = done(todo)["targets"]
    assert found["standing"]["measured"] > 0


def test_targets_of_one_machine_have_hours_of_their_own(tmp_path: Path) -> None:
    todo = given(tmp_path, trials=16, hours=1.0, targets=(HERE, replace(HERE, threads=2)))
    done(todo)
    notes = tmp_path / "work" / "spent.json"
    first, second = json.loads(notes.read_text())
    notes.write_text(json.dumps({first: 3600.0}))
    (tmp_path / "records.sqlite").unlink()
    found = done(todo)["targets"]
    assert [one["standing"]["trials"] for one in found] == [0, 16]
    assert json.loads(notes.read_text()).keys() == {first, second}


def test_a_report_is_written_of_what_ends_badly_too(tmp_path: Path) -> None:
    calls: list[int] = []

    def breaks(*trials: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise HwqError("device-lost", "no board answered")
        return timer()(*trials, **options)

    todo = given(tmp_path)
    with pytest.raises(HwqError, match="no board answered"):
        done(todo, try_them=breaks)
    report = json.loads((tmp_path / "work" / "report.json").read_text())
    assert report["error"] == {"code": "device-lost", "message": "no board answered"}
    assert report["targets"] == []
    (unfinished,) = report["unfinished"]
    assert unfinished["target"] == "host"
    assert unfinished["standing"]["measured"] > 0
    report = done(todo)
    assert (report["error"], report["unfinished"]) == (None, [])


def test_priorities_weigh_networks(tmp_path: Path) -> None:
    models = (replace(MODEL, priority=3.0), replace(MODEL, schemes=("f32",)))
    (found,) = done(given(tmp_path, models=models))["targets"]
    weights = {json.loads(task["workload"])["scheme"]: task["weight"] / task["count"] for task in found["tasks"]}
    assert weights == {"w8a8": 3.0, "f32": 1.0}


def test_schemes_left_out_are_all_that_the_target_has() -> None:
    assert job._schemes(replace(MODEL, schemes=None), HOST) == HOST.schemes


def test_a_scheme_that_the_target_lacks_is_refused_before_any_work(tmp_path: Path) -> None:
    todo = given(tmp_path, models=(replace(MODEL, schemes=("bf16",)),), targets=(JobTarget(name="x86-generic"),))
    with pytest.raises(HwqError, match=r"job\.toml: model 1: digits\.onnx asks for 'bf16'") as caught:
        done(todo)
    assert caught.value.code == "scheme-not-here"
    assert not (tmp_path / "work").exists()


def test_a_local_target_that_this_cpu_cannot_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwq.cpu.cpu_flags", lambda: frozenset())
    todo = given(tmp_path, targets=(JobTarget(name="x86-avx2", devices=("local",)),))
    with pytest.raises(HwqError, match=r"target 1: x86-avx2 needs .*avx2, .* which this CPU lacks") as caught:
        done(todo)
    assert caught.value.code == "target-not-here"


def test_devices_that_are_different_machines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(target: Target) -> Target:
        return replace(target, cpu_model=f"CPU of {target.device}")

    monkeypatch.setattr(device, "resolved", resolved)
    todo = given(tmp_path, targets=(JobTarget(name="x86-avx2", devices=("a", "b")),))
    with pytest.raises(
        HwqError, match="target 1: devices of x86-avx2 are different machines: a is 'CPU of a', b is 'CPU of b'"
    ) as caught:
        done(todo)
    assert caught.value.code == "job-invalid"


def test_devices_that_do_not_answer_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def resolved(target: Target) -> Target:
        if target.device in silent_ones:
            raise HwqError("device-lost", f"board {target.device} does not answer")
        return target

    silent_ones = {"a"}
    monkeypatch.setattr(device, "resolved", resolved)
    todo = given(tmp_path, targets=(replace(HERE, devices=("a", "b")),))
    (found,) = done(todo)["targets"]
    assert (found["devices"], found["standing"]["trials"]) == (["b"], 24)
    said = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert said == ["device a of target host is left out: board a does not answer"]
    silent_ones.add("b")
    with pytest.raises(HwqError, match=r"job\.toml: target 1: board a does not answer") as caught:
        done(todo)
    assert caught.value.code == "device-lost"


@pytest.mark.parametrize(("field", "code"), [("path", "model-missing"), ("calibration", "samples-missing")])
def test_a_file_that_is_not_there_is_said_before_any_work(field: str, code: str, tmp_path: Path) -> None:
    missing = replace(MODEL, **{field: tmp_path / "none"})
    with pytest.raises(HwqError, match=r"job\.toml: model 2: .*none' is no file") as caught:
        done(given(tmp_path, models=(MODEL, missing)))
    assert caught.value.code == code
    assert not (tmp_path / "work").exists()


def test_a_job_on_an_emulator_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "resolved", lambda target: replace(target, cpu_model="emulated thing"))
    (found,) = done(given(tmp_path, trials=8, targets=(replace(HERE, devices=("board",)),)))["targets"]
    assert (found["kept"], found["standing"]["trials"]) == (False, 8)
    assert not (tmp_path / "records.sqlite").exists()
