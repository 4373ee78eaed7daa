"""Where the cache is, by environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwq.cache import default_cache_dir, default_store_path
from hwq.errors import HwqError


def test_hwq_cache_goes_first() -> None:
    assert default_cache_dir({"HWQ_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}) == Path("/a/b")
    assert default_cache_dir({"HWQ_CACHE": "~/b"}) == Path.home() / "b"


def test_then_the_users_cache_folder() -> None:
    assert default_cache_dir({"HWQ_CACHE": "", "XDG_CACHE_HOME": "/c"}) == Path("/c/hwq")


@pytest.mark.parametrize("environ", [{}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}])
def test_then_the_home_folder(environ: dict[str, str]) -> None:
    assert default_cache_dir(environ) == Path.home() / ".cache" / "hwq"


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HWQ_CACHE", str(tmp_path / "new"))
    assert default_store_path() == tmp_path / "new" / "records.sqlite"
    assert not (tmp_path / "new").exists(), "asking makes nothing"


def test_no_home_folder_is_an_error_that_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(HwqError, match="HWQ_CACHE") as caught:
        default_cache_dir({})
    assert caught.value.code == "cache-dir"
