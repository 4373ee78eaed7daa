"""``hwq lab``: the tracker and this machine as a board, listed, checked, and ended by Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from boards import free_port, running, serving, serving_here, small
from shell_runs import hwq

from hwq import device, lab, probe
from hwq.address import read_tracker
from hwq.board_facts import Facts
from hwq.errors import HwqError
from hwq.probe import to_toml
from hwq.target import Target
from hwq.tracker import shelves

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def shelf() -> Iterator[str]:
    """A tracker and this machine as two boards of it, "here", all by ``hwq lab``; Ctrl-C ends them with status 0."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    run = [sys.executable, "-c", "from hwq.cli import main; main()", "lab"]
    with (
        running([*run, "tracker", "--host", "127.0.0.1", "--port", str(port)]) as tracker,
        running([*run, "serve", "--key", "here", "--host", "127.0.0.1"], HWQ_TRACKER=address) as first,
        running([*run, "serve", "--key", "here", "--host", "127.0.0.1", "--tracker", address]) as second,
    ):
        _until(lambda: device.count(f"here@{address}") == 2)
        yield address
        for process in (first, second, tracker):
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
            assert time.monotonic() - start < 8


def _until(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if done():
                return
        except HwqError:
            pass
        time.sleep(0.1)
    raise TimeoutError


def test_the_list(shelf: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    found = hwq(capsys, "lab", "list", "--tracker", shelf, "--json").json
    assert list(found) == ["here"]
    assert (found["here"]["boards"], found["here"]["free"], found["here"]["waiting"]) == (2, 2, 0)
    monkeypatch.setenv("HWQ_TRACKER", shelf)
    table = hwq(capsys, "lab", "list").out
    assert "here" in table
    assert found["here"]["at"][0] in table
    assert "device-invalid" in hwq(capsys, "lab", "list", "--tracker", "nowhere:x", "--json").out


def test_this_machine_as_two_boards(
    shelf: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits are set aside, since on a machine that others use timings may not fit, and the timings are short."""
    for name in ("LARGEST_DRIFT", "LARGEST_NOISE"):
        monkeypatch.setattr(lab, name, 1e9)
    monkeypatch.setattr(lab, "SPAN_S", 0.2)
    monkeypatch.setattr(probe, "_REPEATS", 2)
    monkeypatch.setattr(probe, "_LARGEST_BUFFER_BYTES", 1 << 20)
    host = Target.load("host")
    (tmp_path / "t.toml").write_text(to_toml(small(host, host.compute[:1])), encoding="utf-8")
    board = f"here@{shelf}"
    ended = hwq(capsys, "lab", "check", board, "--target", tmp_path / "t.toml", "-o", tmp_path / "mine.toml", "--json")
    assert (ended.status, ended.json["fits"]) == (0, True)
    instruction = f"{host.compute[0].instruction}, int8 weights"
    for one in ended.json["boards"]:
        found = {finding["what"]: finding["fits"] for finding in one["findings"]}
        assert found == dict.fromkeys(("cpu", "flags", "runtime", instruction, "clock", "noise"), True)
    assert len({one["at"] for one in ended.json["boards"]}) == 2
    assert ended.json["unreached"] == 0
    written = Target.load(ended.json["output"])
    assert (written.name, written.device) == ("mine", board)
    assert written.mcpu == host.mcpu
    assert {row.source for row in written.compute} == {lab.MEASURED}
    assert all(row.macs_per_cycle > 0.01 for row in written.compute)

    monkeypatch.setattr(lab, "LARGEST_NOISE", -1.0)
    monkeypatch.setattr(lab, "REACH_S", 0.2)
    held = device.connect(board)
    ended = hwq(capsys, "lab", "check", board, "--target", tmp_path / "t.toml", "-o", tmp_path / "not.toml")
    device.close(held)
    assert ended.status == 1
    assert "does not fit" in ended.out
    assert "not checked: 1 more" in ended.out
    assert not (tmp_path / "not.toml").exists()


def test_one_board_that_is_lost_does_not_spoil_the_check_of_the_other(
    shelf: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LARGEST_DRIFT", "LARGEST_NOISE"):
        monkeypatch.setattr(lab, name, 1e9)
    monkeypatch.setattr(lab, "SPAN_S", 0.2)
    host = Target.load("host")
    (tmp_path / "t.toml").write_text(to_toml(small(host, host.compute[:1])), encoding="utf-8")
    asked: list[str] = []

    def broken(machine: device.Device) -> Facts:
        asked.append(machine.name)
        if len(asked) == 1:
            device.close(machine)
        return device.facts(machine)

    monkeypatch.setattr(lab, "facts", broken)
    ended = hwq(capsys, "lab", "check", f"here@{shelf}", "--target", tmp_path / "t.toml", "--json")
    lost, other = ended.json["boards"]
    assert (ended.status, lost["fits"], other["fits"]) == (1, False, True)
    assert [finding["what"] for finding in lost["findings"]] == ["session"]
    assert "does not answer any more" in lost["findings"][0]["found"]


def test_after_a_lost_session_the_same_board_is_taken_again(shelf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    board = f"here@{shelf}"
    both = [device.connect(board) for _ in range(2)]
    wanted = lab._address(both[1])
    assert wanted != lab._address(both[0])
    for machine in both:
        device.close(machine)
    again = lab._again(board, wanted, "it ended")
    assert lab._address(again) == wanted
    device.close(again)
    monkeypatch.setattr(lab, "FIRST_S", 2.0)
    with pytest.raises(HwqError, match=r"^it ended, and then no board .* got free in 2 s") as caught:
        lab._again(board, "127.0.0.1:1", "it ended")
    assert caught.value.code == "device-lost"
    _until(lambda: [found.free for found in shelves(read_tracker(shelf))] == [2])


def test_a_port_in_use(shelf: str, capsys: Capture) -> None:
    ended = hwq(capsys, "lab", "tracker", "--host", "127.0.0.1", "--port", shelf.split(":")[1])
    assert ended.status == 1
    assert "in use" in ended.sentence


def test_local_is_no_board(capsys: Capture) -> None:
    ended = hwq(capsys, "lab", "check", "local", "--target", "host")
    assert (ended.status, "no board" in ended.sentence) == (1, True)


def test_a_target_that_has_no_kernels_yet(capsys: Capture) -> None:
    ended = hwq(capsys, "lab", "check", "here", "--target", "cuda-t4", "--json")
    assert (ended.status, ended.json["error"]["code"]) == (1, "target-no-build")


@pytest.mark.parametrize("key", ["local", "a b", "a@b"])
def test_a_key_that_no_client_can_name(key: str, capsys: Capture) -> None:
    ended = hwq(capsys, "lab", "serve", "--key", key)
    assert ended.status == 1
    assert "device is" in ended.sentence


def test_a_board_of_another_kind_does_not_fit(board_name: str, capsys: Capture) -> None:
    ended = hwq(capsys, "lab", "check", board_name, "--target", "x86-avx2", "--json")
    ((finding,),) = (board["findings"] for board in ended.json["boards"])
    assert (ended.status, finding["what"], finding["fits"]) == (1, "cpu", False)
    assert "it is aarch64, and target x86-avx2 is for x86_64" in finding["found"]


def test_boards_of_two_kinds_under_one_key(
    board_root: Path, tracker: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "SPAN_S", 0.2)
    arm = Target.load("arm-neoverse-n2")
    rows = tuple(row for row in arm.compute if row.instruction == "neon.vector")[:1]
    (tmp_path / "t.toml").write_text(to_toml(small(arm, rows)), encoding="utf-8")
    with serving_here(tracker, "mixed"), serving(board_root, tracker, "mixed"):
        ended = hwq(capsys, "lab", "check", f"mixed@{tracker}", "--target", tmp_path / "t.toml", "--json")
    assert ended.status == 1
    assert sorted(board["fits"] for board in ended.json["boards"]) == [False, True]
