"""Tables of 256 bytes in the epilogues of the templates: x86's shuffles (``x86.table``) or NEON's (``arm.table``)."""

from __future__ import annotations

from typing import Any

from hwq.graph import Shape
from hwq.schedules.arm import table as arm
from hwq.schedules.x86 import table as x86
from hwq.target import Target

# Bytes that each instruction looks up at once.
LANES: dict[str, int] = {**x86.LANES, arm.INSTRUCTION: arm.LANES}
TABLE = x86.TABLE


def instructions(target: Target) -> tuple[str, ...]:
    """Those that the target has, the best first; none where there are none for the type it stores."""
    return x86.instructions(target) or arm.instructions(target)


def entries_shape(instruction: str) -> Shape:
    """(rows, lanes) of the table as ``lookup`` wants it."""
    return arm.entries_shape() if instruction == arm.INSTRUCTION else x86.entries_shape(instruction)


def lookup(rows: Any, byte: Any, lane: Any) -> Any:
    """The table's entry for ``byte`` (uint8) in ``lane`` of a vector; rows is of ``entries_shape``."""
    found = arm if int(rows.shape[1]) == arm.LANES else x86
    return found.lookup(rows, byte, lane)
