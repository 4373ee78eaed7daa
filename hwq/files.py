"""Writing files so that no half file is ever seen: a temporary neighbour first, then one rename. Scratch folders."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import secrets
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.errors import HwqError


def write_atomic(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """``write_whole``. Raises HwqError "save-failed" with the system's reason (disk full, no folder, ...)."""
    try:
        write_whole(path, data)
    except OSError as error:
        reason = error.strerror or str(error)
        raise HwqError(
            "save-failed", f"cannot write {os.fspath(path)!r}: {reason}; nothing was changed there"
        ) from error


def write_whole(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write ``data`` to ``path``: afterwards it holds all of it or what it held before, whatever happens.

    A symbolic link is followed; a device or a pipe is written to as it is. Raises OSError.
    """
    final = Path(os.path.realpath(path))
    if final.exists() and not final.is_file():  # a device or a pipe, which a rename would take the place of
        with open(final, "wb") as device:
            device.write(data)
        return
    part = final.with_name(f".{final.name[:100]}.{secrets.token_hex(6)}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, final)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sweep(folder: Path, older_s: float = 3600.0) -> None:
    """Remove what processes that were killed while they wrote into ``folder`` left there, an hour ago or more."""
    before = time.time() - older_s
    for part in folder.glob(".*.part"):
        with contextlib.suppress(OSError):  # another process swept it, or it is not ours to remove
            if part.stat().st_mtime < before:
                part.unlink()


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write ``arrays`` as an uncompressed .npz at ``path`` as it stands, by ``write_atomic`` and with its errors."""
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as pack:  # np.savez would take a name like "file" for its own argument
        for name, array in arrays.items():
            with pack.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
    write_atomic(path, blob.getbuffer())


@contextlib.contextmanager
def scratch(within: Path | None = None) -> Iterator[Path]:
    """A temporary folder, below ``within`` or where the system has such; it is gone afterwards.

    What the system refuses inside (no space, no permission) is raised as HwqError "save-failed". Other OSErrors, such
    as the dynamic linker's, have no number and pass.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="hwq-", dir=within) as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno is None:
            raise
        reason = error.strerror or str(error)
        message = f"cannot write temporary files: {reason}; accepted: TMPDIR set to a folder with space"
        raise HwqError("save-failed", message) from error


@contextlib.contextmanager
def swept_scratch(name: str) -> Iterator[Path]:
    """``scratch`` for what may be large: those of this ``name`` whose owner was killed are removed first.

    The owner holds a lock on the folder, which the system lets go of when it dies.
    """
    with scratch() as place:
        lock = os.open(place, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (place / name).mkdir()
            for other in place.parent.glob(f"hwq-*/{name}"):
                _remove_unowned(other)
            yield place / name
        finally:
            os.close(lock)


def _remove_unowned(folder: Path) -> None:
    with contextlib.suppress(OSError):  # its owner lives, or removed it just now
        lock = os.open(folder.parent, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder.parent)
        finally:
            os.close(lock)
