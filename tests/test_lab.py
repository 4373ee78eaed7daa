"""The lab's check of a board, and what it measures: an emulated one, one that lacks an instruction, and its parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from boards import serving, small
from shell_runs import hwq
from tvm import te

from hwq import device, lab, probe
from hwq.errors import HwqError
from hwq.probe import to_toml
from hwq.target import Compute, Target
from hwq.workload import Kernel, Workload

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short timings: what they show is not looked at."""
    monkeypatch.setattr(probe, "_REPEATS", 2)
    monkeypatch.setattr(probe, "_LARGEST_BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(lab, "SPAN_S", 0.2)


def test_every_row_of_this_machine_is_equal_to_the_reference() -> None:
    target = Target.load("host")
    found = {row.instruction: lab.probe_row(row, target, device.local()) for row in lab.distinct(target)}
    assert set(found) == target.instructions
    assert set(found.values()) == {0}


def test_a_kernel_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.load("host")
    row = next(row for row in target.compute if row.ops[0] == "max_pool2d")

    def wrong(row: Compute, workload: Workload, target: Target) -> Kernel:
        a = te.placeholder(workload.input_shapes[0], target.activation_storage, "a")
        n, high, wide, channels = workload.output_shape
        out = te.compute((n, high, wide, channels), lambda n, h, w, c: a[n, 2 * h, 2 * w, c], "out")
        return Kernel(
            symbol="wrong", func=te.create_prim_func([a, out]).with_attr("global_symbol", "wrong"), schedule=""
        )

    monkeypatch.setattr(lab, "kernel_of", wrong)
    assert (lab.probe_row(row, target, device.local()) or 0) > 100


def test_drift_and_noise() -> None:
    assert lab.drift_and_noise([1.0] * 9) == (0.0, 0.0)
    drift, noise = lab.drift_and_noise([1.0] * 4 + [1.1] * 4 + [1.2] * 4)
    assert drift == pytest.approx(0.2)
    assert noise == pytest.approx(0.2 / 1.1)  # the quarters end in the first and the last third
    assert lab.drift_and_noise([1.2] * 6 + [1.0] * 6)[0] == pytest.approx(0.2)
    assert lab.drift_and_noise([1.0, 1.0, 1.0, 1.0, 50.0, 1.0, 1.0, 1.0, 1.0]) == (0.0, 0.0)  # one interruption


@pytest.mark.usefixtures("_quick")
def test_an_emulated_board_fits_and_its_rates_are_written_only_where_that_is_known(
    board_name: str, tmp_path: Path
) -> None:
    arm = Target.load("arm-neoverse-n2")
    rows = tuple(row for row in lab.distinct(arm) if row.instruction in ("neon.smmla", "neon.vector"))
    checked = lab.check(small(arm, rows), board_name).boards[0]
    found = {finding.what: finding for finding in checked.findings}
    assert checked.fits
    assert checked.target.emulated
    assert "emulator" in found["cpu"].found
    tried = ("neon.smmla, int8 weights", "neon.smmla, int4 weights", "neon.vector")
    assert [found[what].found for what in tried] == ["equal to the NumPy reference"] * 3
    assert [found[what].fits for what in ("flags", "runtime", *tried)] == [True] * 5
    assert [found[what].fits for what in ("clock", "noise")] == [None] * 2
    vector = tuple(row for row in rows if row.instruction == "neon.vector")
    checked = replace(checked, target=replace(checked.target, compute=vector))  # products take an emulator seconds
    with pytest.raises(HwqError, match="is an emulator") as caught:
        lab.rates(checked, "out")
    assert caught.value.code == "device-emulated"
    (tmp_path / "out.toml").write_text(lab.rates(checked, "out", emulated=True), encoding="utf-8")
    written = Target.load(tmp_path / "out.toml")
    assert written.device == board_name
    assert {row.source for row in written.compute} == {lab.EMULATED}
    assert dict(written.sources)["l2_bytes_per_s"] == lab.EMULATED


@pytest.mark.usefixtures("_quick")
def test_an_instruction_that_the_board_lacks_and_the_others(
    board_root: Path, tracker: str, capsys: Capture, tmp_path: Path
) -> None:
    """The older core has no matrix product: its kernel ends the session, and the check goes on with the next."""
    arm = Target.load("arm-neoverse-n2")
    wanted = (("neon.smmla", "int8"), ("neon.vector", "none"))
    rows = tuple(row for row in arm.compute if (row.instruction, row.weight) in wanted)
    (tmp_path / "t.toml").write_text(to_toml(small(arm, (rows[0], rows[-1]))), encoding="utf-8")
    with serving(board_root, tracker, "a72", cpu="cortex-a72"):
        ended = hwq(capsys, "lab", "check", f"a72@{tracker}", "--target", tmp_path / "t.toml", "--json")
    findings = {one["what"]: one for one in ended.json["boards"][0]["findings"]}
    assert (ended.status, ended.json["fits"]) == (1, False)
    assert findings["flags"]["found"] == "it lacks asimddp, i8mm, which target arm-neoverse-n2 needs"
    lacks = "the board lacks neon.smmla: its kernel ended the session"
    assert (findings["neon.smmla, int8 weights"]["fits"], findings["neon.smmla, int8 weights"]["found"]) == (
        False,
        lacks,
    )
    assert findings["neon.vector"]["fits"]
