"""Every shipped target file parses, has a source for every number, names schedules there are, and TVM accepts it.

The x86 files must not let the compiler use what their cpu_flags do not ask for, and must let it use whole vectors.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import tvm
from tvm import te
from tvm.s_tir import Schedule

from hwq.graph import ANCHORS, INTEGER_OPS
from hwq.target import HOST_TIERS, SCHEDULES_AT, TARGETS_AT, Target
from hwq.target_file import tomllib

NAMES = sorted(path.stem for path in TARGETS_AT.glob("*.toml"))
# LLVM's features and the kernel's words for them, where they differ; LLVM's own bookkeeping is left out.
IN_CPUINFO = {
    "64bit": "",
    "64bit-mode": "",
    "crc32": "sse4_2",  # the kernel has no flag of its own for the instruction that came with SSE4.2
    "cx8": "cx8",
    "lzcnt": "abm",
    "sahf": "lahf_lm",
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "bmi": "bmi1",
    "x87": "fxsr",
    "evex512": "avx512f",
    "avxvnni": "avx_vnni",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
}
TUNING = re.compile(r"fast|slow|prefer|macrofusion|branchfusion|idivq|false-deps|nopl|vzeroupper|allow-light|no-bypass")


def test_there_are_targets() -> None:
    assert {*HOST_TIERS, "arm-cortex-a72", "arm-cortex-a76", "arm-neoverse-n2", "cuda-t4", "cuda-h100"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_named_after_its_target(name: str) -> None:
    assert Target.load(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source(name: str) -> None:
    table = tomllib.loads((TARGETS_AT / f"{name}.toml").read_text())
    for key, value in table["target"].items():
        assert isinstance(value, bool) or not isinstance(value, int | float), f"{key} is a bare number"
        if isinstance(value, dict):
            assert len(value["source"]) > 9, key
    assert all(len(row["source"]) > 9 for row in table["compute"])


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_can_be_computed(name: str) -> None:
    found = Target.load(name)
    for op in (*ANCHORS, *INTEGER_OPS):
        assert {"f32", "w8a8"} <= set(found.schemes_for(op)), op
    assert all((SCHEDULES_AT / f"{schedule}.py").is_file() for row in found.compute for schedule in row.schedules)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_of_a_machine_that_could_be(name: str) -> None:
    found = Target.load(name)
    assert 1e9 <= found.clock_hz <= 6e9
    assert found.l1_bytes < found.l2_bytes
    assert found.l3_bytes == 0 or found.l2_bytes < found.l3_bytes
    assert (found.l3_bytes == 0) == (found.l3_bytes_per_s == 0)
    assert 1e-7 < found.parallel_overhead_s < 1e-3
    int8, int4 = (found.instruction("conv2d", weight, "int8") for weight in ("int8", "int4"))
    assert int8 is not None
    assert int4 is not None
    assert int4.macs_per_cycle <= int8.macs_per_cycle


@pytest.mark.parametrize("name", NAMES)
def test_tvm_accepts_it(name: str) -> None:
    found = Target.load(name)
    made = found.tvm()
    assert made.kind.name == found.kind
    if found.kind == "llvm":
        assert made.attrs["num-cores"] == found.cores
        assert found.mcpu in tvm.target.codegen.llvm_get_cpu_archlist(made)


def _features(found: Target) -> set[str]:
    """The names of the features that LLVM turns on for the target, without those that only tune."""
    on = tvm.target.codegen.llvm_get_cpu_features(found.tvm())
    return {str(name) for name in on if not TUNING.search(str(name))}


@pytest.mark.parametrize("name", [*HOST_TIERS, "host"])
def test_the_compiler_may_use_no_more_than_the_flags_asked_for(name: str) -> None:
    found = Target.load(name)
    allowed = {IN_CPUINFO.get(feature, feature) for feature in _features(found)} - {""}
    assert allowed <= set(found.cpu_flags)


def _assembly(found: Target, lanes: int | None) -> str:
    """Code for out[i] = a[i] * b[i] + a[i], float32, vectorized by ``lanes`` (None: left to LLVM)."""
    a, b = (te.placeholder((4096,), "float32", name) for name in "ab")
    func: Any = te.create_prim_func([a, b, te.compute((4096,), lambda i: a[i] * b[i] + a[i], "out")])
    schedule = Schedule(tvm.IRModule({"main": func}))
    (loop,) = schedule.get_loops(schedule.get_sblock("out"))
    if lanes is not None:
        schedule.vectorize(schedule.split(loop, [None, lanes])[1])
    return str(tvm.compile(schedule.mod, found.tvm()).mod.inspect_source("asm"))


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize(
    ("name", "register", "wider"),
    [
        ("x86-generic", "xmm", "ymm"),
        ("x86-avx2", "ymm", "zmm"),
        ("x86-avx-vnni", "ymm", "zmm"),
        ("x86-avx512-vnni", "zmm", None),
        ("x86-avx512-bf16", "zmm", None),
        ("x86-amx", "zmm", None),
    ],
)
def test_the_whole_vector_is_used_and_no_wider_one(name: str, register: str, wider: str | None, by_hand: bool) -> None:
    found = Target.load(name)
    assembly = _assembly(found, found.lanes() if by_hand else None)
    assert re.search(rf"(mulps|vfmadd\w+ps)\s.*%{register}", assembly)
    assert wider is None or f"%{wider}" not in assembly
