"""No half file: whatever goes wrong, the old content or nothing is there, and no temporary file stays."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from hwq.errors import HwqError
from hwq.files import scratch, sweep, swept_scratch, write_atomic, write_npz


def test_content_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"one")
    write_atomic(str(path), memoryview(b"two"))
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_file_has_the_usual_rights(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    write_atomic(tmp_path / "a", b"")
    assert (tmp_path / "a").stat().st_mode == usual.stat().st_mode


def test_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    write_atomic(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"


@pytest.mark.parametrize("old", [None, b"old"])
def test_no_half_file_stays_when_there_is_no_room(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "a.bin"
    if old is not None:
        path.write_bytes(old)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))  # Python ignores the signal, so the write fails
    try:
        with pytest.raises(HwqError, match=r"cannot write .*a\.bin.*nothing was changed") as caught:
            write_atomic(path, b"x" * (1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "save-failed"
    assert os.listdir(tmp_path) == ([] if old is None else ["a.bin"])
    assert old is None or path.read_bytes() == old


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(HwqError, match="No such file or directory") as caught:
        write_atomic(tmp_path / "no" / "a", b"")
    assert caught.value.code == "save-failed"


def test_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == []


def test_a_device_stays_one(tmp_path: Path) -> None:
    """Whoever runs as root and writes to the null device keeps it; a pipe is the same without root."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, b"content")
    assert os.read(end, 100) == b"content"
    os.close(end)
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_arrays_come_back(tmp_path: Path) -> None:
    arrays = {"file": np.arange(6, dtype=np.int8).reshape(2, 3), "a/b:0": np.array([], np.float32), "s": np.float64(2)}
    write_npz(tmp_path / "out", arrays)
    with np.load(tmp_path / "out") as pack:
        assert sorted(pack.files) == sorted(arrays)
        for name, array in arrays.items():
            assert pack[name].dtype == array.dtype
            assert np.array_equal(pack[name], array)


def test_scratch_is_gone_afterwards_and_says_what_the_system_refused(tmp_path: Path) -> None:
    with scratch(tmp_path) as folder:
        assert folder.parent == tmp_path
        (folder / "a").write_bytes(b"x")
    assert os.listdir(tmp_path) == []
    with pytest.raises(HwqError, match="No such file or directory; accepted: TMPDIR set to") as caught:
        with scratch(tmp_path / "no"):
            pass
    assert caught.value.code == "save-failed"
    with pytest.raises(OSError, match="not by the system"), scratch(tmp_path):
        raise OSError("not by the system")


def test_what_killed_processes_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    old, fresh, other = (tmp_path / name for name in (".a.json.12.part", ".b.json.34.part", "c.part"))
    for path in (old, fresh, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (time.time() - 7200,) * 2)
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == [fresh, other]
    sweep(tmp_path / "absent")


def test_scratch_of_a_killed_process_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a living one stays, and so does what has another name."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "import sys, time\nfrom hwq.files import swept_scratch\nwith swept_scratch('big') as folder:\n"
    code += "    (folder / 'file').touch()\n    print(folder, flush=True)\n    time.sleep(600)"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with swept_scratch("big"):
            assert (left / "file").exists(), "its owner lives"
        process.kill()
    with swept_scratch("other"):
        assert (left / "file").exists()
    with swept_scratch("big") as mine, scratch(mine) as below:
        assert not left.parent.exists()
        with swept_scratch("big"):
            assert below.exists(), "this process is one that lives"
    assert list(tmp_path.iterdir()) == []
