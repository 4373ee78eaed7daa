"""Flags in the environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hwq import switches
from hwq.switches import debug_wanted, verify_wanted


@pytest.mark.parametrize(("value", "on"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
def test_a_flag_is_on_unless_it_is_empty_or_0(monkeypatch: pytest.MonkeyPatch, value: str | None, on: bool) -> None:
    for variable, wanted in (("HWQ_DEBUG", debug_wanted), ("HWQ_VERIFY", verify_wanted)):
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)
        assert wanted() is on


def test_the_table_has_every_variable_that_is_read() -> None:
    """By hwq itself and by its tests."""
    root = Path(__file__).resolve().parents[1]
    sources = [path.read_text() for folder in ("hwq", "tests", "benchmarks") for path in (root / folder).rglob("*.py")]
    read = {name for text in sources for name in re.findall(r"\b(?:HWQ|XDG)_[A-Z_]+\b", text)}
    assert {"HWQ_CACHE", "HWQ_FULL", "XDG_CACHE_HOME"} <= read
    listed = set(re.findall(r"^\| `([A-Z_]+)", switches.__doc__ or "", re.MULTILINE))
    assert listed == read
