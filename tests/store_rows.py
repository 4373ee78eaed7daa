"""Rows of a store, for tests of it."""

from __future__ import annotations

from dataclasses import replace

from hwq.store import Decision, Key, Record, Trial

KEY = Key(workload="w", schedule="x86/conv:1", target="t", tools="hwq 1")
RECORD = Record(key=KEY, median_s=1e-3, spread_s=1e-5, runs=10, measured_at=100.0)


def record(workload: str, median_s: float = 1.0, measured_at: float = 0.0) -> Record:
    key = replace(KEY, workload=workload)
    return Record(key=key, median_s=median_s, spread_s=0.1, runs=3, measured_at=measured_at)


def trial(decision: str, seconds: float | None = 1.0, measured_at: float = 0.0) -> Trial:
    reason = "differs" if seconds is None else None
    default_s = None if seconds is None else 2.0
    return Trial(
        key=KEY,
        decision=decision,
        code="c",
        seconds=seconds,
        default_s=default_s,
        reason=reason,
        measured_at=measured_at,
    )


def decision(text: str = "{}", measured_at: float = 0.0, **key: str) -> Decision:
    return Decision(
        key=replace(KEY, **key), decision=text, code="c", median_s=1.0, default_s=2.0, measured_at=measured_at
    )
