"""The artifact: one file that holds the compiled library, the plan it follows and the report of what it measured.

The file is a zip of ``manifest.json``, ``library.so`` and ``constants.bin``; checksums in both zip and manifest let a
truncated or altered file be refused. The CPU is checked before the library is loaded: an instruction it lacks would end
the process. An artifact for another CPU can be looked at here, and runs on a board that has it (``Artifact.on``).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import statistics
import threading
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.address import read_device
from hwq.device import SESSION_S, Device, closed_if_it_fails, connect, facts, local, misfit
from hwq.device import close as close_device
from hwq.errors import HwqError
from hwq.files import write_atomic
from hwq.graph import SPAN, Shape
from hwq.lengths import COUNT, EXTRA, Length, cut_to, plain
from hwq.library import Library
from hwq.placed import Placed, arguments, between_kernels, call, call_times, new_state, place
from hwq.plan import Plan
from hwq.samples import as_batch, in_batches, made_up, split
from hwq.session import Session, sequences
from hwq.target import Target

# 3 has a state across calls, or lengths that vary, which those who read 2 know nothing of; all else is written as 2.
FORMATS = (2, 3)
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
    length: how many tokens a session of a network by ``hwq.decoder`` holds; None for any other network. rows: of the
    inputs that are looked up in a table, how many rows it has; of masks ``hwq.samples.MASK``.
    placed: the library where it runs, this machine or a board; None where it can only be looked at, which ``missing``
    then says why. Calls from several Python threads take turns, by ``lock``: there is one workspace.
    """

    plan: Plan
    report: dict[str, Any]
    target: Target
    threads: int
    inputs: Mapping[str, tuple[Shape, str]]
    outputs: Mapping[str, tuple[Shape, str]]
    calls: tuple[tuple[str, str], ...]
    library: Library
    placed: Placed | None
    length: int | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __repr__(self) -> str:
        """One line, without the plan, the report and the library."""
        taken, given = (
            ", ".join(f"{name} {dtype} {plain(shape)}" for name, (shape, dtype) in specs.items())
            for specs in (self.inputs, self.outputs)
        )
        schemes = ", ".join(f"{count} {name}" for name, count in Counter(self.plan.schemes.values()).most_common())
        return f"Artifact({self.target.name}: {taken} -> {given}; layers: {schemes})"

    def __call__(self, *values: Any) -> Array | tuple[Array, ...]:
        """Run on one array (or one for each input, or one dict): samples first, any number of them.

        Returns one array, or a tuple where the network has several outputs, with as many samples. Where lengths vary,
        outputs are as long as the inputs. A network by
        ``hwq.decoder`` takes token ids (N, n) and goes through each sequence in a session of its own. Raises HwqError
        "input-shape", "input-type", "input-range", "input-nan", "input-name", "samples-empty", "kernel-failed",
        "cpu-lacks" where it can only be looked at, and "device-lost".
        """
        if self.length is not None:
            return sequences(self.start, values[0] if len(values) == 1 else values, next(iter(self.inputs)))
        shapes = [shape for shape, _ in self.outputs.values()]
        value = values[0] if len(values) == 1 else values
        return in_batches(self._run, value, self.inputs, shapes=shapes, rows=self.rows)

    def _run(self, part: Mapping[str, Array]) -> tuple[Array, ...]:
        placed = self._placed()
        with self.lock:
            found = call(placed, self._arguments(part), len(self.outputs))
        tokens = int(part[COUNT][0]) if COUNT in part else None
        return tuple(
            cut_to(value, shape, tokens) for value, (shape, _) in zip(found, self.outputs.values(), strict=True)
        )

    def start(self) -> Session:
        """A new session of a network by ``hwq.decoder``: one sequence, independent of all others.

        Raises HwqError "session-none" for any other network, and "cpu-lacks" where it can only be looked at.
        """
        if self.length is None:
            message = "the artifact keeps nothing between calls, so it has no sessions; accepted: one of hwq.decoder"
            raise HwqError("session-none", message)
        ((name, (_, dtype)),) = self.inputs.items()
        return Session(
            placed=self._placed(),
            library=self.library,
            lock=self.lock,
            threads=self.threads,
            name=name,
            dtype=dtype,
            outputs=self.outputs,
            length=self.length,
            rows=self.rows.get(name),
        )

    def benchmark(self, *values: Any, runs: int = 50, warm_up: int = 10) -> Benchmark:
        """Time calls on one network-sized batch of ``values``, its arrays on the device already. Unit: seconds."""
        times = self.times(*values, runs=runs, warm_up=warm_up)
        return Benchmark(median_s=statistics.median(times), min_s=min(times), runs=runs)

    def times(self, *values: Any, runs: int = 50, warm_up: int = 10) -> list[float]:
        """The seconds of each of ``runs`` calls, in order. Raises HwqError "runs-invalid", "kernel-failed"."""
        _check_runs(runs)
        placed, args = self._placed(), self._example(*values)
        with self.lock:
            return call_times(placed, args, runs, warm_up)

    def _placed(self) -> Placed:
        """Where it runs. Raises HwqError "cpu-lacks" where it can only be looked at."""
        if self.placed is None:
            raise lacking(self.target)
        return self.placed

    def _arguments(self, part: Mapping[str, Array]) -> list[Any]:
        placed = self._placed()
        given = [part[name] for name in (*self.inputs, *EXTRA) if name in part]
        if self.length is not None:  # for times: a token in the middle of its session
            given.append(np.array([1, (self.length + 1) // 2], np.int32))
        return arguments(placed, given, self.outputs, self.threads, new_state(placed, self.library))

    def _example(self, *values: Any) -> list[Any]:
        value = values[0] if len(values) == 1 else values
        if self.length is not None and isinstance(value, Mapping):  # where it stands, it knows better
            value = {name: value[name] for name in value if name != SPAN}
        batch = as_batch(value, self.inputs, "the argument", self.rows)
        part, _ = next(split(batch, self.inputs))
        return self._arguments(part)

    def layer_times(self, *values: Any, runs: int = 20) -> dict[str, float]:
        """Median seconds of each layer, and of each conversion ("tensor:quantize", ...), inside runs of the library.

        The clock is read between kernels; what that costs is read off two readings with nothing between, and taken off.
        Raises HwqError "runs-invalid", "kernel-failed".
        """
        _check_runs(runs)
        placed, args = self._placed(), self._example(*values)
        with self.lock:
            columns = between_kernels(placed, args, len(self.calls), runs)
        usual = np.median(columns, axis=0) - columns[:, -1].min()
        return {step: max(float(value), _RESOLUTION_S) for (_, step), value in zip(self.calls, usual, strict=False)}

    def on(self, device: str) -> Artifact:
        """The same artifact, its library and constants put on the board that ``device`` names (KEY or KEY@HOST:PORT).

        "local" is this machine. The board needs TVM's runtime and nothing else; it is held until ``close``. Raises
        HwqError "cpu-lacks" where this CPU cannot run it, "device-other" where the board cannot, and as
        ``hwq.device.connect``.
        """
        return replace(self, placed=place_at(self.library, self.target, device), lock=threading.Lock())

    @property
    def emulated(self) -> bool:
        """Whether it is on a board that is an emulator, where times mean nothing. Raises HwqError "device-lost"."""
        return self.placed is not None and self.placed.remote and facts(self.placed.device).emulated

    def close(self) -> None:
        """Give back the board that it is on, if it is on one, for others; what ``on`` makes of it then runs again.

        ``with artifact:`` does so at the end, and ``with hwq.compile(...) as artifact:``. Of this machine nothing is
        held: there the artifact goes on.
        """
        if self.placed is not None:
            close_device(self.placed.device)

    def __enter__(self) -> Artifact:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def made_up_inputs(self) -> dict[str, Array]:
        """One network-sized batch of ordinary values, for timing."""
        return {name: value for name, value in made_up(self.inputs).items() if name in self.inputs}

    def save(self, path: str | Path) -> None:
        """Write the artifact to one file, whole or not at all. Raises HwqError "save-failed"."""
        write_atomic(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The file's content: the same artifact gives the same bytes."""
        varying = {
            name: {axis: [size.tokens, size.least, size.inner] for axis, size in found}
            for name, (shape, _) in [*self.inputs.items(), *self.outputs.items()]
            if (found := [(axis, size) for axis, size in enumerate(shape) if isinstance(size, Length)])
        }
        manifest = {
            "format": FORMATS[self.length is not None or bool(varying)],
            "sha256": {_LIBRARY: _digest(self.library.code), _CONSTANTS: _digest(self.library.constants)},
            "expanded_bytes": self.library.expanded_bytes,
            "workspace_bytes": self.library.workspace_bytes,
            "state_bytes": self.library.state_bytes,
            "plan": self.plan.to_dict(),
            "report": self.report,
            "target": self.target.to_dict(),
            "threads": self.threads,
            "inputs": {name: list(spec) for name, spec in self.inputs.items()},
            "outputs": {name: list(spec) for name, spec in self.outputs.items()},
            "calls": self.calls,
            "length": self.length,
            "dynamic": varying,
            "rows": dict(self.rows),
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
    def load(
        path: str | Path, threads: int | None = None, device: str | None = None, session_s: float = SESSION_S
    ) -> Artifact:
        """Read an artifact; ``threads`` overrides the number of worker threads it was compiled for.

        Fewer save cores; more do not help, since kernels were split for the number at compile time. device: the board
        to run it on, as ``on`` takes it; None is this machine, where one for another CPU can only be looked at.
        It holds the board until ``close``, and at most for ``session_s`` seconds. Raises HwqError "artifact-missing",
        "artifact-broken" (truncated, altered, of another kind), "threads-invalid", and as ``on``.
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
                state_bytes=int(manifest.get("state_bytes", 0)),
            )
            target = Target.from_dict(manifest["target"])
            fields: dict[str, Any] = {
                "plan": Plan.from_dict(manifest["plan"]),
                "report": dict(manifest["report"]),
                "threads": threads or int(manifest["threads"]),
                "inputs": _specs(manifest["inputs"], manifest.get("dynamic", {})),
                "outputs": _specs(manifest["outputs"], manifest.get("dynamic", {})),
                "calls": tuple((str(symbol), str(step)) for symbol, step in manifest["calls"]),
                "length": None if manifest.get("length") is None else int(manifest["length"]),
                "rows": {str(name): int(rows) for name, rows in manifest.get("rows", {}).items()},
            }
        except (KeyError, TypeError, ValueError, AttributeError, HwqError) as error:
            reason = error.message if isinstance(error, HwqError) else repr(error)
            raise _broken(path, f"its manifest is incomplete ({reason})") from error
        if device is not None and read_device(device) is not None:
            return Artifact(
                library=library, target=target, placed=place_at(library, target, device, session_s), **fields
            )
        try:
            only_looked_at = device is None and target.missing_flags()
            placed = None if only_looked_at else place_on(library, target, local())
        except (OSError, RuntimeError) as error:  # what the dynamic linker, and TVM, say
            raise _broken(path, f"its library does not load ({error})") from error
        return Artifact(library=library, target=target, placed=placed, **fields)


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
    if found not in FORMATS:
        read = " and ".join(map(str, FORMATS))
        raise _broken(path, f"it has format {found!r}, and this hwq reads formats {read}")
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


def _specs(raw: Mapping[str, Any], dynamic: Mapping[str, Any]) -> dict[str, tuple[Shape, str]]:
    """Shapes and types of tensors; ``dynamic``: of some, by axis, what a ``Length`` is made of."""
    found = {}
    for name, (shape, dtype) in raw.items():
        varied = {int(axis): Length(*parts) for axis, parts in dynamic.get(name, {}).items()}
        found[name] = tuple(varied.get(axis, size) for axis, size in enumerate(shape)), dtype
    return found


def place_on(library: Library, target: Target, device: Device) -> Placed:
    """Put a library on a device whose CPU can run it.

    Raises HwqError "cpu-lacks" for this machine and "device-other" for a board that cannot, and as ``place``.
    """
    if device.session is None:
        if target.missing_flags():
            raise lacking(target)
    elif (reason := misfit(target, facts(device))) is not None:
        message = f"board {device.name} cannot run the artifact: {reason}; accepted: a board that fits its target"
        raise HwqError("device-other", message)
    return place(library, device)


def place_at(library: Library, target: Target, device: str, session_s: float = SESSION_S) -> Placed:
    """Put a library on the machine that ``device`` names; a board that does not take it is given back.

    Raises HwqError "device-other" with a board's reason, and as ``hwq.device.connect`` and ``place_on``.
    """
    machine = connect(device, session_s=session_s)
    with closed_if_it_fails(machine):
        try:
            return place_on(library, target, machine)
        except (OSError, RuntimeError) as error:
            if machine.session is None:
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            message = f"board {machine.name} does not take the artifact: {reason}; accepted: a board with room for it"
            raise HwqError("device-other", message) from error


def lacking(target: Target) -> HwqError:
    """The error of an artifact for ``target`` that this CPU cannot run."""
    missing = ", ".join(target.missing_flags())
    return HwqError(
        "cpu-lacks",
        f"the artifact was built for {target.name} and needs {missing}, which this CPU lacks; accepted: a CPU that has "
        "them, a board (device=, --device), or an artifact compiled for this one (target='host')",
    )
