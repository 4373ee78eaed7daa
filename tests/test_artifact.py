"""The artifact: the same bits wherever it is loaded, the same bytes whenever it is saved, and no other file taken."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from demo_study import demo_artifact, demo_pictures

from hwq import artifact as module
from hwq import cpu
from hwq.artifact import Artifact
from hwq.cpu import available_cpus
from hwq.errors import HwqError

PICTURES = demo_pictures()[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "demo.hwq"
    demo_artifact().save(path)
    return path


def repack(path: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The artifact at ``path`` with its manifest changed, checksums of the zip right again."""
    with zipfile.ZipFile(path) as pack:
        parts = {name: pack.read(name) for name in pack.namelist()}
    manifest = json.loads(parts["manifest.json"])
    change(manifest)
    with zipfile.ZipFile(target, "w") as pack:
        for name, content in (parts | {"manifest.json": json.dumps(manifest).encode()}).items():
            pack.writestr(name, content)
    return target


# Calls


def test_any_number_of_samples_gives_what_they_give_one_by_one() -> None:
    one_by_one = np.concatenate([demo_artifact()(PICTURES[i : i + 1]) for i in range(7)])
    np.testing.assert_array_equal(demo_artifact()(PICTURES[:7]), one_by_one)
    assert one_by_one.dtype == np.float32
    assert one_by_one.shape == (7, 10)


def test_an_array_may_come_in_any_way() -> None:
    expected = demo_artifact()(PICTURES[:2])
    (name,) = demo_artifact().inputs
    wide = PICTURES[:2].astype(np.float64)
    for value in ({name: PICTURES[:2]}, wide, np.asfortranarray(PICTURES[:2]), PICTURES[:2].tolist()):
        np.testing.assert_array_equal(demo_artifact()(value), expected)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ((PICTURES[:, :, :8],), "input-shape"),
        ((PICTURES[0],), "input-shape"),
        ((PICTURES.astype(np.uint8),), "input-type"),
        ((np.full_like(PICTURES, np.inf),), "input-nan"),
        ((PICTURES[:0],), "samples-empty"),
        ((PICTURES, PICTURES), "input-name"),
        ((), "input-name"),
        (({"other": PICTURES},), "input-name"),
    ],
)
def test_what_does_not_fit_is_refused(values: tuple[Any, ...], code: str) -> None:
    with pytest.raises(HwqError) as caught:
        demo_artifact()(*values)
    assert caught.value.code == code


def test_results_are_the_caller_s_own() -> None:
    first = demo_artifact()(PICTURES[:1])
    kept = first.copy()
    demo_artifact()(PICTURES[1:2])
    np.testing.assert_array_equal(first, kept)


def test_benchmark_is_of_one_call() -> None:
    result = demo_artifact().benchmark(demo_artifact().made_up_inputs(), runs=9)
    assert result.runs == 9
    assert 0 < result.min_s <= result.median_s < 1
    with pytest.raises(HwqError, match="runs is 0; accepted: a whole number of at least 1"):
        demo_artifact().benchmark(PICTURES, runs=0)


@pytest.mark.parametrize("runs", [0, -1, 2.5, True, "two"])
def test_a_number_of_runs_that_is_none_is_refused(runs: Any) -> None:
    for timed in (demo_artifact().times, demo_artifact().benchmark, demo_artifact().layer_times):
        with pytest.raises(HwqError, match=r"runs is .*; accepted: a whole number of at least 1") as caught:
            timed(PICTURES[:1], runs=runs)
        assert caught.value.code == "runs-invalid"


def test_a_kernel_that_fails_is_said_whatever_is_called() -> None:
    placed = demo_artifact().placed
    assert placed is not None
    module = {"main": lambda *_: -1, "timed": lambda *_: -1}
    broken = replace(demo_artifact(), placed=replace(placed, module=module))
    for called in (broken, broken.times, broken.benchmark, broken.layer_times):
        with pytest.raises(HwqError, match="a kernel of the library failed") as caught:
            called(PICTURES[:1])
        assert caught.value.code == "kernel-failed"


def test_layer_times_name_every_kernel_and_fit_in_the_whole() -> None:
    times = demo_artifact().layer_times(PICTURES[:1], runs=5)
    assert list(times) == [step for _, step in demo_artifact().calls]
    assert all(value > 0 for value in times.values())


# Files


def test_the_same_artifact_is_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    demo_artifact().save(tmp_path / "again.hwq")
    assert (tmp_path / "again.hwq").read_bytes() == saved.read_bytes()
    Artifact.load(saved).save(tmp_path / "loaded.hwq")
    assert (tmp_path / "loaded.hwq").read_bytes() == saved.read_bytes()


def test_an_artifact_is_shown_in_one_line() -> None:
    shown, artifact = repr(demo_artifact()), demo_artifact()
    ((name, (shape, dtype)),) = artifact.inputs.items()
    assert shown.startswith(f"Artifact({artifact.target.name}: {name} {dtype} {shape} -> ")
    assert all(scheme in shown for scheme in artifact.plan.schemes.values())
    assert (len(shown) < 300, "\n" in shown) == (True, False)


def test_all_comes_back(saved: Path) -> None:
    loaded = Artifact.load(saved)
    assert loaded.plan == demo_artifact().plan
    assert loaded.report == json.loads(json.dumps(demo_artifact().report))
    assert loaded.target == demo_artifact().target
    for field in ("threads", "inputs", "outputs", "calls", "library"):
        assert getattr(loaded, field) == getattr(demo_artifact(), field), field
    np.testing.assert_array_equal(loaded(PICTURES), demo_artifact()(PICTURES))


def test_another_process_in_another_folder_gives_the_same_bits(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / "renamed"
    moved.write_bytes(saved.read_bytes())
    np.save(tmp_path / "x.npy", PICTURES)
    code = "import sys, numpy as np, hwq; np.save('y.npy', hwq.Artifact.load('moved/renamed')(np.load('x.npy')))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), demo_artifact()(PICTURES))


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_the_number_of_threads_may_be_another_and_changes_no_bit(saved: Path, threads: int) -> None:
    expected = demo_artifact()(PICTURES[:5])
    loaded = Artifact.load(saved, threads=threads)
    assert loaded.threads == threads
    np.testing.assert_array_equal(loaded(PICTURES[:5]), expected)
    assert tvm.get_global_func("runtime.NumThreads")() == min(threads, len(available_cpus()))


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "two"])
def test_a_number_of_threads_that_is_none_is_refused(saved: Path, threads: Any) -> None:
    with pytest.raises(HwqError, match=r"threads is .*; accepted: a whole number of at least 1") as caught:
        Artifact.load(saved, threads=threads)
    assert caught.value.code == "threads-invalid"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "no.hwq", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(HwqError, match=reason) as caught:
            Artifact.load(path)
        assert caught.value.code == "artifact-missing"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved: Path, tmp_path: Path, share: float) -> None:
    whole = saved.read_bytes()
    (tmp_path / "cut.hwq").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(HwqError, match="is truncated or of another kind") as caught:
        Artifact.load(tmp_path / "cut.hwq")
    assert caught.value.code == "artifact-broken"


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    blob = io.BytesIO()
    np.savez(blob, x=PICTURES)
    for content in (b"\x7fELF", b"{}", blob.getvalue()):
        (tmp_path / "other.hwq").write_bytes(content)
        with pytest.raises(HwqError, match="of another kind") as caught:
            Artifact.load(tmp_path / "other.hwq")
        assert caught.value.code == "artifact-broken"


@pytest.mark.parametrize("where", [0.02, 0.25, 0.5, 0.75])
def test_an_altered_file_is_refused(saved: Path, tmp_path: Path, where: float) -> None:
    """Wherever the byte is: the manifest is small, so most places are the library's."""
    content = bytearray(saved.read_bytes())
    content[int(where * len(content))] ^= 0xFF
    (tmp_path / "altered.hwq").write_bytes(content)
    with pytest.raises(HwqError) as caught:
        Artifact.load(tmp_path / "altered.hwq")
    assert caught.value.code == "artifact-broken"


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.pop(key)


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.update({key: value})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (put("format", 99), "it has format 99, and this hwq reads formats 2 and 3"),
        (drop("format"), "it has format None"),
        (lambda manifest: manifest["sha256"].update({"library.so": "0" * 64}), "its library.so was altered"),
        (lambda manifest: manifest["sha256"].pop("constants.bin"), "its constants.bin was altered"),
        (drop("sha256"), "its library.so was altered"),
        (drop("workspace_bytes"), "its manifest is incomplete"),
        *((drop(key), "its manifest is incomplete") for key in ("plan", "report", "target", "threads", "inputs")),
        (drop("calls"), "its manifest is incomplete"),
        (put("plan", {}), "its manifest is incomplete"),
        (put("plan", None), "its manifest is incomplete"),
        (put("target", {}), "its manifest is incomplete"),
        (put("inputs", 7), "its manifest is incomplete"),
        (put("calls", [["one"]]), "its manifest is incomplete"),
        (put("threads", "many"), "its manifest is incomplete"),
    ],
)
def test_a_wrong_manifest_is_refused(
    saved: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], text: str
) -> None:
    with pytest.raises(HwqError, match=text) as caught:
        Artifact.load(repack(saved, tmp_path / "wrong.hwq", change))
    assert caught.value.code == "artifact-broken"


def test_an_artifact_of_an_older_format_is_named_so(saved: Path, tmp_path: Path) -> None:
    """Format 1 had its constants inside the library."""

    def kept(manifest: dict[str, Any]) -> str:
        with zipfile.ZipFile(saved) as pack, zipfile.ZipFile(tmp_path / "old.hwq", "w") as old:
            old.writestr("manifest.json", json.dumps(json.loads(pack.read("manifest.json")) | manifest))
            old.writestr("library.so", pack.read("library.so"))
        with pytest.raises(HwqError) as caught:
            Artifact.load(tmp_path / "old.hwq")
        assert caught.value.code == "artifact-broken"
        return caught.value.message

    assert "it has format 1, and this hwq reads formats 2 and 3" in kept({"format": 1})
    assert "it holds no constants.bin" in kept({})


def test_a_library_that_does_not_load_is_refused(saved: Path, tmp_path: Path) -> None:
    wrong = replace(demo_artifact(), library=replace(demo_artifact().library, code=b"\x7fELF" + bytes(1000)))
    wrong.save(tmp_path / "wrong.hwq")
    with pytest.raises(HwqError, match="its library does not load") as caught:
        Artifact.load(tmp_path / "wrong.hwq")
    assert caught.value.code == "artifact-broken"


def test_an_artifact_for_another_cpu_is_looked_at_and_its_library_never_loaded(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever flag it is; here the CPU does not know of AMX-COMPLEX, which no CPU that runs these tests need have."""
    lacking = "amx_complex_no_cpu_has"

    def need(manifest: dict[str, Any]) -> None:
        manifest["target"]["cpu_flags"].append(lacking)
        manifest["target"]["name"] = "x86-amx"

    assert lacking not in cpu.cpu_flags()
    path = repack(saved, tmp_path / "foreign.hwq", need)
    report = Artifact.load(saved).report
    monkeypatch.setattr(module, "place", lambda *_: pytest.fail("the library was loaded"))
    loaded = Artifact.load(path)
    assert loaded.report == report
    assert loaded.plan == demo_artifact().plan
    assert list(loaded.inputs) == list(loaded.made_up_inputs())
    loaded.save(tmp_path / "again.hwq")
    assert Artifact.load(tmp_path / "again.hwq").to_bytes() == loaded.to_bytes()
    refused: tuple[Callable[[], Any], ...] = (
        lambda: loaded(PICTURES[:1]),
        lambda: loaded.benchmark(PICTURES[:1]),
        lambda: loaded.layer_times(PICTURES[:1]),
        lambda: loaded.on("local"),
        lambda: Artifact.load(path, device="local"),
    )
    for use in refused:
        with pytest.raises(
            HwqError, match=f"for x86-amx and needs {lacking}, which this CPU lacks.*--device"
        ) as caught:
            use()
        assert caught.value.code == "cpu-lacks"


def test_no_space_for_the_library_is_said(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(HwqError, match="No space left on device; accepted: TMPDIR set to") as caught:
        Artifact.load(saved)
    assert caught.value.code == "save-failed"
