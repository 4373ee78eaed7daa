"""Compile kernels to object files, kept by content, and link them into libraries.

An object is named by the hash of everything that makes it: the scheduled function's text, TVM's target, TVM's version
and the instruction it must hold. So a kernel is compiled once a machine, whichever network or process asks, and a
folder of objects may be shared or thrown away at any time. Many missing kernels are compiled in helper processes too
(``hwq.compile_worker``): plain subprocesses, so that a caller's script without a ``__main__`` guard is not run again.

Kernels do not check their arguments' types and shapes, which are right by construction: the checks took half the time
to compile and two thirds of the code. With HWQ_VERIFY they do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tvm

from hwq import cpu
from hwq.errors import HwqError
from hwq.files import scratch, write_whole
from hwq.lowering import VERSION, pipeline
from hwq.switches import verify_wanted
from hwq.target import Target
from hwq.workload import Kernel

log = logging.getLogger(__name__)
# A helper process takes one to two seconds to import TVM, a kernel a tenth of one: it must have this many to pay.
KERNELS_PER_HELPER = 24
# What a helper has to finish its last kernel, most of which take less than a second.
LAST_KERNEL_S = 20
# Starts a helper with this package's modules but without its face, which imports everything and takes seconds.
_BOOTSTRAP = """
import sys, types
hwq = types.ModuleType("hwq")
hwq.__path__ = [sys.argv[1]]
sys.modules["hwq"] = hwq
from hwq.compile_worker import main
main()
"""
# Patterns for instructions whose name in a target file does not begin their mnemonic; AVX puts a v before SSE's, and
# LLVM overwrites the indices of a permutation (i2) or its table (t2), as it sees fit; and with VNNI it makes one
# instruction of vpmaddwd and the addition behind it.
MNEMONICS = {
    "fma": r"vfmadd|fmla",
    "mul": None,
    "packuswb": r"v?packuswb",
    "vpermi2b": r"vperm[it]2b",
    "vpmaddwd": r"vpmaddwd|vpdpwssd",
}


def compile_object(kernel: Kernel, target: Target, cache_dir: Path) -> Path:
    """The object file of ``kernel`` in ``cache_dir``/objects, compiled if it is not there.

    Raises HwqError "compile-failed", or "instruction-missing" if the assembly lacks ``kernel.instruction``.
    """
    path = object_path(kernel, target, cache_dir)
    if not is_whole(path):
        compile_to(path, kernel.functions, kernel.instruction, target.tvm())
    return path


def object_path(kernel: Kernel, target: Target, cache_dir: Path) -> Path:
    """Where the object of ``kernel`` for ``target`` is, or will be."""
    content = (
        *(func.script(show_meta=True) for func in kernel.functions.values()),
        *kernel.functions,
        str(kernel.instruction),
        str(target.tvm()),
        tvm.__version__,
        VERSION,
        "checked" if verify_wanted() else "",
    )
    return cache_dir / "objects" / f"{hashlib.sha256(chr(0).join(content).encode()).hexdigest()}.o"


def is_whole(path: Path) -> bool:
    """Whether there is an object file that reaches to its end, which a full disk or a crash may have cut off."""
    try:
        with path.open("rb") as file:
            head, size = file.read(64), os.fstat(file.fileno()).st_size
    except OSError:
        return False
    if len(head) < 64 or not head.startswith(b"\x7fELF"):
        return False
    (start,), (entry, count) = struct.unpack_from("<Q", head, 40), struct.unpack_from("<HH", head, 58)
    return bool(0 < start and start + entry * count <= size)  # LLVM writes the table of sections last


def compile_to(path: Path, functions: Mapping[str, Any], instruction: str | None, target: tvm.target.Target) -> None:
    """Compile a kernel's PrimFuncs, its own first, to one object file of the cache at ``path``, complete or not at all.

    Raises as ``compile_code``, and HwqError "save-failed" where it cannot be kept.
    """
    code = compile_code(functions, instruction, target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, code)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"cannot keep kernels in {str(path.parent)!r}: {reason}; accepted: HWQ_CACHE set to another folder"
        raise HwqError("save-failed", message) from error


def compile_code(functions: Mapping[str, Any], instruction: str | None, target: tvm.target.Target) -> bytes:
    """The object file of PrimFuncs; the first one's name is what errors call them.

    Raises HwqError "compile-failed", or "instruction-missing" if the assembly lacks ``instruction``.
    """
    symbol = next(iter(functions))
    try:
        with tvm.transform.PassContext(config={"tirx.disable_assert": not verify_wanted()}):
            module = tvm.compile(tvm.IRModule(dict(functions)), target, tir_pipeline=pipeline()).mod
    except Exception as error:  # TVM raises many kinds
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise HwqError("compile-failed", f"kernel {symbol} does not compile for {target}: {last[0]}") from error
    require_instruction(symbol, instruction, module.inspect_source("asm"))
    return _object_code(module)


def _object_code(module: Any) -> bytes:
    """The module's object file. It is written to memory: on a full disk LLVM does not fail but ends the process."""
    handle = os.memfd_create("object")
    with open(handle, "rb") as file:
        module.write_to_file(f"/proc/self/fd/{handle}", "o")
        return file.read()


def mnemonic(instruction: str | None) -> str | None:
    """The pattern that begins the mnemonic of an instruction named as in target files; None if none is certain."""
    if instruction is None:
        return None
    name = instruction.rsplit(".", 1)[-1]
    return MNEMONICS.get(name, re.escape(name))


def require_instruction(symbol: str, instruction: str | None, assembly: str) -> None:
    """Raises HwqError "instruction-missing" if a kernel's assembly lacks what it was to use."""
    pattern = mnemonic(instruction)
    # Where there are two encodings, the assembly names the older one in front.
    if pattern is not None and not re.search(rf"^\s*(?:{{vex}}\s*)?(?:{pattern})", assembly, re.MULTILINE):
        raise HwqError("instruction-missing", f"kernel {symbol} was to use {instruction}, but its assembly does not")


def compile_many(
    kernels: Sequence[Kernel],
    target: Target,
    cache_dir: Path,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Symbol -> object file of every kernel, compiling what the cache lacks.

    workers: processes to compile in (None: as many as this process may use cores; 1: none but this one). progress is
    called with (done, total) in the calling process. Raises as ``compile_object``; objects that were finished stay.
    """
    paths = {kernel.symbol: object_path(kernel, target, cache_dir) for kernel in kernels}
    distinct = {kernel.symbol: kernel for kernel in kernels}.values()
    missing = [kernel for kernel in distinct if not is_whole(paths[kernel.symbol])]
    ready = len(paths) - len(missing)

    def report(done: int) -> None:
        if progress is not None:
            progress(ready + done, len(paths))

    report(0)
    helpers = min((workers or cpu.cores()) - 1, len(missing) // KERNELS_PER_HELPER)
    if helpers > 0:
        _compile_with_workers(missing, paths, target, helpers, report)
    else:
        for done, kernel in enumerate(missing, 1):
            compile_to(paths[kernel.symbol], kernel.functions, kernel.instruction, target.tvm())
            report(done)
    return paths


def _compile_with_workers(
    kernels: Sequence[Kernel], paths: Mapping[str, Path], target: Target, helpers: int, report: Callable[[int], None]
) -> None:
    """Compiles here and in ``helpers`` processes, which take kernels from the other end of the list.

    However this ends, the helpers finish the file they are writing, and end. What a helper that dies had is done here.
    """
    todo = deque(kernels)
    outcomes: queue.SimpleQueue[HwqError | Kernel | None] = queue.SimpleQueue()
    feed = partial(_feed, todo=todo, paths=paths, config=str(target.tvm()), outcomes=outcomes)
    done = 0
    with contextlib.ExitStack() as ends:
        for _ in range(helpers):
            process = _start_worker()
            ends.callback(_end_worker, process)
            threading.Thread(target=feed, args=(process,), daemon=True).start()
        ends.callback(todo.clear)
        while done < len(kernels):
            outcome: HwqError | Kernel | None = None
            try:
                outcome = todo.popleft() if outcomes.empty() else outcomes.get()
            except IndexError:  # all are taken
                outcome = outcomes.get()
            if isinstance(outcome, HwqError):
                raise outcome
            if isinstance(outcome, Kernel):
                compile_to(paths[outcome.symbol], outcome.functions, outcome.instruction, target.tvm())
            done += 1
            report(done)


def _feed(
    process: subprocess.Popen[str],
    *,
    todo: deque[Kernel],
    paths: Mapping[str, Path],
    config: str,
    outcomes: queue.SimpleQueue[HwqError | Kernel | None],
) -> None:
    """Gives one helper its jobs, one at a time. Outcomes: None, an error, or the kernel if the helper is of no use.

    Every kernel that is taken has an outcome, whatever happens: the caller waits for it.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    while True:
        try:
            kernel = todo.pop()
        except IndexError:
            return
        try:
            job = {
                "functions": {symbol: tvm.ir.save_json(func) for symbol, func in kernel.functions.items()},
                "instruction": kernel.instruction,
                "target": config,
                "path": str(paths[kernel.symbol]),
            }
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            outcome = HwqError(answer["code"], answer["message"]) if "code" in answer else None
        except Exception as error:  # TVM raises many kinds, and a helper that is gone two
            log.debug("helper process %d takes no more kernels (%r)", process.pid, error)
            outcomes.put(kernel)
            return
        outcomes.put(outcome)


def _start_worker() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _BOOTSTRAP, str(Path(__file__).parent)]
    # A session of its own: Ctrl-C goes to the caller alone, even while the helper is still starting.
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _end_worker(process: subprocess.Popen[str]) -> None:
    """Lets the worker finish the kernel it has, so that no half file stays, and ends it if that takes long."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=LAST_KERNEL_S)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def link(output: Path, objects: Iterable[Path]) -> None:
    """Link object files to the shared library ``output``.

    Raises HwqError "link-failed" with what the linker said, "save-failed" where there is no room for the library.
    """
    files = list(dict.fromkeys(str(path) for path in objects))
    require_space(output.parent, sum(os.path.getsize(file) for file in files if os.path.exists(file)))
    with scratch() as folder:
        listing = folder / "objects.txt"  # hundreds of paths are too long for a command line
        listing.write_text("".join(json.dumps(file) + "\n" for file in files))
        command = [sys.executable, "-m", "ziglang", "ld.lld", "-shared", "-o", str(output), f"@{listing}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        first = (result.stderr.strip().splitlines() or [f"no message, code {result.returncode}"])[0]
        raise HwqError("link-failed", f"linking {len(files)} kernels to {output.name} failed: {first}")


def require_space(folder: Path, size_bytes: int) -> None:
    """Raises HwqError "save-failed" if ``folder`` has no room for so many bytes: linkers and LLVM do not say it."""
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        message = f"{size_bytes} bytes are needed in {str(folder)!r}, {free} are free; accepted: TMPDIR set elsewhere"
        raise HwqError("save-failed", message)


def load_kernels(objects: Iterable[Path], workdir: Path | None = None) -> Any:
    """Link objects into one library and load it: result[symbol] is the kernel's function. No objects: an empty dict.

    workdir: where the library is made (a temporary folder if None); it is removed again: once loaded it needs no file.
    """
    files = list(objects)
    if not files:
        return {}
    with scratch(workdir) as folder:
        library = folder / "kernels.so"
        link(library, files)
        return tvm.runtime.load_module(str(library))
