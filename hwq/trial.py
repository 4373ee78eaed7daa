"""Trial: build candidates of a kernel, hold each to the NumPy reference on the device, time it beside the default.

Stands between the search space and tune. Nothing that a candidate does reaches the caller: it is built in a process
that may crash, hang or run out of memory, and runs in another. On this machine that is one process, and candidates are
built before any is timed; boards under one key work in parallel, a process and a session each.

A candidate is refused for what is its own fault: it does not build, takes too long, crashes, or computes something
else. Where it may have been another's (a process that ran others before it, a board that may have died) it is tried
once more in a new process, or on the next board that is free; only what goes wrong twice counts. So it is where it
takes too long: the machine may have been busy with other things. A board that is gone
before the candidate's turn costs it nothing.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tvm

from hwq import cpu
from hwq import device as boards
from hwq.address import LOCAL
from hwq.compile_kernel import is_whole, object_path
from hwq.crew import START, START_S, Crew, Ended, Job, NobodyTakesIt, Seat, crew_of, work_off
from hwq.errors import HwqError
from hwq.execute import quiet
from hwq.files import scratch, swept_scratch
from hwq.lower import Program, Step
from hwq.progress import Callback
from hwq.target import Target
from hwq.trial_data import kernel_content, task_content
from hwq.workload import Kernel

# How long a candidate may be built, and how long it may run in all, check and figures.
BUILD_S = 60.0
TRIAL_S = 30.0
# The memory that the building of one candidate may take.
BUILD_BYTES = 4 << 30
# How long one session with a board lasts: one that hangs in a kernel is free again after that, and others who wait for
# a board get it. How long a board has to open one. And how long none may do so until the job is given up.
SESSION_S = 180.0
CONNECT_S = 20.0
WAIT_S = 300.0
# A trial that was lost so often before it began is left alone.
FREE_TURNS = 4
DEFAULT = -1
_WORKER = "hwq.trial_worker"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """A candidate: the decision (see ``hwq.space``) and the kernel that it makes."""

    decision: str
    kernel: Kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a trial. seconds, default_s: figures of the candidate and of the default, in seconds a call, taken
    in turns (three of each where those show that it is no use); both empty where there are none.

    refused: why the candidate is no good. lost: for no fault of its own it was not tried: the boards are gone.
    """

    seconds: tuple[float, ...] = ()
    default_s: tuple[float, ...] = ()
    refused: str | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Round:
    """One call of ``run_trials``: what its jobs are made of, and what is known so far.

    folder: for its own files; arrays: for those that later calls of the crew find again.
    """

    trials: Sequence[Trial]
    default: Kernel
    code: str
    step: Step
    target: Target
    cache_dir: Path
    remote: bool
    threads: int
    timeout_s: float
    folder: Path
    arrays: Path
    task: dict[str, Any]
    libraries: dict[int, Path] = field(default_factory=dict)
    contents: dict[int, dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    again: set[tuple[str, int]] = field(default_factory=set)
    free: dict[int, int] = field(default_factory=dict)

    def kernel(self, index: int) -> Kernel:
        return self.default if index == DEFAULT else self.trials[index].kernel


@contextlib.contextmanager
def open_crew(target: Target, devices: Sequence[str] | None = None, builders: int | None = None) -> Iterator[Crew]:
    """Worker processes that several calls of ``run_trials`` share: starting them takes seconds, connecting more.

    devices: "local", KEY or KEY@HOST:PORT each (None: the target's); every board of a key gets a worker. builders:
    processes to build in (None: as many as this process may use cores). All start when there is work for them, and end
    with the context. Boards of another CPU model than the target's get no work, which a warning in the log says once.
    Raises HwqError "device-invalid", "tracker-missing".
    """
    here = target.device == LOCAL and not target.missing_flags()
    cpu_model = target.cpu_model or (cpu.cpu_model() if here else "")
    memory = {"kind": "open", "memory_bytes": BUILD_BYTES}
    seats = [Seat(kind="build", module=_WORKER, hello=memory) for _ in range(builders or cpu.cores())]
    for text in dict.fromkeys((target.device,) if devices is None else devices):
        hello = {"kind": "open", "device": text, "connect_s": CONNECT_S, "session_s": SESSION_S, "cpu_model": cpu_model}
        limit_s = START_S + 2 * CONNECT_S
        count = max(1, boards.count(text))
        seats += [Seat(kind="try", module=_WORKER, hello=hello, hello_s=limit_s) for _ in range(count)]
    with swept_scratch("crew") as folder, crew_of(seats, folder) as crew:
        yield crew


def run_trials(
    trials: Sequence[Trial],
    default: Kernel,
    step: Step,
    program: Program,
    target: Target,
    cache_dir: Path,
    home: str,
    threads: int,
    devices: Sequence[str] | None = None,
    timeout_s: float = TRIAL_S,
    progress: Callback = quiet,
    crew: Crew | None = None,
    wait_s: float = WAIT_S,
) -> list[Outcome]:
    """The outcome of each of ``trials``, in their order. ``default`` and the candidates are kernels of ``step``.

    home: where the weights are, see ``measure.home_of_weights``. devices: see ``open_crew``; crew: one that is open
    (devices is not read then). timeout_s: for a candidate's run on the device; a build has BUILD_S. wait_s: how long
    no board may answer. progress is called with (done, total).

    Raises HwqError: "compile-failed", "kernel-differs", "kernel-failed" where the default itself is wrong;
    "save-failed"; "worker-failed" where no worker starts; "device-lost" where no board answered for ``wait_s`` before
    any outcome was known (later the outcomes that are known are given, and the others are lost); as ``open_crew``.
    """
    with contextlib.ExitStack() as ends:
        crew = crew or ends.enter_context(open_crew(target, devices))
        folder = ends.enter_context(scratch(crew.folder))
        arrays = crew.folder / "arrays"
        arrays.mkdir(exist_ok=True)
        doing = _Round(
            trials=trials,
            default=default,
            code=object_path(default, target, cache_dir).stem,
            step=step,
            target=target,
            cache_dir=cache_dir,
            remote=all(seat.hello.get("device") != LOCAL for seat in crew.seats),
            threads=threads,
            timeout_s=timeout_s,
            folder=folder,
            arrays=arrays,
            task=task_content(step, program, target, home, arrays),
        )
        todo = deque(_build_job(doing, index) for index in (DEFAULT, *range(len(trials))))
        progress(0, len(trials))
        try:
            patience_s = {"build": START_S, "try": wait_s if doing.remote else START_S}
            for job, ended in work_off(crew, todo, patience_s):
                todo.extend(_after_build(doing, job, ended) if job.kind == "build" else _after_try(doing, job, ended))
                progress(len(doing.outcomes), len(trials))
        except NobodyTakesIt as error:
            if error.kind == "build" or not doing.remote:
                raise HwqError("worker-failed", f"worker processes do not start: {error.reason}") from error
            if not doing.outcomes:
                raise _lost(f"no board answered for {wait_s:g} s: {error.reason}") from error
        return [doing.outcomes.get(index, Outcome(lost=True)) for index in range(len(trials))]


def _lost(message: str) -> HwqError:
    return HwqError("device-lost", f"{message}; what was measured is kept; accepted: a board that serves, then again")


def _build_job(doing: _Round, index: int) -> Job:
    kernel = doing.kernel(index)
    path = object_path(kernel, doing.target, doing.cache_dir)
    content = {
        "kind": "build",
        "object": str(path),
        "library": str(doing.folder / f"kernel{index}.so"),
        "instruction": kernel.instruction,
        "target": str(doing.target.tvm()),
        "functions": {}
        if is_whole(path)
        else {symbol: tvm.ir.save_json(func) for symbol, func in kernel.functions.items()},
    }
    return Job(kind="build", content=content, limits_s={START: START_S, "build": BUILD_S}, label=index)


def _after_build(doing: _Round, job: Job, ended: Ended) -> list[Job]:
    """What is to be done now that a build has ended: the same again, or trials, or nothing."""
    answer, index = ended.answer, job.label
    sure = ended.first and ended.signal not in (0, signal.SIGKILL)
    if answer is None and not sure and _once(doing, job):
        return [replace(job, fresh=True)]
    if answer is not None and "failed" in answer:
        raise HwqError(*answer["failed"])
    refused = ended.reason if answer is None else answer.get("refused")
    if refused is not None and index == DEFAULT:
        raise HwqError("compile-failed", f"the default kernel {doing.default.symbol} is not built: {refused}")
    if refused is not None:
        doing.outcomes[index] = Outcome(refused=refused)
    else:
        doing.libraries[index] = Path(job.content["library"])
    known = doing.libraries.keys() | doing.outcomes.keys()
    if DEFAULT not in known or (not doing.remote and len(known) <= len(doing.trials)):
        return []
    begun = {number for kind, number in doing.again if kind == "begun"}
    now = sorted(doing.libraries.keys() - begun - {DEFAULT})
    doing.again.update(("begun", number) for number in now)
    return [_try_job(doing, number) for number in now]


def _try_job(doing: _Round, index: int) -> Job:
    for number in {DEFAULT, index} - doing.contents.keys():
        folder = doing.arrays if number == DEFAULT else doing.folder
        library = doing.libraries[number]
        doing.contents[number] = kernel_content(doing.kernel(number), doing.step, library, folder, doing.arrays)
    default = doing.contents[DEFAULT]
    limits = {START: START_S, "default": doing.timeout_s, "candidate": doing.timeout_s}
    job = {
        "kind": "try",
        "name": json.dumps([doing.code, doing.task, default["constants"]]),
        "task": doing.task,
        "default": default,
        "candidate": doing.contents[index],
        "threads": doing.threads,
        "needs_s": 2 * doing.timeout_s,
    }
    return Job(kind="try", content=job, limits_s=limits, label=index)


def _after_try(doing: _Round, job: Job, ended: Ended) -> list[Job]:
    """The outcome of a trial that has ended; or the trial once more."""
    answer, index = ended.answer or {}, job.label
    if "seconds" in answer:
        doing.outcomes[index] = Outcome(seconds=tuple(answer["seconds"]), default_s=tuple(answer["default_s"]))
        return []
    if "default" in answer:
        code = "kernel-differs" if answer["default"].startswith("differs") else "kernel-failed"
        raise HwqError(code, f"the default kernel {doing.default.symbol} of {doing.step.name} {answer['default']}")
    if answer.get("again"):
        return [job]
    reason = answer.get("refused") or ("crashed: the board ended the session" if "lost" in answer else ended.reason)
    if ended.stage != "candidate":
        return _not_begun(doing, job, answer.get("lost") or reason)
    sure = ended.first and (not doing.remote or "refused" in answer)
    if not sure and _once(doing, job):
        return [replace(job, fresh=True)]
    doing.outcomes[index] = Outcome(refused=reason)
    return []


def _not_begun(doing: _Round, job: Job, reason: str) -> list[Job]:
    """A trial that ended before the candidate's turn: again, until it is clear that there is no use in it."""
    doing.free[job.label] = doing.free.get(job.label, 0) + 1
    if doing.free[job.label] < FREE_TURNS:
        return [replace(job, fresh=True)]
    if not doing.remote:
        raise HwqError("kernel-failed", f"the default kernel {doing.default.symbol} of {doing.step.name}: {reason}")
    if not any(outcome.seconds for outcome in doing.outcomes.values()):
        raise _lost(f"{FREE_TURNS} sessions ended before the candidate's turn: {reason}")
    doing.outcomes[job.label] = Outcome(lost=True)
    return []


def _once(doing: _Round, job: Job) -> bool:
    """Whether this job is to be done once more: the first time that it is asked."""
    key = (job.kind, job.label)
    new = key not in doing.again
    doing.again.add(key)
    return new
