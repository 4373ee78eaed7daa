"""Rounds: candidates of one task are tried, the best of them measured again, and what is to be stored of it."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
        """The outcomes of ``trials``, those left out that were lost. Raises HwqError "device-lost" where all were."""
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
            message = (
                f"no device of {', '.join(self.devices)} answered to the end of a trial; what was measured is kept"
            )
            raise HwqError("device-lost", f"{message}; accepted: a board that serves, then the same again")
        return known


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """A task, its default kernel, and what the store says of them. key: of its trials and its decision; record: of the
    default's record."""

    task: Task
    default: Kernel
    key: store.Key
    record: store.Key
    default_s: float = math.nan
    trials: tuple[store.Trial, ...] = ()
    decision: store.Decision | None = None

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


def play(bench: Bench, state: State, candidates: Sequence[tuple[str, Kernel]]) -> list[store.Row]:
    """Try the candidates; what there is to store: a trial of each that was not lost, and the winner's record and
    decision if one won.

    Those that seem faster than what is used are measured again, in turns with the default and, if that is another, with
    what is used. The fastest wins of those whose ``ratio_bound`` is below both of them by ``MARGIN``. Its record is in
    terms of the default's, as if they had been measured together: prices are compared with each other.
    """
    trials = [Trial(decision=decision, kernel=kernel) for decision, kernel in candidates]
    outcomes = bench.tried(state.task, state.default, trials)
    bar = state.ratio * (1 - MARGIN)
    hopeful = sorted(
        (it for it in outcomes if median_ratio(outcomes[it]) < bar), key=lambda it: median_ratio(outcomes[it])
    )
    hopeful = hopeful[:FINALISTS]
    won: Trial | None = None
    if hopeful:
        used = _used(bench, state)
        final = bench.tried(state.task, state.default, [*hopeful, *used])
        bar = (1 - MARGIN) * min([1.0, *(median_ratio(final[trial]) for trial in used if trial in final)])
        final = {trial: outcome for trial, outcome in final.items() if trial in outcomes}
        outcomes |= final
        sure = [it for it, outcome in final.items() if ratio_bound(outcome.seconds, outcome.default_s) < bar]
        won = min(sure, key=lambda it: median_ratio(final[it]), default=None)
    now = time.time()
    rows: list[store.Row] = [_row(bench, state, trial, outcome, now) for trial, outcome in outcomes.items()]
    if won is not None:
        outcome, code = outcomes[won], bench.code_of(won.kernel)
        key = replace(state.record, schedule=f"{won.kernel.schedule}#{code}@{state.task.home}")
        scale = state.default_s / statistics.median(outcome.default_s)
        rows.append(record_of(key, [scale * seconds for seconds in outcome.seconds]))
        rows.append(
            store.Decision(
                key=state.key,
                decision=won.decision,
                code=code,
                median_s=statistics.median(outcome.default_s) * median_ratio(outcome),
                default_s=statistics.median(outcome.default_s),
                measured_at=now,
            )
        )
    return rows


def _used(bench: Bench, state: State) -> list[Trial]:
    """What is used now, if that is not the default; one that its template does not take any more has no say."""
    task = state.task
    if state.decision is not None:
        with contextlib.suppress(HwqError):
            kernel = kernel_for(task.workload, bench.target, task.step.func, state.decision.decision)
            return [Trial(decision=state.decision.decision, kernel=kernel)]
    return []


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
