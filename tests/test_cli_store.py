"""The commands around the store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from shell_runs import hwq
from store_rows import RECORD, decision, trial

from hwq import store
from hwq.cli_store import groups
from hwq.target import Target

Capture = pytest.CaptureFixture[str]
TOOLS = store.tool_versions()
HERE = {"target": Target.load("host").fingerprint, "tools": TOOLS}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Rows of this machine, of this machine with other tools, and of one unknown."""
    found = tmp_path / "records.sqlite"
    here, older = replace(RECORD.key, **HERE), replace(RECORD.key, **{**HERE, "tools": "hwq 0.0.1"})
    store.put(found, RECORD, replace(RECORD, key=here), replace(RECORD, key=older))
    store.put(found, replace(trial("a"), key=here), decision("d", **HERE))
    return found


def test_the_list_says_what_is_usable_here(capsys: Capture, path: Path) -> None:
    ended = hwq(capsys, "store", "list", "--store", path, "--json")
    assert ended.status == 0
    rows = {(row["target"], row["tools"]): row for row in ended.json["groups"]}
    here = rows.pop(("host", TOOLS))
    assert (here["records"], here["trials"], here["decisions"], here["usable"]) == (1, 1, 1, True)
    assert {key: (row["records"], row["usable"]) for key, row in rows.items()} == {
        ("host", "hwq 0.0.1"): (1, False),
        (None, "hwq 1"): (1, False),
    }
    ended = hwq(capsys, "store", "list", "--store", path)
    assert "unknown here (t)" in ended.out
    assert [line.split()[-1] for line in ended.out.splitlines() if "hwq" in line and "sqlite" not in line].count(
        "yes"
    ) == 1


def test_a_target_file_of_ones_own_tells_a_machine(path: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "targets" / "x86-avx2.toml").read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace('name = "x86-avx2"', 'name = "mine"').replace('device = "local"', 'device = "local"'))
    key = replace(RECORD.key, target=Target.load(mine).fingerprint)
    store.put(path, replace(RECORD, key=key))
    names = {row["target"] for row in groups(path, [str(mine)])}
    assert "mine" in names


def test_an_empty_store(capsys: Capture, tmp_path: Path) -> None:
    ended = hwq(capsys, "store", "list", "--store", tmp_path / "none.sqlite")
    assert "nothing was measured yet" in ended.out
    assert not (tmp_path / "none.sqlite").exists()


def test_export_import_and_merge(capsys: Capture, path: Path, tmp_path: Path) -> None:
    text, other, third = tmp_path / "rows.json", tmp_path / "other.sqlite", tmp_path / "third.sqlite"
    assert hwq(capsys, "store", "export", text, "--store", path, "--json").json == {"output": str(text), "rows": 5}
    assert hwq(capsys, "store", "import", text, "--store", other, "--json").json == {"source": str(text), "rows": 5}
    ended = hwq(capsys, "store", "merge", other, "--store", third)
    assert (ended.status, ended.out.strip()) == (0, f"{other}: 5 rows taken over")
    assert store.contents(third) == store.contents(path)
    assert hwq(capsys, "store", "merge", other, "--store", third, "--json").json["rows"] == 0


def test_a_wrong_file_is_one_sentence_and_changes_nothing(capsys: Capture, path: Path, tmp_path: Path) -> None:
    before = store.contents(path)
    text = tmp_path / "rows.json"
    text.write_text("{}")
    ended = hwq(capsys, "store", "import", text, "--store", path, "--json")
    assert (ended.status, ended.json["error"]["code"]) == (1, "store-import")
    assert ended.sentence == ended.json["error"]["message"]
    assert store.contents(path) == before
    ended = hwq(capsys, "store", "merge", tmp_path / "none.sqlite", "--store", path)
    assert "does not exist" in ended.sentence
    ended = hwq(capsys, "store", "export", tmp_path / "none" / "rows.json", "--store", path)
    assert "there is no folder" in ended.sentence


def test_the_default_store_is_that_of_the_cache(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: Path
) -> None:
    monkeypatch.setenv("HWQ_CACHE", str(tmp_path))
    ended = hwq(capsys, "store", "list", "--json")
    assert json.loads(ended.out)["store"] == str(path)
