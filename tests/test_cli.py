"""The commands on the demo network: what they print, write and hand on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from demo_study import demo_artifact, demo_pictures
from shell_runs import DEMO, Ended, hwq, write_samples
from transformer_networks import Size, decoder

import hwq as face
from hwq.artifact import Artifact
from hwq.cli import main
from hwq.plan import Plan
from hwq.reanchor import TIME_S
from hwq.scheme import Budget
from hwq.target import Target

Capture = pytest.CaptureFixture[str]
PICTURES, LABELS = demo_pictures()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """calibration.npz, evaluation.npz and demo.hwq."""
    path = tmp_path_factory.mktemp("cli")
    write_samples(path)
    demo_artifact().save(path / "demo.hwq")
    return path


@pytest.fixture
def job(folder: Path) -> list[str]:
    """MODEL and options of a short compile."""
    options = ["--calib", str(folder / "calibration.npz"), "--threads", "1", "--no-measure"]
    return [DEMO, *options]


def as_json(report: dict[str, Any]) -> Any:
    """The report as it is printed: an SQNR of equal outputs is infinite, which JSON cannot hold."""
    return json.loads(json.dumps(report), parse_constant=lambda _: None)


def stages_of(ended: Ended) -> list[str]:
    return re.findall(r"^(.*): done in", ended.err, re.MULTILINE)


# compile and plan


def test_compile_writes_an_artifact_and_prints_its_report(
    capsys: Capture, job: list[str], folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.hwq"
    evaluation = ["--eval", folder / "evaluation.npz", "--max-drop", "2%", "--schemes", "w8a8, f32"]
    ended = hwq(capsys, "compile", *job, *evaluation, "-o", output, "--work-dir", tmp_path / "work", "--json")
    assert ended.status == 0, ended.err
    loaded = Artifact.load(output)
    assert ended.json == {**as_json(loaded.report), "artifact": str(output)}
    assert set(loaded.plan.schemes.values()) <= {"w8a8", "f32"}
    assert loaded.threads == 1
    assert ended.json["budget"] == {"drop": 0.02, "latency_s": None, "weight_bytes": None}
    assert ended.json["measured"]["accuracy"]["samples"] == len(PICTURES)
    assert {"calibrate", "compile", "sensitivity", "build"} <= set(stages_of(ended))
    assert (tmp_path / "work" / "model.json").exists()
    again = hwq(capsys, "compile", *job, "-o", output, "--work-dir", tmp_path / "work", "--schemes", "w8a8,f32")
    assert "calibrate" not in stages_of(again), "kept in the work directory"
    assert "the whole network" in again.out
    assert "block1.conv1" in again.out


def test_compile_goes_token_by_token(capsys: Capture, tmp_path: Path) -> None:
    """With caches of either kind; a kind that there is not is refused before anything is written."""
    size, words = Size(layers=1, width=32, heads=4, inner=64, vocabulary=50, kv_heads=2), np.arange(6)[None]
    onnx.save(decoder(size, 8), str(tmp_path / "m.onnx"))
    job = [tmp_path / "m.onnx", "--schemes", "f32", "--threads", "1", "--no-measure"]
    found = []
    for option in ("--decoder", "--decoder=int8"):
        assert hwq(capsys, "compile", *job, option, "-o", tmp_path / "step.hwq").status == 0
        found.append(Artifact.load(tmp_path / "step.hwq").start()(words))
    assert found[0].shape == (1, 6, 50)
    assert 0 < np.abs(found[0] - found[1]).max() < 0.1
    ended = hwq(capsys, "compile", *job, "--decoder=int9", "-o", tmp_path / "other.hwq")
    assert (ended.status, ended.err) == (1, "error: --decoder is 'int9'; accepted: float32, int8\n")
    assert not (tmp_path / "other.hwq").exists()
    np.savez(tmp_path / "ids.npz", x=words)
    ended = hwq(capsys, "compile", *job, "--decoder", "--calib", tmp_path / "ids.npz", "-o", tmp_path / "other.hwq")
    assert ended.sentence.startswith("--calib is given for 'm', a decoder, ")


def test_a_front_is_printed_and_its_plans_are_written(
    capsys: Capture, job: list[str], folder: Path, tmp_path: Path
) -> None:
    options = ["--eval", folder / "evaluation.npz", "--points", "4", "--schemes", "w8a8,w4a8,f32"]
    ended = hwq(capsys, "explore", *job, *options, "-o", tmp_path / "front", "--json")
    assert ended.status == 0, ended.err
    points = ended.json["points"]
    assert 3 <= len(points) <= 4
    for number, point in enumerate(points, 1):
        path = tmp_path / "front" / f"plan-{number:02d}.json"
        assert point["plan"] == str(path)
        assert Plan.load(path).schemes == point["schemes"]
        assert point["accuracy"]["samples"] == len(PICTURES)
    ended = hwq(capsys, "explore", *job, *options)
    assert "the front" in ended.out
    ended = hwq(capsys, "explore", *job, "--points", "2")
    assert (ended.status, ended.sentence[:11]) == (1, "--points is")


def test_a_plan_is_printed_saved_edited_and_compiled(capsys: Capture, job: list[str], tmp_path: Path) -> None:
    path, output = tmp_path / "plan.json", tmp_path / "out.hwq"
    ended = hwq(capsys, "plan", *job, "-o", path, "--json")
    assert ended.status == 0, ended.err
    assert ended.json == json.loads(path.read_text()) == Plan.load(path).to_dict()
    assert "plan for host, 1 thread" in hwq(capsys, "plan", *job).out
    edited = path.read_text().replace('"classifier": {"scheme": "w8a8"', '"classifier": {"scheme": "f32"')
    edited = re.sub(r'("stem": \{"scheme": )"\w+"', r'\1"w4a8"', edited)
    path.write_text(edited)
    ended = hwq(capsys, "compile", DEMO, "--plan", path, "-o", output, "--json")
    assert ended.status == 0, ended.err
    assert Artifact.load(output).plan.schemes == Plan.load(path).schemes
    assert Artifact.load(output).plan.schemes["stem"] == "w4a8"
    assert Artifact.load(output).threads == 1, "the plan's"


@pytest.mark.parametrize(
    "option",
    [
        *(["--calib", "x.npz"], ["--max-drop", "1%"], ["--max-latency", "1ms"], ["--max-size", "1MB"]),
        *(["--schemes", "f32"], ["--observer", "minmax"], ["--measure"], ["--no-measure"]),
    ],
)
def test_a_plan_settles_what_would_be_chosen(capsys: Capture, option: list[str], tmp_path: Path) -> None:
    ended = hwq(capsys, "compile", DEMO, "--plan", "plan.json", *option, "-o", tmp_path / "out.hwq")
    assert ended.status == 2
    name = option[0].replace("--no-", "--")
    assert ended.err.endswith(f"Error: {name} does not go with --plan, which has it settled.\n")


def test_options_arrive(capsys: Capture, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def compile(model: Any, target: Any, **options: Any) -> Artifact:
        seen.update(options, model=model, target=target)
        return demo_artifact()

    monkeypatch.setattr(face, "compile", compile)
    options = {
        "--target": "x86-generic",
        "--calib": folder / "calibration.npz",
        "--eval": folder / "evaluation.npz",
        "--max-drop": "0.5%",
        "--max-latency": "3ms",
        "--max-size": "4MB",
        "--schemes": " w8a8 ,f32,",
        "--work-dir": tmp_path / "work",
        "--threads": 3,
        "--batch": 4,
        "--shape": "image=4x1x16x16",
        "--observer": "entropy",
        "--sensitivity-time": "90s",
        "-o": tmp_path / "out.hwq",
    }
    ended = hwq(capsys, "compile", DEMO, *(str(part) for pair in options.items() for part in pair), "--measure")
    assert ended.status == 0, ended.err
    assert seen["budget"] == Budget(drop=0.005, latency_s=0.003, weight_bytes=4e6)
    assert seen["model"].batch == 4
    assert seen["target"] == Target.load("x86-generic")
    assert seen["schemes"] == ["w8a8", "f32"]
    assert (seen["threads"], seen["observer"], seen["measure"], seen["trials"]) == (3, "entropy", True, 0)
    assert seen["sensitivity_s"] == 90
    assert seen["work_dir"] == str(tmp_path / "work")
    (name,) = seen["calibration"]
    np.testing.assert_array_equal(seen["evaluate"][0][name], PICTURES)
    np.testing.assert_array_equal(seen["evaluate"][1], LABELS)
    hwq(capsys, "compile", DEMO, "--schemes", "f32", "-o", tmp_path / "out.hwq")
    assert seen["target"] == Target.load("host")
    assert (seen["budget"], seen["calibration"], seen["evaluate"], seen["threads"]) == (None,) * 4
    assert seen["measure"] is None
    assert seen["sensitivity_s"] == TIME_S


def test_demo_is_the_main_job(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def compile(model: Any, target: Any, **options: Any) -> Artifact:
        seen.update(options, model=model, target=target)
        return demo_artifact()

    monkeypatch.setattr(face, "compile", compile)
    ended = hwq(capsys, "demo", "-o", tmp_path / "demo.hwq", "--threads", "1")
    assert ended.status == 0, ended.err
    assert "block4.depthwise" in ended.out
    assert Artifact.load(tmp_path / "demo.hwq").plan == demo_artifact().plan
    assert (len(seen["calibration"]), len(seen["evaluate"][1]), seen["threads"]) == (128, 500, 1)
    assert hwq(capsys, "demo", "--json").json["model"] == "digits"


# run, bench and explain


def test_run_gives_the_outputs_and_the_accuracy(capsys: Capture, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    ended = hwq(capsys, "run", folder / "demo.hwq", folder / "evaluation.npz", "-o", output, "--json")
    expected = demo_artifact()(PICTURES)
    (name,) = demo_artifact().outputs
    assert ended.json == {"outputs": {name: [60, 10]}, "top1": float((expected.argmax(axis=1) == LABELS).mean())}
    with np.load(output) as pack:
        np.testing.assert_array_equal(pack[name], expected)
    ended = hwq(capsys, "run", folder / "demo.hwq", folder / "calibration.npz", "--threads", "2")
    assert ended.out == f"{name}: float32 (16, 10)\n", "no labels, no accuracy"
    assert "top-1 accuracy: " in hwq(capsys, "run", folder / "demo.hwq", folder / "evaluation.npz").out


def test_bench_says_seconds(capsys: Capture, folder: Path) -> None:
    ended = hwq(capsys, "bench", folder / "demo.hwq", "--runs", "7", "--json")
    assert ended.json["runs"] == 7
    assert 0 < ended.json["min_s"] <= ended.json["median_s"] < 1
    options = ["--runs", "3", "--input", folder / "calibration.npz", "--threads", "2"]
    ended = hwq(capsys, "bench", folder / "demo.hwq", *options)
    assert re.fullmatch(r"median .* [mu]s, least .* [mu]s, 3 calls, 2 threads\n", ended.out)


def test_explain_says_why(capsys: Capture, folder: Path) -> None:
    assert hwq(capsys, "explain", folder / "demo.hwq", "--json").json == as_json(demo_artifact().report)
    one = hwq(capsys, "explain", folder / "demo.hwq", "--layer", "stem", "--layer", "pool", "--json").json
    assert [row["name"] for row in one["layers"]] == ["stem", "pool"]
    ended = hwq(capsys, "explain", folder / "demo.hwq")
    assert "the whole network" in ended.out
    assert "chosen among" in ended.out
    ended = hwq(capsys, "explain", folder / "demo.hwq", "--layer", "stemm")
    assert ended.status == 1
    assert ended.sentence.startswith("layer 'stemm' is not in ")
    assert "accepted: " in ended.sentence


def test_explain_writes_a_page(capsys: Capture, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    ended = hwq(capsys, "explain", folder / "demo.hwq", "--layer", "stem", "--html", page)
    assert ended.status == 0, ended.err
    assert "stem (conv2d)" in ended.out
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "classifier" in text, "all of the report, whichever layers are printed"
    ended = hwq(capsys, "explain", folder / "demo.hwq", "--html", tmp_path / "no" / "page.html")
    assert (ended.status, ended.sentence[:12]) == (1, "cannot write")


# targets


def test_targets_are_listed_and_described(capsys: Capture) -> None:
    listed = hwq(capsys, "targets", "--json").json
    assert listed["host"]["builds"] is True
    assert listed["cuda-t4"]["builds"] is False
    assert all(name in hwq(capsys, "targets").out for name in listed)
    for name in listed:
        assert hwq(capsys, "targets", name, "--json").json["name"] == name
    assert "avx2.vpmaddwd" in hwq(capsys, "targets", "x86-avx2").out


def test_a_target_file_is_checked(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[target]\nname = 7\n")
    ended = hwq(capsys, "targets", tmp_path / "mine.toml", "--json")
    assert ended.status == 1
    assert ended.json["error"]["code"] == "target-invalid"


def test_probe_writes_a_target_file(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hwq.probe.probe", lambda target, name, progress: f'# {target.name}\nname = "{name}"\n')
    ended = hwq(capsys, "targets", "probe", "-o", tmp_path / "mine.toml")
    assert ended.status == 0, ended.err
    assert (tmp_path / "mine.toml").read_text() == '# host\nname = "mine"\n'
    assert hwq(capsys, "targets", "probe").out == '# host\nname = "measured"\n\n'
    assert hwq(capsys, "targets", "probe", "--json").json == {"toml": '# host\nname = "measured"\n'}
    assert hwq(capsys, "targets", "host", "-o", tmp_path / "x").status == 2


# Help


def test_every_command_has_help(capsys: Capture) -> None:
    ended = hwq(capsys, "--help")
    names = re.findall(r"^  (\w+) +\w", ended.out.split("Commands:")[1], re.MULTILINE)
    plain = ["demo", "compile", "plan", "explore", "run", "bench", "explain", "targets", "tune"]
    groups = {name: list(main.commands[name].commands) for name in ("store", "lab")}
    assert sorted(names) == sorted([*plain, *groups])
    assert groups["store"] == ["list", "export", "import", "merge"]
    for command in [*([name] for name in plain), *([group, name] for group, names in groups.items() for name in names)]:
        ended = hwq(capsys, *command, "--help")
        assert ended.status == 0
        assert "--json" in ended.out or command[1:] in (["tracker"], ["serve"]), "those two run until they are ended"
        assert max(map(len, ended.out.splitlines())) <= 80
    assert re.match(r"hwq, version \S+", hwq(capsys, "--version").out)
    assert hwq(capsys, "nothing").status == 2


def test_debug_lines_are_hwq_s_own(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    monkeypatch.setenv("HWQ_DEBUG", "1")
    logger = logging.getLogger("hwq")
    monkeypatch.setattr(logger, "level", logger.level)
    hwq(capsys, "targets", "x86-avx2")
    assert logger.level == logging.DEBUG
    assert logging.getLogger().level > logging.DEBUG
