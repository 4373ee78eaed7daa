"""What the kernels' tests stand on: arguments in front of a page that nobody may touch."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernel_runs import ALIGNMENT, at_the_edge

# Touches the byte `argv[2]` bytes beyond the end of `argv[1]` numbers.
TOUCH = """
import ctypes, sys
import numpy as np
from kernel_runs import at_the_edge
placed = at_the_edge(np.zeros(int(sys.argv[1]), np.float32))
ctypes.string_at(placed.ctypes.data + placed.nbytes + int(sys.argv[2]), 1)
"""


@pytest.mark.parametrize("shape", [(1,), (3, 7), (16, 64), (1024,), (5, 4099)])
def test_values_are_the_same_and_aligned(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    for dtype in ("uint8", "int32", "float32"):
        value = rng.integers(0, 100, shape).astype(dtype)
        placed = at_the_edge(value)
        np.testing.assert_array_equal(placed, value)
        assert placed.dtype == dtype
        assert placed.ctypes.data % ALIGNMENT == 0


@pytest.mark.parametrize(("count", "beyond"), [(1024, 0), (16, 0), (17, ALIGNMENT - 4), (1, ALIGNMENT)])
def test_what_touches_the_bytes_behind_them_ends(count: int, beyond: int) -> None:
    found = subprocess.run(
        [sys.executable, "-c", TOUCH, str(count), str(beyond)], cwd=Path(__file__).parent, check=False
    )
    assert found.returncode == -signal.SIGSEGV
