"""Lab: whether a board is fit to measure a target's kernels: its CPU, TVM's runtime, instructions, clock and timing.

Each instruction that the target file names is tried by a kernel of its own, small, held to the NumPy reference. One
that the CPU lacks ends the session; the board is asked for another, and the others go on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm

from hwq import made_up, reference
from hwq.board_facts import Facts
from hwq.compile_kernel import compile_code, link
from hwq.device import Device, close, connect, count, empty, facts, heard, load_library, misfit, set_threads, tensor
from hwq.errors import HwqError
from hwq.execute import quiet
from hwq.files import scratch
from hwq.probe import buffer_bytes, kernel_of, probe, read_kernel, timer, typical_workload
from hwq.progress import Callback
from hwq.target import Compute, Target

# The probes' layers: 7 x 7 pixels and 32 channels run in no time, on an emulator too.
PIXELS, CHANNELS = 7, 32
# What a board may show over SPAN_S: how far its timings drift from the first third to the last, and how far apart the
# middle half of them lies.
LARGEST_DRIFT, LARGEST_NOISE = 0.03, 0.05
SPAN_S = 4.0
# How long a board is silent at most while it is checked, and how long the first is waited for, and one beside it.
ANSWER_S, FIRST_S, REACH_S = 60.0, 20.0, 2.0
_LEAST_MS = 5
_TURN = 5
MEASURED, EMULATED = "measured: hwq lab check", "emulated, means nothing: hwq lab check"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. fits: None where it could not be told. found: one sentence."""

    what: str
    fits: bool | None
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A board held to a target. board: KEY@HOST:PORT; address: where the board itself is reached. target: the one that
    was checked, with what the board says of itself in it.
    """

    board: str
    address: str
    target: Target
    findings: tuple[Finding, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing was found that does not fit."""
        return all(finding.fits is not False for finding in self.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """All boards of a key. unreached: how many more the tracker knows, which are in use or do not answer."""

    boards: tuple[Checked, ...]
    unreached: int

    @property
    def fits(self) -> bool:
        """Whether all boards that were reached fit."""
        return all(board.fits for board in self.boards)


def check(target: Target, board: str, progress: Callback = quiet) -> Checkup:
    """Hold every free board of ``board`` (KEY or KEY@HOST:PORT) to ``target``. progress counts instructions and timing.

    All of them are held from the first to the last, so that after an instruction that ended a session the only free one
    is the same board again. What is wrong with one board is a finding of it, and the others are checked all the same.
    Raises HwqError "target-no-build", "device-lost" where no board answers, and as ``hwq.device.connect``.
    """
    target.require_builds()
    machines, unanswered = _reached(board)
    steps = len(distinct(target)) + 1
    found = []
    try:
        for index in range(len(machines)):
            found.append(_check(target, board, machines, index, _part(progress, index * steps, len(machines) * steps)))
    finally:
        for machine in machines:
            close(machine)
    return Checkup(boards=tuple(found), unreached=unanswered)


def _reached(board: str) -> tuple[list[Device], int]:
    """Sessions with all boards that are free and answer, at least one, and how many others the tracker knows."""
    machines: list[Device] = []
    lost: HwqError | None = None
    known = 1
    while len(machines) < known:
        try:
            machines.append(connect(board, timeout_s=REACH_S if machines else FIRST_S, answer_s=ANSWER_S))
        except HwqError as error:
            if error.code == "device-lost" and lost is None:
                lost = error  # one does not answer; the tracker names another
                continue
            if not machines:
                raise lost or error from error
            break  # the others are in use, or do not answer
        known = max(known, count(board))
    return machines, known - len(machines)


def _part(progress: Callback, before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(before + done, total)


def _check(target: Target, board: str, machines: list[Device], index: int, progress: Callable[[int], None]) -> Checked:
    """What was found at one of ``machines``, whose place another session takes where one ended."""
    name, address = machines[index].name, _address(machines[index])
    found: list[Finding] = []
    here = replace(target, device=board)
    try:
        known = facts(machines[index])
        here = _described(here, known)
        found.append(_cpu(target, known))
        if known.arch == target.architecture:
            found += [_flags(target, known), _runtime(known.runtime)]
            for done, row in enumerate(distinct(target)):
                machines[index], finding = _instruction(row, target, machines[index], board)
                found.append(finding)
                progress(done + 1)
            found += _timing(target, machines[index], known.emulated)
    except HwqError as error:
        if error.code not in ("device-lost", "device-other"):
            raise
        what = "cpu" if error.code == "device-other" else "session"
        found.append(Finding(what=what, fits=False, found=error.message))
    progress(len(distinct(target)) + 1)
    return Checked(board=name, address=address, target=here, findings=tuple(found))


def _address(machine: Device) -> str:
    """HOST:PORT where the board itself is reached; its name where its line is cut."""
    if machine.line is None:
        return machine.name
    try:
        return ":".join(map(str, machine.line.getpeername()[:2]))
    except OSError:
        return machine.name


def _described(target: Target, known: Facts) -> Target:
    """The target with what the board says of itself."""
    own: dict[str, Any] = {"cores": known.cores}
    own |= {} if known.clock_hz is None else {"clock_hz": known.clock_hz}
    sources = dict(target.sources) | dict.fromkeys(own, "read from the board: hwq lab check")
    return replace(target, cpu_model=known.cpu_model, sources=tuple(sources.items()), **own)


def distinct(target: Target) -> tuple[Compute, ...]:
    """The rows that are tried: of each instruction and type of weight the first."""
    rows: dict[tuple[str, str], Compute] = {}
    for row in target.compute:
        rows.setdefault((row.instruction, row.weight), row)
    return tuple(rows.values())


def _cpu(target: Target, known: Facts) -> Finding:
    if known.arch != target.architecture:
        found = f"{misfit(target, known)}; accepted: a target for {known.arch}"
        return Finding(what="cpu", fits=False, found=found)
    text = f"{known.cpu_model}, as target {target.name} needs it ({target.architecture})"
    if known.emulated:
        text += "; an emulator: what it computes is right, and how long it takes means nothing"
    return Finding(what="cpu", fits=True, found=text)


def _flags(target: Target, known: Facts) -> Finding:
    reason = misfit(target, known)
    found = reason or f"has all {len(target.cpu_flags)} that target {target.name} needs"
    return Finding(what="flags", fits=reason is None, found=found)


def _runtime(version: str | None) -> Finding:
    here = tvm.__version__
    if version is None:
        return Finding(what="runtime", fits=None, found=f"the board does not tell TVM's version; here it is {here}")
    return Finding(what="runtime", fits=version == here, found=f"TVM {version} there, {here} here")


def _instruction(row: Compute, target: Target, machine: Device, board: str) -> tuple[Device, Finding]:
    """What came of the row's kernel, and the device to go on with: another session where this one ended."""
    address = _address(machine)
    what = f"{row.instruction}, {row.weight} weights" if row.weight != "none" else row.instruction
    try:
        differing = probe_row(row, target, machine)
    except HwqError as error:
        if error.code != "device-lost":
            return machine, Finding(what=what, fits=None, found=f"not tried: {error.message}")
        lacks = f"the board lacks {row.instruction}: its kernel ended the session"
        return _again(board, address, lacks), Finding(what=what, fits=False, found=lacks)
    if differing is None:
        return machine, Finding(what=what, fits=None, found="no kernel yet")
    if differing:
        return machine, Finding(what=what, fits=False, found=f"{differing} elements differ from the reference")
    return machine, Finding(what=what, fits=True, found="equal to the NumPy reference")


def _again(board: str, address: str, ended: str) -> Device:
    """Another session with the board at ``address``; others of its key, which may be free by now, are put back.

    Raises HwqError "device-lost" where it serves no more, or somebody else has it.
    """
    others: list[Device] = []
    try:
        while True:
            machine = connect(board, timeout_s=FIRST_S, answer_s=ANSWER_S)
            if _address(machine) == address:
                return machine
            others.append(machine)
    except HwqError as error:
        message = f"{ended}, and then {error.message}; accepted: a board that `hwq lab serve` serves, which goes on"
        raise HwqError("device-lost", message) from error
    finally:
        for other in others:
            close(other)


def probe_row(row: Compute, target: Target, machine: Device) -> int | None:
    """How many elements of a small layer differ from the reference; None where there is no kernel, or no reference.

    Raises HwqError as ``compile_code`` and ``load_library``, "device-lost" where the kernel ends the session.
    """
    workload = typical_workload(row, PIXELS, CHANNELS)
    kernel = kernel_of(row, workload, target)
    if kernel is None or workload.op not in made_up.OPS:
        return None
    arguments = made_up.arguments(workload, target.activation_storage, np.random.default_rng(0))
    expected = reference.evaluate(workload, arguments, target.activation_storage)
    with scratch() as folder:
        code, library = folder / "row.o", folder / "row.so"
        code.write_bytes(compile_code(kernel.functions, kernel.instruction, target.tvm()))
        link(library, [code])
        module = load_library(machine, library)
    set_threads(machine, 1)
    weight = len(workload.input_shapes)
    packed = [kernel.pack(value) if kernel.pack and i == weight else value for i, value in enumerate(arguments)]
    values = [tensor(machine, value) for value in packed]
    out = empty(machine, expected.shape, str(expected.dtype))
    with heard(machine):
        if kernel.expand is not None:
            expanded = empty(machine, kernel.expand.shape, kernel.expand.dtype)
            module[kernel.expand.symbol](values[weight], expanded)
            values[weight] = expanded
        module[kernel.symbol](*values, out)
        return int((out.numpy() != expected).sum())


def _timing(target: Target, machine: Device, emulated: bool) -> list[Finding]:
    """Whether the clock stays and timings agree, by reading a buffer that the second level holds for SPAN_S."""
    set_threads(machine, 1)
    clock = timer(read_kernel(buffer_bytes(target)["l2_bytes_per_s"], target), target, machine)
    clock(_TURN, _LEAST_MS)  # a warm-up
    samples: list[float] = []
    until = time.monotonic() + SPAN_S
    while time.monotonic() < until or len(samples) < 3 * _TURN:
        samples += clock(_TURN, _LEAST_MS)
    drift, noise = drift_and_noise(samples)
    looked_at = (
        ("clock", drift, LARGEST_DRIFT, f"timings drift by {drift:.1%} over {SPAN_S:g} s"),
        ("noise", noise, LARGEST_NOISE, f"half of {len(samples)} timings lie within {noise:.1%}"),
    )
    if emulated:
        return [Finding(what=what, fits=None, found=f"{text}, of an emulator") for what, _, _, text in looked_at]
    return [
        Finding(what=what, fits=value <= most, found=f"{text}; up to {most:.0%} is fit")
        for what, value, most, text in looked_at
    ]


def drift_and_noise(samples: Sequence[float]) -> tuple[float, float]:
    """Of timings in order: how far the medians of the first and the last third are apart, and the quartiles, relative
    to the lesser and to the median. At least 3 timings.
    """
    third = len(samples) // 3
    first, last = statistics.median(samples[:third]), statistics.median(samples[-third:])
    low, middle, high = np.quantile(np.asarray(samples), (0.25, 0.5, 0.75)).tolist()
    return max(first, last) / min(first, last) - 1.0, (high - low) / middle


def rates(checked: Checked, name: str, progress: Callback = quiet, emulated: bool = False) -> str:
    """The text of a target file called ``name`` for a board that was checked, its rates measured there.

    Raises HwqError "device-emulated" for an emulator, unless ``emulated`` says that it is known, and as ``connect``.
    """
    if checked.target.emulated and not emulated:
        message = f"board {checked.board} is an emulator, whose rates mean nothing, so no target file is written"
        raise HwqError("device-emulated", f"{message}; accepted: a board, or --emulated to write them all the same")
    machine = connect(checked.target.device)
    try:
        source = EMULATED if checked.target.emulated else MEASURED
        return probe(checked.target, name, progress, machine, source)
    finally:
        close(machine)
