"""How commands end, and where output goes. Codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

Tables and JSON go to stdout; progress, errors and debug lines to stderr. With --json stdout holds one JSON object,
whatever happens: the result, or {"error": {"code", "message"}}.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import click
from rich.console import Console

from hwq.errors import HwqError
from hwq.progress import Callback, Stages, bars, lines
from hwq.switches import debug_wanted
from hwq.wording import in_options

FAILED = 1
INTERRUPTED = 130
# Commands that keep what they found, so that the next call goes on from there.
RESUMABLE = ("compile", "plan", "explore", "demo", "tune")
# As wide as most logs and pagers show without breaking lines.
FILE_WIDTH = 140
# What the layer table needs for its figures beside a short name.
LEAST_WIDTH = 72


class Shell(click.Group):
    """The commands in the order of this file, with one way to end for every kind of error."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **_: Any) -> NoReturn:  # type: ignore[override]
        arguments = list(sys.argv[1:] if args is None else args)
        as_json = "--json" in arguments
        with _interrupts() as interrupted:
            try:
                super().main(arguments, prog_name or "hwq", standalone_mode=False, obj=interrupted)
            except Exception as error:
                if interrupted():  # whatever became of it on its way through the layers
                    _end_interrupted(arguments, as_json)
                if isinstance(error, click.ClickException):
                    _end(as_json, "usage", error.format_message(), error.exit_code, error.show)
                if debug_wanted():
                    traceback.print_exc()
                if isinstance(error, HwqError):
                    _end(as_json, error.code, in_options(error.message))
                _end(as_json, "internal", _internal(error))
            except KeyboardInterrupt:
                _end_interrupted(arguments, as_json)
        sys.exit(0)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, to ask inside the context. It raises KeyboardInterrupt as ever."""
    pressed: list[int] = []

    def note(number: int, _: Any) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: signals do not come here
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _end(
    as_json: bool, code: str, message: str, status: int = FAILED, show: Callable[[], None] | None = None
) -> NoReturn:
    """Say on stderr what was wrong, on stdout too where JSON is wanted, and end with ``status``."""
    if show is not None:
        show()
    else:
        click.echo(f"error: {message}", err=True)
    if as_json:
        click.echo(json.dumps({"error": {"code": code, "message": message}}))
    sys.exit(status)


def _end_interrupted(arguments: Sequence[str], as_json: bool) -> NoReturn:
    message = "interrupted"
    if any(name in RESUMABLE for name in arguments[:1]):
        message += ": what was finished is kept, and the same command goes on from there"
    _end(as_json, "interrupted", message, INTERRUPTED, lambda: click.echo(message, err=True))


def _internal(error: Exception) -> str:
    lines_ = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines_[-1]}" if lines_ else type(error).__name__
    return f"hwq itself failed ({reason}); please report this with what HWQ_DEBUG=1 prints"


def count(value: Any) -> int:
    """A whole number of at least 1, as an option's type. Raises click.BadParameter."""
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise click.BadParameter(f"{value!r} is no whole number of at least 1.")
    return number


def stages() -> Stages:
    """Progress on stderr: bars on a terminal, else lines. Each step looks for a Ctrl-C that some library swallowed."""
    console = Console(stderr=True)
    live = sys.stderr.isatty() and not console.is_dumb_terminal
    shown = bars(console) if live else lines(sys.stderr)
    interrupted: Callable[[], bool] = click.get_current_context().obj

    def look() -> None:
        if interrupted():
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[Callback]:
        with shown(name) as update:

            def step(done: int, total: int) -> None:
                look()
                update(done, total)

            yield step
            look()

    return stage


def _console() -> Console:
    """Where tables go: as wide as the terminal or COLUMNS, or wide enough for a file; lines may wrap, figures not."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(width=max(Console().width, LEAST_WIDTH) if known else FILE_WIDTH)


def emit(as_json: bool, value: Mapping[str, Any], show: Callable[[Console], None]) -> None:
    """Print the result: as one JSON object, or as tables by ``show``."""
    if as_json:
        click.echo(json.dumps(_strict(value), indent=1, allow_nan=False))
    else:
        show(_console())


def _strict(value: Any) -> Any:
    """``value`` as JSON can hold it: no infinities or NaN, which become null."""
    if isinstance(value, Mapping):
        return {str(key): _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
