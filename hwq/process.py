"""Process: what this process has taken of the machine."""

from __future__ import annotations

from pathlib import Path


def peak_memory_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """The most memory that this process had at once, in bytes (VmHWM, see proc(5)); None where the system tells none.

    ``getrusage`` would tell more than that in a process that a larger one started: it counts what was there before.
    """
    try:
        rows = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(rows["VmHWM"].removesuffix("kB")) * 1024
    except (OSError, ValueError, KeyError):
        return None
