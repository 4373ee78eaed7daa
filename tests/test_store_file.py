"""The store's file: whatever other processes do and however they end, and whatever file is there instead."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from store_rows import RECORD, decision, record, trial

from hwq import store, store_file
from hwq.errors import HwqError
from hwq.store import Contents


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "records.sqlite"


def code(path: Path) -> str:
    """The code with which reading ``path`` is refused; the message names the path."""
    with pytest.raises(HwqError) as caught:
        store.everything(path)
    assert str(path) in caught.value.message
    return caught.value.code


VERSION_1 = """
CREATE TABLE record (
    workload TEXT NOT NULL, schedule TEXT NOT NULL, target TEXT NOT NULL, tools TEXT NOT NULL,
    median_s REAL NOT NULL, spread_s REAL NOT NULL, runs INTEGER NOT NULL, measured_at REAL NOT NULL,
    PRIMARY KEY (workload, schedule, target, tools)
) WITHOUT ROWID;
PRAGMA application_id = 1752658225;
PRAGMA user_version = 1;
INSERT INTO record VALUES ('w', 'x86/conv:1', 't', 'hwq 1', 0.001, 0.00001, 10, 100.0);
"""


def version_1(path: Path) -> None:
    """A store as the version before tuning wrote it."""
    path.parent.mkdir(exist_ok=True)
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(VERSION_1)
    db.close()


def test_a_store_of_version_1_is_brought_up_to_date_with_its_records(path: Path) -> None:
    version_1(path)
    assert store.everything(path) == (RECORD,)
    store.put(path, decision(), trial("a"))
    assert store.contents(path) == Contents(records=(RECORD,), trials=(trial("a"),), decisions=(decision(),))


def test_an_upgrade_that_is_cut_off_leaves_version_1(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version_1(path)
    monkeypatch.setattr(store_file, "_TABLES", (*store_file._TABLES, ("CREATE TABLE wrong",)))
    with pytest.raises(HwqError):
        store.everything(path)
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")] == ["record"]
    db.close()
    monkeypatch.undo()
    assert store.everything(path) == (RECORD,)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_several_processes_bring_one_store_up_to_date(path: Path) -> None:
    version_1(path)
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=store.put, args=(path, trial(str(n)))) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert store.contents(path) == Contents(records=(RECORD,), trials=tuple(trial(str(n)) for n in range(4)))


def write_forty(path: Path, name: int) -> None:
    """Forty puts of two records each, one of them under a key that all writers share, each read back at once."""
    for n in range(40):
        own = record(f"{name}:{n}", 1.0 + n)
        store.put(path, own, record("shared", 1.0 + n))
        assert store.get_many(path, [own.key]) == {own.key: own}


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the children use nothing of TVM's threads
def test_several_processes_write_at_once(path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_forty, args=(path, name)) for name in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    found = [it.key.workload for it in store.everything(path)]
    assert sorted(found) == sorted(["shared", *(f"{name}:{n}" for name in range(4) for n in range(40))])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_that_write_two_thousand_records_each_lose_none(path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_two_thousand, args=(path, name)) for name in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    found = [it.key.workload for it in store.everything(path)]
    assert sorted(found) == sorted(f"{name}:{n}" for name in range(2) for n in range(2000))


def write_two_thousand(path: Path, name: int) -> None:
    """Each in a transaction of its own."""
    for n in range(2000):
        store.put(path, record(f"{name}:{n}", 1.0 + n))


CUT_OFF = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")  # so that the pages go to the file before the commit that never comes
db.execute("BEGIN IMMEDIATE")
for n in range(2000):
    db.execute("INSERT INTO record VALUES (?, 's', 't', 'v', 1, 1, 1, 1)", (f"half {n}" * 50,))
print("written", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_writer_that_is_killed_leaves_the_store_as_it_was(path: Path) -> None:
    store.put(path, RECORD)
    writer = subprocess.Popen([sys.executable, "-c", CUT_OFF, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"written\n"
    grown = sum(os.path.getsize(file) for file in path.parent.iterdir())
    writer.kill()
    writer.communicate()
    assert grown > 500_000, "the cut-off write did reach the disk"
    assert store.everything(path) == (RECORD,)
    store.put(path, record("next"))
    assert len(store.everything(path)) == 2


def test_a_log_that_is_cut_off_loses_the_end_of_it_and_nothing_else(path: Path) -> None:
    """A crash of the machine: what the log (-wal) holds beyond the cut is gone, what stood before it is there."""
    store.put(path, RECORD)
    holder = sqlite3.connect(path)  # while it is open the log stays beside the file
    holder.execute("SELECT count(*) FROM record").fetchone()
    copy = path.with_name("copy.sqlite")
    sizes = []
    log = path.with_name(f"{path.name}-wal")
    for n in range(8):
        store.put(path, record(f"w{n}" * 50))
        sizes.append(log.stat().st_size)
    whole, rows = log.read_bytes(), {it.key.workload: it for it in store.everything(path)}
    counts = []
    for size in (0, 31, *(end - 7 for end in sizes), sizes[-1]):
        for part, data in (("", path.read_bytes()), ("-wal", whole[:size])):
            copy.with_name(f"{copy.name}{part}").write_bytes(data)
        copy.with_name(f"{copy.name}-shm").unlink(missing_ok=True)
        found = store.everything(copy)
        assert all(rows[it.key.workload] == it for it in found)
        counts.append(len(found))
        store.put(copy, record("next"))
        assert len(store.everything(copy)) == len(found) + 1
        for part in ("", "-wal", "-shm"):
            copy.with_name(f"{copy.name}{part}").unlink(missing_ok=True)
    holder.close()
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (len(rows) - 8, len(rows))


def test_an_empty_file_is_an_empty_store(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert store.everything(path) == ()
    store.put(path, RECORD)
    assert store.everything(path) == (RECORD,)


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_of_another_kind_is_refused(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert code(path) == "store-corrupt"
    assert path.read_bytes() == content, "what is not ours is left alone"


def test_a_truncated_store_is_refused(path: Path) -> None:
    store.put(path, *(record(f"w{n}" * 100) for n in range(200)))
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    assert code(path) == "store-corrupt"


def test_another_programs_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE record (x)")
    db.commit()
    db.close()
    assert code(path) == "store-corrupt"


def test_a_newer_format_is_refused(path: Path) -> None:
    store.put(path, RECORD)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {store_file.SCHEMA_VERSION + 1}")
    db.close()
    assert code(path) == "store-version"


def test_a_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    assert code(path) == "store-unwritable"


def test_a_file_in_place_of_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HwqError) as caught:
        store.put(tmp_path / "file" / "records.sqlite", RECORD)
    assert caught.value.code == "store-unwritable"


def test_a_store_that_stays_locked_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(path, RECORD)
    monkeypatch.setattr(store_file, "BUSY_S", 0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(HwqError) as caught:
        store.put(path, record("next"))
    assert caught.value.code == "store-busy"
    assert store.everything(path) == (RECORD,), "reading goes on beside a writer"
    holder.close()
    store.put(path, record("next"))
