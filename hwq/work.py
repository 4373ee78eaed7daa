"""The work directory: what the stages found, each under the hash of what went in, so that the same call goes on from there.

Every file is written whole or not at all, and a result is only read under the key it was written for: an interrupt at
any moment leaves a directory that can be used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwq.cache import default_cache_dir
from hwq.errors import HwqError
from hwq.files import write_atomic
from hwq.numerics import QParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """stages: this model's results. cache: compiled kernels and the store of records, shared by all models."""

    stages: Path
    cache: Path

    def file(self, stage: str, suffix: str, *parts: Any) -> Path:
        """Where ``stage`` keeps the result of the inputs ``parts``."""
        key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return self.stages / f"{stage}-{key}{suffix}"


def open_work(fingerprint: str, name: str, work_dir: str | Path | None) -> Work:
    """The work directory of the model with this fingerprint, made if absent; None takes one under the user's cache.

    Raises HwqError "work-dir-other" if the directory belongs to another model, "save-failed" if it cannot be written.
    """
    cache = default_cache_dir()
    stages = cache / "work" / fingerprint[:16] if work_dir is None else Path(work_dir)
    mark = stages / "model.json"
    try:
        stages.mkdir(parents=True, exist_ok=True)
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HwqError("save-failed", f"work directory {stages} cannot be made: {error.strerror}; accepted: a writable folder") from error
    if mark.exists():
        owner = json.loads(mark.read_text())
        if owner["fingerprint"] != fingerprint:
            raise HwqError(
                "work-dir-other",
                f"work directory {stages} belongs to model {owner['name']!r} ({owner['fingerprint'][:8]}), not to {name!r} "
                f"({fingerprint[:8]}); accepted: an empty folder, or the one made for this model",
            )
    else:
        write_atomic(mark, json.dumps({"name": name, "fingerprint": fingerprint}).encode())
    return Work(stages=stages, cache=cache)


def save_qparams(path: Path, qparams: dict[str, QParams]) -> None:
    """Keep calibrated parameters as JSON."""
    rows = {name: [float(np.float32(q.scale)), q.zero_point] for name, q in qparams.items()}
    write_atomic(path, json.dumps(rows, indent=0).encode())


def load_qparams(path: Path) -> dict[str, QParams]:
    """The parameters that ``save_qparams`` kept."""
    return {name: QParams(scale=scale, zero_point=zero) for name, (scale, zero) in json.loads(path.read_text()).items()}
