"""The artifact: one file that holds the compiled library, the plan it follows and the report of what it measured.

The file is a zip of ``manifest.json``, ``library.so`` and ``constants.bin``; checksums in both zip and manifest let a
truncated or altered file be refused. The CPU is checked before the library is loaded: an instruction it lacks would end
the process.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import statistics
import threading
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm

from hwq.errors import HwqError
from hwq.files import scratch, write_atomic
from hwq.graph import Shape
from hwq.library import MARK, Library
from hwq.plan import Plan
from hwq.samples import as_batch, in_batches, made_up, split
from hwq.target import Target
from hwq.threads import use_threads

FORMAT = 2
_RESOLUTION_S = 1e-9  # the least a kernel is said to take
_MANIFEST, _LIBRARY, _CONSTANTS = "manifest.json", "library.so", "constants.bin"

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Seconds of one call, over ``runs`` calls after a warm-up."""

    median_s: float
    min_s: float
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Artifact:
    """A compiled network: call it with NumPy arrays. ``inputs`` and ``outputs``: name -> (shape, dtype).

    calls: the kernels in the order in which the library runs them, as (symbol, step): a layer's name or a conversion's.
    module: the loaded library. memory: its constants, expanded weights and workspace, as its functions take them. Calls
    from several Python threads take turns, by ``lock``: there is one workspace.
    """

    plan: Plan
    report: dict[str, Any]
    target: Target
    threads: int
    inputs: Mapping[str, tuple[Shape, str]]
    outputs: Mapping[str, tuple[Shape, str]]
    calls: tuple[tuple[str, str], ...]
    library: Library
    module: Any
    memory: tuple[Any, Any, Any]
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __call__(self, *values: Any) -> Array | tuple[Array, ...]:
        """Run on one array (or one for each input, or one dict): samples first, any number of them.

        Returns one array, or a tuple where the network has several outputs, with as many samples. Raises HwqError
        "input-shape", "input-type", "input-nan", "input-name", "samples-empty", "kernel-failed".
        """
        return in_batches(self._run, values[0] if len(values) == 1 else values, self.inputs)

    def _run(self, part: Mapping[str, Array]) -> tuple[Array, ...]:
        with self.lock:
            args = self._arguments(part)
            _succeed(self.module["main"](*args))
            return tuple(value.numpy() for value in args[-len(self.outputs) :])

    def benchmark(self, *values: Any, runs: int = 50, warm_up: int = 10) -> Benchmark:
        """Time calls on one network-sized batch of ``values``, its arrays on the device already. Unit: seconds."""
        times = self.times(*values, runs=runs, warm_up=warm_up)
        return Benchmark(median_s=statistics.median(times), min_s=min(times), runs=runs)

    def times(self, *values: Any, runs: int = 50, warm_up: int = 10) -> list[float]:
        """The seconds of each of ``runs`` calls, in order. Raises HwqError "runs-invalid", "kernel-failed"."""
        _check_runs(runs)
        args = self._example(*values)
        main = self.module["main"]
        found = []
        with self.lock:
            for turn in range(warm_up + runs):
                start = time.perf_counter()
                code = main(*args)
                passed_s = time.perf_counter() - start
                _succeed(code)
                if turn >= warm_up:
                    found.append(passed_s)
        return found

    def _arguments(self, part: Mapping[str, Array]) -> list[Any]:
        """The arguments of "main", the outputs last; the threads are set for it."""
        use_threads(self.threads)
        inputs = [tvm.runtime.tensor(part[name]) for name in self.inputs]
        return [*inputs, *self.memory, *(tvm.runtime.empty(*spec) for spec in self.outputs.values())]

    def _example(self, *values: Any) -> list[Any]:
        batch = as_batch(values[0] if len(values) == 1 else values, self.inputs, "the argument")
        part, _ = next(split(batch, self.inputs))
        return self._arguments(part)

    def layer_times(self, *values: Any, runs: int = 20) -> dict[str, float]:
        """Median seconds of each layer, and of each conversion ("tensor:quantize", ...), inside runs of the library.

        The clock is read between kernels; what that costs is read off two readings with nothing between, and taken off.
        Raises HwqError "runs-invalid", "kernel-failed".
        """
        _check_runs(runs)
        args = self._example(*values)
        marks = tvm.runtime.empty((MARK * (len(self.calls) + 2),), "int64")
        timed = self.module["timed"]
        samples = []
        with self.lock:
            for _ in range(runs + 1):
                _succeed(timed(*args, marks))
                seconds, nanoseconds = marks.numpy().reshape(-1, MARK).T
                samples.append(np.diff(seconds - seconds[0]) + np.diff(nanoseconds) * 1e-9)
        columns = np.array(samples[1:])
        usual = np.median(columns, axis=0) - columns[:, -1].min()
        return {step: max(float(value), _RESOLUTION_S) for (_, step), value in zip(self.calls, usual, strict=False)}

    def made_up_inputs(self) -> dict[str, Array]:
        """One network-sized batch of ordinary values, for timing."""
        return made_up(self.inputs)

    def save(self, path: str | Path) -> None:
        """Write the artifact to one file, whole or not at all. Raises HwqError "save-failed"."""
        write_atomic(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The file's content: the same artifact gives the same bytes."""
        manifest = {
            "format": FORMAT,
            "sha256": {_LIBRARY: _digest(self.library.code), _CONSTANTS: _digest(self.library.constants)},
            "expanded_bytes": self.library.expanded_bytes,
            "workspace_bytes": self.library.workspace_bytes,
            "plan": self.plan.to_dict(),
            "report": self.report,
            "target": self.target.to_dict(),
            "threads": self.threads,
            "inputs": {name: list(spec) for name, spec in self.inputs.items()},
            "outputs": {name: list(spec) for name, spec in self.outputs.items()},
            "calls": self.calls,
        }
        blob = io.BytesIO()
        with zipfile.ZipFile(blob, "w", zipfile.ZIP_STORED) as pack:
            parts = {
                _MANIFEST: json.dumps(manifest, indent=1).encode(),
                _LIBRARY: self.library.code,
                _CONSTANTS: self.library.constants,
            }
            for name, content in parts.items():
                pack.writestr(zipfile.ZipInfo(name), content)
        return blob.getvalue()

    @staticmethod
    def load(path: str | Path, threads: int | None = None) -> Artifact:
        """Read an artifact; ``threads`` overrides the number of worker threads it was compiled for.

        Fewer save cores; more do not help, since kernels were split for the number at compile time.
        Raises HwqError "artifact-missing", "artifact-broken" (truncated, altered, of another kind), "cpu-lacks",
        "threads-invalid".
        """
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            message = f"threads is {threads!r}; accepted: a whole number of at least 1, or None for the artifact's own"
            raise HwqError("threads-invalid", message)
        manifest, code, constants = _read(path)
        try:
            library = Library(
                code=code,
                constants=constants,
                expanded_bytes=int(manifest["expanded_bytes"]),
                workspace_bytes=int(manifest["workspace_bytes"]),
            )
            target = Target.from_dict(manifest["target"])
            fields = {
                "plan": Plan.from_dict(manifest["plan"]),
                "report": dict(manifest["report"]),
                "threads": threads or int(manifest["threads"]),
                "inputs": _specs(manifest["inputs"]),
                "outputs": _specs(manifest["outputs"]),
                "calls": tuple((str(symbol), str(step)) for symbol, step in manifest["calls"]),
            }
        except (KeyError, TypeError, ValueError, AttributeError, HwqError) as error:
            reason = error.message if isinstance(error, HwqError) else repr(error)
            raise _broken(path, f"its manifest is incomplete ({reason})") from error
        try:
            return open_library(library, target=target, **fields)
        except (OSError, RuntimeError) as error:  # what the dynamic linker, and TVM, say
            raise _broken(path, f"its library does not load ({error})") from error


def _broken(path: str | os.PathLike[str], reason: str) -> HwqError:
    message = f"artifact {os.fspath(path)!r} cannot be used: {reason}; accepted: a whole file made by hwq"
    return HwqError("artifact-broken", message)


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], bytes, bytes]:
    """(manifest, library, constants) of an artifact's file, of this format and with the right checksums."""
    try:
        blob = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"cannot read the artifact {os.fspath(path)!r}: {reason}; accepted: a file made by hwq"
        raise HwqError("artifact-missing", message) from error
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as pack:
            content = {name: pack.read(name) for name in pack.namelist()}
        manifest = json.loads(content[_MANIFEST])
    except Exception as error:  # zipfile raises many kinds for damaged files
        raise _broken(path, f"it is truncated or of another kind ({len(blob)} bytes)") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise _broken(path, f"it has format {found!r}, and this hwq reads format {FORMAT}")
    missing = [name for name in (_LIBRARY, _CONSTANTS) if name not in content]
    if missing:
        raise _broken(path, f"it holds no {' and no '.join(missing)}")
    parts = [content[name] for name in (_LIBRARY, _CONSTANTS)]
    sums = manifest.get("sha256")
    for name, part in zip((_LIBRARY, _CONSTANTS), parts, strict=True):
        if not isinstance(sums, dict) or sums.get(name) != _digest(part):
            raise _broken(path, f"its {name} was altered")
    return manifest, parts[0], parts[1]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_runs(runs: Any) -> None:
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 1:
        raise HwqError("runs-invalid", f"runs is {runs!r}; accepted: a whole number of at least 1")


def _succeed(code: Any) -> None:
    """Raises HwqError "kernel-failed" if a function of a library says that a kernel of it failed."""
    if code is not None:
        raise HwqError("kernel-failed", f"a kernel of the library failed (code {code}); please report the network")


def _specs(raw: Mapping[str, Any]) -> dict[str, tuple[Shape, str]]:
    return {name: (tuple(shape), dtype) for name, (shape, dtype) in raw.items()}


def open_library(library: Library, *, target: Target, **fields: Any) -> Artifact:
    """Load a library into this process. Raises HwqError "cpu-lacks" where this CPU cannot, and as ``scratch``."""
    missing = target.missing_flags()
    if missing:
        raise HwqError(
            "cpu-lacks",
            f"the artifact was built for {target.name} and needs {', '.join(missing)}, which this CPU lacks; "
            "accepted: a CPU that has them, or an artifact compiled for this one (target='host')",
        )
    with scratch() as folder:
        path = folder / _LIBRARY
        path.write_bytes(library.code)
        module = tvm.runtime.load_module(str(path))
    return Artifact(library=library, target=target, module=module, memory=load_memory(library, module), **fields)


def load_memory(library: Library, module: Any) -> tuple[Any, Any, Any]:
    """A loaded library's constants, weights expanded from them, and an empty workspace."""
    constants = tvm.runtime.tensor(np.frombuffer(library.constants or bytes(1), np.uint8))
    sizes = (library.expanded_bytes, library.workspace_bytes)
    expanded, workspace = (tvm.runtime.empty((max(size, 1),), "uint8") for size in sizes)
    _succeed(module["prepare"](constants, expanded))
    return constants, expanded, workspace
