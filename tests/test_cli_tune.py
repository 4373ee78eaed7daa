"""``hwq tune``: what it prints and how it ends, with a made-up timer."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from made_up_trials import candidates_of, kernel_of, timer
from shell_runs import DEMO, hwq

from hwq import job, rounds, store
from hwq.cli_tune import line_of
from hwq.errors import HwqError
from hwq.tune import Standing, tune

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of 16 trials; nothing of it is measured."""
    made_up(monkeypatch, timer())
    monkeypatch.setattr(job, "default_store_path", lambda: tmp_path / "records.sqlite")
    monkeypatch.setattr(
        rounds, "kernel_for", lambda workload, target, func, decision: kernel_of(workload, decision, target)
    )
    path = tmp_path / "job.toml"
    path.write_text(
        f'trials = 16\n[[model]]\npath = "{DEMO}"\nschemes = ["f32"]\n[[target]]\nname = "host"\nthreads = 1\n'
    )
    return path


def made_up(monkeypatch: pytest.MonkeyPatch, try_them: Any) -> None:
    def dense_only(workload: Any, *rest: Any) -> Any:
        return candidates_of(workload, *rest) if workload.op == "dense" else []

    def quick(*given: Any, **options: Any) -> Any:
        return tune(*given, **{**options, "try_them": try_them, "candidates_of": dense_only})

    monkeypatch.setattr(job, "tune", quick)


def test_a_job_prints_its_progress_and_its_outcome(capsys: Capture, job_file: Path) -> None:
    ended = hwq(capsys, "tune", job_file)
    assert ended.status == 0, ended.err
    assert "defaults of 1 of" in ended.err
    assert re.search(r"^tune host: 1 task, 16 of 16 trials, 0\.0 s left, 0\.\d+ of 1 ms won$", ended.err, re.M)
    assert "16 trials of 1 task" in ended.out
    assert re.search(r"1 of \d+ kernels can be tuned; 1 ms by default, 0\.\d+ ms tuned", ended.out)
    assert re.search(r"1000\.0 -> \d+\.\d us, 1 call, 16 trials", ended.out)


def test_its_report_is_one_json_object(capsys: Capture, job_file: Path) -> None:
    ended = hwq(capsys, "tune", job_file, "--json")
    (found,) = ended.json["targets"]
    assert (found["target"], found["threads"], found["kept"]) == ("host", 1, True)
    standing = found["standing"]
    assert (standing["trials"], standing["total"], standing["tasks"], standing["left_s"]) == (16, 16, 1, 0)
    assert standing["won_s"] > 0
    told = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    assert [row["trials"] for row in told if row["measured"] == 1][-3:] == [0, 8, 16]
    assert {row.pop("target") for row in told} == {"host"}
    assert {**told[-1], "left_s": 0} == standing


def test_kernels_that_were_not_reached_are_not_called_settled(
    capsys: Capture, job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_file.write_text(job_file.read_text().replace("trials = 16", "hours = 1"))
    monkeypatch.setattr(job._Clock, "spent_s", lambda clock: 3600.0)
    ended = hwq(capsys, "tune", job_file)
    assert re.search(r"0 of \d+ kernels can be tuned, \d+ were not reached in the time", ended.out)


def test_ctrl_c_keeps_what_was_found(
    capsys: Capture, job_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def pressed(trials: Any, *given: Any, **options: Any) -> Any:
        if store.contents(tmp_path / "records.sqlite").trials:
            signal.raise_signal(signal.SIGINT)
        return timer()(trials, *given, **options)

    made_up(monkeypatch, pressed)
    ended = hwq(capsys, "tune", job_file, "--json")
    assert (ended.status, ended.json["error"]["code"]) == (130, "interrupted")
    assert "the same command goes on from there" in ended.err
    assert len(store.contents(tmp_path / "records.sqlite").trials) == 8
    report = json.loads((tmp_path / "job.work" / "report.json").read_text())
    assert report["error"] == {"code": "interrupted", "message": "interrupted"}
    assert [one["standing"]["trials"] for one in report["unfinished"]] == [8]
    made_up(monkeypatch, timer())
    assert hwq(capsys, "tune", job_file, "--json").json["targets"][0]["standing"]["trials"] == 16


def test_what_goes_wrong_is_one_sentence(capsys: Capture, job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*given: Any, **options: Any) -> Any:
        raise HwqError("device-lost", "no board answered")

    made_up(monkeypatch, gone)
    ended = hwq(capsys, "tune", job_file)
    assert (ended.status, ended.sentence) == (1, "no board answered")
    job_file.write_text("trials = 0")
    ended = hwq(capsys, "tune", job_file)
    assert ended.sentence == f"job file {job_file}: trials is 0; accepted: a whole number of at least 1"


def test_a_line_without_an_end_in_sight() -> None:
    standing = Standing(tasks=3, measured=3, trials=8, total=None, left_s=None, won_s=1e-3, whole_s=1e-2)
    assert line_of("host", standing) == "tune host: 3 tasks, 8 trials, 1 of 10 ms won"
