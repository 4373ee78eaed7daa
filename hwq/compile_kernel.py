"""Compile kernels to object files, kept by content, and link them into libraries.

An object is named by the hash of everything that makes it: the scheduled function's text, TVM's target, TVM's version and the
instruction it must hold. So a kernel is compiled once a machine, whichever network or process asks, and a folder of
objects may be shared or thrown away at any time. Many missing kernels are compiled in worker processes
(``hwq.compile_worker``): plain subprocesses, so that a caller's script without a ``__main__`` guard is not run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm

from hwq.errors import HwqError
from hwq.target import Target
from hwq.workload import Kernel

Progress = Callable[[int, int], None]
# A helper process takes one to two seconds to import TVM, a kernel a tenth of one: a helper for fewer kernels does not pay.
KERNELS_PER_HELPER = 24
# Instructions whose name in a target file is not their mnemonic.
_MNEMONIC = {"fma": r"vfmadd\w*|fmla", "mul": None}


def compile_object(kernel: Kernel, target: Target, cache_dir: Path) -> Path:
    """The object file of ``kernel`` in ``cache_dir``/objects, compiled if it is not there.

    Raises HwqError "compile-failed", or "instruction-missing" if the assembly lacks ``kernel.instruction``.
    """
    path = object_path(kernel, target, cache_dir)
    if not path.exists():
        compile_to(path, kernel.func, kernel.symbol, kernel.instruction, target.tvm())
    return path


def object_path(kernel: Kernel, target: Target, cache_dir: Path) -> Path:
    """Where the object of ``kernel`` for ``target`` is, or will be."""
    content = (
        kernel.func.script(show_meta=True),
        kernel.symbol,
        str(kernel.instruction),
        str(target.tvm()),
        tvm.__version__,
    )
    return cache_dir / "objects" / f"{hashlib.sha256(chr(0).join(content).encode()).hexdigest()}.o"


def compile_to(path: Path, func: Any, symbol: str, instruction: str | None, target: tvm.target.Target) -> None:
    """Compile one PrimFunc to an object file at ``path``, complete or not at all. Raises as ``compile_object``."""
    try:
        module = tvm.compile(tvm.IRModule({symbol: func}), target).mod
    except Exception as error:  # TVM raises many kinds
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise HwqError("compile-failed", f"kernel {symbol} does not compile for {target}: {last[0]}") from error
    pattern = mnemonic(instruction)
    if pattern is not None and not re.search(rf"^\s*(?:{pattern})\b", module.inspect_source("asm"), re.MULTILINE):
        raise HwqError("instruction-missing", f"kernel {symbol} was to use {instruction}, but its assembly does not")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem[:16], suffix=".o")
    os.close(handle)
    try:
        module.write_to_file(name)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def mnemonic(instruction: str | None) -> str | None:
    """The pattern of the assembly mnemonic of an instruction named as in target files; None if there is none to look for."""
    if instruction is None:
        return None
    name = instruction.rsplit(".", 1)[-1]
    return _MNEMONIC.get(name, re.escape(name))


def compile_many(
    kernels: Sequence[Kernel],
    target: Target,
    cache_dir: Path,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Symbol -> object file of every kernel, compiling what the cache lacks.

    workers: processes to compile in (None: as many as this process may use cores; 1: none but this one). progress is
    called with (done, total) in the calling process. Raises as ``compile_object``; objects that were finished stay.
    """
    paths = {kernel.symbol: object_path(kernel, target, cache_dir) for kernel in kernels}
    missing = [kernel for kernel in {kernel.symbol: kernel for kernel in kernels}.values() if not paths[kernel.symbol].exists()]
    ready = len(paths) - len(missing)

    def report(done: int) -> None:
        if progress is not None:
            progress(ready + done, len(paths))

    report(0)
    helpers = min((workers or _cores()) - 1, len(missing) // KERNELS_PER_HELPER)
    if helpers > 0:
        _compile_with_workers(missing, paths, target, helpers, report)
    else:
        for done, kernel in enumerate(missing, 1):
            compile_to(paths[kernel.symbol], kernel.func, kernel.symbol, kernel.instruction, target.tvm())
            report(done)
    return paths


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compile_with_workers(
    kernels: Sequence[Kernel], paths: Mapping[str, Path], target: Target, helpers: int, report: Callable[[int], None]
) -> None:
    """Compiles here and in ``helpers`` processes, which take kernels from the other end; an interrupt leaves no half file."""
    todo = deque(kernels)
    outcomes: queue.SimpleQueue[HwqError | None] = queue.SimpleQueue()
    config = str(target.tvm())
    processes = [_start_worker() for _ in range(helpers)]
    threads = [
        threading.Thread(target=_feed, args=(process, todo, paths, config, outcomes), daemon=True) for process in processes
    ]
    done = 0

    def note(outcome: HwqError | None) -> None:
        nonlocal done
        if outcome is not None:
            raise outcome
        done += 1
        report(done)

    try:
        for thread in threads:
            thread.start()
        while todo:
            try:
                kernel = todo.popleft()
            except IndexError:  # a worker took it
                break
            compile_to(paths[kernel.symbol], kernel.func, kernel.symbol, kernel.instruction, target.tvm())
            note(None)
            while not outcomes.empty():
                note(outcomes.get())
        while done < len(kernels):
            note(outcomes.get())
    finally:
        todo.clear()
        for process in processes:
            _end_worker(process)


def _feed(
    process: subprocess.Popen[str],
    todo: deque[Kernel],
    paths: Mapping[str, Path],
    config: str,
    outcomes: queue.SimpleQueue[HwqError | None],
) -> None:
    """Gives one worker its jobs, one at a time, and puts how each ended into ``outcomes``."""
    assert process.stdin is not None and process.stdout is not None
    while True:
        try:
            kernel = todo.pop()
        except IndexError:
            return
        job = {
            "module": tvm.ir.save_json(tvm.IRModule({kernel.symbol: kernel.func})),
            "symbol": kernel.symbol,
            "instruction": kernel.instruction,
            "target": config,
            "path": str(paths[kernel.symbol]),
        }
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
        except (OSError, ValueError):  # the worker is gone, or was ended by _end_worker
            outcomes.put(HwqError("compile-failed", f"the process that compiled kernel {kernel.symbol} ended without an answer"))
            return
        outcomes.put(HwqError(answer["code"], answer["message"]) if "code" in answer else None)


def _start_worker() -> subprocess.Popen[str]:
    package_root = str(Path(__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package_root, inherited] if inherited else [package_root])}
    command = [sys.executable, "-m", "hwq.compile_worker"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _end_worker(process: subprocess.Popen[str]) -> None:
    """Lets the worker finish the kernel it has, so that no half file stays, and ends it if that takes long."""
    assert process.stdin is not None and process.stdout is not None
    try:
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.wait(timeout=20)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def link(output: Path, objects: Iterable[Path]) -> None:
    """Link object files to the shared library ``output``. Raises HwqError "link-failed" with the linker's first complaint."""
    files = list(dict.fromkeys(str(path) for path in objects))
    with tempfile.TemporaryDirectory(prefix="hwq-link-") as folder:
        listing = Path(folder) / "objects.txt"  # hundreds of paths are too long for a command line
        listing.write_text("".join(json.dumps(file) + "\n" for file in files))
        command = [sys.executable, "-m", "ziglang", "ld.lld", "-shared", "-o", str(output), f"@{listing}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        first = (result.stderr.strip().splitlines() or ["no message"])[0]
        raise HwqError("link-failed", f"linking {len(files)} kernels to {output.name} failed: {first}")


def load_kernels(objects: Iterable[Path], workdir: Path | None = None) -> Any:
    """Link objects into one library and load it: result[symbol] is the kernel's function. No objects: an empty dict.

    workdir: where the library is made (a temporary folder if None); it is removed again, since a loaded library needs no file.
    """
    files = list(objects)
    if not files:
        return {}
    with tempfile.TemporaryDirectory(prefix="hwq-", dir=workdir) as folder:
        library = Path(folder) / "kernels.so"
        link(library, files)
        return tvm.runtime.load_module(str(library))
