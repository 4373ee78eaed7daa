"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hwq import progress
from hwq.progress import Stages, bars, duration, lines, silent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that ``hwq.progress`` sees, in its only element."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def _interrupt(stages: Stages) -> None:
    with stages("measure") as update:
        update(1, 3)
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (4.24, "4.2 s"), (59.4, "59 s"), (60, "1 min 00 s"), (185, "3 min 05 s"), (3725, "1 h 02 min")],
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_come_every_few_seconds_with_the_time_left(clock: list[float]) -> None:
    out = io.StringIO()
    with lines(out)("compile") as update:
        for done in range(1, 5):
            clock[0] += 3.0
            update(done, 4)
    # 6 s after the start 2 of 4 are done, so 6 s are left; at 12 s all are, and only the end is told.
    assert out.getvalue() == "compile: 2 of 4, 6.0 s left\ncompile: done in 12 s\n"


def test_a_stage_that_fails_is_not_said_to_be_done() -> None:
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        _interrupt(lines(out))
    assert out.getvalue() == ""


def test_bars_show_the_stage_and_end_full() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    with bars(console)("sensitivity") as update:
        update(1, 3)
    with bars(console)("build"):  # a stage that never reports
        pass
    last = [line for line in out.getvalue().replace("\r", "\n").splitlines() if "━" in line]
    assert any("sensitivity" in line and "3/3" in line for line in last)
    assert any("build" in line and "1/1" in line for line in last)


def test_bars_leave_the_terminal_as_it_was_when_interrupted() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    with pytest.raises(KeyboardInterrupt):
        _interrupt(bars(console))
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert out.getvalue().rfind(shown) > out.getvalue().rfind(hidden) >= 0, "the cursor stays hidden"


def test_silent_takes_what_the_others_take() -> None:
    with silent("anything") as update:
        update(1, 2)
