"""What a process has taken, as the system tells it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hwq.process import peak_memory_bytes

CODE = """
from hwq.process import peak_memory_bytes
before = peak_memory_bytes()
held = bytearray(10**8)
after = peak_memory_bytes()
del held
print(before, after, peak_memory_bytes())
"""


@pytest.mark.skipif(peak_memory_bytes() is None, reason="this system has no /proc/self/status")
def test_the_peak_stays_when_memory_is_given_back() -> None:
    """Of the process itself: this one, which starts it, holds far more."""
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    before, after, last = map(int, out.split())
    assert after - before == pytest.approx(10**8, rel=0.1)
    assert last == pytest.approx(after, rel=0.02)
    assert before < 10**8


@pytest.mark.parametrize("text", ["", "Name: x", "VmHWM: many kB", "no colon"])
def test_none_where_the_system_does_not_tell(tmp_path: Path, text: str) -> None:
    (tmp_path / "status").write_text(text)
    assert peak_memory_bytes(tmp_path / "status") is None
    assert peak_memory_bytes(tmp_path / "absent") is None
