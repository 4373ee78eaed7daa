"""Stores as JSON text: the same rows come back, and nothing is taken over of a file that is wrong anywhere."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
from store_rows import RECORD, decision, record, trial

from hwq import store
from hwq.errors import HwqError
from hwq.store_text import export, imported, read_text

ROWS = (RECORD, trial("a"), trial("b", None), decision())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "records.sqlite"
    store.put(found, *ROWS)
    return found


@pytest.fixture
def text(path: Path, tmp_path: Path) -> Path:
    export(path, tmp_path / "rows.json")
    return tmp_path / "rows.json"


def test_the_same_rows_come_back(path: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    assert imported(other, text) == len(ROWS)
    assert store.contents(other) == store.contents(path)
    assert imported(other, text) == 0


def test_the_later_measurement_stays(text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    later = record("w", 5.0, 200.0)
    store.put(other, later, decision("older", -1.0))
    assert imported(other, text) == 3
    assert store.get_many(other, [RECORD.key]) == {RECORD.key: later}
    assert store.contents(other).decisions == (decision(),)


def edit(values: Any, place: tuple[Any, ...], value: Any) -> Any:
    """``values`` with another value at ``place``."""
    found = copy.deepcopy(values)
    at = found
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return found


@pytest.mark.parametrize(
    ("place", "value", "tells"),
    [
        (("format",), "other", '"format": "hwq store"'),
        (("version",), 1, "version 1"),
        (("more",), 1, "the keys"),
        (("trials",), {}, "trials that are no list"),
        (("records", 0), 3, "records[0] with other keys"),
        (("records", 0, "more"), 3, "records[0] with other keys"),
        (("records", 0, "median_s"), "a", "records[0].median_s that is 'a'"),
        (("records", 0, "median_s"), 0, "records[0].median_s that is 0"),
        (("records", 0, "median_s"), float("nan"), "records[0].median_s that is nan"),
        (("records", 0, "median_s"), True, "records[0].median_s that is True"),
        (("records", 0, "spread_s"), -1.0, "records[0].spread_s that is -1.0"),
        (("records", 0, "runs"), 1.5, "records[0].runs that is 1.5"),
        (("records", 0, "runs"), 2**63, "records[0].runs that is 9223372036854775808"),
        (("records", 0, "workload"), None, "records[0].workload that is None"),
        (("trials", 1, "seconds"), 1.0, "trials[1] with a reason and seconds"),
        (("trials", 0, "default_s"), None, "trials[0] with a reason and seconds, or with neither"),
        (("decisions", 0, "measured_at"), float("inf"), "decisions[0].measured_at that is inf"),
        (("decisions", 0, "measured_at"), 1e300, "that is 1e+300, and seconds since 1970 that are not in the future"),
        (("records", 0, "measured_at"), time.time() + 2 * 86400, "records[0].measured_at that is "),
        (("records", 0, "median_s"), 10**400, "records[0].median_s that is 1000"),
        (("records", 0, "workload"), "\ud800", "records[0].workload that is '\\ud800'"),
        (("trials", 1, "reason"), "\udfff", "trials[1].reason that is '\\udfff'"),
    ],
)
def test_a_file_that_is_wrong_anywhere_is_refused_whole(
    text: Path, tmp_path: Path, place: tuple[Any, ...], value: Any, tells: str
) -> None:
    text.write_text(json.dumps(edit(json.loads(text.read_text()), place, value)))
    other = tmp_path / "other.sqlite"
    with pytest.raises(HwqError) as caught:
        imported(other, text)
    assert caught.value.code == "store-import"
    assert tells in caught.value.message
    assert not other.exists()


def test_numbers_of_any_length_are_seconds(text: Path, tmp_path: Path) -> None:
    soon = int(time.time()) + 3600
    values = edit(json.loads(text.read_text()), ("records", 0, "median_s"), 2**70)
    text.write_text(json.dumps(edit(values, ("records", 0, "measured_at"), soon)))
    other = tmp_path / "other.sqlite"
    assert imported(other, text) == len(ROWS)
    found = store.get_many(other, [RECORD.key]).get(RECORD.key)
    assert found is not None
    assert (found.median_s, found.measured_at) == (float(2**70), float(soon))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_file_of_another_kind_is_refused(text: Path, content: bytes) -> None:
    text.write_bytes(content)
    with pytest.raises(HwqError) as caught:
        read_text(text)
    assert caught.value.code == "store-import"


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(HwqError, match="rows") as caught:
        read_text(tmp_path / "rows.json")
    assert caught.value.code == "store-missing"
    with pytest.raises(HwqError, match="none") as caught:
        export(tmp_path / "none.sqlite", tmp_path / "rows.json")
    assert caught.value.code == "store-missing"
    assert not (tmp_path / "rows.json").exists()
