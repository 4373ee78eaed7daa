"""The probe: what it measures is a rate a machine can have, and the file it writes reads back.

Rates are not compared with each other or with a file: on a shared machine any of them may be off, once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hwq import probe
from hwq.cost import op_macs
from hwq.errors import HwqError
from hwq.target import TARGETS_AT, Target

NAMES = sorted(path.stem for path in TARGETS_AT.glob("*.toml"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_REPEATS", 1)
    monkeypatch.setattr(probe, "_LARGEST_BUFFER_BYTES", 1 << 20)


@pytest.mark.parametrize("name", NAMES)
def test_a_target_written_reads_back(name: str, tmp_path: Path) -> None:
    found = Target.load(name)
    (tmp_path / "mine.toml").write_text(probe.to_toml(found), encoding="utf-8")
    again = Target.load(tmp_path / "mine.toml")
    assert again == found
    assert dict(again.sources) == dict(found.sources)


def test_texts_with_quotes_and_other_letters_read_back(tmp_path: Path) -> None:
    found = replace(Target.load("x86-avx2"), name='a "b" \\ µ', description="5 µm\tor so")
    (tmp_path / "mine.toml").write_text(probe.to_toml(found), encoding="utf-8")
    assert Target.load(tmp_path / "mine.toml") == found


def test_the_probe_measures_every_rate_of_this_machine(tmp_path: Path) -> None:
    host = replace(Target.load("host"), l2_bytes=1 << 18, l3_bytes=1 << 20, compute=Target.load("host").compute[4:6])
    seen: list[tuple[int, int]] = []
    text = probe.probe(host, "here", lambda done, total: seen.append((done, total)))
    (tmp_path / "here.toml").write_text(text, encoding="utf-8")
    found = Target.load(tmp_path / "here.toml")
    assert (found.name, found.mcpu, found.cores, found.cpu_flags) == ("here", host.mcpu, host.cores, host.cpu_flags)
    for field in ("l2_bytes_per_s", "l3_bytes_per_s", "memory_bytes_per_s"):
        assert 1e8 < getattr(found, field) < 1e13, field
        assert dict(found.sources)[field] == "measured: hwq targets probe"
    assert 1e-7 <= found.parallel_overhead_s < 1e-2
    assert all(0.01 < row.macs_per_cycle < 1000 for row in found.compute)
    assert {row.source for row in found.compute} == {"measured: hwq targets probe"}
    assert seen == [(done, 6) for done in range(1, 7)]


def test_a_row_without_a_kernel_keeps_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise HwqError("kernel-missing", "no kernel")

    monkeypatch.setattr(probe, "kernel_for", none)
    host = Target.load("host")
    assert probe.macs_per_cycle(host.compute[0], host) is None


def test_a_machine_that_cannot_be_built_for_is_refused() -> None:
    with pytest.raises(HwqError) as caught:
        probe.probe(Target.load("cuda-t4"), "x")
    assert caught.value.code == "target-no-build"


def test_a_cpu_that_lacks_the_flags_is_refused() -> None:
    other = replace(Target.load("x86-avx2"), cpu_flags=("sse2", "no_such_flag"))
    with pytest.raises(HwqError, match="lacks no_such_flag") as caught:
        probe.probe(other, "x")
    assert caught.value.code == "cpu-lacks"


@pytest.mark.parametrize("name", NAMES)
def test_buffers_fit_their_level_and_not_the_one_above(name: str) -> None:
    found = Target.load(name)
    sizes = probe.buffer_bytes(found)
    assert found.l1_bytes < sizes["l2_bytes_per_s"] <= found.l2_bytes
    if found.l3_bytes:
        assert found.l2_bytes < sizes["l3_bytes_per_s"] <= found.l3_bytes
    else:
        assert "l3_bytes_per_s" not in sizes
    assert sizes["memory_bytes_per_s"] > max(found.l2_bytes, found.l3_bytes)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_a_typical_layer(name: str) -> None:
    for row in Target.load(name).compute:
        workload = probe.typical_workload(row)
        assert op_macs(workload) > 10_000
        assert workload.op == row.ops[0] or (row.ops[0] == "*" and workload.op == "conv2d")
        assert (workload.scheme == "w4a8") == (row.weight == "int4")
