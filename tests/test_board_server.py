"""The processes of a served board end with it, however it ends; addresses are read as they are written."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from boards import free_port
from tvm.rpc import server

from hwq import board_server
from hwq.address import read_device
from hwq.board_server import split_address
from hwq.errors import HwqError

SERVER = Path(__file__).resolve().parents[1] / "hwq" / "board_server.py"
# A process with a child that both do as a listener without clients does: nothing.
IDLE = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
GUARDED = "import sys; from hwq.board_server import guarded; sys.exit(guarded(sys.argv[1:]))"


def _ends(pid: int, within_s: float = 10.0) -> bool:
    """Whether the process is gone, or a zombie that nobody here has to wait for, in time."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_all_processes_end_with_the_first(how: signal.Signals) -> None:
    command = [sys.executable, "-c", GUARDED, sys.executable, "-c", IDLE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        children = psutil.Process(process.pid).children(recursive=True)
        assert grandchild in {child.pid for child in children}
        process.send_signal(how)
        assert all(_ends(child.pid) for child in children)
        assert process.wait(10) == (-signal.SIGKILL if how == signal.SIGKILL else 0)


def test_a_process_that_does_not_listen_is_killed_in_the_end() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    soon = GUARDED.replace("sys.exit", "import hwq.board_server as b; b.GRACE_S = 0.5; sys.exit", 1)
    with subprocess.Popen([sys.executable, "-c", soon, sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        assert process.wait(10) == 0


def test_the_command_that_ends_by_itself_gives_its_status() -> None:
    found = subprocess.run([sys.executable, "-c", GUARDED, sys.executable, "-c", "exit(3)"], check=False, timeout=30)
    assert found.returncode == 3


def test_addresses() -> None:
    assert split_address("10.0.0.7:9191") == ("10.0.0.7", 9191)
    assert split_address("shelf") == ("shelf", 9190)
    for wrong in (":9190", "shelf:", "shelf:nine", "shelf:0", "shelf:65536"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            split_address(wrong)


@pytest.mark.parametrize("key", ["pi5", "a_b.c-1", "locally", "local", "a b", "-a", "a@b", "", "pi5\n", "é"])
def test_a_board_has_a_name_that_a_client_can_say(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        board = read_device(key)
        named = board is not None and board.key == key
    except HwqError:
        named = False
    assert (board_server.KEY.fullmatch(key) is not None) == named
    if not named:
        with pytest.raises(SystemExit):
            board_server.main([f"--key={key}"])
        assert "nothing that a client can name" in capsys.readouterr().err


def test_a_tracker_whose_name_is_known_late(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: list[str] = []

    def late(name: str) -> str:
        answers.append(name)
        if len(answers) < 4:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return "192.0.2.10"

    monkeypatch.setattr(board_server.socket, "gethostbyname", late)
    monkeypatch.setattr(board_server, "PAUSE_S", 0.0)
    assert board_server.found_at("shelf") == "192.0.2.10"
    said = "tracker 'shelf' is not found: Temporary failure in name resolution; trying on\n"
    assert capsys.readouterr().err == said


def test_a_session_asks_whether_its_client_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        board_server._ask_after_clients(listening)
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == board_server.IDLE_S
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * board_server.LOST_S


def test_it_runs_without_hwq() -> None:
    found = subprocess.run([sys.executable, "-I", str(SERVER), "--help"], capture_output=True, text=True, check=False)
    assert found.returncode == 0
    assert "--tracker" in found.stdout


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TVM leaves its socket to be collected
def test_a_board_started_at_the_same_moment_gets_the_next_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """TVM binds, says so in its log, then listens: in between, another board listens on that port."""
    first = free_port()
    monkeypatch.setattr(board_server, "PORTS", (first, first + 50))
    monkeypatch.setattr(server, "_listen_loop", lambda *_: None)
    log = logging.getLogger("RPCServer")
    monkeypatch.setattr(log, "level", logging.INFO)
    with contextlib.ExitStack() as ends:
        taken: list[int] = []

        class Other(logging.Handler):
            """The board that was faster, once."""

            def emit(self, record: logging.LogRecord) -> None:
                if taken:
                    return
                line = ends.enter_context(socket.socket())
                line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                line.bind(record.args)
                line.listen()
                taken.append(record.args[1])

        other = Other()
        log.addHandler(other)
        ends.callback(log.removeHandler, other)
        state = board_server.started("key", ("127.0.0.1", 1), "127.0.0.1", None)
        ends.enter_context(state.sock)
        assert taken
        assert state.port not in taken
        with socket.create_connection(("127.0.0.1", state.port), 5):
            pass


def test_a_board_that_finds_no_free_port_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        line.listen()
        port = line.getsockname()[1]
        monkeypatch.setattr(board_server, "PORTS", (port, port + 1))
        with pytest.raises(ValueError, match="cannot bind to any port"):
            board_server.started("key", ("127.0.0.1", 1), "127.0.0.1", None)


def test_a_board_that_cannot_listen_says_so_in_a_line() -> None:
    command = [sys.executable, str(SERVER), "--key", "k", "--tracker", "127.0.0.1:1", "--host", "192.0.2.1"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == "board 'k' cannot listen on 192.0.2.1: Cannot assign requested address"
    assert "Traceback" not in found.stderr
