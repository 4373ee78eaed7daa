"""The store: what goes in comes out, under the same key only, whatever other processes do and however they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hwq import store, store_file
from hwq.errors import HwqError
from hwq.store import Contents, Decision, Key, Record, Trial, summarize
from hwq.target import Target
from hwq.workload import Workload

KEY = Key(workload="w", schedule="x86/conv:1", target="t", tools="hwq 1")
RECORD = Record(key=KEY, median_s=1e-3, spread_s=1e-5, runs=10, measured_at=100.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "records.sqlite"


def record(workload: str, median_s: float = 1.0, measured_at: float = 0.0) -> Record:
    key = replace(KEY, workload=workload)
    return Record(key=key, median_s=median_s, spread_s=0.1, runs=3, measured_at=measured_at)


def code(path: Path) -> str:
    """The code with which reading ``path`` is refused; the message names the path."""
    with pytest.raises(HwqError) as caught:
        store.everything(path)
    assert str(path) in caught.value.message
    return caught.value.code


def test_what_was_put_is_got(path: Path) -> None:
    store.put(path, RECORD)
    assert store.get(path, KEY) == RECORD
    assert store.everything(path) == (RECORD,)


@pytest.mark.parametrize("field", ["workload", "schedule", "target", "tools"])
def test_another_key_finds_nothing(path: Path, field: str) -> None:
    store.put(path, RECORD)
    assert store.get(path, replace(KEY, **{field: "other"})) is None


def test_a_second_record_takes_the_first_ones_place(path: Path) -> None:
    store.put(path, RECORD)
    later = replace(RECORD, median_s=5.0, measured_at=200.0)
    store.put(path, later)
    assert store.everything(path) == (later,)


def test_many_at_once(path: Path) -> None:
    records = [record(f"w{index}") for index in (2, 0, 1)]
    store.put(path, *records)
    keys = [records[0].key, replace(KEY, workload="none such"), records[2].key]
    assert store.get_many(path, keys) == {records[0].key: records[0], records[2].key: records[2]}
    assert [it.key.workload for it in store.everything(path)] == ["w0", "w1", "w2"]


def test_a_store_that_is_not_there_is_empty_and_stays_away(path: Path) -> None:
    assert store.get(path, KEY) is None
    assert store.everything(path) == ()
    assert not path.exists()


def test_put_is_all_or_nothing(path: Path) -> None:
    store.put(path, RECORD)
    broken = replace(record("second"), median_s=None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        store.put(path, record("first"), broken)
    assert store.everything(path) == (RECORD,)


def trial(decision: str, seconds: float | None = 1.0, measured_at: float = 0.0) -> Trial:
    reason = "differs" if seconds is None else None
    default_s = None if seconds is None else 2.0
    return Trial(
        key=KEY,
        decision=decision,
        code="c",
        seconds=seconds,
        default_s=default_s,
        reason=reason,
        measured_at=measured_at,
    )


def decision(text: str = "{}", measured_at: float = 0.0, **key: str) -> Decision:
    return Decision(
        key=replace(KEY, **key), decision=text, code="c", median_s=1.0, default_s=2.0, measured_at=measured_at
    )


def test_trials_and_decisions_are_got_for_their_target_and_tools_only(path: Path) -> None:
    target = Target.load("x86-avx2")
    mine = {"target": target.fingerprint}
    rows = [replace(trial(name, seconds), key=replace(KEY, **mine)) for name, seconds in (("b", None), ("a", 1.0))]
    store.put(path, RECORD, *rows, trial("foreign"), decision("foreign"), decision("mine", **mine))
    assert store.trials(path, target, "hwq 1") == (rows[1], rows[0])
    assert store.refusals(path, target, "hwq 1") == {"w": {"b": "differs"}}
    assert store.decisions(path, target, "hwq 1") == {"w": decision("mine", **mine)}
    assert not store.decisions(path, target, "hwq 2")
    assert not store.trials(path, Target.load("x86-amx"), "hwq 1")
    assert store.everything(path) == (RECORD,)
    assert store.contents(path) == Contents(
        records=(RECORD,),
        trials=tuple(sorted((*rows, trial("foreign")), key=lambda row: (row.key.target, row.decision))),
        decisions=tuple(sorted((decision("foreign"), decision("mine", **mine)), key=lambda row: row.key.target)),
    )


def test_of_decisions_of_several_versions_of_a_schedule_the_latest_counts(path: Path) -> None:
    target = Target.load("x86-avx2")
    old, new = (
        decision(name, at, target=target.fingerprint, schedule=name)
        for name, at in (("z/conv:1", 1.0), ("a/conv:2", 2.0))
    )
    store.put(path, new, old)
    assert store.decisions(path, target, "hwq 1") == {"w": new}


def test_rows_of_all_kinds_are_put_together_or_not_at_all(path: Path) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        store.put(path, RECORD, trial("a"), replace(decision(), median_s=None))  # type: ignore[arg-type]
    assert store.contents(path) == Contents()


def test_merge_of_decisions_and_trials_keeps_the_later_too(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    store.put(path, decision("mine", 10.0), trial("a", 1.0, 10.0), trial("b", 1.0, 10.0))
    store.put(other, decision("other", 20.0), trial("a", 3.0, 5.0), trial("b", None, 20.0), trial("c"))
    assert store.merge(path, other) == 3
    assert store.contents(path).rows == (
        trial("a", 1.0, 10.0),
        trial("b", None, 20.0),
        trial("c"),
        decision("other", 20.0),
    )


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


def test_merge_keeps_the_later_measurement(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    store.put(path, record("a", 1.0, 10), record("b", 1.0, 10), record("c", 1.0, 10))
    store.put(other, record("b", 2.0, 20), record("c", 2.0, 5), record("d", 2.0, 5))
    assert store.merge(path, other) == 2
    assert [(it.key.workload, it.median_s) for it in store.everything(path)] == [("a", 1), ("b", 2), ("c", 1), ("d", 2)]
    assert store.merge(path, other) == 0


def test_merging_what_is_not_there_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(HwqError, match=r"none\.sqlite does not exist") as caught:
        store.merge(path, tmp_path / "none.sqlite")
    assert caught.value.code == "store-missing"


def write_forty(path: Path, name: int) -> None:
    """Forty puts of two records each, one of them under a key that all writers share, each read back at once."""
    for n in range(40):
        own = record(f"{name}:{n}", 1.0 + n)
        store.put(path, own, record("shared", 1.0 + n))
        assert store.get(path, own.key) == own


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


def test_the_summary_of_runs() -> None:
    found = summarize(KEY, [5.0, 1.0, 3.0], measured_at=7.0)
    assert found == Record(key=KEY, median_s=3.0, spread_s=4.0, runs=3, measured_at=7.0)
    assert summarize(KEY, [1.0, 2.0, 4.0, 8.0]).median_s == 3.0
    assert summarize(KEY, [2.0]).spread_s == 0.0
    # Of 0 .. 100 the 5th percentile is 5 and the 95th 95.
    assert summarize(KEY, [0.5 + n for n in range(101)]).spread_s == 90.0
    assert summarize(KEY, [1.0]).measured_at > 1.7e9


def test_the_key_is_of_workload_schedule_target_and_tools() -> None:
    workload = Workload(op="add", scheme="f32", input_shapes=((1, 2), (1, 2)), output_shape=(1, 2))
    target = Target.load("x86-avx2")
    found = store.key_of(workload, "x86/conv:1", target, "hwq 1")
    expected = Key(workload=workload.key, schedule="x86/conv:1", target=target.fingerprint, tools="hwq 1")
    assert found == expected
    assert store.key_of(replace(workload, parallel=2), "x86/conv:1", target, "hwq 1") != found


def test_tool_versions_name_the_three_tools() -> None:
    names = [part.split()[0] for part in store.tool_versions().split(", ")]
    assert names == ["hwq", "tvm", "llvm"]
