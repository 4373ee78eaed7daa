"""The work directory: whose it is, and what happens to files in it that are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hwq.errors import HwqError
from hwq.numerics import QParams
from hwq.work import load_qparams, open_work, save_qparams

MINE, OTHER = "a" * 64, "b" * 64
QPARAMS = {"image": QParams(scale=0.5, zero_point=-128), "conv:pre": QParams(scale=0.125, zero_point=3)}


def test_a_new_directory_is_marked_and_found_again(tmp_path: Path) -> None:
    work = open_work(MINE, "net", tmp_path / "a" / "b")
    assert json.loads((work.stages / "model.json").read_text()) == {"name": "net", "fingerprint": MINE}
    assert open_work(MINE, "net", tmp_path / "a" / "b") == work


def test_without_one_the_model_has_its_own_below_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWQ_CACHE", str(tmp_path))
    first, second = open_work(MINE, "net", None), open_work(OTHER, "net", None)
    assert first.cache == second.cache == tmp_path
    assert first.stages != second.stages
    assert tmp_path in first.stages.parents


def test_a_directory_of_another_model_is_refused_and_left_alone(tmp_path: Path) -> None:
    open_work(MINE, "resnet", tmp_path)
    mark = (tmp_path / "model.json").read_bytes()
    sentence = r"belongs to model 'resnet' \(aaaaaaaa\), not to 'mobile' \(bbbbbbbb\)"
    with pytest.raises(HwqError, match=sentence) as caught:
        open_work(OTHER, "mobile", tmp_path)
    assert caught.value.code == "work-dir-other"
    assert (tmp_path / "model.json").read_bytes() == mark


@pytest.mark.parametrize(
    "mark", [b"", b"\xff\xfe", b"[1, 2]", b"7", b'{"name": "x"}', b'{"name": 1, "fingerprint": 2}']
)
def test_a_directory_with_a_strange_mark_is_refused_and_left_alone(tmp_path: Path, mark: bytes) -> None:
    """It may be someone's own model.json."""
    (tmp_path / "model.json").write_bytes(mark)
    sentence = r"has a model\.json that is damaged or not hwq's; accepted: an empty folder"
    with pytest.raises(HwqError, match=sentence) as caught:
        open_work(MINE, "net", tmp_path)
    assert caught.value.code == "work-dir-broken"
    assert (tmp_path / "model.json").read_bytes() == mark


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HwqError, match=r"cannot make the work directory '.*file/work': Not a directory") as caught:
        open_work(MINE, "net", tmp_path / "file" / "work")
    assert caught.value.code == "save-failed"
    monkeypatch.setenv("HWQ_CACHE", str(tmp_path / "file"))
    with pytest.raises(HwqError, match=r"cannot make the cache folder .*accepted: a writable place, or HWQ_CACHE"):
        open_work(MINE, "net", tmp_path / "work")


def test_results_are_kept_under_what_went_in(tmp_path: Path) -> None:
    work = open_work(MINE, "net", tmp_path)
    path = work.file("ranges", ".json", ["image"], "digest", 7)
    assert path == work.file("ranges", ".json", ["image"], "digest", 7)
    assert path.name.startswith("ranges-")
    assert path.name.endswith(".json")
    others = [(["image"], "digest", 8), (["image"], "other", 7), (["picture"], "digest", 7)]
    assert path not in {work.file("ranges", ".json", *parts) for parts in others}


def test_what_differs_from_process_to_process_is_no_key(tmp_path: Path) -> None:
    """A function's text is its address: what was kept under it would never be found again."""
    work = open_work(MINE, "net", tmp_path)
    with pytest.raises(AssertionError, match="is no input of a stage"):
        work.file("ranges", ".json", open_work)
    assert work.file("ranges", ".json", QPARAMS) == work.file("ranges", ".json", dict(QPARAMS))


def test_parameters_come_back_exactly(tmp_path: Path) -> None:
    odd = {"x": QParams(scale=float.fromhex("0x1.99999ap-4"), zero_point=7)}  # a float32, as all scales are
    save_qparams(tmp_path / "ranges.json", QPARAMS | odd)
    assert load_qparams(tmp_path / "ranges.json", {*QPARAMS, "x"}) == QPARAMS | odd


def test_parameters_that_are_not_there_are_none(tmp_path: Path) -> None:
    assert load_qparams(tmp_path / "ranges.json", QPARAMS) is None


def damaged() -> list[bytes]:
    rows = {name: [q.scale, q.zero_point] for name, q in QPARAMS.items()}
    whole = json.dumps(rows).encode()
    nan, inf = float("nan"), float("inf")
    values = [[0.0, 0], [-1.0, 0], [nan, 0], [inf, 0], [0.5, 300], [0.5, 0.5], ["0.5", 0], [0.5], None]
    return [
        b"",
        bytes(len(whole)),
        whole[:-5],
        b"[]",
        b"null",
        json.dumps({"image": rows["image"]}).encode(),
        json.dumps({**rows, "more": [0.5, 0]}).encode(),
        *(json.dumps({**rows, "image": value}).encode() for value in values),
    ]


@pytest.mark.parametrize("content", damaged())
def test_damaged_parameters_count_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ranges.json").write_bytes(content)
    assert load_qparams(tmp_path / "ranges.json", QPARAMS) is None
