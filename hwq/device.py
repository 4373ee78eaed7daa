"""A machine that runs kernels: this one, or a board of the lab that has TVM's runtime and nothing of hwq.

A board is reached through TVM's tracker, and used through TVM's session. Nothing here waits for good: a board that does
not answer is lost after a time ("device-lost"), and its line is cut, so that nothing of it is waited for again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import tvm
from tvm import rpc

from hwq.address import LOCAL, Board, read_device
from hwq.board_facts import Facts, board_facts, local_facts
from hwq.errors import HwqError
from hwq.files import scratch
from hwq.target import Target
from hwq.threads import use_threads
from hwq.tracker import request, shelves

log = logging.getLogger(__name__)

# How long one answer of a board may take, and one session with it, unless the caller says otherwise.
ANSWER_S = 300.0
SESSION_S = 24 * 3600.0
# A board whose machine or network is gone is lost after some 35 s, however long an answer may take: after so many
# seconds of silence it is asked whether it is there, so often, so many times.
_ALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}
# What TVM names where its own end of the line fails, a time-out included.
_CHANNEL = "SockChannel"
_BIG_CORES = 1  # TVM's ThreadGroup::kBig; cores are big where all are alike


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Device:
    """A machine and the way to it. name: "local", or KEY@HOST:PORT. context: TVM's device, for its tensors there.

    session: TVM's, None for this machine. line: the session's socket, for ``heard`` to cut.
    """

    name: str
    session: Any | None = None
    context: Any
    line: socket.socket | None = None


def local() -> Device:
    """This machine."""
    return Device(name=LOCAL, context=tvm.cpu())


def count(text: str) -> int:
    """How many boards the tracker knows under the name ``text``, free or in use; 1 for "local".

    Raises HwqError "device-invalid", "tracker-missing".
    """
    board = read_device(text)
    if board is None:
        return 1
    return sum(len(shelf.addresses) for shelf in shelves(board.tracker) if shelf.key == board.key)


def connect(text: str, timeout_s: float = 20.0, answer_s: float = ANSWER_S, session_s: float = SESSION_S) -> Device:
    """The machine called ``text`` ("local", KEY, KEY@HOST:PORT): a session with one board, which nobody else has.

    timeout_s: how long a free board is waited for, and then its greeting. answer_s: how long it may be silent before it
    is lost. session_s: after that the board ends the session by itself, in whole seconds. The session ends with the
    last reference to it, or by ``close``.

    Raises HwqError "device-invalid", "tracker-missing", "device-missing", and "device-lost" for a board that the
    tracker knows and that does not answer.
    """
    board = read_device(text)
    if board is None:
        return local()
    host, port, password = request(board, timeout_s)
    session, line = _open(board, host, port, password, timeout_s, session_s)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(answer_s))
    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(answer_s))
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _ALIVE.items():
        line.setsockopt(socket.IPPROTO_TCP, option, value)
    return Device(name=str(board), session=session, context=session.cpu(), line=line)


def _open(
    board: Board, host: str, port: int, password: str, timeout_s: float, session_s: float
) -> tuple[Any, socket.socket]:
    """TVM's session and a second handle of its socket. TVM's call has no time-out, so it gets a thread of its own."""
    before, found, failed = set(_sockets()), [], []

    def call() -> None:
        try:
            found.append(rpc.connect(host, port, password, session_timeout=max(1, int(session_s))))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout_s)
    lines = [line for inode, handle in _sockets().items() if inode not in before if (line := _to(handle, host, port))]
    if found and lines:
        for other in lines[1:]:
            other.close()
        return found[0], lines[0]
    for line in lines:
        _cut(line)
    reason = _last_line(failed[0]) if failed else f"it took no session within {timeout_s:g} s"
    message = f"board {board} at {host}:{port} does not answer: {reason}; accepted: a board that `hwq lab serve` serves"
    raise HwqError("device-lost", message)


def _sockets() -> dict[str, int]:
    """The sockets of this process: handles by name; the name stays a socket's own as long as it lives."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own handle is closed by now
            found[os.readlink(f"/proc/self/fd/{name}")] = int(name)
    return {name: handle for name, handle in found.items() if name.startswith("socket:")}


def _to(handle: int, host: str, port: int) -> socket.socket | None:
    """A second handle of a socket that is connected to ``port``; None if it is not, or to another host's."""
    try:
        line = socket.socket(fileno=os.dup(handle))
    except OSError:
        return None
    with contextlib.suppress(OSError):
        there = line.getpeername()
        wanted = {info[4][0] for info in socket.getaddrinfo(host, port)}
        if isinstance(there, tuple) and there[1] == port and there[0].removeprefix("::ffff:") in wanted:
            return line
    line.close()
    return None


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6) or int(seconds < 1))


def _hung_up(line: socket.socket) -> bool:
    """Whether the other end has closed the line, or nothing is known of it."""
    try:
        return line.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _cut(line: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the board may have cut it
        line.shutdown(socket.SHUT_RDWR)
    line.close()


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


@contextlib.contextmanager
def heard(device: Device) -> Iterator[None]:
    """Around calls on ``device``: HwqError "device-lost" if it breaks the line, or is silent for too long.

    The line is cut then, and the device good for nothing more; so is it by an interrupt (SIGINT), which is heard at
    once and not when the board answers. What fails on the board while it goes on (TVM's RPCError) is raised as it is,
    and so is all that fails here.
    """
    try:
        with _interruptible(device.line):
            yield
    except (RuntimeError, OSError) as error:
        if device.line is None or not (_CHANNEL in str(error) or _hung_up(device.line)):
            raise
        _cut(device.line)
        message = f"board {device.name} does not answer any more: {_last_line(error)}; accepted: a board that serves"
        raise HwqError("device-lost", message) from error


@contextlib.contextmanager
def _interruptible(line: socket.socket | None) -> Iterator[None]:
    """SIGINT ends what waits on ``line``, so that Python's own handler is called then: KeyboardInterrupt, usually.

    Python calls no handler while TVM waits, but tells a socket of a signal; a thread that listens there ends the line.
    Only the main thread is sent signals. Whoever was told of them before is told of them still.
    """
    if line is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    told, teller = socket.socketpair()
    teller.setblocking(False)
    before = signal.set_wakeup_fd(teller.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        while numbers := told.recv(64):
            if signal.SIGINT in numbers:
                with contextlib.suppress(OSError):  # it may be cut already
                    line.shutdown(socket.SHUT_RDWR)
            if before >= 0:
                with contextlib.suppress(OSError):  # nobody listens there any more
                    os.write(before, numbers)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        teller.close()
        thread.join()
        told.close()


def close(device: Device) -> None:
    """End the session, so that the board is free for others; nothing may be called on ``device`` after it."""
    if device.line is not None:
        _cut(device.line)


@contextlib.contextmanager
def closed_if_it_fails(device: Device | None) -> Iterator[None]:
    """Around what will hold ``device``: where that fails, by an interrupt too, it is closed. None is no device."""
    try:
        yield
    except BaseException:
        if device is not None:
            close(device)
        raise


def load_library(device: Device, library: str | os.PathLike[str] | bytes) -> Any:
    """A compiled library, the file's path or its content, loaded on ``device``: result[name] is a function there.

    Raises HwqError "device-other" for one that the board cannot load, "device-lost"; of this machine what TVM raises.
    """
    content = library if isinstance(library, bytes) else Path(library).read_bytes()
    if device.session is None:
        if not isinstance(library, bytes):
            return tvm.runtime.load_module(os.fspath(library))
        with scratch() as folder:
            (folder / "library.so").write_bytes(content)
            return tvm.runtime.load_module(str(folder / "library.so"))  # once loaded it needs no file
    name = f"hwq_{secrets.token_hex(8)}.so"  # over a file that is loaded there none may be written
    try:
        with heard(device):
            device.session.upload(bytearray(content), name)
            return device.session.load_module(name)
    except RuntimeError as error:
        reason = _last_line(error)
        message = f"board {device.name} cannot load the library: {reason}; accepted: one compiled for its kind of CPU"
        raise HwqError("device-other", message) from error


def tensor(device: Device, array: npt.NDArray[Any]) -> Any:
    """A tensor on ``device`` that holds ``array``. Raises HwqError "device-lost"."""
    with heard(device):
        return tvm.runtime.tensor(array, device.context)


def empty(device: Device, shape: tuple[int, ...], dtype: str) -> Any:
    """A tensor on ``device`` with whatever is in its memory. Raises HwqError "device-lost"."""
    with heard(device):
        return tvm.runtime.empty(shape, dtype, device.context)


def set_threads(device: Device, threads: int) -> None:
    """Let the kernels of this session use ``threads`` threads, at most one a core. Raises HwqError "device-lost"."""
    if device.session is None:
        use_threads(threads)
        return
    with heard(device):
        device.session.get_function("runtime.config_threadpool")(_BIG_CORES, threads)


def facts(device: Device) -> Facts:
    """What the machine is. Raises HwqError "device-other" for a kind of CPU that hwq does not know, "device-lost"."""
    if device.session is None:
        return local_facts()
    with heard(device):
        return board_facts(device.session, device.name)


def misfit(target: Target, found: Facts) -> str | None:
    """Why code for ``target`` cannot run on a machine of these facts; None where it can."""
    if target.architecture != found.arch:
        return f"it is {found.arch}, and target {target.name} is for {target.architecture}"
    missing = target.missing_flags(found.flags)
    return f"it lacks {', '.join(missing)}, which target {target.name} needs" if missing else None


def resolved(target: Target) -> Target:
    """``target`` with the CPU model of the board that it names, "emulated ..." for an emulator; a local one as it is.

    Of several boards under one key the first counts that answers and can run the code.

    Raises HwqError "device-other" for a board that cannot run the target's code, and as ``connect``.
    """
    if target.device == LOCAL:
        return target
    device, found = _reached(replace(target, cpu_model=""))
    close(device)
    return replace(target, cpu_model=found.cpu_model)


def connect_to(target: Target) -> Device:
    """The machine of ``target``: of the boards that its device names one of its CPU model, which ``resolved`` gave it.

    Raises HwqError "device-other" where there is none such, and as ``connect``.
    """
    return local() if target.device == LOCAL else _reached(target)[0]


def require_model(device: Device, cpu_model: str) -> None:
    """Raises HwqError "device-other" for a board of another CPU model, whose times are no other's; "" accepts all."""
    if device.session is not None and cpu_model:
        _require(device, facts(device), cpu_model)


def _require(device: Device, found: Facts, cpu_model: str) -> None:
    if found.cpu_model != cpu_model:
        message = f"board {device.name} is {found.cpu_model!r}, and what is measured is {cpu_model!r}"
        raise HwqError("device-other", f"{message}; accepted: boards under one key that are alike")


def _reached(target: Target) -> tuple[Device, Facts]:
    """The first of the boards that answers and is the target's machine, and what it is.

    Others are held until then, so that the tracker hands them out no second time.
    """
    passed: list[Device] = []
    tries = max(1, count(target.device))
    try:
        while True:
            tries -= 1
            try:
                return _asked(target, passed)
            except HwqError as error:
                if not tries or error.code not in ("device-lost", "device-other"):
                    raise
                log.debug("another board is asked: %s", error)
    finally:
        for device in passed:
            close(device)


def _asked(target: Target, passed: list[Device]) -> tuple[Device, Facts]:
    device = connect(target.device)
    try:
        found = facts(device)
        reason = misfit(target, found)
        if reason is not None:
            message = f"board {device.name} cannot run the code: {reason}; accepted: a target that fits the board"
            raise HwqError("device-other", message)
        _require(device, found, target.cpu_model or found.cpu_model)
    except BaseException:
        passed.append(device)
        raise
    return device, found
