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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

Callback = Callable[[int, int], None]
Stages = Callable[[str], AbstractContextManager[Callback]]

LINE_EVERY_S = 5.0


def duration(seconds: float) -> str:
    """A time to wait, as people say it: 4.2 s, 3 min 05 s, 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextlib.contextmanager
def silent(name: str) -> Iterator[Callback]:
    """Shows nothing."""
    del name
    yield lambda done, total: None


class _TimeColumn(ProgressColumn):
    """The time left while it can be told, then the time it took."""

    def render(self, task: Task) -> Text:
        if task.finished or task.time_remaining is None:
            return Text(duration(task.finished_time or task.elapsed or 0.0))
        return Text(f"{duration(task.time_remaining)} left")


def bars(console: Console) -> Stages:
    """A bar a stage, with the time left, on a terminal."""

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[Callback]:
        columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), _TimeColumn())
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
                left_s = (now - start) / done * (total - done)
                print(f"{name}: {done} of {total}, {duration(left_s)} left", file=out, flush=True)

        yield update
        print(f"{name}: done in {duration(time.monotonic() - start)}", file=out, flush=True)

    return stage
