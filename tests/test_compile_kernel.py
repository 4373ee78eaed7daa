"""Objects are made once, complete or not at all, here or in helpers, and link to libraries that run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from kernel_runs import machine, make

from hwq import compile_kernel
from hwq.compile_kernel import compile_many, compile_object, link, load_kernels, mnemonic, object_path
from hwq.errors import HwqError
from hwq.graph import Activation
from hwq.schedule import kernel_for
from hwq.target import Target
from hwq.workload import Kernel

ROOT = Path(__file__).resolve().parents[1]


def kernels(count: int) -> list[Kernel]:
    shapes = [(1, 2, 2, 8 + at) for at in range(count)]
    return [kernel_for(make("dequantize", "w8a8", [shape], shape, out_dtype="float32"), machine()) for shape in shapes]


def runs(loaded: object, kernel: Kernel, channels: int) -> bool:
    q = np.arange(4 * channels, dtype=np.uint8).reshape(1, 2, 2, channels)
    out = tvm.runtime.empty(q.shape, "float32")
    scalars = (np.array([3], np.int32), np.array([0.5], np.float32))
    loaded[kernel.symbol](*map(tvm.runtime.tensor, (q, *scalars)), out)  # type: ignore[index]
    return bool((out.numpy() == (q.astype(np.float32) - 3) * np.float32(0.5)).all())


def test_an_object_is_compiled_once(tmp_path: Path) -> None:
    (kernel,) = kernels(1)
    path = compile_object(kernel, machine(), tmp_path)
    assert path.parent == tmp_path / "objects"
    before = path.stat().st_mtime_ns
    assert compile_object(kernel, machine(), tmp_path) == path
    assert path.stat().st_mtime_ns == before
    assert list(path.parent.iterdir()) == [path]
    assert runs(load_kernels([path], tmp_path), kernel, 8)
    assert list(tmp_path.iterdir()) == [path.parent]  # the library is not left behind


def test_the_name_holds_all_that_makes_the_object(tmp_path: Path) -> None:
    first, second = kernels(2)
    paths = {
        object_path(first, machine(), tmp_path),
        object_path(second, machine(), tmp_path),
        object_path(first, Target.load("x86-generic"), tmp_path),
        object_path(replace(first, instruction="v"), machine(), tmp_path),
    }
    assert len(paths) == 4
    code = """
        import sys; from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from test_compile_kernel import kernels, machine, object_path
        print(object_path(kernels(1)[0], machine(), Path(sys.argv[2])))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(ROOT / "tests"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    other = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert Path(other.stdout.strip()) == object_path(first, machine(), tmp_path)


def test_arguments_are_checked_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kernel,) = kernels(1)
    quick = compile_object(kernel, machine(), tmp_path)
    monkeypatch.setenv("HWQ_VERIFY", "1")
    checked = compile_object(kernel, machine(), tmp_path)
    assert checked.stat().st_size > 2 * quick.stat().st_size
    with pytest.raises(ValueError, match="Mismatched"):
        runs(load_kernels([checked]), kernel, 9)


def test_a_missing_instruction_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (kernel,) = kernels(1)
    with pytest.raises(HwqError, match=r"amx\.tdpbssd") as caught:
        compile_object(replace(kernel, instruction="amx.tdpbssd"), machine(), tmp_path)
    assert caught.value.code == "instruction-missing"
    assert list(tmp_path.rglob("*.o")) == []


def test_a_present_instruction_is_found(tmp_path: Path) -> None:
    (kernel,) = kernels(1)
    target = Target.load("x86-avx2")
    for instruction in ("vmulps", "avx2.vcvtdq2ps", "generic.mul", None):
        compile_object(replace(kernel, instruction=instruction), target, tmp_path)


@pytest.mark.parametrize("op", ["add", "unary"])
def test_instructions_that_the_assembly_spells_otherwise_are_found(op: str, tmp_path: Path) -> None:
    """packuswb has a v in front since AVX, and LLVM writes vpermt2b for vpermi2b."""
    shape = (1, 8, 8, 128)
    workload = make(
        op,
        "w8a8",
        [shape] * (2 if op == "add" else 1),
        shape,
        activation=Activation(kind="relu" if op == "add" else "silu"),
    )
    for name in ("x86-avx2", "x86-avx512-vnni", "x86-avx512-bf16"):
        target = Target.load(name)
        assert compile_object(kernel_for(workload, target), target, tmp_path).exists()


@pytest.mark.parametrize(
    ("instruction", "pattern"),
    [("avx512.vpdpbusd", "vpdpbusd"), ("avx2.fma", "vfmadd|fmla"), ("generic.mul", None), (None, None)],
)
def test_mnemonic(instruction: str | None, pattern: str | None) -> None:
    assert mnemonic(instruction) == pattern


def test_a_function_that_does_not_compile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("a page of trace\nTypeError: no such intrinsic")

    (kernel,) = kernels(1)
    monkeypatch.setattr(compile_kernel.tvm, "compile", refuse)
    with pytest.raises(HwqError, match=f"{kernel.symbol} does not compile.*no such intrinsic") as caught:
        compile_object(kernel, machine(), tmp_path)
    assert caught.value.code == "compile-failed"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (kernel,) = kernels(1)
    monkeypatch.setattr(compile_kernel.os, "replace", full)
    with pytest.raises(HwqError, match=r"cannot keep kernels in .*: No space left on device") as caught:
        compile_object(kernel, machine(), tmp_path)
    assert caught.value.code == "save-failed"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_cache_that_is_shared_can_be_read_by_others(tmp_path: Path) -> None:
    """As the caller's umask has it, not only by its owner."""
    before = os.umask(0o022)
    try:
        path = compile_object(kernels(1)[0], machine(), tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_no_room_for_a_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = [compile_object(kernel, machine(), tmp_path) for kernel in kernels(2)]
    free = sum(path.stat().st_size for path in objects) - 1
    monkeypatch.setattr(compile_kernel.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, free))
    with pytest.raises(HwqError, match=rf"{free + 1} bytes are needed in .*, {free} are free") as caught:
        link(tmp_path / "x.so", objects)
    assert caught.value.code == "save-failed"


def test_progress_counts_what_was_there(tmp_path: Path) -> None:
    made = kernels(3)
    compile_object(made[1], machine(), tmp_path)
    seen: list[tuple[int, int]] = []
    paths = compile_many(
        [*made, made[0]], machine(), tmp_path, workers=1, progress=lambda done, of: seen.append((done, of))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert sorted(paths) == sorted(kernel.symbol for kernel in made)
    loaded = load_kernels(paths.values())
    assert all(runs(loaded, kernel, 8 + at) for at, kernel in enumerate(made))


def test_no_kernels_are_an_empty_library() -> None:
    assert load_kernels([]) == {}


def test_what_cannot_be_linked_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.o").write_bytes(b"no object")
    with pytest.raises(HwqError, match="linking 1 kernels") as caught:
        link(tmp_path / "library.so", [tmp_path / "bad.o"])
    assert caught.value.code == "link-failed"


def test_helpers_make_the_same_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_kernel, "KERNELS_PER_HELPER", 1)
    made = kernels(6)
    done: list[int] = []
    paths = compile_many(made, machine(), tmp_path / "helped", workers=2, progress=lambda now, _: done.append(now))
    assert done == list(range(7))
    alone = compile_many(made, machine(), tmp_path / "alone", workers=1)
    for kernel in made:
        assert paths[kernel.symbol].name == alone[kernel.symbol].name
        assert paths[kernel.symbol].read_bytes() == alone[kernel.symbol].read_bytes()


def test_a_helper_that_dies_is_replaced_by_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_kernel, "KERNELS_PER_HELPER", 1)
    monkeypatch.setattr(compile_kernel, "_BOOTSTRAP", "raise SystemExit(3)")
    made = kernels(4)
    paths = compile_many(made, machine(), tmp_path, workers=2)
    assert all(path.exists() for path in paths.values())


def test_an_error_in_a_helper_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_kernel, "KERNELS_PER_HELPER", 1)
    made = [replace(kernel, instruction="amx.tdpbssd") for kernel in kernels(4)]
    with pytest.raises(HwqError) as caught:
        compile_many(made, machine(), tmp_path, workers=2)
    assert caught.value.code == "instruction-missing"


def test_an_interrupt_ends_the_helpers_and_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_kernel, "KERNELS_PER_HELPER", 1)
    started: list[subprocess.Popen[str]] = []
    start = compile_kernel._start_worker

    def remember() -> subprocess.Popen[str]:
        started.append(start())
        return started[-1]

    def interrupt(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(compile_kernel, "_start_worker", remember)
    made = kernels(6)
    with pytest.raises(KeyboardInterrupt):
        compile_many(made, machine(), tmp_path, workers=2, progress=interrupt)
    assert [process.poll() is not None for process in started] == [True]
    finished = list((tmp_path / "objects").iterdir())
    assert finished
    assert {path.name for path in finished} <= {object_path(kernel, machine(), tmp_path).name for kernel in made}
    assert len(compile_many(made, machine(), tmp_path, workers=1)) == 6


def test_a_helper_that_does_not_end_hides_no_error_and_no_other_helper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two helpers that hear of nothing: the interrupt is what comes out, and both are gone."""
    stuck = """
import sys
sys.stdin.readline()
print("{}", flush=True)
import time
time.sleep(600)
"""
    monkeypatch.setattr(compile_kernel, "KERNELS_PER_HELPER", 1)
    monkeypatch.setattr(compile_kernel, "LAST_KERNEL_S", 0.2)
    monkeypatch.setattr(compile_kernel, "_BOOTSTRAP", stuck)
    started: list[subprocess.Popen[str]] = []
    start = compile_kernel._start_worker

    def remember() -> subprocess.Popen[str]:
        started.append(start())
        return started[-1]

    def interrupt(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(compile_kernel, "_start_worker", remember)
    with pytest.raises(KeyboardInterrupt):
        compile_many(kernels(6), machine(), tmp_path, workers=3, progress=interrupt)
    assert [process.poll() is not None for process in started] == [True, True]


def test_a_kernel_that_cannot_be_sent_is_compiled_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process with a time limit: a kernel without an outcome would be waited for for ever."""
    code = """
        import sys; from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from test_compile_kernel import compile_kernel, compile_many, kernels, machine
        def refuse(_):
            raise RuntimeError("no such node")
        compile_kernel.tvm.ir.save_json = refuse
        compile_kernel.KERNELS_PER_HELPER = 1
        print(sum(path.exists() for path in compile_many(kernels(4), machine(), Path(sys.argv[2]), workers=2).values()))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(ROOT / "tests"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
    assert result.stdout.strip() == "4"


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys; from pathlib import Path
            print("started")
            sys.path.insert(0, sys.argv[1])
            from test_compile_kernel import compile_kernel, compile_many, kernels, machine
            compile_kernel.KERNELS_PER_HELPER = 1
            print(len(compile_many(kernels(3), machine(), Path(sys.argv[2]), workers=2)))
            """
        )
    )
    command = [sys.executable, str(script), str(ROOT / "tests"), str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split() == ["started", "3"]
