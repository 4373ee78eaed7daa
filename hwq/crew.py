"""Crew: worker processes for jobs that may crash, hang, or take all memory; what happens costs the one job.

A seat is a place for one worker at a time. A worker is a Python process that runs ``main`` of the seat's module, hears
of its jobs by the names of JSON files, a line each on its stdin, and answers with JSON lines on its stdout:
{"stage": ...} when it gets to the next stage of a job, which starts a new time limit, then one line more, the answer;
{"over": true} in it says that the worker is of no more use. The first job that a worker gets is the seat's greeting:
only after its answer the seat takes others; one with "error" in it says that the seat cannot be filled now, and
{"aloud": true} beside it that a warning in the log is to say so, once a crew.

All is done in the calling thread: no thread of ours can be stuck, and an interrupt ends the busy workers at once. A
worker is killed with all that it started, and the kernel kills it if the thread that started it ends in any way.

Why not ``tvm.support.popen_pool``: its time limit is kept by a thread in the worker, which a hang in native code holds
up; its workers hear Ctrl-C themselves; and busy ones outlive a caller that was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)
START = "start"
# From a worker's start to its first word: Python and TVM take a second or two, on a machine that is busy many.
START_S = 120.0
# What a worker that has closed its output has left to end.
_LAST_WORDS_S = 5.0
# A greeting that takes longer than this may be one that never ends: another seat is tried for the job.
_SLOW_S = 10.0
# After a greeting that failed a seat rests so long, then twice as long each time, to this at most.
_REST_S = (0.5, 30.0)
_PR_SET_PDEATHSIG = 1
# Starts a worker with this package's modules but without its face, which imports everything and takes seconds.
_BOOTSTRAP = """
import importlib, sys, types
hwq = types.ModuleType("hwq")
hwq.__path__ = [sys.argv[1]]
sys.modules["hwq"] = hwq
importlib.import_module(sys.argv[2]).main(int(sys.argv[3]))
"""


class NobodyTakesIt(Exception):
    """No seat of a job's kind has come to take jobs for as long as was to be waited; ``reason``: what the last said."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker is to do. kind: which seats may take it. limits_s: stage -> seconds; a stage not named has START's.

    fresh: only a worker that had no job before takes it. label tells the caller which job it is.
    """

    kind: str
    content: Mapping[str, Any]
    limits_s: Mapping[str, float]
    fresh: bool = False
    label: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a job ended: the worker's answer; or None and why there is none: "crashed: SIGILL", "took longer than 5 s".

    stage: the last that the worker told of. first: whether the worker had no job before this one. signal: what ended a
    worker that died, 0 if it ended by itself or was ended for its time.
    """

    answer: dict[str, Any] | None
    reason: str
    stage: str
    first: bool
    signal: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class Seat:
    """A place for a worker of ``kind``. What stands below ``hello`` changes as workers come and go."""

    kind: str
    module: str
    hello: Mapping[str, Any]
    hello_s: float = START_S
    process: subprocess.Popen[bytes] | None = None
    errors: IO[bytes] | None = None
    buffer: bytes = b""
    greeted: bool = False
    job: Job | None = None
    path: Path | None = None
    stage: str = START
    began: float = 0.0
    deadline: float = 0.0
    done: int = 0
    failures: int = 0
    not_before: float = 0.0
    said: str = ""

    @property
    def idle(self) -> bool:
        """Whether it takes a job."""
        return self.process is not None and self.greeted and self.job is None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crew:
    """Seats, and a folder for what is handed to their workers."""

    seats: tuple[Seat, ...]
    folder: Path
    numbers: list[int] = field(default_factory=lambda: [0])
    told: set[str] = field(default_factory=set)


def die_with(parent: int) -> None:
    """To be called by a worker at its start: it is killed when the thread that started it ends; interrupts are its
    parent's to answer; and where it crashes, no image of its memory is written."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):  # a system without it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if os.getppid() != parent:  # it ended before this could be asked for
        os._exit(1)


def answer_jobs(answer: Callable[[dict[str, Any], Callable[[str], None]], dict[str, Any]]) -> None:
    """A worker's work: ``answer(content of a job, tell)`` until its input ends; ``tell`` is called with each stage."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever TVM or LLVM prints must not mix with the answers

        def say(row: Mapping[str, Any]) -> None:
            try:
                answers.write(json.dumps(row) + "\n")
                answers.flush()
            except BrokenPipeError:  # nobody listens any more
                os._exit(1)

        for line in sys.stdin:
            if not line.endswith("\n"):
                break
            say(answer(json.loads(Path(line[:-1]).read_text(encoding="utf-8")), lambda stage: say({"stage": stage})))


def work_off(crew: Crew, todo: deque[Job], patience_s: Mapping[str, float]) -> Iterator[tuple[Job, Ended]]:
    """Has the crew do the jobs of ``todo``, and gives each as it ends; the caller may add more at any time in between.

    A worker that dies or takes too long is replaced. Workers that are idle stay for the next call; however this is
    left, none is busy afterwards. Raises NobodyTakesIt where no seat would take a kind of jobs for its ``patience_s``;
    ``todo`` keeps them.
    """
    since = {job.kind: time.monotonic() for job in todo}
    try:
        while True:
            _fill(crew, todo)
            busy = [seat for seat in crew.seats if seat.job is not None]
            if not busy and not todo:
                return
            now = time.monotonic()
            since |= {seat.kind: now for seat in crew.seats if seat.greeted}
            for kind in {job.kind for job in todo}:
                since.setdefault(kind, now)
                said = [seat.said for seat in crew.seats if seat.kind == kind and seat.said]
                # A first greeting may take its time: a worker that starts on a busy machine does.
                if now - since[kind] > patience_s[kind] + (0.0 if said else START_S):
                    raise NobodyTakesIt(kind, (said or ["no answer"])[-1])
            waits = [since[kind] + patience_s[kind] for kind in {job.kind for job in todo}]
            waits = [until if until > now else until + START_S for until in waits]
            for seat in _heard(crew.seats, min(waits, default=None)):
                job, ended = seat.job, _listen(crew, seat)
                if ended is not None and job is not None:
                    yield job, ended
    finally:
        for seat in crew.seats:
            if seat.job is not None:
                end_worker(seat)


def end_worker(seat: Seat) -> None:
    """Kills the seat's worker and all that it started, and waits for it, so that no zombie stays."""
    process, seat.process, seat.job, seat.greeted, seat.buffer = seat.process, None, None, False, b""
    errors, seat.errors = seat.errors, None
    _forget(seat)
    if process is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, errors):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


@contextlib.contextmanager
def crew_of(seats: Sequence[Seat], folder: Path) -> Iterator[Crew]:
    """A crew whose workers all end with the context; jobs are written below ``folder``."""
    try:
        yield Crew(seats=tuple(seats), folder=folder)
    finally:
        for seat in seats:
            end_worker(seat)


def _fill(crew: Crew, todo: deque[Job]) -> None:
    """Jobs to idle seats; and a worker for each seat that could have one of those that are left."""
    for seat in crew.seats:
        job = next((job for job in todo if job.kind == seat.kind), None) if seat.idle else None
        if job is not None and job.fresh and seat.done:
            end_worker(seat)
        elif job is not None:
            todo.remove(job)
            seat.job = job
            _hand(crew, seat, job.content, job.limits_s[START])
    now = time.monotonic()
    for kind in {job.kind for job in todo}:
        mine = [seat for seat in crew.seats if seat.kind == kind]
        coming = sum(each.process is not None and each.job is None and now < each.began + _SLOW_S for each in mine)
        free = [each for each in mine if each.process is None and now >= each.not_before]
        for seat in free[: max(0, sum(job.kind == kind for job in todo) - coming)]:
            _start(crew, seat)


def _start(crew: Crew, seat: Seat) -> None:
    command = [sys.executable, "-c", _BOOTSTRAP, str(Path(__file__).parent), seat.module, str(os.getpid())]
    seat.errors = tempfile.TemporaryFile()
    # A session of its own: Ctrl-C goes to the caller alone, and what the worker starts can be killed with it.
    # What a worker that is killed leaves of temporary files is in the crew's folder, and goes with it.
    seat.process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=seat.errors,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(crew.folder)},
    )
    assert seat.process.stdout is not None
    os.set_blocking(seat.process.stdout.fileno(), False)
    seat.greeted, seat.done, seat.buffer, seat.began = False, 0, b"", time.monotonic()
    _hand(crew, seat, seat.hello, seat.hello_s)


def _hand(crew: Crew, seat: Seat, content: Mapping[str, Any], limit_s: float) -> None:
    """A job goes through a file: a worker that does not read would block who writes more to it than a pipe holds."""
    assert seat.process is not None
    assert seat.process.stdin is not None
    crew.numbers[0] += 1
    seat.path = crew.folder / f"job{crew.numbers[0]}.json"
    seat.path.write_text(json.dumps(content), encoding="utf-8")
    seat.stage, seat.deadline = START, time.monotonic() + limit_s
    with contextlib.suppress(BrokenPipeError):  # it is dead, as will be heard
        seat.process.stdin.write(f"{seat.path}\n".encode())
        seat.process.stdin.flush()


def _forget(seat: Seat) -> None:
    if seat.path is not None:
        seat.path.unlink(missing_ok=True)
        seat.path = None


def _heard(seats: Sequence[Seat], until: float | None) -> list[Seat]:
    """The seats whose workers have spoken, ended, or had their time; waits for the first of them, or for ``until``."""
    now = time.monotonic()
    waits = [seat for seat in seats if seat.process is not None and not seat.idle]
    ends = [seat.deadline for seat in waits]
    ends += [seat.began + _SLOW_S for seat in waits if not seat.greeted and now < seat.began + _SLOW_S]
    ends += [seat.not_before for seat in seats if seat.process is None and seat.not_before > now]
    ends += [] if until is None else [until]
    with selectors.DefaultSelector() as selector:
        for seat in seats:
            if seat.process is not None:
                assert seat.process.stdout is not None
                selector.register(seat.process.stdout, selectors.EVENT_READ, seat)
        found = [key.data for key, _ in selector.select(max(0.0, min(ends, default=now) - now))]
    now = time.monotonic()
    return found + [seat for seat in waits if seat.deadline <= now and seat not in found]


def _listen(crew: Crew, seat: Seat) -> Ended | None:
    """What the worker said: None if its job goes on. An answer to the greeting opens the seat; a failure rests it."""
    assert seat.process is not None
    assert seat.process.stdout is not None
    try:
        data = seat.process.stdout.read()
    except OSError:
        data = b""
    if data == b"":
        return _over(seat, *_death(seat.process))
    seat.buffer += data or b""
    while b"\n" in seat.buffer:
        line, seat.buffer = seat.buffer.split(b"\n", 1)
        row = json.loads(line)
        if "stage" not in row:
            return _answered(crew, seat, row)
        seat.stage = row["stage"]
        limits = {} if seat.job is None else seat.job.limits_s
        seat.deadline = time.monotonic() + limits.get(seat.stage, limits.get(START, seat.hello_s))
    if data is None and time.monotonic() >= seat.deadline:
        return _over(seat, f"took too long in the stage {seat.stage!r}", 0)
    return None


def _answered(crew: Crew, seat: Seat, row: dict[str, Any]) -> Ended | None:
    job, seat.job = seat.job, None
    _forget(seat)
    if job is None:
        if "error" in row:
            _rest(seat, str(row["error"]))
            if row.get("aloud") and seat.said not in crew.told:
                crew.told.add(seat.said)
                log.warning("%s", seat.said)
        else:
            seat.greeted, seat.failures, seat.said = True, 0, ""
        return None
    seat.done += 1
    if row.get("over"):
        end_worker(seat)
    return Ended(answer=row, reason="", stage=seat.stage, first=seat.done == 1)


def _over(seat: Seat, reason: str, number: int) -> Ended | None:
    """The worker is dead, or is killed now."""
    said = _last_line(seat)
    log.debug("a worker for %s ended: %s (%s)", seat.kind, reason, said)
    job, first, stage = seat.job, seat.done == 0, seat.stage
    if job is None and not seat.greeted:
        _rest(seat, f"{reason} ({said})" if said else reason)
        return None
    end_worker(seat)
    if job is None:
        return None
    if number == signal.SIGABRT and said:  # LLVM and the C++ library say why they give up
        reason = f"{reason} ({said})"
    return Ended(answer=None, reason=reason, stage=stage, first=first, signal=number)


def _rest(seat: Seat, reason: str) -> None:
    end_worker(seat)
    seat.said, seat.failures = reason, seat.failures + 1
    seat.not_before = time.monotonic() + min(_REST_S[0] * 2.0 ** min(seat.failures - 1, 20), _REST_S[1])


def _death(process: subprocess.Popen[bytes]) -> tuple[str, int]:
    """(why a worker is gone, the signal's number or 0)."""
    try:
        code = process.wait(timeout=_LAST_WORDS_S)
    except subprocess.TimeoutExpired:
        return "closed its output", 0
    if code >= 0:
        return f"ended with code {code}", 0
    try:
        return f"crashed: {signal.Signals(-code).name}", -code
    except ValueError:
        return f"crashed: signal {-code}", -code


def _last_line(seat: Seat) -> str:
    """The last that the worker wrote to its stderr, shortened."""
    if seat.errors is None:
        return ""
    seat.errors.seek(0, os.SEEK_END)
    seat.errors.seek(max(0, seat.errors.tell() - 2000))
    lines = seat.errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""
