"""A store's rows as JSON text, to be sent, read and merged elsewhere; what comes back is checked before any of it is
taken over."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from hwq.errors import HwqError
from hwq.files import write_atomic
from hwq.store import Contents, Decision, Key, Record, Trial, contents, take_over

FORMAT = "hwq store"
VERSION = 2

_R = TypeVar("_R", Record, Trial, Decision)
_TEXT, _SECONDS, _COUNT = "a text", "seconds above 0", "a whole number of at least 1"
_MAYBE_SECONDS, _MAYBE_TEXT, _SPREAD = "seconds above 0, or null", "a text, or null", "seconds, 0 or more"
_WHEN = "seconds since 1970 that are not in the future"
# Clocks of other machines may be ahead. A row of a later time would never give way to one that is measured here.
AHEAD_S = 24 * 3600.0
_ACCEPTED = {
    Record: {"median_s": _SECONDS, "spread_s": _SPREAD, "runs": _COUNT},
    Trial: {
        "decision": _TEXT,
        "code": _TEXT,
        "seconds": _MAYBE_SECONDS,
        "default_s": _MAYBE_SECONDS,
        "reason": _MAYBE_TEXT,
    },
    Decision: {"decision": _TEXT, "code": _TEXT, "median_s": _SECONDS, "default_s": _SECONDS},
}


def export(path: Path, output: Path) -> Contents:
    """Write all rows of the store ``path`` to ``output`` as JSON; gives them.

    Raises HwqError "store-missing" if there is no store, "save-failed", and as the store does.
    """
    if not path.exists():
        raise HwqError("store-missing", f"store {path} does not exist; accepted: one that hwq has measured into")
    found = contents(path)
    rows = {name: [_plain(row) for row in getattr(found, name)] for name in _KINDS}
    write_atomic(output, json.dumps({"format": FORMAT, "version": VERSION, **rows}, indent=1).encode())
    return found


def imported(path: Path, source: Path) -> int:
    """Add the rows of the JSON file ``source`` to the store ``path``, by ``store.take_over``; gives how many came in.

    Raises HwqError "store-missing" if there is no such file, "store-import" if it is not what ``export`` writes: then
    nothing is taken over.
    """
    return take_over(path, read_text(source).rows)


def read_text(source: Path) -> Contents:
    """The rows of what ``export`` wrote. Raises as ``imported``."""
    try:
        values = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"file {source} cannot be read: {error.strerror or error}; accepted: what hwq store export writes"
        raise HwqError("store-missing", message) from error
    except (ValueError, RecursionError) as error:
        raise _wrong(source, f"is no JSON ({error})") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise _wrong(source, f'does not begin with "format": {json.dumps(FORMAT)}')
    if values.get("version") != VERSION:
        raise _wrong(source, f"has version {values.get('version')!r}, and {VERSION} is accepted")
    if sorted(values) != sorted(("format", "version", *_KINDS)):
        raise _wrong(source, f"has the keys {', '.join(sorted(values))}, and format, version, {', '.join(_KINDS)} are")
    for name in _KINDS:
        if not isinstance(values[name], list):
            raise _wrong(source, f"has {name} that are no list")
    return Contents(
        records=tuple(_row(source, f"records[{n}]", Record, one) for n, one in enumerate(values["records"])),
        trials=tuple(_row(source, f"trials[{n}]", Trial, one) for n, one in enumerate(values["trials"])),
        decisions=tuple(_row(source, f"decisions[{n}]", Decision, one) for n, one in enumerate(values["decisions"])),
    )


_KINDS = ("records", "trials", "decisions")


def _plain(row: Record | Trial | Decision) -> dict[str, Any]:
    values = asdict(row)
    return {**values.pop("key"), **values}


def _row(source: Path, place: str, kind: type[_R], values: Any) -> _R:
    names = (*(item.name for item in fields(Key)), *_ACCEPTED[kind], "measured_at")
    if not isinstance(values, Mapping) or sorted(values) != sorted(names):
        raise _wrong(source, f"has {place} with other keys than {', '.join(names)}")
    for name in names:
        wanted = _ACCEPTED[kind].get(name, _WHEN if name == "measured_at" else _TEXT)
        if not _fits(values[name], wanted):
            raise _wrong(source, f"has {place}.{name} that is {values[name]!r:.80}, and {wanted} is accepted")
    if (
        kind is Trial
        and len({values["reason"] is not None, values["seconds"] is None, values["default_s"] is None}) > 1
    ):
        raise _wrong(source, f"has {place} with a reason and seconds, or with neither")
    key = Key(**{item.name: values[item.name] for item in fields(Key)})
    own: dict[str, Any] = {name: values[name] for name in names if name not in key.__slots__}
    for name, value in own.items():
        if type(value) is int and name != "runs":  # seconds that may be more than the store's whole numbers
            own[name] = float(value)
    return kind(key=key, **own)


def _fits(value: Any, wanted: str) -> bool:
    if wanted in (_MAYBE_SECONDS, _MAYBE_TEXT) and value is None:
        return True
    if wanted in (_TEXT, _MAYBE_TEXT):
        return isinstance(value, str) and _encodes(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if wanted == _COUNT:
        return isinstance(value, int) and 1 <= value < 2**63
    limit = time.time() + AHEAD_S if wanted == _WHEN else sys.float_info.max
    return 0 <= value <= limit and (value > 0 or wanted in (_SPREAD, _WHEN))


def _encodes(text: str) -> bool:
    """Whether the store can hold it: JSON can spell half a character, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(source: Path, reason: str) -> HwqError:
    message = f"file {source} {reason}; nothing was taken over; accepted: what hwq store export writes"
    return HwqError("store-import", message)
