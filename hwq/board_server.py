"""Serve this machine as a board of the lab: TVM's own RPC server, kept going, and ended whole.

    python board_server.py --key K --tracker HOST:PORT

``hwq lab serve`` runs this file. It imports nothing of hwq: a board with Python and TVM alone needs a copy of it.
TVM's server gives up when a session dies (an instruction that the CPU lacks ends its process), and leaves processes
behind when it is killed. Here another listener takes the place of one that gave up, and all processes end with the
first.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

PORTS = (9090, 9190)
# Before the next listener: a tracker that is gone is looked for that often.
PAUSE_S = 0.5
# How long processes have to end by themselves.
GRACE_S = 3.0
# What a client can name: as hwq/address.py reads it.
KEY = re.compile(r"(?!local$)[A-Za-z0-9][\w.-]*", re.ASCII)
# A client whose machine is gone frees the board after about a minute: asked for from IDLE_S of silence on, each
# INTERVAL_S, and given up after so many questions without an answer; or after LOST_S for what was sent.
IDLE_S, INTERVAL_S, QUESTIONS, LOST_S = 30, 10, 3, 60


def guarded(command: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    """Run ``command`` and give its exit status. Its processes end with it, and with this one, however that ends.

    SIGTERM and SIGINT end it, with status 0; what has not ended GRACE_S after the first of them is killed. The
    processes are a group, which one more process kills as soon as the pipe it reads from is closed: the system closes
    it when this process dies.
    """
    ended: list[int] = []
    child = subprocess.Popen(command, env=None if env is None else dict(env), start_new_session=True)
    killing = threading.Timer(GRACE_S, _signal, (child.pid, signal.SIGKILL))
    killing.daemon = True

    def end(number: int, frame: FrameType | None) -> None:
        ended.append(number)
        _signal(child.pid, signal.SIGTERM)
        if len(ended) == 1:
            killing.start()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    reading, writing = os.pipe()
    guard = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _GUARD, str(child.pid)], stdin=reading, start_new_session=True
    )
    os.close(reading)
    try:
        child.wait()  # blocks: a board that measures is not to be woken in between
    finally:
        killing.cancel()
        os.close(writing)
        guard.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if ended else child.returncode


_GUARD = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.read(0, 1)
try:
    os.killpg(int(sys.argv[1]), signal.SIGKILL)
except ProcessLookupError:
    pass
"""


def _signal(group: int, number: int) -> None:
    """Send a signal to a process group, which may be gone."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass


def serve(key: str, tracker: tuple[str, int], host: str, address: str | None) -> None:
    """Listen as a board of ``key``, for good. address: where clients reach this board; None: as the tracker sees it."""
    from tvm.rpc import server

    home = os.getcwd()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def say(ended: threading.ExceptHookArgs) -> None:
        """One line in place of a traceback."""
        print(f"a session ended badly: {ended.exc_value}; the board goes on", file=sys.stderr, flush=True)

    threading.excepthook = say
    try:
        state = started(key, tracker, host, address)
    except (OSError, ValueError) as error:
        sys.exit(f"board {key!r} cannot listen on {host}: {getattr(error, 'strerror', None) or error}")
    port, thread = state.port, state.thread
    _ask_after_clients(state.sock)
    print(f"board {key!r} listens on port {port}, known to the tracker at {tracker[0]}:{tracker[1]}", flush=True)
    while True:
        thread.join()
        time.sleep(PAUSE_S)
        os.chdir(home)  # a session that died left its own folder, which may be gone
        thread = threading.Thread(target=server._listen_loop, args=(state.sock, port, key, tracker, None, address))
        thread.start()


def started(key: str, tracker: tuple[str, int], host: str, address: str | None) -> Any:
    """TVM's server, listening on the first port of PORTS that is free.

    Two boards that are started at once may both bind a port, for TVM lets ports be reused; only one of them may listen.
    The other tries again, and is then refused that port in time for the next. Raises ValueError where no port is free,
    OSError where ``host`` is no address of this machine.
    """
    from tvm.rpc import server

    first, last = PORTS
    while True:
        try:
            server._popen_start_rpc_server(host, first, last, False, tracker, key, custom_addr=address)
            return server.PopenRPCServerState.current
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise


def _ask_after_clients(listening: socket.socket) -> None:
    """Let sessions end whose client is gone without a word; the sockets that are accepted inherit it."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, QUESTIONS)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_S * 1000)


def found_at(name: str) -> str:
    """The address of the host ``name``, asked for until it is known: at boot names may be known late."""
    said = False
    while True:
        try:
            return socket.gethostbyname(name)
        except OSError as error:
            if not said:
                print(f"tracker {name!r} is not found: {error.strerror}; trying on", file=sys.stderr, flush=True)
            said = True
        time.sleep(PAUSE_S)


def split_address(text: str, default_port: int = 9190) -> tuple[str, int]:
    """(host, port) of "host:port" or "host". Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon:
        return text, default_port
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no HOST:PORT")
    return host, int(port)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; without --inner it starts itself again with it, and guards that."""
    parser = argparse.ArgumentParser(description="Serve this machine as a board of the lab.")
    parser.add_argument("--key", required=True, help="what boards of this kind are called")
    parser.add_argument("--tracker", default="127.0.0.1:9190", help="HOST:PORT of the tracker")
    parser.add_argument("--host", default="0.0.0.0", help="the address to listen on")
    parser.add_argument("--address", help="where clients reach this board, if not as the tracker sees it")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if arguments is None else arguments)
    wanted = parser.parse_args(given)
    try:
        tracker = split_address(wanted.tracker)
    except ValueError as error:
        parser.error(f"--tracker: {error}")
    if KEY.fullmatch(wanted.key) is None:
        accepted = "letters, digits, '.', '_' and '-', a letter or a digit first, and not 'local'"
        parser.error(f"--key: {wanted.key!r} is nothing that a client can name; accepted: {accepted}")
    if not wanted.inner:
        return guarded([sys.executable, os.path.abspath(__file__), "--inner", *given])
    serve(wanted.key, (found_at(tracker[0]), tracker[1]), wanted.host, wanted.address)
    return 0


if __name__ == "__main__":
    sys.exit(main())
