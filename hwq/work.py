"""The work directory: what the stages found, each under the hash of what went in, so that the same call goes on there.

Every file is written whole or not at all, and a result is only read under the key it was written for: an interrupt at
any moment leaves a directory that can be used. A file that was damaged later counts as absent, and is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwq.cache import default_cache_dir
from hwq.errors import HwqError
from hwq.files import sweep, write_atomic
from hwq.numerics import INT8, QParams
from hwq.store import tool_versions

log = logging.getLogger(__name__)
_MARK = "model.json"


# Raised when a stage comes to other results from the same inputs: those of an older hwq are then not found again.
RESULTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """stages: this model's results. cache: compiled kernels and the store of records, shared by all models. changed:
    what stages come to other results by that their inputs do not say; "" for nothing."""

    stages: Path
    cache: Path
    changed: str = ""

    def file(self, stage: str, suffix: str, *parts: Any) -> Path:
        """Where ``stage`` keeps the result of the inputs ``parts``."""
        known = [RESULTS, tool_versions(), *parts, *([self.changed] if self.changed else [])]
        key = hashlib.sha256(json.dumps(known, sort_keys=True, default=_text).encode()).hexdigest()[:16]
        return self.stages / f"{stage}-{key}{suffix}"


def _text(value: Any) -> str:
    """A value of the project's own types as text, which is the same in every process: a function's is not."""
    assert not callable(value), f"{value!r} is no input of a stage"
    return str(value)


def open_work(fingerprint: str, name: str, work_dir: str | Path | None) -> Work:
    """The work directory of the model with this fingerprint, made if absent; None takes one under the user's cache.

    Raises HwqError "work-dir-other" if the directory belongs to another model, "work-dir-broken" if it cannot be told
    whose it is, "save-failed" if a folder cannot be made or written.
    """
    cache = default_cache_dir()
    stages = cache / "work" / fingerprint[:16] if work_dir is None else Path(work_dir)
    _make(cache, "cache folder", "a writable place, or HWQ_CACHE set to one")
    _make(stages, "work directory", "a writable folder")
    for folder in (stages, cache, cache / "objects", cache / "price"):
        sweep(folder)
    mark = stages / _MARK
    if mark.exists():
        owner = _owner(mark)
        if owner["fingerprint"] != fingerprint:
            raise HwqError(
                "work-dir-other",
                f"work directory {str(stages)!r} belongs to model {owner['name']!r} ({owner['fingerprint'][:8]}), not "
                f"to {name!r} ({fingerprint[:8]}); accepted: an empty folder, or the one made for this model",
            )
    else:
        write_atomic(mark, json.dumps({"name": name, "fingerprint": fingerprint}).encode())
    return Work(stages=stages, cache=cache)


def _make(folder: Path, what: str, accepted: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"cannot make the {what} {str(folder)!r}: {reason}; accepted: {accepted}"
        raise HwqError("save-failed", message) from error


def _owner(mark: Path) -> dict[str, str]:
    """Whose work directory this is, by its mark. It is not written anew: the file may be someone else's."""
    try:
        owner = json.loads(mark.read_bytes())
        return {key: owner[key][:] for key in ("name", "fingerprint")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = (
            f"work directory {str(mark.parent)!r} has a {mark.name} that is damaged or not hwq's; accepted: an empty "
            "folder, or one that hwq made"
        )
        raise HwqError("work-dir-broken", message) from error


def save_qparams(path: Path, qparams: dict[str, QParams]) -> None:
    """Keep calibrated parameters as JSON. Raises HwqError "save-failed"."""
    rows = {name: [float(np.float32(q.scale)), q.zero_point] for name, q in qparams.items()}
    write_atomic(path, json.dumps(rows, indent=0).encode())


def load_qparams(path: Path, tensors: Collection[str]) -> dict[str, QParams] | None:
    """The parameters of exactly ``tensors`` that ``save_qparams`` kept; None if there are none, or they are damaged."""
    try:
        rows = json.loads(path.read_bytes())
        found = {str(name): QParams(scale=scale, zero_point=zero) for name, (scale, zero) in rows.items()}
        sound = all(_sound(q) for q in found.values()) and found.keys() == set(tensors)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.debug("%s is damaged (%s): the ranges are made again", path, error)
        return None
    if not sound:
        log.debug("%s is damaged: the ranges are made again", path)
    return found if sound else None


def _sound(q: QParams) -> bool:
    """Whether values read from a file can be parameters."""
    real = isinstance(q.scale, float) and math.isfinite(q.scale) and q.scale > 0
    return real and isinstance(q.zero_point, int) and INT8.qmin <= q.zero_point <= INT8.qmax
