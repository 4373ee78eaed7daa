"""Disks that fill up, and files in caches and work directories that were damaged or belong elsewhere."""

from __future__ import annotations

import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from demo_study import CALIBRATION, demo_artifact, demo_model
from shell_runs import DEMO, hwq, write_samples

import hwq as face
from hwq.cache import default_cache_dir, default_store_path
from hwq.demo import load_demo
from hwq.errors import HwqError

Capture = pytest.CaptureFixture[str]
SAMPLES = load_demo()[1][:CALIBRATION]


# Disk full: no half file remains, and what was there before stays


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 20 kB: a write past that fails in the middle, as on a full disk."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    demo_artifact()  # not built within the limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_no_half_artifact(small_disk: None, tmp_path: Path) -> None:
    path = tmp_path / "out.hwq"
    path.write_bytes(b"what was there before")
    with pytest.raises(HwqError, match=r"cannot write '.*out.hwq': File too large; nothing was changed") as caught:
        demo_artifact().save(path)
    assert caught.value.code == "save-failed"
    assert path.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_no_half_outputs_from_the_shell(
    capsys: Capture, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("good")
    demo_artifact().save(folder / "demo.hwq")
    _, evaluation = write_samples(folder)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hwq.files.os.fsync", full)
    output = tmp_path / "out.npz"
    ended = hwq(capsys, "run", folder / "demo.hwq", evaluation, "-o", output, "--json")
    assert ended.status == 1
    assert ended.json["error"]["code"] == "save-failed"
    assert "No space left on device" in ended.sentence
    assert list(tmp_path.iterdir()) == []


# A work directory and a cache that were damaged, or belong elsewhere


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, the kernels those that all tests share (as links, which a test may break)."""
    shared = default_cache_dir() / "objects"
    demo_artifact()
    mine = tmp_path / "cache"
    (mine / "objects").mkdir(parents=True)
    for path in shared.iterdir():
        (mine / "objects" / path.name).symlink_to(path)
    monkeypatch.setenv("HWQ_CACHE", str(mine))
    return mine


def plan_demo(work: Path, **options: Any) -> face.Plan:
    given = {"calibration": SAMPLES, "threads": 1, "measure": False, "schemes": ["w8a8", "w4a8"], "work_dir": work}
    return face.plan(demo_model(), **{**given, **options})


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "other": lambda content: b'{"a": [1, 2]}',
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_stage_results_are_found_again(kind: str, tmp_path: Path) -> None:
    whole = plan_demo(tmp_path)
    results = [path for path in tmp_path.iterdir() if path.name != "model.json"]
    assert {path.name.split("-")[0] for path in results} >= {"ranges", "sensitivity"}
    contents = {path: path.read_bytes() for path in results}
    for path, content in contents.items():
        path.write_bytes(DAMAGE[kind](content))
    assert plan_demo(tmp_path) == whole
    assert {path: path.read_bytes() for path in results} == contents


@pytest.mark.parametrize("kind", ["empty", "cut", "zeros"])
def test_damaged_kernels_are_compiled_again(kind: str, cache: Path, tmp_path: Path) -> None:
    whole = plan_demo(tmp_path / "work")
    objects = sorted((cache / "objects").iterdir())
    for path in objects[:: len(objects) // 3]:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(DAMAGE[kind](content))
    assert plan_demo(tmp_path / "again") == whole


@pytest.mark.parametrize("content", [b"no database", b"", bytes(5000)])
def test_a_damaged_store_is_named_or_made_anew(content: bytes, cache: Path, tmp_path: Path) -> None:
    default_store_path().write_bytes(content)
    if not content:
        assert plan_demo(tmp_path, measure=True, schemes=["f32"]).schemes
        return
    with pytest.raises(HwqError, match=r"records.sqlite is damaged or not a store of hwq .*delete or move") as caught:
        plan_demo(tmp_path, measure=True, schemes=["f32"])
    assert caught.value.code == "store-corrupt"


def test_a_store_of_a_newer_hwq_is_left_alone(cache: Path, tmp_path: Path) -> None:
    plan_demo(tmp_path, measure=True, schemes=["f32"])
    with sqlite3.connect(default_store_path()) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(HwqError) as caught:
        plan_demo(tmp_path, measure=True, schemes=["f32"])
    assert caught.value.code == "store-version"


@pytest.mark.parametrize("mark", ["other", "damaged"])
def test_a_work_directory_that_is_not_this_model_s(
    mark: str, capsys: Capture, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    calibration, _ = write_samples(tmp_path_factory.mktemp("good"))
    content = b'{"name": "resnet", "fingerprint": "0123456789"}' if mark == "other" else b"{"
    (tmp_path / "model.json").write_bytes(content)
    code, text = {
        "other": ("work-dir-other", "belongs to model 'resnet' (01234567), not to 'digits'"),
        "damaged": ("work-dir-broken", "damaged or not hwq's"),
    }[mark]
    with pytest.raises(HwqError) as caught:
        plan_demo(tmp_path)
    assert (caught.value.code, text in caught.value.message) == (code, True)
    ended = hwq(capsys, "plan", DEMO, "--calib", calibration, "--work-dir", tmp_path, "--json")
    assert (ended.status, ended.json["error"]["code"]) == (1, code)
    assert text in ended.sentence
    assert (tmp_path / "model.json").read_bytes() == content


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HWQ_CACHE", str(tmp_path / "file" / "cache"))
    sentence = r"cannot make the cache folder .*: Not a directory; accepted: .*HWQ_CACHE"
    with pytest.raises(HwqError, match=sentence) as caught:
        plan_demo(tmp_path / "work")
    assert caught.value.code == "save-failed"
