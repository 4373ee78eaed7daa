"""An output that could not be written is refused before the work for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwq.errors import HwqError
from hwq.options import check_output


def test_what_can_be_written_passes(tmp_path: Path) -> None:
    check_output(None)
    check_output(str(tmp_path / "new.hwq"))
    (tmp_path / "old.hwq").write_bytes(b"")
    check_output(str(tmp_path / "old.hwq"))
    check_output("/dev/null")


@pytest.mark.parametrize(("name", "reason"), [("", "it is a folder"), ("absent/out.hwq", "there is no folder")])
def test_what_cannot_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(HwqError, match=reason) as refused:
        check_output(str(tmp_path / name))
    assert refused.value.code == "save-failed"
