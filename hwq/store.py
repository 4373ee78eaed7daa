"""The store: what was measured, tried and decided about kernels, in one SQLite file for several processes at once.

Three kinds of rows, each under a workload, a schedule, a target's fingerprint and tool versions, so that one from
another machine or another compiler is never used: a ``Record`` is a measured time, which prices are made from; a
``Trial`` is a candidate that tuning tried, with its time or why it was refused; a ``Decision`` is the candidate that
took the place of a kernel's default. Every function takes the file's path, opens it, and closes it: nothing is held
open between calls (``hwq.store_file``).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from hwq.errors import HwqError
from hwq.store_file import transaction, with_database
from hwq.target import Target
from hwq.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a row holds for. workload: ``Workload.key``; schedule: file, version, where weights were, "x86/conv:1@l2",
    a record's with a hash of the code between; target: ``Target.fingerprint``; tools: ``tool_versions()``."""

    workload: str
    schedule: str
    target: str
    tools: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One measurement. spread_s: the runs' 95th percentile less their 5th; measured_at: Unix time, in seconds."""

    key: Key
    median_s: float
    spread_s: float
    runs: int
    measured_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate that was tried. decision: its text (``hwq.space``); code: the hash of its object file, "" where
    there is none. seconds and default_s: its median and the default's beside it; None where ``reason`` says why it was
    refused. Those of one round have the same measured_at. decision "": a default that is itself wrong."""

    key: Key
    decision: str
    code: str
    seconds: float | None
    default_s: float | None
    reason: str | None
    measured_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The candidate that is used in place of the default. median_s and default_s: of both, measured in turns."""

    key: Key
    decision: str
    code: str
    median_s: float
    default_s: float
    measured_at: float


Row = Record | Trial | Decision
_R = TypeVar("_R", Record, Trial, Decision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """All rows of a store, each kind sorted by key."""

    records: tuple[Record, ...] = ()
    trials: tuple[Trial, ...] = ()
    decisions: tuple[Decision, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        return (*self.records, *self.trials, *self.decisions)


def tool_versions() -> str:
    """The tools whose versions decide what code comes out, in one line: "hwq 0.1.0, tvm 0.27.0.post1, llvm 22"."""
    from tvm.target.codegen import llvm_version_major

    return f"hwq {_version('hwq')}, tvm {_version('apache-tvm')}, llvm {llvm_version_major()}"


def key_of(workload: Workload, schedule: str, target: Target, tools: str) -> Key:
    """The key of ``workload`` compiled by ``schedule`` for ``target``."""
    return Key(workload=workload.key, schedule=schedule, target=target.fingerprint, tools=tools)


def summarize(key: Key, seconds: Sequence[float], measured_at: float | None = None) -> Record:
    """The record of these runs (at least one, each in seconds a call); measured_at None is now."""
    assert seconds, "no runs"
    assert all(0 < second < float("inf") for second in seconds), seconds
    ordered = sorted(seconds)
    last = len(ordered) - 1
    middle = (ordered[last // 2] + ordered[(last + 1) // 2]) / 2
    spread = ordered[round(0.95 * last)] - ordered[round(0.05 * last)]
    when = time.time() if measured_at is None else measured_at
    return Record(key=key, median_s=middle, spread_s=spread, runs=len(ordered), measured_at=when)


def get_many(path: Path, keys: Iterable[Key]) -> dict[Key, Record]:
    """The records there are under ``keys``. A store that does not exist yet is empty; it is not created."""
    wanted = list(keys)
    if not os.path.exists(path):
        return {}
    where = " AND ".join(f"{name} = ?" for name in _KEY_COLUMNS)

    def read(db: sqlite3.Connection) -> dict[Key, Record]:
        found = [row for key in wanted for row in _select(db, Record, where, astuple(key))]
        return {record.key: record for record in found}

    return with_database(path, read)


def everything(path: Path) -> tuple[Record, ...]:
    """Every record, sorted by key; none for a store that does not exist yet. Raises HwqError as ``with_database``."""
    return _read(path, Record)


def contents(path: Path) -> Contents:
    """All that the store holds, as of one moment; nothing for one that does not exist yet."""
    if not os.path.exists(path):
        return Contents()

    def read(db: sqlite3.Connection) -> Contents:
        db.execute("BEGIN")  # closing the file ends it
        return Contents(
            records=tuple(_select(db, Record)), trials=tuple(_select(db, Trial)), decisions=tuple(_select(db, Decision))
        )

    return with_database(path, read)


def trials(path: Path, target: Target, tools: str) -> tuple[Trial, ...]:
    """Every candidate tried on ``target`` with these tools, sorted by key and decision."""
    return _read(path, Trial, target, tools)


def decisions(path: Path, target: Target, tools: str) -> Mapping[Key, Decision]:
    """What was decided on ``target`` with these tools."""
    return {row.key: row for row in _read(path, Decision, target, tools)}


def put(path: Path, *rows: Row, beaten: Mapping[Key, Decision | None] | None = None) -> None:
    """Add the rows, all or none; one under a key that is there already takes its place. Creates file and folders.

    beaten: the decisions (None: that there is none) that those of ``rows`` beat; one that has no other among ``rows``
    is withdrawn. Where the store holds another decision by now, from another process, that one stays.
    """
    _write(path, rows, "INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})", beaten)


def take_over(path: Path, rows: Iterable[Row]) -> int:
    """Add the rows, all or none; under a key that is there already the later measurement stays, decisions too: what
    is measured later knows the machine and the default as they are now. Gives how many came in."""
    return _write(
        path,
        tuple(rows),
        "INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT DO UPDATE SET {updates} "
        "WHERE excluded.measured_at > {table}.measured_at",
    )


def merge(path: Path, other: Path) -> int:
    """``take_over`` of all that the store ``other`` holds, of whatever machines; ``other`` keeps its rows.

    Raises HwqError "store-missing" if there is no ``other``.
    """
    if not os.path.exists(other):
        raise HwqError("store-missing", f"store {other} does not exist; give the path of a store to merge")
    return take_over(path, contents(other).rows)


_KEY_COLUMNS = tuple(item.name for item in fields(Key))


def _table(kind: type[Row]) -> str:
    return kind.__name__.lower()


def _columns(kind: type[Row]) -> tuple[str, ...]:
    return (*_KEY_COLUMNS, *(item.name for item in fields(kind) if item.name != "key"))


def _select(db: sqlite3.Connection, kind: type[_R], where: str = "TRUE", values: Sequence[Any] = ()) -> list[_R]:
    """The rows of one table, sorted by key."""
    columns = _columns(kind)
    found = db.execute(
        f"SELECT {', '.join(columns)} FROM {_table(kind)} WHERE {where} ORDER BY {', '.join(columns[:5])}", values
    )
    split = len(_KEY_COLUMNS)
    return [
        kind(
            key=Key(**dict(zip(_KEY_COLUMNS, row, strict=False))),
            **dict(zip(columns[split:], row[split:], strict=True)),
        )
        for row in found
    ]


def _read(path: Path, kind: type[_R], target: Target | None = None, tools: str = "") -> tuple[_R, ...]:
    """The rows of one table: all, or those of one target and tools."""
    if not os.path.exists(path):
        return ()
    if target is None:
        return with_database(path, lambda db: tuple(_select(db, kind)))
    values = (target.fingerprint, tools)
    return with_database(path, lambda db: tuple(_select(db, kind, "target = ? AND tools = ?", values)))


def _write(path: Path, rows: Sequence[Row], statement: str, beaten: Mapping[Key, Decision | None] | None = None) -> int:
    """One transaction; gives how many rows it changed. beaten: as in ``put``."""

    def write(db: sqlite3.Connection) -> int:
        before = db.total_changes
        with transaction(db):
            others = _withdraw(db, beaten or {})
            for kind in (Record, Trial, Decision):
                columns = _columns(kind)
                text = statement.format(
                    table=_table(kind),
                    columns=", ".join(columns),
                    marks=", ".join("?" * len(columns)),
                    updates=", ".join(f"{name} = excluded.{name}" for name in columns[len(_KEY_COLUMNS) :]),
                )
                values = [
                    (*astuple(row.key), *astuple(row)[1:])
                    for row in rows
                    if isinstance(row, kind) and not (kind is Decision and row.key in others)
                ]
                db.executemany(text, values)
        return db.total_changes - before

    return with_database(path, write)


def _withdraw(db: sqlite3.Connection, beaten: Mapping[Key, Decision | None]) -> set[Key]:
    """Delete the decisions that were beaten; gives the keys under which there is another one by now."""
    where = " AND ".join(f"{name} = ?" for name in _KEY_COLUMNS)
    others = set()
    for key, old in beaten.items():
        if _select(db, Decision, where, astuple(key)) == ([] if old is None else [old]):
            db.execute(f"DELETE FROM {_table(Decision)} WHERE {where}", astuple(key))
        else:
            others.add(key)
    return others


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "uninstalled"
