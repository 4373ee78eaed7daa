"""A board of the lab: found, asked what it is, used, and given up where it does not answer."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tvm
from boards import free_port, serving, serving_here
from tvm import te
from tvm.rpc import base

from hwq import device
from hwq.address import read_tracker
from hwq.board_facts import reader
from hwq.compile_kernel import link
from hwq.errors import HwqError
from hwq.target import Target
from hwq.tracker import shelves


def _code(call: Callable[[], object]) -> str:
    with pytest.raises(HwqError) as caught:
        call()
    return caught.value.code


def _library(folder: Path, triple: str = "aarch64-linux-gnu", exponent: int = 3) -> Path:
    """A library with "main" (a, out) of int32 (7, 33), which multiplies by 5 ``exponent`` times."""
    a = te.placeholder((7, 33), "int32", "a")
    out = te.compute(a.shape, lambda i, j: a[i, j] * np.int32(5**exponent), "out")
    func = te.create_prim_func([a, out]).with_attr("global_symbol", "main")
    code = tvm.compile(tvm.IRModule({"main": func}), {"kind": "llvm", "mtriple": triple, "mcpu": "generic"})
    code.mod.write_to_file(str(folder / "main.o"), "o")
    link(folder / "main.so", [folder / "main.o"])
    return folder / "main.so"


def _run(machine: device.Device, library: Path | bytes, exponent: int = 3) -> None:
    """Run "main" there and hold it to NumPy."""
    values = np.random.default_rng(1).integers(-1000, 1000, (7, 33), np.int32)
    out = device.empty(machine, values.shape, "int32")
    device.load_library(machine, library)["main"](device.tensor(machine, values), out)
    np.testing.assert_array_equal(out.numpy(), values * 5**exponent)


def test_this_machine_is_a_device_too(tmp_path: Path) -> None:
    machine = device.connect("local")
    library = _library(tmp_path, "x86_64-linux-gnu")
    _run(machine, library)
    _run(machine, library.read_bytes())
    device.set_threads(machine, 1)
    found = device.facts(machine)
    assert found == device.facts(device.local())
    assert not found.emulated
    assert device.count("local") == 1
    device.close(machine)


def test_no_tracker_is_told_at_once() -> None:
    start = time.monotonic()
    for call in (device.connect, device.count):
        assert _code(lambda call=call: call(f"board@127.0.0.1:{free_port()}")) == "tracker-missing"
    assert time.monotonic() - start < 3


@contextlib.contextmanager
def _listener(answer: bytes = b"") -> Iterator[int]:
    """A port where somebody accepts, says ``answer``, and then nothing."""
    held = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = server.accept()
                line.sendall(answer)
                held.append(line)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    for line in held:
        line.close()


def test_something_else_where_the_tracker_should_be() -> None:
    with _listener(b"SSH-2.0-") as port:
        assert _code(lambda: device.connect(f"board@127.0.0.1:{port}")) == "tracker-missing"


def test_no_board_of_the_key(tracker: str) -> None:
    assert device.count(f"nobody@{tracker}") == 0
    start = time.monotonic()
    assert _code(lambda: device.connect(f"nobody@{tracker}", timeout_s=0.5)) == "device-missing"
    assert time.monotonic() - start < 3


@contextlib.contextmanager
def _registered(tracker: str, key: str, port: int) -> Iterator[None]:
    """A board that the tracker believes to be at ``port`` and free."""
    host, tracker_port = tracker.split(":")
    with socket.create_connection((host, int(tracker_port))) as line:
        line.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
        base.recvall(line, 4)
        base.sendjson(line, [base.TrackerCode.UPDATE_INFO, {"key": f"server:{key}", "addr": ["127.0.0.1", port]}])
        base.recvjson(line)
        base.sendjson(line, [base.TrackerCode.PUT, key, (port, f"{key}:0.5"), None])
        base.recvjson(line)
        yield


def test_a_board_that_accepts_and_never_answers_is_lost_in_time(tracker: str) -> None:
    threads = threading.active_count()
    with _listener() as port, _registered(tracker, "mute", port):
        start = time.monotonic()
        assert _code(lambda: device.connect(f"mute@{tracker}", timeout_s=1)) == "device-lost"
        assert time.monotonic() - start < 3
        until = time.monotonic() + 10
        while threading.active_count() > threads + 1:  # the listener's; nothing waits for the board any more
            assert time.monotonic() < until
            time.sleep(0.02)


def test_a_silent_board_does_not_hide_the_others_of_its_key(tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "connect", functools.partial(device.connect, timeout_s=1.0))
    host = Target.load("host")
    with _listener() as port, _registered(tracker, "mixed", port):
        silent = host.on(f"mixed@{tracker}")
        with serving_here(tracker, "mixed"):
            assert device.resolved(silent) == silent
        assert _code(lambda: device.resolved(silent)) in ("device-lost", "device-missing")


def _shelf(monkeypatch: pytest.MonkeyPatch, *models: str) -> tuple[list[str], list[str]]:
    """Boards of such CPU models, handed out in this order; (those taken, those given back), as that goes on."""
    taken: list[str] = []
    given_back: list[str] = []
    known = device.facts(device.local())

    def connect(text: str) -> device.Device:
        del text
        taken.append(models[len(taken)])
        return device.Device(name=taken[-1], session=object(), context=None)

    monkeypatch.setattr(device, "count", lambda text: len(models))
    monkeypatch.setattr(device, "connect", connect)
    monkeypatch.setattr(device, "facts", lambda machine: replace(known, cpu_model=machine.name))
    monkeypatch.setattr(device, "close", lambda machine: given_back.append(machine.name))
    return taken, given_back


def test_of_unlike_boards_the_target_s_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, given_back = _shelf(monkeypatch, "other", "mine", "third")
    target = replace(Target.load("host").on("mixed"), cpu_model="mine")
    assert device.connect_to(target).name == "mine"
    assert (taken, given_back) == (["other", "mine"], ["other"])
    taken.clear()
    assert device.resolved(target).cpu_model == "other", "the first that can run the code"


def test_boards_of_another_model_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, given_back = _shelf(monkeypatch, "other", "third")
    target = replace(Target.load("host").on("mixed"), cpu_model="mine")
    with pytest.raises(HwqError, match="board third is 'third', and what is measured is 'mine'") as caught:
        device.connect_to(target)
    assert caught.value.code == "device-other"
    assert given_back == taken == ["other", "third"]


def test_a_board_that_is_switched_off_is_lost(tracker: str) -> None:
    with _registered(tracker, "off", free_port()):
        assert _code(lambda: device.connect(f"off@{tracker}", timeout_s=5)) == "device-lost"


def test_a_board_runs_what_is_sent_to_it(board: device.Device, tmp_path: Path) -> None:
    library = _library(tmp_path)
    _run(board, library)
    _run(board, _library(tmp_path, exponent=2).read_bytes(), exponent=2)
    _run(board, library, exponent=2)
    device.set_threads(board, 2)
    _run(board, library, exponent=2)


def test_a_library_for_another_cpu_is_refused_and_the_board_goes_on(board: device.Device, tmp_path: Path) -> None:
    assert _code(lambda: device.load_library(board, reader("x86_64"))) == "device-other"
    _run(board, _library(tmp_path))


def test_what_a_board_is(board: device.Device) -> None:
    found = device.facts(board)
    assert found.emulated
    assert found.cpu_model.startswith("emulated ")
    assert (found.arch, found.runtime) == ("aarch64", tvm.__version__)
    assert {"asimd", "asimddp", "i8mm"} <= found.flags
    assert found.cores >= 1
    assert device.facts(board) == found


def test_a_target_is_resolved_by_its_board(board_name: str) -> None:
    target = device.resolved(Target.load("arm-cortex-a76").on(board_name))
    assert target.emulated
    assert target.fingerprint != Target.load("arm-cortex-a76").fingerprint
    assert device.resolved(Target.load("arm-cortex-a76")) == Target.load("arm-cortex-a76")


def test_a_target_of_another_kind_of_cpu_is_refused(board_name: str) -> None:
    with pytest.raises(HwqError, match="it is aarch64, and target x86-avx2 is for x86_64") as caught:
        device.resolved(Target.load("x86-avx2").on(board_name))
    assert caught.value.code == "device-other"


def test_a_busy_board_is_waited_for_in_vain_and_then_free(board: device.Device, tracker: str) -> None:
    assert [(one.key, one.free) for one in shelves(read_tracker(tracker)) if one.key == "board"] == [("board", 0)]
    assert _code(lambda: device.connect(f"board@{tracker}", timeout_s=0.5)) == "device-missing"
    device.close(board)
    device.close(device.connect(f"board@{tracker}"))


def test_what_fails_on_the_board_while_it_goes_on_is_raised_as_it_is(board: device.Device) -> None:
    assert board.session is not None
    with pytest.raises(RuntimeError, match="Cannot open"), device.heard(board):
        board.session.download("nothing")
    device.facts(board)


def test_boards_that_die_or_hang_are_lost_and_the_others_stay(board_root: Path, tracker: str) -> None:
    """An older core; then its session dies, then it is frozen, then all of it is killed."""
    with serving(board_root, tracker, "old", cpu="cortex-a72") as process:
        name = f"old@{tracker}"
        machine = device.connect(name)
        found = device.facts(machine)
        assert "asimd" in found.flags
        assert not {"asimddp", "i8mm"} & found.flags
        newer = replace(Target.load("arm-cortex-a76"), device=name)
        assert device.misfit(newer, found) == "it lacks asimddp, which target arm-cortex-a76 needs"
        server = psutil.Process(process.pid)
        held = device.tensor(machine, np.arange(5))
        for session in [session for listener in server.children() for session in listener.children()]:
            session.kill()
        assert _code(lambda: device.facts(machine)) == "device-lost"
        assert _code(lambda: device.tensor(machine, np.arange(5))) == "device-lost"
        del held  # it is not waited for

        machine = device.connect(name, answer_s=2)  # another listener took the place of the one that gave up
        held = device.tensor(machine, np.arange(5))
        family = server.children(recursive=True)
        for child in family:
            child.suspend()
        start = time.monotonic()
        assert _code(lambda: device.tensor(machine, np.arange(5))) == "device-lost"
        assert time.monotonic() - start < 5
        del held
        for child in family:
            child.resume()

        machine = device.connect(name)
        server.kill()
        assert _code(lambda: device.facts(machine)) == "device-lost"
    assert device.count(f"old@{tracker}") == 0


def test_an_interrupt_is_heard_while_a_board_is_silent(tracker: str) -> None:
    """The board is frozen, within a call and within one that is around it; whoever was told of signals is told."""
    told, teller = socket.socketpair()
    teller.setblocking(False)
    told.settimeout(5)
    with serving_here(tracker, "frozen") as process, told, teller:
        before = signal.set_wakeup_fd(teller.fileno())
        try:
            for around in (contextlib.nullcontext, device.heard):
                machine = device.connect(f"frozen@{tracker}", answer_s=20)
                held = device.tensor(machine, np.arange(5))
                family = psutil.Process(process.pid).children(recursive=True)
                for child in family:
                    child.suspend()
                press = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
                press.start()
                start = time.monotonic()
                with pytest.raises(KeyboardInterrupt), around(machine):
                    device.tensor(machine, np.arange(5))
                del held  # it is not waited for
                assert time.monotonic() - start < 5
                assert told.recv(1) == bytes([signal.SIGINT])
                for child in family:
                    child.resume()
                assert _code(lambda machine=machine: device.facts(machine)) == "device-lost"
        finally:
            assert signal.set_wakeup_fd(before) == teller.fileno()


def test_a_board_that_is_gone_is_asked_for(near_name: str) -> None:
    machine = device.connect(near_name, answer_s=20)
    assert machine.line is not None
    assert machine.line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle, between, times = (
        machine.line.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )
    assert idle + between * times <= 60
    device.close(machine)


def test_a_device_is_closed_only_if_what_holds_it_fails(near_name: str) -> None:
    machine = device.connect(near_name)
    with device.closed_if_it_fails(machine):
        device.facts(machine)
    device.facts(machine)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), device.closed_if_it_fails(machine):
            raise error
        with pytest.raises(ValueError, match="as it is"), device.closed_if_it_fails(None):
            raise ValueError("as it is")
        with pytest.raises(HwqError):
            device.facts(machine)
        machine = device.connect(near_name)  # nobody else has it
    device.close(machine)
