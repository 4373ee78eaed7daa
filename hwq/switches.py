"""The environment variables that hwq reads, all of them. A flag is on unless it is empty or 0.

| variable          | meaning                                                                                  |
|-------------------|------------------------------------------------------------------------------------------|
| `HWQ_DEBUG=1`     | debug lines on stderr (why a schedule declined), and whole tracebacks                     |
| `HWQ_DUMP=dir`    | the IR after every pass, in numbered files                                                |
| `HWQ_VERIFY=1`    | the IR is checked after every pass; of all that is built the integer kernels are compared |
|                   | with the NumPy reference, and the library with the kernels; kernels check arguments       |
| `HWQ_CACHE=dir`   | where compiled kernels and measured records are kept (``hwq.cache``)                      |
| `XDG_CACHE_HOME`  | the user's cache folder, for those without ``HWQ_CACHE``                                  |
| `HWQ_TRACKER=host:port` | the tracker of boards named without one (``hwq.address``)                     |
| `HWQ_DATA=dir`    | where the tests look for real networks and samples                                        |
| `HWQ_BOARD_CPU` | for tests: the core that the emulated board is, as qemu names it; set by what serves the board |
| `HWQ_FULL=1`      | the tests take all samples of real networks, not a few                                    |
"""

from __future__ import annotations

import os
from pathlib import Path


def debug_wanted() -> bool:
    """Whether HWQ_DEBUG is on."""
    return _on("HWQ_DEBUG")


def verify_wanted() -> bool:
    """Whether HWQ_VERIFY is on."""
    return _on("HWQ_VERIFY")


def dump_folder() -> Path | None:
    """The folder that HWQ_DUMP names; None where it is empty or not set."""
    folder = os.environ.get("HWQ_DUMP")
    return Path(folder) if folder else None


def tracker_wanted() -> str | None:
    """The tracker that HWQ_TRACKER names, as it stands there; None where it is empty or not set."""
    return os.environ.get("HWQ_TRACKER") or None


def _on(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")
