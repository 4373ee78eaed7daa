"""``hwq lab``: a shelf of boards, on TVM's own tracker and servers."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwq import board_server
from hwq.address import PORT, read_device, read_tracker
from hwq.errors import HwqError
from hwq.files import write_atomic
from hwq.options import check_output, json_option
from hwq.shell import FAILED, count, emit, stages
from hwq.target import Target

_TRACKER = "HOST:PORT of the tracker.  [default: HWQ_TRACKER, or 127.0.0.1:9190]"
_VERDICTS = {True: "fits", False: "does not fit", None: "not known"}

tracker_option = click.option("--tracker", metavar="HOST:PORT", help=_TRACKER)


@click.group("lab", short_help="Boards to measure on: tracker, server, list, check.")
def lab() -> None:
    """Boards to measure on. TVM's server runs what it is sent: keep tracker and boards in a network you trust."""


@lab.command("tracker", short_help="Run the tracker, which knows the boards.")
@click.option("--host", default="0.0.0.0", show_default=True, help="The address to listen on.")
@click.option("--port", type=count, default=PORT, show_default=True)
def tracker_command(host: str, port: int) -> None:
    """Run TVM's tracker, which knows what boards there are, until Ctrl-C."""
    _require_free(host, port)
    click.echo(f"tracker on port {port}; on each board: hwq lab serve --key KEY --tracker THIS_MACHINE:{port}")
    place = ["--host", host, "--port", str(port), "--port-end", str(port + 1)]
    _end_with(board_server.guarded([sys.executable, "-m", "tvm.exec.rpc_tracker", *place, "--silent"]))


def _require_free(host: str, port: int) -> None:
    """Raises HwqError "tracker-port" for a port that cannot be listened on."""
    try:
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            line.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = f"no tracker can listen on {host}:{port}: {reason}; accepted: --host and --port that are free here"
        raise HwqError("tracker-port", message) from error


@lab.command("serve", short_help="Serve this machine as a board.")
@click.option("--key", required=True, help="What boards of this kind are called, such as pi5.")
@tracker_option
@click.option("--host", default="0.0.0.0", show_default=True, help="The address to listen on.")
@click.option("--address", help="Where clients reach this board, if not as the tracker sees it.")
def serve_command(key: str, tracker: str | None, host: str, address: str | None) -> None:
    """Serve this machine as a board of KEY, by TVM's RPC server, until Ctrl-C."""
    board = read_device(f"{key}@{read_tracker(tracker)}")
    if board is None or board.key != key:
        accepted = "letters, digits, '.', '_' and '-', and not local"
        raise HwqError("device-invalid", f"device is {key!r}, which no client can name; accepted: {accepted}")
    options = ["--key", board.key, "--tracker", str(board.tracker), "--host", host]
    _end_with(board_server.main([*options, *(["--address", address] if address else [])]))


def _end_with(status: int) -> None:
    """End as the server did. Raises SystemExit."""
    if status:
        sys.exit(FAILED)


@lab.command("list", short_help="The boards that the tracker knows.")
@tracker_option
@json_option
def list_command(tracker: str | None, as_json: bool) -> None:
    """List the boards that the tracker knows: how many of each key, how many are free, and how many clients wait."""
    from hwq.tracker import shelves

    place = read_tracker(tracker)
    rows = {
        shelf.key: {
            "boards": len(shelf.addresses),
            "free": shelf.free,
            "waiting": shelf.waiting,
            "at": list(shelf.addresses),
        }
        for shelf in shelves(place)
    }

    def show(console: Console) -> None:
        if not rows:
            console.print(f"no boards at the tracker {place}", highlight=False)
            return
        table = Table("key", "boards", "free", "waiting", "at", box=None)
        for key, row in rows.items():
            table.add_row(key, str(row["boards"]), str(row["free"]), str(row["waiting"]), " ".join(_texts(row["at"])))
        console.print(table)

    emit(as_json, rows, show)


def _texts(values: Any) -> Sequence[str]:
    return [str(value) for value in values]


@lab.command("check", short_help="Whether boards are fit to measure on.")
@click.argument("board", metavar="KEY[@HOST:PORT]")
@click.option("--target", required=True, metavar="T", help="What the board should be: a target's name or file.")
@click.option("-o", "--output", metavar="OUT.toml", help="Measure the board's rates, and write its target file.")
@click.option("--emulated", is_flag=True, help="Write rates of an emulator too, though they mean nothing.")
@json_option
def check_command(board: str, target: str, output: str | None, emulated: bool, as_json: bool) -> None:
    """Check that each free board of KEY is what target T says: the same TVM, its instructions, a clock and timing that
    are steady.

    With -o the rates of one are measured, and a target file is written, for --target. Ends with 1 if one does not fit.
    """
    from hwq.lab import check, rates

    machine = Target.load(target)
    if read_device(board) is None:
        raise HwqError("device-invalid", "device is 'local', which is no board; accepted: KEY, or KEY@HOST:PORT")
    check_output(output)
    with stages()("check") as callback:
        checked = check(machine, board, callback)
    boards = [
        {"at": one.address, "fits": one.fits, "findings": [asdict(finding) for finding in one.findings]}
        for one in checked.boards
    ]
    found: dict[str, Any] = {"board": board, "target": machine.name, "fits": checked.fits, "boards": boards}
    found["unreached"] = checked.unreached
    text = None
    if output is not None and checked.fits:
        with contextlib.ExitStack() as ends:
            callback = ends.enter_context(stages()("measure"))
            text = rates(checked.boards[0], Path(output).stem, callback, emulated=emulated)
        write_atomic(output, text.encode())
        found["output"] = output
    emit(as_json, found, lambda console: _show(found, console))
    if not checked.fits:
        sys.exit(FAILED)


def _show(found: Mapping[str, Any], console: Console) -> None:
    for board in found["boards"]:
        table = Table("looked at", "verdict", "found", box=None)
        for finding in board["findings"]:
            table.add_row(finding["what"], _VERDICTS[finding["fits"]], Text(finding["found"]))
        console.print(table, highlight=False)
        verdict = _VERDICTS[board["fits"]]
        console.print(f"board {found['board']}, at {board['at']}, {verdict} target {found['target']}", highlight=False)
    if found["unreached"]:
        console.print(f"not checked: {found['unreached']} more, in use or not answering", highlight=False)
    if "output" in found:
        console.print(f"target file: {found['output']}", markup=False, highlight=False)
