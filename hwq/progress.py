"""Progress of the stages: a live bar with the time left on a terminal, plain lines elsewhere, nothing by default.

A ``Stages`` is called with a stage's name and gives a context in which a callback takes (done, total).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Callback = Callable[[int, int], None]
Stages = Callable[[str], AbstractContextManager[Callback]]

LINE_EVERY_S = 5.0


@contextlib.contextmanager
def silent(name: str) -> Iterator[Callback]:
    """Shows nothing."""
    del name
    yield lambda done, total: None


def bars(console: Console) -> Stages:
    """A bar a stage, with time left, on a terminal."""

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[Callback]:
        columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as shown:
            task = shown.add_task(name, total=None)
            yield lambda done, total: shown.update(task, completed=done, total=total)
            total = shown.tasks[0].total or 1
            shown.update(task, completed=total, total=total)

    return stage


def lines(out: TextIO) -> Stages:
    """A line when a stage ends, and one every few seconds while it lasts."""

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[Callback]:
        start = shown = time.monotonic()

        def update(done: int, total: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= LINE_EVERY_S and 0 < done < total:
                shown = now
                left = (now - start) / done * (total - done)
                print(f"{name}: {done} of {total}, {left:.0f} s left", file=out, flush=True)

        yield update
        print(f"{name}: done in {time.monotonic() - start:.1f} s", file=out, flush=True)

    return stage
