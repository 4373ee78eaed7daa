"""Every tutorial runs from top to bottom, in its small mode, and says what its text promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.py"))
PROMISED = {
    "01_compile_a_network": (
        "stem",
        "the whole network",
        "pictures read rightly",
        "'w4a8'",
        "agrees with float on",
        "budget-impossible: no assignment meets the budget",
        "edited plan",
    ),
    "02_budgets_and_fronts": (
        "the front",
        "the smallest takes",
        "budget-impossible: ",
        "latency: predicted",
        "the loss is held by:",
        "next cheaper:",
        "digits.html",
        "as explored",
    ),
    "03_tune_on_a_board": (
        "equal to the NumPy reference",
        "pictures are read rightly",
        "trials of",
        "the same bits before and after: True",
        "of what it took",
    ),
    "04_language_model": (
        "shares           attention",
        "besides, in steps: ",
        "steps differ by",
        "  the boy ",
        "session-full: the session stands at position",
        "two sessions, at 9 and 8 of 96 tokens",
        "caches of a session: 24576 bytes",
        "in int8 they take 6912 bytes: when the ",
    ),
}


def test_there_is_a_tutorial() -> None:
    assert {path.stem for path in TUTORIALS} >= PROMISED.keys()


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path: Path, tmp_path: Path) -> None:
    """In a process of its own, as a reader runs it, in a folder of its own; kernels come from the tests' cache."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(path), "--small"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert [text for text in PROMISED.get(path.stem, ()) if text not in result.stdout] == []
