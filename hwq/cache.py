"""Where hwq keeps what it may forget: compiled kernels and measured records. Nothing here creates a folder.

| variable         | meaning                                                              |
|------------------|----------------------------------------------------------------------|
| `HWQ_CACHE`      | the folder itself                                                    |
| `XDG_CACHE_HOME` | the user's cache folder, an absolute path; hwq uses `hwq` below it   |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hwq.errors import HwqError


def default_cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """``HWQ_CACHE``, or ``XDG_CACHE_HOME/hwq``, or ``~/.cache/hwq``; empty and relative XDG values count as unset.

    Raises HwqError "cache-dir" where there is no home folder either.
    """
    variables = os.environ if environ is None else environ
    try:
        if own := variables.get("HWQ_CACHE"):
            return Path(own).expanduser()
        user = variables.get("XDG_CACHE_HOME", "")
        return (Path(user) if os.path.isabs(user) else Path.home() / ".cache") / "hwq"
    except RuntimeError as error:
        raise HwqError("cache-dir", f"no home folder ({error}); accepted: HWQ_CACHE set to a folder") from error


def default_store_path(environ: Mapping[str, str] | None = None) -> Path:
    """The store of measured records, ``records.sqlite`` in the cache folder."""
    return default_cache_dir(environ) / "records.sqlite"
