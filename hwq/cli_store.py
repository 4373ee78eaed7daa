"""The commands around the store: what it holds, and rows from and for other machines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from hwq.errors import HwqError
from hwq.options import check_output, json_option
from hwq.report import count
from hwq.shell import emit


def _store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--store", metavar="FILE", help="The store.  [default: records.sqlite in the cache]")(command)


def _path(store: str | None) -> Path:
    from hwq.cache import default_store_path

    return default_store_path() if store is None else Path(store)


@click.group("store", short_help="List, export, import or merge what was measured and tuned.")
def store_group() -> None:
    """What was measured, tried and decided: list it, send it elsewhere, take over what others found.

    What another machine or other versions of the tools measured can be kept here, and is never used here.
    """


@store_group.command("list", short_help="What the store holds, by machine and tools.")
@_store_option
@click.option("--target", "targets", metavar="T.toml", multiple=True, help="Tell this machine's rows by its name too.")
@json_option
def list_command(store: str | None, targets: tuple[str, ...], as_json: bool) -> None:
    """Count records, trials and decisions for each machine and version of the tools, and say which are usable here."""
    path = _path(store)
    found = {"store": str(path), "groups": groups(path, targets)}
    emit(as_json, found, lambda console: _show(found, console))


def groups(path: Path, targets: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What a store holds, for each fingerprint and tools. target: the name of a target with this fingerprint, None for
    a machine unknown here. usable: whether a compile here may use the rows. targets: more target files to tell by."""
    from hwq.store import contents, tool_versions
    from hwq.target import Target, names

    # By rising importance: a name that stands later tells a machine that several files describe.
    known: dict[str, tuple[str | None, bool]] = {}
    for name in (*(name for name, _ in names()), *targets, "host"):
        with contextlib.suppress(HwqError) if name == "host" else contextlib.nullcontext():
            target = Target.load(name)
            usable = target.builds and target.device == "local" and not target.missing_flags()
            known[target.fingerprint] = (target.name, usable)
    tools, held = tool_versions(), contents(path)
    counts: dict[tuple[str, str], dict[str, Any]] = {}
    for kind in ("records", "trials", "decisions"):
        for row in getattr(held, kind):
            group = counts.setdefault((row.key.target, row.key.tools), {"records": 0, "trials": 0, "decisions": 0})
            group[kind] += 1
    found = []
    for (fingerprint, made_by), group in sorted(counts.items()):
        machine, usable = known.get(fingerprint, (None, False))
        same = made_by == tools
        found.append(
            {"fingerprint": fingerprint, "target": machine, "tools": made_by, **group, "usable": usable and same}
        )
    return found


def _show(found: Mapping[str, Any], console: Console) -> None:
    console.print(f"store: {found['store']}", highlight=False, markup=False)
    if not found["groups"]:
        console.print("nothing was measured yet")
        return
    table = Table(box=box.SIMPLE)
    for name in ("machine", "tools", "records", "trials", "decisions", "usable here"):
        table.add_column(name, justify="right" if name in ("records", "trials", "decisions") else "left")
    for one in found["groups"]:
        figures = (str(one[name]) for name in ("records", "trials", "decisions"))
        machine = one["target"] or f"unknown here ({one['fingerprint']})"
        table.add_row(machine, one["tools"], *figures, "yes" if one["usable"] else "no")
    console.print(table)


@store_group.command("export", short_help="Write the store as JSON.")
@click.argument("output", metavar="OUT.json")
@_store_option
@json_option
def export_command(output: str, store: str | None, as_json: bool) -> None:
    """Write all that the store holds to OUT.json, which `hwq store import` reads on another machine."""
    from hwq.store_text import export

    check_output(output)
    held = export(_path(store), Path(output))
    found = {"output": output, "rows": len(held.rows)}
    emit(as_json, found, lambda console: console.print(f"{output}: {count(len(held.rows), 'row')}", markup=False))


@store_group.command("import", short_help="Take over the rows of a JSON file.")
@click.argument("source", metavar="IN.json")
@_store_option
@json_option
def import_command(source: str, store: str | None, as_json: bool) -> None:
    """Take over the rows of IN.json, all or none; of two under one key the later measurement stays."""
    from hwq.store_text import imported

    _came(source, imported(_path(store), Path(source)), as_json)


@store_group.command("merge", short_help="Take over the rows of another store.")
@click.argument("other", metavar="OTHER")
@_store_option
@json_option
def merge_command(other: str, store: str | None, as_json: bool) -> None:
    """Take over the rows of the store OTHER, all or none; of two under one key the later measurement stays."""
    from hwq.store import merge

    _came(other, merge(_path(store), Path(other)), as_json)


def _came(source: str, rows: int, as_json: bool) -> None:
    line = f"{source}: {count(rows, 'row')} taken over"
    emit(as_json, {"source": source, "rows": rows}, lambda console: console.print(line, highlight=False, markup=False))
