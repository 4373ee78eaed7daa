"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from emulated_board import BoardMissing, build, default_root

ROOT = Path(__file__).resolve().parents[1]
BOARD_AT = default_root()  # of the user's cache: it is not built for every run

# Derandomized: a commit passes or fails the same everywhere. No deadline: machines differ, and compiling is slow.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("house")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One empty cache of compiled kernels for the whole run: tests share kernels, and find nothing of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    """Interrupts are heard, here and in what tests start: a shell starts what runs in its background deaf to them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator of its own for every test, always in the same state at the start."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real networks and pictures: HWQ_DATA, or ../shared/data from the root; skips without it."""
    folder = Path(os.environ.get("HWQ_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real networks at {folder}; HWQ_DATA names another folder")
    return folder


@pytest.fixture(scope="session")
def tracker() -> Iterator[str]:
    """A tracker of TVM's for the whole run: "HOST:PORT"."""
    from boards import tracking  # imports TVM, which most tests of a part do without

    with tracking() as address:
        yield address


@pytest.fixture(scope="session")
def board_root() -> Path:
    """The tree of an emulated ARM board, built where it is not in the user's cache; skips where it cannot be."""
    try:
        return build(BOARD_AT)
    except BoardMissing as error:
        pytest.skip(f"no emulated board: {error}")


@pytest.fixture(scope="session")
def board_name(board_root: Path, tracker: str) -> Iterator[str]:
    """KEY@HOST:PORT of an emulated ARM board that serves for the whole run; one session at a time."""
    from boards import serving

    with serving(board_root, tracker, "board"):
        yield f"board@{tracker}"


@pytest.fixture(scope="session")
def near_name(tracker: str) -> Iterator[str]:
    """KEY@HOST:PORT of this machine, served as a board for the whole run: no emulator, so that it can be timed."""
    from boards import serving_here

    with serving_here(tracker, "near"):
        yield f"near@{tracker}"


@pytest.fixture
def board(board_name: str) -> Iterator[Any]:
    """A session with that board, for one test: what a test breaks is whole for the next."""
    from hwq import device

    found = device.connect(board_name)
    yield found
    device.close(found)
