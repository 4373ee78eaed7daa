"""Tune: rounds of trials on the kernels of networks, until a number of trials or a time is spent.

A task is a distinct kernel, with its weights where a network has them. Its default is measured first; then each round
gives candidates to the task that can still save the most, tries them, and decides: a candidate takes the default's
place only where it was faster beyond noise when the two were measured again in turns, and right: integers equal the
NumPy reference's, floats are within its bound. What took the default's place is measured again with those who want its
own, and withdrawn if it turns out to be wrong, or slower than the default. All that a round found is stored in one
transaction before the next begins, and what a round does depends on nothing but the tasks, the seed and the store:
whoever is killed goes on with the round it was at, and comes to where one left alone comes to.

Trials are shared out in proportion to the milliseconds that tasks can still save: a task's turn comes by its weight
(how often networks call it, times their priority) times what it takes beyond its limit, divided by one more than its
trials so far. The limit is what the roofline says, and at least a tenth of the time can always be saved. ``trials``
counts all that the store holds for the tasks, those of earlier calls too.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hwq import store
from hwq.cost import price_roofline
from hwq.errors import HwqError
from hwq.files import scratch
from hwq.rounds import Bench, State, TryThem, held, play, record_of
from hwq.schedule import kernel_for
from hwq.space import propose
from hwq.target import Target
from hwq.tasks import Task
from hwq.trial import Trial, open_crew, run_trials
from hwq.workload import Kernel

log = logging.getLogger(__name__)

# Candidates a round.
ROUND = 8
# The part of a kernel's time that can always be saved: rooflines are guesses.
LEAST_SAVING = 0.1
# What a default is no good for; tuning leaves such a task alone. And what of that would be the same the next time, so
# that the store keeps it: not what time or memory may have been short for.
DEFECTS = ("compile-failed", "instruction-missing", "kernel-differs", "kernel-failed")
SURE_DEFECTS = ("instruction-missing", "kernel-differs")

Propose = Callable[..., Sequence[tuple[str, Kernel]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """What became of a task. name: of a layer that it is. decision: what took the default's place, if anything did.

    trials: all that were made; refused: of those, the ones without a time. limit_s: by the roofline.
    """

    name: str
    workload: str
    schedule: str
    count: int
    weight: float
    default_s: float
    best_s: float
    limit_s: float
    decision: str | None
    trials: int
    refused: int

    @property
    def won_s(self) -> float:
        """Seconds saved in one call of each network."""
        return self.count * (self.default_s - self.best_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a call of ``tune`` is. tasks: how many there are; measured: those whose default is. trials: done, of
    ``total`` (None: as many as the time allows). left_s: seconds to go, None while unknown. won_s, of whole_s: seconds
    that one call of each network takes less by now."""

    tasks: int
    measured: int
    trials: int
    total: int | None
    left_s: float | None
    won_s: float
    whole_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """tasks: by what they won. idle: layers whose default could not be measured, and why. kept: whether a store holds
    what was found; an emulated device's times are none."""

    tasks: tuple[TaskReport, ...]
    standing: Standing
    idle: Mapping[str, str]
    kept: bool


def untold(standing: Standing) -> None:
    """Tells nothing of how far tuning is."""


def tune(
    tasks: Sequence[Task],
    target: Target,
    cache_dir: Path,
    store_path: Path,
    *,
    trials: int | None,
    seed: int = 0,
    threads: int = 1,
    devices: Sequence[str] = ("local",),
    until: float | None = None,
    try_them: TryThem | None = None,
    candidates_of: Propose = propose,
    tell: Callable[[Standing], None] = untold,
) -> Tuned:
    """Tune ``tasks`` (``joined``) on ``target``, until the store holds ``trials`` of them or ``until``, a time of
    ``time.monotonic()``, or nothing is left to try. One of the two must be given.

    devices: as ``hwq.trial.open_crew``. try_them and candidates_of: None and ``hwq.space.propose``, or what stands for
    ``hwq.trial.run_trials`` and the latter in a test. ``tell`` is called whenever something was stored. Raises HwqError
    as the store, ``open_crew`` and ``run_trials`` do, but for a default that is itself wrong: that task is left alone.
    """
    assert trials is not None or until is not None, "tuning has to end"
    with contextlib.ExitStack() as ends:
        path = store_path
        if target.emulated:  # its times mean nothing, and are forgotten
            path = ends.enter_context(scratch()) / "emulated.sqlite"
        if try_them is None:
            try_them = functools.partial(run_trials, crew=ends.enter_context(open_crew(target, devices)))
        run = _Run(
            bench=Bench(target=target, cache_dir=cache_dir, threads=threads, devices=tuple(devices), try_them=try_them),
            path=path,
            tools=store.tool_versions(),
            trials=trials,
            seed=seed,
            until=until,
            candidates_of=candidates_of,
            tell=tell,
        )
        states, idle = _with_defaults(run, tasks)
        began, before = time.monotonic(), sum(len(state.trials) for state in states)
        exhausted: set[store.Key] = set()  # what is proposed for a task depends on its own trials alone
        while True:
            standing = _standing(run, states, len(states), time.monotonic() - began, before)
            tell(standing)
            room = ROUND if trials is None else min(ROUND, trials - standing.trials)
            found = _due(run, states, room, exhausted) if room > 0 and not _late(run) else None
            if found is None:
                break
            played = play(run.bench, *found)
            store.put(path, *played.rows, beaten=played.beaten)
            if played.failed is not None:
                idle[found[0].task.step.name] = _defect(run, found[0], played.failed)
                states = [state for state in states if state is not found[0]]
            states = _read(run, states)
    reports = sorted((_report(run, state) for state in states), key=lambda one: (-one.won_s, one.name))
    return Tuned(tasks=tuple(reports), standing=standing, idle=idle, kept=path == store_path)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """What one call of ``tune`` was given. path: of the store that it writes."""

    bench: Bench
    path: Path
    tools: str
    trials: int | None
    seed: int
    until: float | None
    candidates_of: Propose
    tell: Callable[[Standing], None]

    def candidates(self, state: State, count: int) -> Sequence[tuple[str, Kernel]]:
        task = state.task
        return self.candidates_of(task.workload, self.bench.target, state.tried, count, self.seed, task.step.func)


def _late(run: _Run) -> bool:
    return run.until is not None and time.monotonic() >= run.until


def _with_defaults(run: _Run, tasks: Sequence[Task]) -> tuple[list[State], dict[str, str]]:
    """The tasks whose default the store has a record of, now at the latest; and why others have none.

    What there is nothing to choose about is no task.
    """
    states: list[State] = []
    idle: dict[str, str] = {}
    for task in tasks:
        if _late(run):
            break
        default = kernel_for(task.workload, run.bench.target, task.step.func)
        name = f"{default.schedule}#{run.bench.code_of(default)}@{task.home}"
        state = State(
            task=task,
            default=default,
            key=store.key_of(task.workload, f"{default.schedule}@{task.home}", run.bench.target, run.tools),
            record=store.key_of(task.workload, name, run.bench.target, run.tools),
        )
        (state,) = _read(run, [state])
        if not state.trials and not run.candidates(state, 1):
            continue
        reason = state.wrong
        if reason is None and not state.default_s > 0:
            reason = _measure_default(run, state)
        if reason is None:
            states = _read(run, [*states, state])
            run.tell(_standing(run, states, len(tasks)))
        else:
            idle[task.step.name] = reason
            log.debug("%s is not tuned: %s", task.step.name, reason)
    return states, idle


def _read(run: _Run, states: Sequence[State]) -> list[State]:
    """The states as the store has them now."""
    rows: dict[store.Key, list[store.Trial]] = {}
    for row in store.trials(run.path, run.bench.target, run.tools):
        rows.setdefault(row.key, []).append(row)
    decided = store.decisions(run.path, run.bench.target, run.tools)
    records = store.get_many(run.path, [state.record for state in states])
    found = []
    for state in states:
        record, stored, mine = records.get(state.record), decided.get(state.key), rows.get(state.key, [])
        used = state.used
        if stored != state.stored:
            used = None if stored is None else held(run.bench, state.task, stored)
        code = run.bench.code_of(state.default) if any(not row.decision for row in mine) else ""
        found.append(
            replace(
                state,
                default_s=state.default_s if record is None else record.median_s,
                trials=tuple(row for row in mine if row.decision),
                wrong=next((row.reason for row in mine if not row.decision and row.code == code), None),
                stored=stored,
                used=used,
            )
        )
    return found


def _measure_default(run: _Run, state: State) -> str | None:
    """Put a record of a task's default into the store; or say why that cannot be."""
    trial = Trial(decision="", kernel=state.default)
    try:
        outcome = run.bench.tried(state.task, state.default, [trial])[trial]
    except HwqError as error:
        return _defect(run, state, error)
    if outcome.refused is not None:
        return outcome.refused
    store.put(run.path, record_of(state.record, (*outcome.seconds, *outcome.default_s)))
    return None


def _defect(run: _Run, state: State, error: HwqError) -> str:
    """What is wrong with a task's default, kept in the store where that is sure. Raises ``error`` if it is another."""
    if error.code not in DEFECTS:
        raise error
    if error.code in SURE_DEFECTS:
        row = store.Trial(
            key=state.key,
            decision="",
            code=run.bench.code_of(state.default),
            seconds=None,
            default_s=None,
            reason=error.message,
            measured_at=time.time(),
        )
        store.put(run.path, row)
    log.debug("%s is not tuned: %s", state.task.step.name, error.message)
    return error.message


def _limit_s(run: _Run, state: State) -> float:
    return price_roofline(state.task.workload, run.bench.target, run.bench.threads).latency_s


def _due(
    run: _Run, states: Sequence[State], room: int, exhausted: set[store.Key]
) -> tuple[State, Sequence[tuple[str, Kernel]]] | None:
    """The task that is due, with its next candidates; None where none has any."""

    def worth(state: State) -> float:
        left_s = max(state.best_s - _limit_s(run, state), LEAST_SAVING * state.best_s)
        return state.task.weight * left_s / (1 + len(state.trials))

    for state in sorted(states, key=lambda state: (-worth(state), state.key.workload, state.task.home)):
        if state.key not in exhausted:
            candidates = run.candidates(state, room)
            if candidates:
                return state, candidates
            exhausted.add(state.key)
    return None


def _standing(run: _Run, states: Sequence[State], tasks: int, spent_s: float = 0.0, before: int = 0) -> Standing:
    """spent_s: since there were ``before`` trials."""
    done = sum(len(state.trials) for state in states)
    left_s = None if run.until is None else max(0.0, run.until - time.monotonic())
    if run.trials is not None and spent_s > 0 and done > before:
        needed_s = spent_s / (done - before) * max(0, run.trials - done)
        left_s = needed_s if left_s is None else min(left_s, needed_s)
    return Standing(
        tasks=tasks,
        measured=len(states),
        trials=done,
        total=run.trials,
        left_s=left_s,
        won_s=sum(state.task.count * (state.default_s - state.best_s) for state in states),
        whole_s=sum(state.task.count * state.default_s for state in states),
    )


def _report(run: _Run, state: State) -> TaskReport:
    return TaskReport(
        name=state.task.step.name,
        workload=state.key.workload,
        schedule=state.key.schedule,
        count=state.task.count,
        weight=state.task.weight,
        default_s=state.default_s,
        best_s=state.best_s,
        limit_s=_limit_s(run, state),
        decision=None if state.decision is None else state.decision.decision,
        trials=len(state.trials),
        refused=sum(row.reason is not None for row in state.trials),
    )
