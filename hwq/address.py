"""How a machine is named: "local", KEY, or KEY@HOST:PORT; and where the tracker is that knows who has the key."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hwq.errors import HwqError
from hwq.switches import tracker_wanted

LOCAL = "local"
PORT = 9190
NEAR = f"127.0.0.1:{PORT}"
REMOTE = "KEY, or KEY@HOST:PORT with the tracker's address; a key is letters, digits, '.', '_' and '-'"
_DEVICE = re.compile(r"([A-Za-z0-9][\w.-]*)(?:@(.+))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracker:
    """Where a tracker listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A board of this key, at this tracker."""

    key: str
    tracker: Tracker

    def __str__(self) -> str:
        return f"{self.key}@{self.tracker}"


def read_tracker(text: str | None = None) -> Tracker:
    """The tracker at "HOST:PORT" or "HOST"; None: at HWQ_TRACKER, or port 9190 here.

    Raises HwqError "device-invalid".
    """
    given = text or tracker_wanted() or NEAR
    host, colon, port = given.rpartition(":") if ":" in given else (given, ":", str(PORT))
    if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536 or not host.isprintable():
        raise HwqError("device-invalid", f"tracker is {given!r}; accepted: HOST:PORT, such as {NEAR}")
    return Tracker(host=host, port=int(port))


def read_device(text: str) -> Board | None:
    """The board that ``text`` names; None for "local". Raises HwqError "device-invalid"."""
    match = _DEVICE.fullmatch(text)
    if match is None or (match[1] == LOCAL and match[2]):
        raise HwqError("device-invalid", f"device is {text!r}; accepted: {LOCAL}, {REMOTE}")
    if text == LOCAL:
        return None
    return Board(key=match[1], tracker=read_tracker(match[2]))
