"""The store's file: how the one SQLite file is opened, checked, brought up to date, and written all or nothing.

Every call opens the file and closes it again. It is in WAL mode, in which readers and one writer do not wait for each
other; a process that dies in the middle of a write leaves the file as it was before.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from hwq.errors import HwqError

SCHEMA_VERSION = 2
BUSY_S = 30.0
_APPLICATION_ID = 0x68777131  # "hwq1": tells our files from other people's SQLite files

_KEY = "workload TEXT NOT NULL, schedule TEXT NOT NULL, target TEXT NOT NULL, tools TEXT NOT NULL"
# The tables of version 1, and what each version after it added.
_TABLES = (
    (
        f"""CREATE TABLE record (
            {_KEY}, median_s REAL NOT NULL, spread_s REAL NOT NULL, runs INTEGER NOT NULL, measured_at REAL NOT NULL,
            PRIMARY KEY (workload, schedule, target, tools)
        ) WITHOUT ROWID""",
    ),
    (
        f"""CREATE TABLE trial (
            {_KEY}, decision TEXT NOT NULL, code TEXT NOT NULL, seconds REAL, default_s REAL, reason TEXT,
            measured_at REAL NOT NULL,
            PRIMARY KEY (workload, schedule, target, tools, decision)
        ) WITHOUT ROWID""",
        f"""CREATE TABLE decision (
            {_KEY}, decision TEXT NOT NULL, code TEXT NOT NULL, median_s REAL NOT NULL, default_s REAL NOT NULL,
            measured_at REAL NOT NULL,
            PRIMARY KEY (workload, schedule, target, tools)
        ) WITHOUT ROWID""",
    ),
)
assert len(_TABLES) == SCHEMA_VERSION

_T = TypeVar("_T")


def with_database(path: Path, use: Callable[[sqlite3.Connection], _T]) -> _T:
    """``use`` on an open, checked store, made if it is not there.

    Raises HwqError: "store-corrupt" for a file that is damaged or no store, "store-version" for one of a newer hwq,
    "store-unwritable" for one that cannot be opened, "store-busy" for one locked by others for longer than 30 s.
    """
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)) as db:
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
                    message = f"store {path} is locked by another process since {BUSY_S:.0f} s; stop it and try again"
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
    """Make an empty file a store, and one of an older hwq up to date; refuse what is none, or comes from a newer."""
    db.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last records, but never the store
    empty = _identity(db) == (0, 0, 0)
    if empty:
        db.execute("PRAGMA journal_mode = WAL")
    if empty or _is_older(_identity(db)):
        with transaction(db):
            found = _identity(db)  # again, now that no one else can be between the look and the leap
            if found == (0, 0, 0) or _is_older(found):
                for statement in (line for tables in _TABLES[found[1] :] for line in tables):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    application, version, _ = _identity(db)
    if application != _APPLICATION_ID:
        raise _corrupt(path, "another program's SQLite file")
    if version != SCHEMA_VERSION:
        message = f"store {path} has format {version}; accepted: {SCHEMA_VERSION}; move it away, and hwq measures again"
        raise HwqError("store-version", message)


def _is_older(identity: tuple[int, int, int]) -> bool:
    """Whether this is a store of an older hwq."""
    return identity[0] == _APPLICATION_ID and 1 <= identity[1] < SCHEMA_VERSION


def _identity(db: sqlite3.Connection) -> tuple[int, int, int]:
    """(application id, format version, number of tables)."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    return application, version, db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; takes the write lock at once, so that waiting happens here and not half-way."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if db.in_transaction:  # SQLite itself ends one for which the disk is too full
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
