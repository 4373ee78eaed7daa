"""The store: what goes in comes out, under the same key only. Its file: ``test_store_file.py``."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from store_rows import KEY, RECORD, decision, record, trial

from hwq import store
from hwq.errors import HwqError
from hwq.store import Contents, Key, Record, summarize
from hwq.target import Target
from hwq.workload import Workload


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "records.sqlite"


def test_what_was_put_is_got(path: Path) -> None:
    store.put(path, RECORD)
    assert store.get_many(path, [KEY]) == {KEY: RECORD}
    assert store.everything(path) == (RECORD,)


@pytest.mark.parametrize("field", ["workload", "schedule", "target", "tools"])
def test_another_key_finds_nothing(path: Path, field: str) -> None:
    store.put(path, RECORD)
    assert not store.get_many(path, [replace(KEY, **{field: "other"})])


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
    assert store.get_many(path, [KEY]) == {}
    assert store.everything(path) == ()
    assert not path.exists()


def test_put_is_all_or_nothing(path: Path) -> None:
    store.put(path, RECORD)
    broken = replace(record("second"), median_s=None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        store.put(path, record("first"), broken)
    assert store.everything(path) == (RECORD,)


def test_trials_and_decisions_are_got_for_their_target_and_tools_only(path: Path) -> None:
    target = Target.load("x86-avx2")
    mine = {"target": target.fingerprint}
    rows = [replace(trial(name, seconds), key=replace(KEY, **mine)) for name, seconds in (("b", None), ("a", 1.0))]
    store.put(path, RECORD, *rows, trial("foreign"), decision("foreign"), decision("mine", **mine))
    assert store.trials(path, target, "hwq 1") == (rows[1], rows[0])
    assert store.decisions(path, target, "hwq 1") == {replace(KEY, **mine): decision("mine", **mine)}
    assert not store.decisions(path, target, "hwq 2")
    assert not store.trials(path, Target.load("x86-amx"), "hwq 1")
    assert store.everything(path) == (RECORD,)
    assert store.contents(path) == Contents(
        records=(RECORD,),
        trials=tuple(sorted((*rows, trial("foreign")), key=lambda row: (row.key.target, row.decision))),
        decisions=tuple(sorted((decision("foreign"), decision("mine", **mine)), key=lambda row: row.key.target)),
    )


def test_of_decisions_of_several_schedules_none_hides_another(path: Path) -> None:
    target = Target.load("x86-avx2")
    old, new = (
        decision(name, at, target=target.fingerprint, schedule=name)
        for name, at in (("z/conv:1", 1.0), ("a/conv:2", 2.0))
    )
    store.put(path, new, old)
    assert store.decisions(path, target, "hwq 1") == {old.key: old, new.key: new}


def test_a_decision_takes_the_place_only_of_the_one_that_it_beat(path: Path) -> None:
    first, second, third = (decision(name) for name in ("first", "second", "third"))
    store.put(path, first, beaten={KEY: None})
    store.put(path, record("a"), second, beaten={KEY: None})
    assert store.contents(path).decisions == (first,), "another process was faster"
    assert store.everything(path) == (record("a"),), "the other rows are kept"
    store.put(path, second, beaten={KEY: first})
    assert store.contents(path).decisions == (second,)
    store.put(path, third, beaten={KEY: first})
    assert store.contents(path).decisions == (second,)


def test_a_decision_is_withdrawn_if_it_is_still_the_same(path: Path) -> None:
    first, other = decision("first"), decision("first", workload="v")
    store.put(path, first, other)
    store.put(path, trial("a"), beaten={KEY: decision("second")})
    assert store.contents(path).decisions == (other, first)
    store.put(path, trial("b"), beaten={KEY: first})
    assert store.contents(path).decisions == (other,)
    store.put(path, beaten={KEY: first})
    assert store.contents(path) == Contents(trials=(trial("a"), trial("b")), decisions=(other,))


def test_a_decision_is_withdrawn_with_all_else_or_not_at_all(path: Path) -> None:
    store.put(path, decision())
    with pytest.raises(sqlite3.IntegrityError):
        store.put(path, replace(record("a"), median_s=None), beaten={KEY: decision()})  # type: ignore[arg-type]
    assert store.contents(path) == Contents(decisions=(decision(),))


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
