"""Read a tuning job's .toml strictly: values out, or an HwqError that names file, key, value and what is accepted.

trials = 400                # of each target; or hours = 8.0; or both, and what is spent first ends it
[[model]]
path = "resnet50.onnx"      # paths are relative to the job file
schemes = ["w8a8", "f32"]   # each as a network of its own; left out: all that the target has
priority = 2.0              # how much a millisecond of this network counts
[[target]]
name = "host"               # or a .toml
devices = ["local"]         # KEY or KEY@HOST:PORT of a lab's boards; a key stands for all its boards
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hwq.address import LOCAL, NEAR, read_device
from hwq.errors import HwqError
from hwq.graph import Shape
from hwq.scheme import SCHEMES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobModel:
    """A network to tune. batch, shapes: as ``hwq.load``. schemes: None is all that a target has. calibration: samples
    to take ranges from; None makes ranges up, which the kernels do not know: they are arguments of a call."""

    path: Path
    batch: int = 1
    shapes: tuple[tuple[str, Shape], ...] = ()
    schemes: tuple[str, ...] | None = None
    calibration: Path | None = None
    priority: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTarget:
    """A machine to tune for. name: as ``Target.load``; devices None: the target's own; threads None: its cores."""

    name: str
    devices: tuple[str, ...] | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What ``hwq tune`` is to do. trials, hours: of each target; at least one is given. work_dir: where it notes the
    time it has spent, keeps ranges, and writes its report."""

    path: Path
    models: tuple[JobModel, ...]
    targets: tuple[JobTarget, ...]
    trials: int | None
    hours: float | None
    work_dir: Path
    seed: int = 0


def read_job(path: Path) -> Job:
    """The job of the file ``path``. Raises HwqError "job-missing" for a file that cannot be read, "job-invalid"."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"job file {path} cannot be read: {error.strerror or error}; accepted: a .toml that is there"
        raise HwqError("job-missing", message) from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise HwqError("job-invalid", f"job file {path} is no TOML: {error}; accepted: see the README") from error
    table = _Table(where=str(path), values=values)
    table.only("trials", "hours", "seed", "work_dir", "model", "target")
    trials, hours = table.maybe("trials", _count), table.maybe("hours", _positive)
    if trials is None and hours is None:
        raise HwqError(
            "job-invalid", f"job file {path}: trials and hours are both missing; every job gives one of them"
        )
    work_dir = table.maybe("work_dir", _text) or f"{path.stem}.work"
    folder = path.parent
    return Job(
        path=path,
        models=tuple(_model(one, folder) for one in table.tables("model")),
        targets=tuple(_target(one, folder) for one in table.tables("target")),
        trials=trials,
        hours=hours,
        work_dir=folder / work_dir,
        seed=table.maybe("seed", _whole) or 0,
    )


def _model(table: _Table, folder: Path) -> JobModel:
    table.only("path", "batch", "shapes", "schemes", "calibration", "priority")
    calibration = table.maybe("calibration", _text)
    return JobModel(
        path=folder / table.needed("path", _text),
        batch=table.maybe("batch", _count) or 1,
        shapes=table.maybe("shapes", _shapes) or (),
        schemes=table.maybe("schemes", _schemes),
        calibration=None if calibration is None else folder / calibration,
        priority=table.maybe("priority", _positive) or 1.0,
    )


def _target(table: _Table, folder: Path) -> JobTarget:
    table.only("name", "devices", "threads")
    name = table.needed("name", _text)
    return JobTarget(
        name=str(folder / name) if name.endswith(".toml") else name,
        devices=table.maybe("devices", _devices),
        threads=table.maybe("threads", _count),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A table of the file. section: what stands before its keys in an error, as "model 2: "."""

    where: str
    values: Mapping[str, Any]
    section: str = ""

    def wrong(self, key: str, accepted: str) -> HwqError:
        found = repr(self.values[key]) if key in self.values else "missing"
        return HwqError("job-invalid", f"job file {self.where}: {self.section}{key} is {found}; accepted: {accepted}")

    def only(self, *keys: str) -> None:
        for key in self.values:
            if key not in keys:
                raise HwqError(
                    "job-invalid",
                    f"job file {self.where}: unknown key {self.section}{key} (value {self.values[key]!r}); "
                    f"accepted: {', '.join(keys)}",
                )

    def maybe(self, key: str, read: Callable[[Any], _T]) -> _T | None:
        """The value of ``key`` by ``read``, which raises ValueError with what it accepts; None where there is none."""
        if key not in self.values:
            return None
        return self.needed(key, read)

    def needed(self, key: str, read: Callable[[Any], _T]) -> _T:
        try:
            return read(self.values.get(key))
        except ValueError as error:
            raise self.wrong(key, str(error)) from None

    def tables(self, key: str) -> list[_Table]:
        """The tables [[key]], at least one."""
        rows = self.values.get(key)
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise self.wrong(key, f"one or more tables [[{key}]]")
        return [_Table(where=self.where, values=row, section=f"{key} {n}: ") for n, row in enumerate(rows, 1)]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("a whole number of at least 0")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a whole number of at least 1")
    return value


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError("a number above 0")
    return float(value)


def _listed(value: Any, accepted: str, fits: Callable[[str], bool]) -> tuple[str, ...]:
    texts = isinstance(value, list) and bool(value) and all(isinstance(one, str) and fits(one) for one in value)
    if not texts or len(set(value)) < len(value):
        raise ValueError(accepted)
    return tuple(value)


def _schemes(value: Any) -> tuple[str, ...]:
    return _listed(value, f"a list of different schemes of {', '.join(SCHEMES)}", SCHEMES.__contains__)


def _devices(value: Any) -> tuple[str, ...]:
    accepted = 'a list of different devices, each "local", a board\'s KEY, or KEY@HOST:PORT'
    return _listed(value, accepted, _is_device)


def _is_device(text: str) -> bool:
    """Whether ``hwq.address`` reads it; a board's key alone is read with a tracker, so that HWQ_TRACKER is not."""
    try:
        read_device(text if text == LOCAL or "@" in text else f"{text}@{NEAR}")
    except HwqError:
        return False
    return True


def _shapes(value: Any) -> tuple[tuple[str, Shape], ...]:
    accepted = "a table of inputs with their lengths, as {x = [1, 3, 224, 224]}"
    if not isinstance(value, dict):
        raise ValueError(accepted)
    for lengths in value.values():
        if not isinstance(lengths, list) or not all(type(length) is int and length > 0 for length in lengths):
            raise ValueError(accepted)
    return tuple((name, tuple(lengths)) for name, lengths in value.items())
