"""Kernels for AMX on any machine: natively where there is AMX, with ``amx_emulator`` elsewhere, else skipped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from amx_emulator import Amx, emulated

from hwq import cpu
from hwq.target import Target
from hwq.threads import use_threads

AMX_FLAGS = ("amx_tile", "amx_int8", "amx_bf16")


def amx_target() -> Target:
    """The AMX target; skips where this CPU lacks something else that its code needs."""
    target = Target.load("x86-amx")
    missing = [flag for flag in target.missing_flags() if flag not in AMX_FLAGS]
    if missing:
        pytest.skip(f"x86-amx needs {', '.join(missing)}, which this CPU lacks")
    return target


@contextlib.contextmanager
def on_tiles() -> Iterator[Amx | None]:
    """Where AMX code may be run: the emulator's state, or None where the CPU has AMX. All in this thread."""
    use_threads(1)
    if "amx_int8" in cpu.cpu_flags():
        print("AMX is there: run natively, nothing is counted")
        yield None
        return
    with emulated() as amx:
        yield amx
