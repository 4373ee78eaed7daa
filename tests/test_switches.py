"""Flags in the environment."""

from __future__ import annotations

import pytest

from hwq.switches import debug_wanted, verify_wanted


@pytest.mark.parametrize(("value", "on"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
def test_a_flag_is_on_unless_it_is_empty_or_0(monkeypatch: pytest.MonkeyPatch, value: str | None, on: bool) -> None:
    for variable, wanted in (("HWQ_DEBUG", debug_wanted), ("HWQ_VERIFY", verify_wanted)):
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)
        assert wanted() is on
