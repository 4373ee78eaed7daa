"""Writing files so that no half file is ever seen: a temporary neighbour first, then one rename."""

from __future__ import annotations

import io
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.errors import HwqError


def write_atomic(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write ``data`` to ``path``: afterwards it holds all of it or what it held before, whatever happens.

    A symbolic link is followed; a device or a pipe is written to as it is. Raises HwqError "save-failed" with the
    system's reason (disk full, no folder, ...).
    """
    final = Path(os.path.realpath(path))
    part = final.with_name(f".{final.name[:100]}.{secrets.token_hex(6)}.part")
    try:
        if final.exists() and not final.is_file():  # a device or a pipe, which a rename would take the place of
            with open(final, "wb") as device:
                device.write(data)
            return
        try:
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, final)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise HwqError(
            "save-failed", f"cannot write {os.fspath(path)!r}: {reason}; nothing was changed there"
        ) from error


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write ``arrays`` as an uncompressed .npz at ``path`` as it stands, by ``write_atomic`` and with its errors."""
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as pack:  # np.savez would take a name like "file" for its own argument
        for name, array in arrays.items():
            with pack.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
    write_atomic(path, blob.getbuffer())
