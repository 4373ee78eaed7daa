"""Ctrl-C at any stage: 130 and one sentence, no half file, no process left; the same call goes on from there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_nets
import pytest
from onnx_nets import node, weights
from shell_runs import DEMO, write_samples

import hwq
from hwq.artifact import Artifact
from hwq.cache import default_cache_dir, default_store_path
from hwq.measure import PASSES
from hwq.progress import Callback
from hwq.store import everything

# Where each stage is interrupted: in its first step, or at its end where it tells of none.
STAGES = {
    **dict.fromkeys(("compile float", "calibrate", "quantize", "compile", "sensitivity", "measure"), "step"),
    **dict.fromkeys(("evaluate float", "assign", "build"), "end"),
    **dict.fromkeys(("compare", "verify"), "step"),
}
KEPT = "interrupted: what was finished is kept, and the same command goes on from there"


@dataclass(kw_only=True)
class Watch:
    """Progress that keeps what stages report, and presses Ctrl-C once: at a moment of a stage, at this step of it."""

    stage: str = ""
    moment: str = ""
    at: int = 1
    steps: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[Callback]:
        reported = self.steps.setdefault(name, [])

        def step(done: int, total: int) -> None:
            reported.append((done, total))
            if (name, self.moment) == (self.stage, "step") and len(reported) == self.at:
                raise KeyboardInterrupt

        yield step
        if (name, self.moment) == (self.stage, "end"):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def model() -> hwq.Model:
    """Five layers: what is compiled, calibrated and measured takes a moment only."""
    consts = {"w1": weights(8, 3, 3, 3), "w2": weights(8, 8, 3, 3, seed=2), "w3": weights(6, 8, seed=3)}
    nodes = [
        node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w2"], ["c"], name="second", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["c"], ["d"]),
        node("Flatten", ["d"], ["e"]),
        node("Gemm", ["e", "w3"], ["y"], name="third", transB=1),
    ]
    return hwq.load(onnx_nets.network(nodes, x=("N", 3, 8, 8), consts=consts))


SAMPLES = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)
LABELS = np.arange(6)


def compiled(model: hwq.Model, work: Path, watch: Watch, **options: Any) -> Artifact:
    given = {"calibration": SAMPLES, "evaluate": (SAMPLES, LABELS), "threads": 1, "schemes": ["w8a8", "w4a8", "f32"]}
    return hwq.compile(model, **{**given, **options}, work_dir=work, progress=watch)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: hwq.Model) -> Path:
    """A cache of its own, which holds the kernels and no records."""
    shared = default_cache_dir() / "objects"
    if not (shared / "of-test-interrupts").exists():
        compiled(model, tmp_path / "first", Watch())
        (shared / "of-test-interrupts").write_text("")
    mine = tmp_path / "cache"
    mine.mkdir()
    (mine / "objects").symlink_to(shared)
    monkeypatch.setenv("HWQ_CACHE", str(mine))
    return mine


def half_files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.suffix == ".part"]


def test_the_same_call_goes_on_from_every_stage(model: hwq.Model, cache: Path, tmp_path: Path) -> None:
    """Interrupted in one stage after the other, it still ends the same."""
    work, whole = tmp_path / "work", compiled(model, tmp_path / "whole", Watch())
    default_store_path().unlink()
    for stage, moment in STAGES.items():
        with pytest.raises(KeyboardInterrupt):
            compiled(model, work, Watch(stage=stage, moment=moment))
    assert half_files(work, cache) == []
    watch = Watch()
    again = compiled(model, work, watch)
    assert "calibrate" not in watch.steps
    assert watch.steps["sensitivity"] == []
    assert watch.steps["measure"] == []
    assert again.plan.qparams == whole.plan.qparams
    assert again.plan.why.keys() == whole.plan.why.keys()
    np.testing.assert_array_equal(again(SAMPLES), hwq.build(model, again.plan)(SAMPLES))


def interrupted(model: hwq.Model, work: Path, stage: str, at: int) -> None:
    watch = Watch(stage=stage, moment="step", at=at)
    with pytest.raises(KeyboardInterrupt):
        compiled(model, work, watch)
    assert len(watch.steps[stage]) == at


# What was found is not found again


def test_kernels_that_were_compiled_stay(model: hwq.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWQ_CACHE", str(tmp_path / "cache"))
    interrupted(model, tmp_path / "work", "compile float", 4)  # the first step tells what was there
    assert len(list((tmp_path / "cache" / "objects").iterdir())) == 3
    watch = Watch(stage="compile float", moment="end")
    with pytest.raises(KeyboardInterrupt):
        compiled(model, tmp_path / "work", watch)
    first, last = watch.steps["compile float"][0], watch.steps["compile float"][-1]
    assert first == (3, last[1]), "three are there already"
    assert last[0] == last[1] > 3
    assert len(list((tmp_path / "cache" / "objects").iterdir())) == last[1]


def test_calibration_goes_on_after_its_checkpoint(
    model: hwq.Model, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwq.calibrate.CHECKPOINT_S", -1.0)  # after every sample
    interrupted(model, tmp_path / "work", "calibrate", 5)
    watch = Watch()
    compiled(model, tmp_path / "work", watch)
    assert watch.steps["calibrate"] == [(5, 6), (6, 6)], "four samples were kept when the fifth was interrupted"
    assert not list((tmp_path / "work").glob("statistics-*")), "only as long as it is needed"


def test_sensitivity_goes_on_after_its_last_whole_sample(model: hwq.Model, cache: Path, tmp_path: Path) -> None:
    whole = Watch()
    compiled(model, tmp_path / "whole", whole)
    total = whole.steps["sensitivity"][-1][1]
    units = total // len(SAMPLES)
    interrupted(model, tmp_path / "work", "sensitivity", 2 * units + 1)
    watch = Watch()
    compiled(model, tmp_path / "work", watch)
    assert watch.steps["sensitivity"][0] == (2 * units + 1, total)
    assert len(watch.steps["sensitivity"]) == 4 * units


def test_records_that_were_measured_stay(model: hwq.Model, cache: Path, tmp_path: Path) -> None:
    whole = Watch()
    compiled(model, tmp_path / "whole", whole)
    kernels = whole.steps["measure"][-1][1] // PASSES
    assert len(everything(default_store_path())) == kernels
    default_store_path().unlink()
    interrupted(model, tmp_path / "work", "measure", kernels + 3)  # in the last pass, where records are made
    assert len(everything(default_store_path())) == 3
    watch = Watch()
    compiled(model, tmp_path / "work", watch)
    assert watch.steps["measure"][-1] == (PASSES * (kernels - 3),) * 2


def test_an_interrupt_while_saving_leaves_what_was_there(
    model: hwq.Model, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, path = compiled(model, tmp_path / "work", Watch()), tmp_path / "out" / "net.hwq"
    path.parent.mkdir()
    path.write_bytes(b"what was there before")

    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    for moment in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(f"hwq.files.os.{moment}", press)
            with pytest.raises(KeyboardInterrupt):
                artifact.save(path)
        assert path.read_bytes() == b"what was there before"
        assert list(path.parent.iterdir()) == [path]
    artifact.save(path)
    np.testing.assert_array_equal(Artifact.load(path)(SAMPLES), artifact(SAMPLES))


# Real processes


@dataclass(kw_only=True)
class Process:
    """``hwq args...`` in a session of its own, so that Ctrl-C reaches all of its processes as in a terminal."""

    cache: Path
    args: list[str]

    def run(self, until: str | None = None, wait_s: float = 0.0) -> tuple[int, str, str]:
        """(code, stdout, stderr); Ctrl-C ``wait_s`` after a line that begins with ``until``."""
        started = subprocess.Popen(
            [sys.executable, "-c", "from hwq.cli import main; main()", *self.args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HWQ_CACHE": str(self.cache), "TMPDIR": str(self.cache.parent / "tmp")},
            start_new_session=True,
        )
        assert started.stdout is not None
        assert started.stderr is not None
        lines = []
        for line in started.stderr:
            lines.append(line)
            if until is not None and line.startswith(until):
                time.sleep(wait_s)
                os.killpg(started.pid, signal.SIGINT)
                until = None
        out = started.stdout.read()
        return started.wait(timeout=60), out, "".join(lines)

    def left(self) -> list[str]:
        """The processes that still know of this cache, by their environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if str(self.cache).encode() in path.read_bytes():
                    found.append(path.parent.name)
        return found


def test_ctrl_c_ends_the_command_and_it_goes_on(tmp_path: Path) -> None:
    """On the demo network with an empty cache, where kernels are compiled in helper processes too."""
    (tmp_path / "tmp").mkdir()
    calibration, _ = write_samples(tmp_path)
    work, output = tmp_path / "work", tmp_path / "out.hwq"
    options = ["--work-dir", work, "--threads", "1", "--no-measure", "--json"]
    args = ["compile", DEMO, "--calib", calibration, "-o", output, *options]
    process = Process(cache=tmp_path / "cache", args=[str(arg) for arg in args])
    stages_seen: list[list[str]] = []
    for until, wait_s in (("quantize", 2.0), ("compile:", 0.2), ("assign", 0.2)):
        code, out, err = process.run(until, wait_s)
        assert code == 130, err
        assert err.splitlines()[-1] == KEPT, err
        assert "Traceback" not in err
        assert json.loads(out) == {"error": {"code": "interrupted", "message": KEPT}}
        assert process.left() == []
        assert half_files(tmp_path) == []
        assert list((tmp_path / "tmp").iterdir()) == []
        assert not output.exists()
        stages_seen.append(re.findall(r"^(.+): done in", err, re.MULTILINE))
    objects = len(list((tmp_path / "cache" / "objects").iterdir()))
    code, out, err = process.run()
    assert code == 0, err
    assert json.loads(out)["artifact"] == str(output)
    assert "calibrate" not in re.findall(r"^(.+): done in", err, re.MULTILINE), "kept from an earlier call"
    assert "calibrate" in stages_seen[0]
    assert len(list((tmp_path / "cache" / "objects").iterdir())) - objects < 10, "kept from an earlier call"
    assert list((tmp_path / "tmp").iterdir()) == []
