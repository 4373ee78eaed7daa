"""What is read from /proc and /sys, on made-up trees: x86, ARM, unreadable, odd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hwq import cpu

X86 = """processor\t: 0
cpu family\t: 6
model\t\t: 106
model name\t: Some CPU @ 2.90GHz
stepping\t: 6
cpu MHz\t\t: 2899.998
flags\t\t: fpu sse2 avx2

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(X86)
    return path


def test_the_first_processor_is_read(cpuinfo: Path) -> None:
    assert cpu.cpu_flags(cpuinfo) == {"fpu", "sse2", "avx2"}
    assert cpu.cpu_model(cpuinfo) == "Some CPU @ 2.90GHz cpu family 6 model 106 stepping 6"
    assert cpu.clock_hz(cpuinfo, Path("no-such-folder")) == pytest.approx(2.899998e9)


def test_arm_names_its_flags_features(cpuinfo: Path) -> None:
    cpuinfo.write_text(ARM)
    assert cpu.cpu_flags(cpuinfo) == {"fp", "asimd", "asimddp"}
    assert cpu.cpu_model(cpuinfo) == "CPU implementer 0x41 CPU part 0xd0b"


def test_what_cannot_be_read_is_empty(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert cpu.cpu_flags(missing) == frozenset()
    assert cpu.cpu_model(missing) == "unknown"
    assert cpu.clock_hz(missing, missing) is None
    assert cpu.cache_bytes(missing) == {}


@pytest.mark.parametrize("text", ["", "nonsense", "cpu MHz : fast\n", "cpu MHz : 0\n", "cpu MHz : -3\n"])
def test_a_clock_that_is_no_clock_is_none(cpuinfo: Path, text: str) -> None:
    cpuinfo.write_text(text)
    assert cpu.clock_hz(cpuinfo, Path("no-such-folder")) is None


def test_the_stated_highest_clock_goes_before_the_present_one(cpuinfo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cpu0" / "cpufreq"
    folder.mkdir(parents=True)
    (folder / "cpuinfo_max_freq").write_text("3500000\n")
    assert cpu.clock_hz(cpuinfo, tmp_path) == 3.5e9


def test_caches_by_level_without_the_instruction_cache(tmp_path: Path) -> None:
    rows = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "1280K"), ("3", "Unified", "54M")]
    rows += [("4", "Unified", "odd"), ("x", "Unified", "1K")]
    for index, row in enumerate(rows):
        folder = tmp_path / "cpu0" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, value in zip(("level", "type", "size"), row, strict=True):
            (folder / name).write_text(value + "\n")
    assert cpu.cache_bytes(tmp_path) == {1: 48 << 10, 2: 1280 << 10, 3: 54 << 20}


def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu.cores() >= 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert cpu.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu.cores() == 1
