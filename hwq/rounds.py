"""Rounds: candidates of one task are tried, the best of them measured again, and what is to be stored of it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hwq import store
from hwq.compile_kernel import object_path
from hwq.errors import HwqError
from hwq.schedule import kernel_for
from hwq.target import Target
from hwq.tasks import Task
from hwq.trial import Outcome, Trial
from hwq.workload import Kernel

# How many candidates of a round at most are measured again, to take the default's place.
FINALISTS = 3
# What a kernel has to be faster by, beyond noise, and how sure that has to be.
MARGIN = 0.01
CONFIDENCE = 0.95

TryThem = Callable[..., Sequence[Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """Where candidates are tried. try_them: ``hwq.trial.run_trials``, or what stands for it in a test."""

    target: Target
    cache_dir: Path
    threads: int
    devices: tuple[str, ...]
    try_them: TryThem

    def code_of(self, kernel: Kernel) -> str:
        """The hash of its object file that ``KernelSet.name_of`` gives too."""
        return object_path(kernel, self.target, self.cache_dir).stem[:12]

    def tried(self, task: Task, default: Kernel, trials: Sequence[Trial]) -> dict[Trial, Outcome]:
        """The outcomes of ``trials``, those left out that were lost. Raises HwqError "device-lost" where all were, and
        as ``run_trials``."""
        found = self.try_them(
            trials,
            default,
            task.step,
            task.program,
            self.target,
            self.cache_dir,
            task.home,
            self.threads,
            devices=self.devices,
        )
        known = {trial: one for trial, one in zip(trials, found, strict=True) if not one.lost}
        if not known:
            boards = ", ".join(name for name in self.devices if name != "local")
            where = f"no device of {boards} answered" if boards else "no process on this machine lasted"
            needed = "a board that serves" if boards else "a machine with room for it"
            message = f"{where} to the end of a trial of {task.step.name}; what was measured is kept"
            raise HwqError("device-lost", f"{message}; accepted: {needed}, then the same again")
        return known


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """A task, its default kernel, and what the store says of them. key: of its trials and its decision; record: of the
    default's record. wrong: why the default itself is no good, if that was found. stored: the store's decision; used:
    its kernel, None where there is none or it holds no more (``held``)."""

    task: Task
    default: Kernel
    key: store.Key
    record: store.Key
    default_s: float = math.nan
    trials: tuple[store.Trial, ...] = ()
    wrong: str | None = None
    stored: store.Decision | None = None
    used: Kernel | None = None

    @property
    def decision(self) -> store.Decision | None:
        """What was decided, where that holds."""
        return None if self.used is None else self.stored

    @property
    def ratio(self) -> float:
        """The time of what is used over the default's."""
        return 1.0 if self.decision is None else self.decision.median_s / self.decision.default_s

    @property
    def best_s(self) -> float:
        return self.default_s * self.ratio

    @property
    def tried(self) -> dict[str, float]:
        """Decision -> seconds, by how it compared with the default beside it; infinite for what was refused."""
        return {
            row.decision: self.default_s * row.seconds / row.default_s if row.seconds and row.default_s else math.inf
            for row in self.trials
        }


def ratio_bound(seconds: Sequence[float], default_s: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """What the median of seconds / default_s, pair by pair, is at most, with ``confidence``.

    By the sign test, whatever the noise is like: with n pairs the chance that no more than k of them lie above the
    median is that of at most k heads in n throws, and as long as it is small the pair with k above it is a bound. Of
    less than five pairs none is that sure, and the bound is infinite.
    """
    ratios = sorted((mine / other for mine, other in zip(seconds, default_s, strict=True)), reverse=True)
    bound, chance = math.inf, 0.0
    for k, ratio in enumerate(ratios):
        chance += math.comb(len(ratios), k) / 2 ** len(ratios)
        if chance > 1 - confidence:
            break
        bound = ratio
    return bound


def median_ratio(outcome: Outcome) -> float:
    """The median of its time over the default's, pair by pair; infinite for what was refused."""
    if outcome.refused is not None:
        return math.inf
    return statistics.median(mine / other for mine, other in zip(outcome.seconds, outcome.default_s, strict=True))


def record_of(key: store.Key, seconds: Sequence[float]) -> store.Record:
    """The record of these figures; the faster half counts, as in ``hwq.measure``: whatever else runs only adds."""
    return store.summarize(key, sorted(seconds)[: (len(seconds) + 1) // 2])


def surely_slower(outcome: Outcome, confidence: float = CONFIDENCE) -> bool:
    """Whether the median of the default's time over its own is below 1 with ``confidence``; or each of its figures is
    above each of the default's, as are all of the three that a hopeless one gets (a chance of one in twenty)."""
    if min(outcome.seconds) > max(outcome.default_s):
        return True
    return ratio_bound(outcome.default_s, outcome.seconds, confidence) < 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Played:
    """What there is to store of a round: rows, and the decision that is beaten (as in ``store.put``). failed: what
    ended the round early, if something did."""

    rows: tuple[store.Row, ...] = ()
    beaten: Mapping[store.Key, store.Decision | None] = field(default_factory=dict)
    failed: HwqError | None = None


def play(bench: Bench, state: State, candidates: Sequence[tuple[str, Kernel]]) -> Played:
    """Try the candidates; what there is to store: a trial of each that was not lost, and the winner's record and
    decision if one won.

    Those that seem faster than what is used are measured again, in turns with the default and, if that is another, with
    what is used. The fastest wins of those whose ``ratio_bound`` is below both of them by ``MARGIN``; one that is lost
    in that is as if it had not been tried. What is used and is refused now, or is ``surely_slower`` than the default,
    is withdrawn. The winner's record is in terms of the default's, as if they had been measured together: prices are
    compared with each other.
    """
    trials = [Trial(decision=decision, kernel=kernel) for decision, kernel in candidates]
    try:
        outcomes = bench.tried(state.task, state.default, trials)
    except HwqError as error:
        return Played(failed=error)
    now = time.time()
    bar = state.ratio * (1 - MARGIN)
    hopeful = sorted(
        (it for it in outcomes if median_ratio(outcomes[it]) < bar), key=lambda it: median_ratio(outcomes[it])
    )
    hopeful = hopeful[:FINALISTS]
    rows: list[store.Row] = [_row(bench, state, it, outcomes[it], now) for it in outcomes if it not in hopeful]
    if not hopeful:
        return Played(rows=tuple(rows))
    used = None
    if state.used is not None and state.stored is not None:
        used = Trial(decision=state.stored.decision, kernel=state.used)
    try:
        final = bench.tried(state.task, state.default, hopeful if used is None else [*hopeful, used])
    except HwqError as error:
        return Played(rows=tuple(rows), failed=error)
    rows += [_row(bench, state, trial, outcome, now) for trial, outcome in final.items()]
    old = None if used is None else final.pop(used, None)
    bar = (1 - MARGIN) * min(1.0, 1.0 if old is None else median_ratio(old))
    sure = [it for it, outcome in final.items() if ratio_bound(outcome.seconds, outcome.default_s) < bar]
    if sure:
        rows += _won(bench, state, min(sure, key=lambda it: median_ratio(final[it])), final, now)
    withdrawn = old is not None and (old.refused is not None or surely_slower(old))
    return Played(rows=tuple(rows), beaten={state.key: state.stored} if sure or withdrawn else {})


def held(bench: Bench, task: Task, decision: store.Decision) -> Kernel | None:
    """The kernel of a decision; None where its template does not take it any more, or makes other code of it."""
    try:
        kernel = kernel_for(task.workload, bench.target, task.step.func, decision.decision)
    except HwqError:
        return None
    return kernel if bench.code_of(kernel) == decision.code else None


def _won(bench: Bench, state: State, won: Trial, final: Mapping[Trial, Outcome], now: float) -> list[store.Row]:
    """The winner's record and its decision."""
    outcome, code = final[won], bench.code_of(won.kernel)
    key = replace(state.record, schedule=f"{won.kernel.schedule}#{code}@{state.task.home}")
    pairs = zip(outcome.seconds, outcome.default_s, strict=True)
    default_s = statistics.median(outcome.default_s)
    return [
        store.summarize(key, [state.default_s * mine / other for mine, other in pairs], now),
        store.Decision(
            key=state.key,
            decision=won.decision,
            code=code,
            median_s=default_s * median_ratio(outcome),
            default_s=default_s,
            measured_at=now,
        ),
    ]


def _row(bench: Bench, state: State, trial: Trial, outcome: Outcome, now: float) -> store.Trial:
    default_s = None if outcome.refused is not None else statistics.median(outcome.default_s)
    return store.Trial(
        key=state.key,
        decision=trial.decision,
        code=bench.code_of(trial.kernel),
        seconds=None if default_s is None else default_s * median_ratio(outcome),
        default_s=default_s,
        reason=outcome.refused,
        measured_at=now,
    )
