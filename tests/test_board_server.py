"""The processes of a served board end with it, however it ends; addresses are read as they are written."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hwq.board_server import split_address

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


def test_the_command_that_ends_by_itself_gives_its_status() -> None:
    found = subprocess.run([sys.executable, "-c", GUARDED, sys.executable, "-c", "exit(3)"], check=False, timeout=30)
    assert found.returncode == 3


def test_addresses() -> None:
    assert split_address("10.0.0.7:9191") == ("10.0.0.7", 9191)
    assert split_address("shelf") == ("shelf", 9190)
    for wrong in (":9190", "shelf:", "shelf:nine", "shelf:0", "shelf:65536"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            split_address(wrong)


def test_it_runs_without_hwq() -> None:
    found = subprocess.run([sys.executable, "-I", str(SERVER), "--help"], capture_output=True, text=True, check=False)
    assert found.returncode == 0
    assert "--tracker" in found.stdout
