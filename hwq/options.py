"""What the shell commands have in common: options, and a look at an output before the work for it begins."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import click

from hwq.errors import HwqError
from hwq.lengths import check_dynamic
from hwq.shell import count

threads_option = click.option("--threads", type=count, help="Worker threads.  [default: those it was compiled for]")
device_option = click.option("--device", metavar="KEY", help="The board to run it on: KEY, or KEY@HOST:PORT.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")


class JobCommand(click.Command):
    """A command with --decoder, whose value may be left out: what stands behind it is one only if it is a cache's kind.

    click would take MODEL for it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """``args`` with the value that --decoder alone stands for."""
        if "--decoder" in args:
            from hwq.decode import CACHES

            behind = [*args[1:], ""]
            args = [
                f"{arg}={CACHES[0]}" if arg == "--decoder" and after not in CACHES else arg
                for arg, after in zip(args, behind, strict=True)
            ]
        return super().parse_args(ctx, args)


def read_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """input -> shape of texts as "input=1x3x8x8". Raises HwqError "shapes-invalid"."""
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        match = re.fullmatch(r"(.+)=([0-9]+(?:x[0-9]+)*)", text.strip())
        if match is None or match[1] in found:
            again = "" if match is None else ", of an input that has a shape already"
            message = f"--shape is {text!r}{again}; accepted: an input and its lengths, as image=1x3x224x224"
            raise HwqError("shapes-invalid", message)
        found[match[1]] = tuple(map(int, match[2].split("x")))
    return found


def read_dynamic(texts: tuple[str, ...]) -> dict[str, dict[int, tuple[int, int]]] | None:
    """``hwq.load``'s dynamic of "input:1=1..256", one or more of them, commas between; None of none.

    Raises HwqError "dynamic-invalid".
    """
    accepted = "accepted: an input, its axis and lengths, as input_ids:1=1..256"
    found: dict[str, dict[int, tuple[int, int]]] = {}
    for text in (part.strip() for given in texts for part in given.split(",")):
        match = re.fullmatch(r"(.+):([0-9]+)=([0-9]+)\.\.([0-9]+)", text)
        if match is None:
            raise HwqError("dynamic-invalid", f"--dynamic is {text!r}; {accepted}")
        axes = found.setdefault(match[1], {})
        if int(match[2]) in axes:
            raise HwqError("dynamic-invalid", f"--dynamic is {text!r}, of an axis that has lengths already; {accepted}")
        axes[int(match[2])] = int(match[3]), int(match[4])
    if found:
        try:
            check_dynamic(found)
        except HwqError as error:
            message = f"--dynamic is {','.join(texts)!r}; {accepted}, least before most, one range for all"
            raise HwqError(error.code, message) from None
    return found or None


def check_output(path: str | None) -> None:
    """Refuse before the work a file that could not be written after it. Raises HwqError "save-failed"."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    if Path(path).is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"there is no folder {str(folder)!r}"
    elif not os.access(path if Path(path).exists() and not Path(path).is_file() else folder, os.W_OK):
        reason = "no permission"
    else:
        return
    raise HwqError("save-failed", f"cannot write {path!r}: {reason}; accepted: a file in a writable folder")
