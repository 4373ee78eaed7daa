"""A PyTorch network from the shell: a .pt2 file is compiled and run; what is wrong with one is said in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shell_runs import hwq

from hwq.artifact import Artifact
from hwq.target import Target

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'hwq[torch]'")
torch_nets = pytest.importorskip("torch_nets")
Capture = pytest.CaptureFixture[str]


def saved(folder: Path, *, training: bool = False) -> tuple[Path, dict[str, Any]]:
    """A .pt2 file, and inputs for it."""
    net, inputs = torch_nets.module("perceptron")
    if training:
        net = torch.nn.Sequential(torch.nn.Linear(8, 3), torch.nn.Dropout())
        inputs = {"input": inputs["left"]}
    path = folder / "net.pt2"
    torch.export.save(torch.export.export(net, (), inputs), path)
    return path, inputs


def options(folder: Path, inputs: dict[str, Any]) -> list[str | Path]:
    np.savez(folder / "calibration.npz", **{name: value.numpy() for name, value in inputs.items()})
    given = ["--calib", folder / "calibration.npz", "--target", "x86-avx2", "--schemes", "f32,w8a8"]
    return [*given, "--threads", "1", "--no-measure", "-o", folder / "out.hwq"]


def test_a_saved_program_is_compiled_and_run(tmp_path: Path, capsys: Capture) -> None:
    target = Target.load("x86-avx2")
    if target.missing_flags():
        pytest.skip(f"this CPU cannot run the artifact: it lacks {', '.join(target.missing_flags())}")
    path, inputs = saved(tmp_path)
    ended = hwq(capsys, "compile", path, *options(tmp_path, inputs))
    assert (ended.status, ended.err.count("error: ")) == (0, 0), ended.err
    artifact = Artifact.load(tmp_path / "out.hwq", threads=1)
    assert {"a", "b", "c"} <= set(artifact.plan.schemes)
    got = artifact({name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        want = [item.numpy() for item in torch_nets.module("perceptron")[0](**inputs)]
    for ours, theirs in zip(got, want, strict=True):
        # Eight bits: a step is 1/127 of the largest value, some of them in a row.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=6 / 127 * float(np.abs(theirs).max()))


@pytest.mark.parametrize(("kind", "code"), [("truncated", "model-invalid"), ("training", "model-training")])
def test_what_is_wrong_with_a_program(kind: str, code: str, tmp_path: Path, capsys: Capture) -> None:
    path, inputs = saved(tmp_path, training=kind == "training")
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    ended = hwq(capsys, "compile", path, *options(tmp_path, inputs), "--json")
    assert ended.status != 0
    assert ended.json["error"]["code"] == code
    assert "accepted" in ended.sentence
    assert not (tmp_path / "out.hwq").exists()
