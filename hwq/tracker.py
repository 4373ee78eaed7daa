"""Ask TVM's tracker: which boards there are, and for one of them. Every question has a time after which it is given up.

The words are TVM's (``tvm.rpc.base``); its own client waits for good where a board or a tracker does not answer.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvm.rpc import base

from hwq.address import Board, Tracker
from hwq.errors import HwqError

# How long the tracker has to answer, and how long a board that has just ended a session is waited for.
ANSWER_S = 5.0
APPEAR_S = 3.0
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """The boards of one key: where each is reached, how many are free, and how many clients wait for one."""

    key: str
    addresses: tuple[str, ...]
    free: int
    waiting: int


@contextlib.contextmanager
def ask(tracker: Tracker) -> Iterator[socket.socket]:
    """A connection to the tracker. Raises HwqError "tracker-missing" for whatever goes wrong with it, in here too."""
    try:
        with socket.create_connection((tracker.host, tracker.port), ANSWER_S) as line:
            line.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            if struct.unpack("<i", base.recvall(line, 4))[0] != base.RPC_TRACKER_MAGIC:
                raise OSError("something else listens there")
            yield line
    except (OSError, ValueError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = (
            f"no tracker at {tracker}: {reason}; accepted: one that `hwq lab tracker` started, named by HWQ_TRACKER"
        )
        raise HwqError("tracker-missing", message) from error


def shelves(tracker: Tracker) -> tuple[Shelf, ...]:
    """What the tracker knows, by key. Raises HwqError "tracker-missing"."""
    with ask(tracker) as line:
        return _shelves(line)


def _shelves(line: socket.socket) -> tuple[Shelf, ...]:
    base.sendjson(line, [base.TrackerCode.SUMMARY])
    code, found = base.recvjson(line)
    if code != base.TrackerCode.SUCCESS:
        raise OSError(f"it answers {code}")
    boards: dict[str, list[str]] = {}
    for info in found["server_info"]:
        boards.setdefault(info["key"].partition(":")[2], []).append(":".join(map(str, info["addr"])))
    queues = found["queue_info"]
    return tuple(
        Shelf(
            key=key,
            addresses=tuple(sorted(boards[key])),
            free=queues.get(key, {}).get("free", 0),
            waiting=queues.get(key, {}).get("pending", 0),
        )
        for key in sorted(boards)
    )


def request(board: Board, wait_s: float) -> tuple[str, int, str]:
    """(host, port, password of this one session) of a free board, waiting up to ``wait_s`` while all are busy.

    Raises HwqError "tracker-missing", and "device-missing" where no board of the key is there, or none gets free.
    """
    with ask(board.tracker) as line:
        until = time.monotonic() + min(wait_s, APPEAR_S)
        while True:
            known = {shelf.key: len(shelf.addresses) for shelf in _shelves(line)}
            if board.key in known:
                break
            if time.monotonic() > until:
                others = ", ".join(known) or "none at all"
                message = f"no board {board.key!r} at the tracker {board.tracker}; boards there: {others}"
                raise HwqError("device-missing", message)
            time.sleep(_LOOK_S)
        base.sendjson(line, [base.TrackerCode.REQUEST, board.key, "", 1])
        line.settimeout(wait_s)
        try:
            answer: Any = base.recvjson(line)
        except TimeoutError as error:
            count = known[board.key]
            message = f"no board {board} got free in {wait_s:g} s: {count} known, all in use or not answering"
            raise HwqError("device-missing", message) from error
        if answer[0] != base.TrackerCode.SUCCESS:
            raise OSError(f"it answers {answer[0]}")
        host, port, password = answer[1]
        return host, int(port), password
