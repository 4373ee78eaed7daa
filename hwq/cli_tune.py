"""The command that tunes: a job file in, better kernels in the store."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from hwq import report as reports
from hwq.options import json_option
from hwq.progress import LINE_EVERY_S, duration
from hwq.shell import emit, stages

if TYPE_CHECKING:
    from hwq.tune import Standing

# Tasks in the table at the end: those that won most.
SHOWN = 20


def line_of(target: str, standing: Standing) -> str:
    """How far tuning is, in one line."""
    if standing.measured < standing.tasks and not standing.trials:
        return f"tune {target}: defaults of {standing.measured} of {standing.tasks} kernels measured"
    of = "" if standing.total is None else f" of {standing.total}"
    left = "" if standing.left_s is None else f", {duration(standing.left_s)} left"
    won = f"{standing.won_s * 1e3:.3g} of {standing.whole_s * 1e3:.4g} ms won"
    return f"tune {target}: {reports.count(standing.tasks, 'task')}, {standing.trials}{of} trials{left}, {won}"


def teller(as_json: bool = False) -> Callable[[str, Standing], None]:
    """Prints ``line_of`` on stderr every few seconds, or each standing as a line of JSON; and looks for a Ctrl-C that
    some library swallowed."""
    interrupted: Callable[[], bool] = click.get_current_context().obj
    shown: list[float] = []

    def tell(target: str, standing: Standing) -> None:
        if interrupted():
            raise KeyboardInterrupt
        if as_json:
            print(json.dumps({"target": target, **asdict(standing)}), file=sys.stderr, flush=True)
            return
        done = standing.total is not None and standing.trials >= standing.total
        if not shown or done or time.monotonic() - shown[-1] >= LINE_EVERY_S:
            shown[:] = [time.monotonic()]
            print(line_of(target, standing), file=sys.stderr, flush=True)

    return tell


@click.command("tune", short_help="Find faster kernels for the networks of JOB.toml, on its targets.")
@click.argument("job_file", metavar="JOB.toml")
@json_option
def tune_command(job_file: str, as_json: bool) -> None:
    """Find faster kernels for the networks of JOB.toml on its targets, and keep them in the store, where compiles find
    them. Stopped or killed at any moment, the same command goes on from there. With --json progress is lines of JSON on
    stderr. What came of it is in report.json of the job's folder too, however it ends."""
    from hwq.job import run_job
    from hwq.job_file import read_job

    report = run_job(read_job(Path(job_file)), tell=teller(as_json), stages=stages())
    emit(as_json, report, lambda console: show(report, console))


def show(report: Mapping[str, Any], console: Console) -> None:
    """What a job came to, as tables."""
    for found in report["targets"]:
        standing = found["standing"]
        kept = "" if found["kept"] else "; an emulator's times mean nothing, so nothing is kept"
        console.print(
            f"{found['target']} ({found['cpu'] or 'this CPU'}): {standing['trials']} trials of "
            f"{reports.count(standing['tasks'], 'task')}{kept}",
            highlight=False,
            markup=False,
        )
        for network in found["networks"]:
            before, after = network["default_s"], network["best_s"]
            late = f", {network['unreached']} were not reached in the time" if network["unreached"] else ""
            console.print(
                f"  {Path(network['model']).name} {network['scheme']}: {network['tuned']} of {network['kernels']} "
                f"kernels can be tuned{late}; {before * 1e3:.4g} ms by default, {after * 1e3:.4g} ms tuned",
                highlight=False,
                markup=False,
            )
        for task in found["tasks"][:SHOWN]:
            if task["decision"] is not None:
                console.print(
                    f"    {task['name']}: {task['default_s'] * 1e6:.1f} -> {task['best_s'] * 1e6:.1f} us, "
                    f"{reports.count(task['count'], 'call')}, {task['trials']} trials",
                    highlight=False,
                    markup=False,
                )
        for name, reason in found["idle"].items():
            console.print(f"    {name} is left alone: {reason}", highlight=False, markup=False)
