"""The helper process: one answer a job, whatever is printed meanwhile, and it ends with its input."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tvm
from kernel_runs import machine, make

from hwq.compile_kernel import _start_worker
from hwq.schedule import kernel_for


def job(path: Path, **changes: Any) -> dict[str, Any]:
    shape = (1, 2, 2, 8)
    kernel = kernel_for(make("dequantize", "w8a8", [shape], shape, out_dtype="float32"), machine())
    return {
        "functions": {kernel.symbol: tvm.ir.save_json(kernel.func)},
        "instruction": None,
        "target": str(machine().tvm()),
        "path": str(path),
        **changes,
    }


def answers(process: subprocess.Popen[str], *jobs: dict[str, Any]) -> list[dict[str, str]]:
    out, _ = process.communicate("".join(json.dumps(each) + "\n" for each in jobs), timeout=120)
    return [json.loads(line) for line in out.splitlines()]


def test_each_job_gets_one_answer_and_errors_end_nothing(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.o", tmp_path / "bad.o"
    wanted = (job(bad, instruction="amx.tdpbssd"), job(bad, functions={"broken": "{}"}), job(good))
    process = _start_worker()
    found = answers(process, *wanted)
    assert [answer.get("code") for answer in found] == ["instruction-missing", "compile-failed", None]
    assert process.returncode == 0
    assert good.stat().st_size > 0
    assert not bad.exists()


def test_an_answer_that_nobody_reads_ends_it_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As when its parent was killed: what it finished stays."""
    process = _start_worker()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    process.stdin.write(json.dumps(job(tmp_path / "good.o")) + "\n")
    process.stdin.close()
    assert process.wait(timeout=120) == 1
    assert capfd.readouterr().err == ""
    assert (tmp_path / "good.o").exists()


def test_half_a_job_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    process = _start_worker()
    out, _ = process.communicate(json.dumps(job(tmp_path / "good.o"))[:-9], timeout=120)
    assert (out, process.returncode, capfd.readouterr().err) == ("", 0, "")
