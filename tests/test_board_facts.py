"""What a board's processors are, where they are of several kinds: the fastest speak for it."""

from __future__ import annotations

from pathlib import Path

from hwq import cpu
from hwq.board_facts import fastest, processors

A53, A72 = "0xd03", "0xd08"


def _info(*parts: str) -> str:
    """/proc/cpuinfo of an Arm board with these parts, in order."""
    blocks = [
        f"processor\t: {number}\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
        for number, part in enumerate(parts)
    ]
    return "\n".join([*blocks, "Hardware\t: a board\n"])


def test_big_processors_behind_little_ones(tmp_path: Path) -> None:
    info = _info(*[A53] * 4, A72, A72)
    big, clock_hz = fastest(info, {**dict.fromkeys(range(4), "1416000"), 4: "1800000", 5: "1800000"})
    assert (big, clock_hz) == ((4, 5), 1.8e9)
    (tmp_path / "cpuinfo").write_text(processors(info)[big[0]])
    assert cpu.cpu_model(tmp_path / "cpuinfo") == f"CPU implementer 0x41 CPU part {A72}"


def test_processors_that_are_alike() -> None:
    assert fastest(_info(*[A72] * 4), dict.fromkeys(range(4), "1500000")) == ((0, 1, 2, 3), 1.5e9)


def test_all_where_linux_does_not_state_every_clock() -> None:
    info = _info(A53, A72)
    assert fastest(info, {0: "", 1: ""}) == ((0, 1), None)
    assert fastest(info, {0: "", 1: "1800000"}) == ((0, 1), None)
    assert fastest("", {}) == ((), None)


def test_more_than_ten_are_ordered_by_number() -> None:
    assert fastest(_info(*[A72] * 12), dict.fromkeys(range(12), ""))[0] == tuple(range(12))
