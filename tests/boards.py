"""Trackers and emulated boards for tests, each in processes of its own that end with the context."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hwq import device
from hwq.address import read_tracker
from hwq.errors import HwqError
from hwq.target import Compute, Target
from hwq.tracker import shelves

ROOT = Path(__file__).resolve().parents[1]
START_S = 90.0


def small(target: Target, rows: tuple[Compute, ...]) -> Target:
    """The target with these rows and caches that are read through in no time."""
    return replace(target, compute=rows, l1_bytes=1 << 14, l2_bytes=1 << 16, l3_bytes=0, l3_bytes_per_s=0.0)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


@contextlib.contextmanager
def running(command: Sequence[str], **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process, which is told to end with the context, and has to."""
    process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


@contextlib.contextmanager
def tracking() -> Iterator[str]:
    """A tracker of TVM's; gives its "HOST:PORT" once it answers."""
    port = free_port()
    with running([sys.executable, "-c", _GUARDED, "127.0.0.1", str(port)]):
        _wait(lambda: shelves(read_tracker(f"127.0.0.1:{port}")) is not None)
        yield f"127.0.0.1:{port}"


_GUARDED = """
import sys
from hwq.board_server import guarded
place = ["--host", sys.argv[1], "--port", sys.argv[2], "--port-end", str(int(sys.argv[2]) + 1)]
sys.exit(guarded([sys.executable, "-m", "tvm.exec.rpc_tracker", *place, "--silent"]))
"""


@contextlib.contextmanager
def serving(root: Path, tracker: str, key: str, cpu: str = "max") -> Iterator[subprocess.Popen[bytes]]:
    """One more emulated board of ``key``, its tree at ``root``; gives the process, all others of the board below it."""
    name = f"{key}@{tracker}"
    before = device.count(name)
    command = [sys.executable, str(ROOT / "tests" / "emulated_board.py"), "serve", "--root", str(root)]
    with running([*command, "--key", key, "--tracker", tracker, "--cpu", cpu], PYTHONPATH=str(ROOT)) as process:
        _wait(lambda: device.count(name) > before)
        yield process


@contextlib.contextmanager
def serving_here(tracker: str, key: str) -> Iterator[subprocess.Popen[bytes]]:
    """This machine as a board of ``key``: one whose times mean something."""
    name = f"{key}@{tracker}"
    before = device.count(name)
    command = [sys.executable, str(ROOT / "hwq" / "board_server.py"), "--host", "127.0.0.1"]
    with running([*command, "--key", key, "--tracker", tracker], PYTHONPATH=str(ROOT)) as process:
        _wait(lambda: device.count(name) > before)
        yield process


def _wait(done: Callable[[], bool]) -> None:
    """Until ``done`` says so. Raises TimeoutError."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        with contextlib.suppress(HwqError):
            if done():
                return
        time.sleep(0.1)
    raise TimeoutError(f"it did not start in {START_S} s")
