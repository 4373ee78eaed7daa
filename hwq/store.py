"""The store: measured kernel times in one SQLite file, which several processes may read and write at once.

A record is found again only under the same workload, schedule, target fingerprint and tool versions, so one from
another machine or another compiler is never used. Every function takes the file's path, opens it, and closes it:
nothing is held open between calls, and a process that dies in the middle of a write leaves the file as it was before.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from hwq.errors import HwqError
from hwq.target import Target
from hwq.workload import Workload

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x68777131  # "hwq1": tells our files from other people's SQLite files
_BUSY_S = 30.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a measurement holds for. workload: ``Workload.key``; schedule: file and version, "x86/conv:1"; target:
    ``Target.fingerprint``; tools: ``tool_versions()``."""

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


def get(path: Path, key: Key) -> Record | None:
    """The record under ``key``, or None. Raises HwqError as ``everything`` does."""
    return get_many(path, [key]).get(key)


def get_many(path: Path, keys: Iterable[Key]) -> dict[Key, Record]:
    """The records there are under ``keys``. A store that does not exist yet is empty; it is not created."""
    wanted = list(keys)
    if not os.path.exists(path):
        return {}

    def read(db: sqlite3.Connection) -> dict[Key, Record]:
        where = " AND ".join(f"{name} = ?" for name in _KEY_COLUMNS)
        query = f"SELECT {', '.join(_COLUMNS)} FROM record WHERE {where}"
        rows = [row for key in wanted for row in db.execute(query, astuple(key))]
        return {record.key: record for record in map(_record, rows)}

    return _with_database(path, read)


def everything(path: Path) -> tuple[Record, ...]:
    """Every record, sorted by key; none for a store that does not exist yet.

    Raises HwqError: "store-corrupt" for a file that is damaged or no store, "store-version" for one of a newer hwq,
    "store-unwritable" for one that cannot be opened, "store-busy" for one locked by others for longer than 30 s.
    """
    if not os.path.exists(path):
        return ()
    query = f"SELECT {', '.join(_COLUMNS)} FROM record ORDER BY {', '.join(_KEY_COLUMNS)}"
    return _with_database(path, lambda db: tuple(map(_record, db.execute(query))))


def put(path: Path, *records: Record) -> None:
    """Add the records, all or none; one under a key that is there already takes its place. Creates file and folders."""

    def write(db: sqlite3.Connection) -> None:
        marks = ", ".join("?" * len(_COLUMNS))
        rows = [(*astuple(it.key), it.median_s, it.spread_s, it.runs, it.measured_at) for it in records]
        with _transaction(db):
            db.executemany(f"INSERT OR REPLACE INTO record ({', '.join(_COLUMNS)}) VALUES ({marks})", rows)

    _with_database(path, write)


def merge(path: Path, other: Path) -> int:
    """Add the records of the store ``other`` to ``path``; under the same key the later measurement stays.

    Gives how many were taken over. Raises HwqError "store-missing" if there is no ``other``.
    """
    if not os.path.exists(other):
        raise HwqError("store-missing", f"store {other} does not exist; give the path of a store to merge")
    mine = {record.key: record.measured_at for record in everything(path)}
    newer = [it for it in everything(other) if it.measured_at > mine.get(it.key, float("-inf"))]
    put(path, *newer)
    return len(newer)


_KEY_COLUMNS = tuple(item.name for item in fields(Key))
_COLUMNS = (*_KEY_COLUMNS, "median_s", "spread_s", "runs", "measured_at")
_CREATE = f"""
CREATE TABLE record (
    workload TEXT NOT NULL, schedule TEXT NOT NULL, target TEXT NOT NULL, tools TEXT NOT NULL,
    median_s REAL NOT NULL, spread_s REAL NOT NULL, runs INTEGER NOT NULL, measured_at REAL NOT NULL,
    PRIMARY KEY ({", ".join(_KEY_COLUMNS)})
) WITHOUT ROWID
"""


def _record(row: tuple[str, str, str, str, float, float, int, float]) -> Record:
    key = Key(workload=row[0], schedule=row[1], target=row[2], tools=row[3])
    return Record(key=key, median_s=row[4], spread_s=row[5], runs=row[6], measured_at=row[7])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "uninstalled"


def _with_database(path: Path, use: Callable[[sqlite3.Connection], _T]) -> _T:
    """``use`` on an open, checked store; every SQLite error becomes an HwqError that names the file."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)) as db:
                _prepare(db, path)
                return use(db)
        except OSError as error:
            raise _unwritable(path, error.strerror or str(error)) from error
        except sqlite3.IntegrityError:
            raise  # a record with None in it: a defect of ours, not of the file
        except sqlite3.DatabaseError as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                # Turning on WAL does not wait for other processes as a write does, so the waiting is done here.
                if time.monotonic() > deadline:
                    message = f"store {path} is locked by another process since {_BUSY_S:.0f} s; stop it and try again"
                    raise HwqError("store-busy", message) from error
                time.sleep(0.01)
                continue
            if isinstance(error, sqlite3.OperationalError) and any(word in text for word in _UNWRITABLE):
                raise _unwritable(path, text) from error
            raise _corrupt(path, text) from error


_UNWRITABLE = ("unable to open", "readonly", "full", "disk I/O", "permission")


def _unwritable(path: Path, reason: str) -> HwqError:
    message = (
        f"store {path} cannot be opened or written ({reason}); accepted: a writable place, or HWQ_CACHE set to one"
    )
    return HwqError("store-unwritable", message)


def _corrupt(path: Path, reason: str) -> HwqError:
    message = f"store {path} is damaged or not a store of hwq ({reason}); delete or move it, and hwq measures again"
    return HwqError("store-corrupt", message)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Make an empty file a store; refuse what is not one, or comes from a newer hwq."""
    db.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last records, but never the store
    if _identity(db) == (0, 0, 0):
        db.execute("PRAGMA journal_mode = WAL")
        with _transaction(db):
            if _identity(db) == (0, 0, 0):  # again, now that no one else can be between the look and the leap
                db.execute(_CREATE)
                db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    application, version, _ = _identity(db)
    if application != _APPLICATION_ID:
        raise _corrupt(path, "another program's SQLite file")
    if version != SCHEMA_VERSION:
        message = f"store {path} has format {version}; accepted: {SCHEMA_VERSION}; move it away, and hwq measures again"
        raise HwqError("store-version", message)


def _identity(db: sqlite3.Connection) -> tuple[int, int, int]:
    """(application id, format version, number of tables)."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    return application, version, db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; takes the write lock at once, so that waiting happens here and not half-way."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
