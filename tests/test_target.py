"""Targets by name, by path and by CPU flags; what they say a layer may be; what they refuse."""

from __future__ import annotations

import json
import pickle
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from hwq import cpu, target
from hwq.errors import HwqError
from hwq.graph import ANCHORS, INTEGER_OPS
from hwq.target import TARGETS_AT, Target

GENERIC = frozenset(Target.load("x86-generic").cpu_flags)
AVX2 = frozenset(Target.load("x86-avx2").cpu_flags)
VNNI = frozenset(Target.load("x86-avx512-vnni").cpu_flags)
BF16 = frozenset(Target.load("x86-avx512-bf16").cpu_flags)
AMX = frozenset(Target.load("x86-amx").cpu_flags)
ARM = ("arm-apple-m2", "arm-cortex-a72", "arm-cortex-a76", "arm-neoverse-n2")


@pytest.fixture(autouse=True)
def _x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def test_each_tier_asks_for_all_that_the_one_below_asks_for() -> None:
    assert GENERIC < AVX2 < VNNI < BF16 < AMX


@pytest.mark.parametrize(
    ("flags", "mcpu", "instruction"),
    [
        (frozenset(), "x86-64", "generic.mul"),
        (GENERIC, "x86-64", "generic.mul"),
        (AVX2, "x86-64-v3", "avx2.vpmaddwd"),
        (AVX2 - {"fma"}, "x86-64", "generic.mul"),
        (AVX2 | {"avx_vnni"}, "x86-64-v3", "avx.vpdpbusd"),
        (VNNI | {"avx_vnni"}, "x86-64-v4", "avx512.vpdpbusd"),
        (AVX2 | {"avx512f", "avx512_vnni"}, "x86-64-v3", "avx2.vpmaddwd"),
        (VNNI, "x86-64-v4", "avx512.vpdpbusd"),
        (BF16, "x86-64-v4", "avx512.vpdpbusd"),
        (VNNI - {"avx512_vnni"}, "x86-64-v3", "avx2.vpmaddwd"),
        (AMX, "x86-64-v4", "amx.tdpbusd"),
    ],
)
def test_host_is_the_best_tier_whose_flags_are_all_there(flags: frozenset[str], mcpu: str, instruction: str) -> None:
    found = target.host(flags)
    row = found.instruction("conv2d", "int8", "int8")
    assert row is not None
    assert (found.name, found.mcpu, row.instruction) == ("host", mcpu, instruction)
    assert not found.missing_flags(flags) or found.mcpu == "x86-64"
    assert ("+amx-int8" in found.mattr) == (flags == AMX)
    assert ("+avx512bf16" in found.mattr) == (flags >= BF16)


def test_host_has_the_machines_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cores", lambda: 7)
    monkeypatch.setattr(cpu, "clock_hz", lambda: 1.25e9)
    found = target.host(VNNI, caches={1: 1000, 2: 2000, 3: 3000})
    assert (found.cores, found.clock_hz) == (7, 1.25e9)
    assert (found.l1_bytes, found.l2_bytes, found.l3_bytes) == (1000, 2000, 3000)
    assert dict(found.sources)["cores"] == dict(found.sources)["l1_bytes"] == "read from this machine"
    assert dict(found.sources)["vector_bits"].startswith("Intel")
    assert target.host(VNNI, caches={1: 1000, 2: 2000}).l3_bytes == 0


def test_host_keeps_the_files_numbers_where_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "clock_hz", lambda: None)
    found, file = target.host(AVX2, caches={}), Target.load("x86-avx2")
    assert (found.clock_hz, found.l2_bytes, found.l3_bytes) == (file.clock_hz, file.l2_bytes, file.l3_bytes)


def test_host_on_another_architecture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(HwqError, match=r"'aarch64'.*x86_64") as caught:
        Target.load("host")
    assert caught.value.code == "target-host"


def test_missing_flags_are_those_the_cpu_lacks() -> None:
    assert Target.load("x86-amx").missing_flags(VNNI) == (
        *("avx512vbmi", "avx512_bf16"),
        *("amx_tile", "amx_int8", "amx_bf16"),
    )
    assert Target.load("x86-avx2").missing_flags(VNNI) == ()
    assert Target.load("host").missing_flags() == ()


def test_a_cpu_of_another_kind_is_told_before_its_flags() -> None:
    arm = Target.load("arm-cortex-a76")
    assert (arm.architecture, Target.load("x86-generic").architecture) == ("aarch64", "x86_64")
    assert arm.missing_flags() == ("aarch64", *arm.cpu_flags)
    assert replace(arm, cpu_flags=()).missing_flags() == ("aarch64",)
    assert arm.missing_flags(arm.cpu_flags) == ()


def test_a_machine_is_the_same_wherever_it_is_reached() -> None:
    arm = Target.load("arm-cortex-a72")
    there = arm.on("kitchen@192.0.2.1:9190")
    assert there.device == "kitchen@192.0.2.1:9190"
    assert there.on("local") == arm
    found = replace(there, cpu_model="CPU implementer 0x41")
    assert found.known_as == there.known_as == "arm-cortex-a72"
    assert found.fingerprint != replace(found, cpu_model="another").fingerprint
    assert replace(found, cpu_model="emulated max").emulated
    assert not found.emulated
    host = Target.load("host")
    assert (host.known_as, host.on("kitchen").known_as) == ("host", "host (a file)")


def test_load_by_path_is_load_by_name(tmp_path: Path) -> None:
    copy = tmp_path / "mine.toml"
    copy.write_text((TARGETS_AT / "x86-avx2.toml").read_text())
    assert Target.load(copy) == Target.load(str(copy)) == Target.load("x86-avx2")
    assert Target.load(Target.load(copy)) == Target.load(copy)


@pytest.mark.parametrize("which", ["x86-avx22", "", "HOST", 3, None])
def test_an_unknown_name_lists_those_there_are(which: object) -> None:
    with pytest.raises(HwqError) as caught:
        Target.load(which)  # type: ignore[arg-type]
    assert caught.value.code == "target-unknown"
    for name in ("host", "x86-avx512-vnni", "arm-cortex-a72", "path to a .toml"):
        assert name in caught.value.message


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(HwqError, match=r"did you mean 'x86-avx512-vnni'\?"):
        Target.load("x86-avx512vnni")


def test_a_path_that_is_not_there_names_the_path() -> None:
    with pytest.raises(HwqError, match=r"no/such\.toml.*No such file") as caught:
        Target.load("no/such.toml")
    assert caught.value.code == "target-missing"


def test_names_are_those_of_the_folder() -> None:
    listed = target.names()
    assert [name for name, _ in listed] == sorted(path.stem for path in TARGETS_AT.glob("*.toml"))
    assert all(text and "\n" not in text for _, text in listed)


def test_schemes_come_from_the_compute_rows() -> None:
    found = Target.load("x86-avx512-vnni")
    by_rows = ("w8a8_dyn", "w4a8_g64_dyn", "w4a16_g128")
    assert found.schemes_for("dense") == ("f32", "w8a8", "w4a8", "w4a8_g64", *by_rows)
    assert found.schemes_for("gather") == ("f32", "w8a8_dyn", "w4a16_g128")
    assert all(found.schemes_for(op) == ("f32", "w8a8", "w4a8") for op in ANCHORS if op != "dense")
    assert all(found.schemes_for(op) == ("f32", "w8a8") for op in INTEGER_OPS)
    assert found.schemes_for("softmax") == ("f32",)
    only_int4 = replace(found, compute=tuple(row for row in found.compute if row.weight == "int4"))
    assert only_int4.schemes_for("dense") == ("w4a8",)
    assert only_int4.schemes_for("add") == ()


def test_the_first_row_that_lists_the_operator_and_types_is_used() -> None:
    found = Target.load("x86-avx512-vnni")
    first = found.instruction("conv2d", "int8", "int8")
    assert first is not None
    double = replace(first, macs_per_cycle=2 * first.macs_per_cycle)
    assert replace(found, compute=(double, *found.compute)).instruction("conv2d", "int8", "int8") == double
    assert replace(found, compute=(*found.compute, double)).instruction("conv2d", "int8", "int8") == first
    assert found.instruction("conv2d", "float32", "int8") is None
    adds = found.instruction("add", "int8", "int8")
    assert adds is not None
    assert adds.weight == "none"


def test_storage_and_lanes() -> None:
    vnni, arm = Target.load("x86-avx512-vnni"), Target.load("arm-cortex-a76")
    assert (vnni.activation_storage, vnni.activation_offset) == ("uint8", 128)
    assert (arm.activation_storage, arm.activation_offset) == ("int8", 0)
    assert [vnni.lanes(kind) for kind in ("float32", "int32", "int16", "uint8", "int8")] == [16, 16, 32, 64, 64]
    assert arm.lanes() == 4


@pytest.mark.parametrize("name", ["cuda-t4", "cuda-h100"])
def test_a_machine_without_kernels_refuses_to_build(name: str) -> None:
    with pytest.raises(HwqError) as caught:
        Target.load(name).require_builds()
    assert caught.value.code == "target-no-build"
    able = ", ".join(["host", *ARM, *sorted(target.HOST_TIERS)])
    assert caught.value.message == f"target {name} cannot be built yet; targets that can: {able}"


@pytest.mark.parametrize("name", ["host", *target.HOST_TIERS, *ARM])
def test_a_machine_with_kernels_builds(name: str) -> None:
    Target.load(name).require_builds()


def test_the_fingerprint_is_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = target.host(VNNI, caches={1: 1, 2: 2, 3: 3})
    same = (replace(found, clock_hz=1.0), replace(found, cpu_flags=found.cpu_flags[::-1]), replace(found, sources=()))
    assert {other.fingerprint for other in same} == {found.fingerprint}
    others = (
        replace(found, cpu_model="other"),
        replace(found, cores=found.cores + 1),
        replace(found, mattr=()),
        replace(found, cpu_flags=found.cpu_flags[1:]),
        replace(found, l2_bytes=5),
    )
    assert len({other.fingerprint for other in (found, *others)}) == 6
    here = Target.load("x86-avx2").fingerprint
    monkeypatch.setattr(cpu, "cpu_model", lambda: "another machine")
    assert Target.load("x86-avx2").fingerprint != here, "a file's target is measured by the machine it is measured on"


@pytest.mark.parametrize("name", ["host", "x86-avx2", "arm-cortex-a72"])
def test_a_target_survives_json_and_pickle(name: str) -> None:
    found = Target.load(name)
    again = Target.from_dict(json.loads(json.dumps(found.to_dict())))
    assert (again, again.sources, again.fingerprint) == (found, found.sources, found.fingerprint)
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize("values", [{}, {"compute": []}, {"compute": 3}, {"compute": [{"ops": []}]}])
def test_a_stored_target_that_is_wrong_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(HwqError) as caught:
        Target.from_dict(values)
    assert caught.value.code == "target-invalid"
