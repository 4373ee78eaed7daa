"""The emulated board's tree is taken for whole only when it is; without the tools the reason is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from emulated_board import RECIPE, BoardMissing, build, is_whole, recipe


def test_a_tree_is_whole_when_its_recipe_is_there_and_the_same(tmp_path: Path) -> None:
    assert not is_whole(tmp_path)
    (tmp_path / RECIPE).write_text(json.dumps(recipe())[:-5])
    assert not is_whole(tmp_path)
    (tmp_path / RECIPE).write_text(json.dumps({**recipe(), "suite": "another"}))
    assert not is_whole(tmp_path)
    (tmp_path / RECIPE).write_text(json.dumps(recipe()))
    assert is_whole(tmp_path)
    assert build(tmp_path) == tmp_path


def test_without_its_tools_it_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BoardMissing, match="apt-get"):
        build(tmp_path / "board")
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_fails_leaves_the_tree_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get here")
    old = tmp_path / "board"
    old.mkdir()
    (old / "kept").touch()
    (tmp_path / ".board.killed.part" / "tree").mkdir(parents=True)

    def broken(tree: Path, place: Path) -> None:
        (tree / "half").touch()
        raise BoardMissing("no network")

    monkeypatch.setattr("emulated_board._debian", broken)
    with pytest.raises(BoardMissing, match="no network"):
        build(old)
    assert [path.name for path in old.iterdir()] == ["kept"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".board.lock", "board"]
