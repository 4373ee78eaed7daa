"""Every instruction of a CPU's file that multiplies weights is known to the templates, and is one CPU's."""

from __future__ import annotations

import pytest

from hwq.schedules.arm import ways as arm
from hwq.schedules.cpu.geometry import WAYS
from hwq.schedules.cpu.ways import Way
from hwq.schedules.x86 import ways as x86
from hwq.target import TARGETS_AT, Target

CPUS = [name for name in sorted(path.stem for path in TARGETS_AT.glob("*.toml")) if Target.load(name).kind == "llvm"]


def test_no_instruction_is_of_two_kinds_of_cpus() -> None:
    assert WAYS == x86.WAYS | arm.WAYS
    assert not x86.WAYS.keys() & arm.WAYS.keys()


@pytest.mark.parametrize("name", CPUS)
def test_every_instruction_of_a_template_is_known(name: str) -> None:
    templates = {"cpu/conv2d", "cpu/dense", "cpu/depthwise", "cpu/grouped"}
    rows = [row for row in Target.load(name).compute if row.weight != "none" and templates & set(row.schedules)]
    assert {row.instruction for row in rows if not row.instruction.startswith("amx.")} <= WAYS.keys()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_groups_fall_into_whole_parts_and_registers_into_whole_groups(way: Way) -> None:
    assert way.r % way.parts == 0
    assert way.reach % way.r == 0
