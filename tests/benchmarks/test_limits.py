"""The machine's limits: loops of one instruction and nothing else, and rates that a machine can have."""

from __future__ import annotations

import re
from dataclasses import replace

import limits
import pytest
import tvm
from limits import TILE, VECTOR, Instruction, Limits, measurable, shown, tile_loop, vector_loop, with_feature

from hwq.target import Target

MNEMONIC = {"fma": "vfmadd"}


def _target(instruction: Instruction) -> Target:
    name = "x86-avx2" if instruction.name == "vpmaddwd" else "x86-amx" if instruction in TILE else "x86-avx512-vnni"
    return with_feature(Target.load(name), instruction)


def _loops(assembly: str, mnemonic: str) -> list[list[str]]:
    """The instructions between a label and a jump back to it, of the loops that hold ``mnemonic``."""
    found, lines = [], [line.strip() for line in assembly.splitlines()]
    places = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.LBB\w+:", line)}
    for i, line in enumerate(lines):
        jump = re.match(r"j\w+\s+(\.LBB\w+)$", line)
        if jump and places.get(jump[1], i) < i:
            body = [it for it in lines[places[jump[1]] : i] if it and it[0] not in ".#" and not it.endswith(":")]
            if any(it.startswith(mnemonic) for it in body):
                found.append(body)
    return found


@pytest.mark.parametrize("instruction", [*VECTOR, *TILE], ids=lambda it: it.name)
def test_the_loop_is_the_instruction_alone(instruction: Instruction) -> None:
    target = _target(instruction)
    tiles = instruction in TILE
    func = tile_loop(instruction) if tiles else vector_loop(instruction, target.lanes(instruction.sums))
    module = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target.tvm())
    mnemonic = MNEMONIC.get(instruction.name, instruction.name)
    body = min(_loops(module.mod.inspect_source("asm"), mnemonic), key=len)
    count = sum(line.startswith(mnemonic) for line in body)
    assert count % (4 if tiles else limits.CHAINS) == 0
    sums = [line for line in body if line.startswith("vpaddd")]
    assert len(sums) == (count if instruction.name == "vpmaddwd" else 0)
    other = [line for line in body if not line.startswith((mnemonic, "vpaddd"))]
    assert len(other) <= 2, other  # the count and its comparison
    assert not [line for line in body if "(" in line], "something is read or written in the loop"


def test_what_the_target_names_and_the_cpu_has_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "cpu_flags", lambda: frozenset({"amx_int8", "avx512_bf16"}))
    assert [it.name for it in measurable(Target.load("x86-avx512-vnni"))] == ["fma", "vpdpbusd", "vdpbf16ps", "tdpbusd"]
    assert [it.name for it in measurable(Target.load("x86-avx2"))] == ["fma", "vpmaddwd"]
    assert measurable(Target.load("x86-generic")) == []


def test_limits_are_rates_that_a_machine_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROUNDS", 1)
    monkeypatch.setattr("hwq.probe._REPEATS", 1)
    monkeypatch.setattr("hwq.probe._LARGEST_BUFFER_BYTES", 1 << 20)
    host = replace(Target.load("host"), l2_bytes=1 << 18, l3_bytes=1 << 20)
    found = limits.measure(host)
    assert list(found.bytes_per_s) == ["L1", "L2", "L3", "memory"]
    assert list(found.macs_per_s) == [it.name for it in measurable(host)]
    assert all(1e8 < rate < 1e13 for rate in (*found.bytes_per_s.values(), *found.macs_per_s.values()))


def test_limits_are_shown_with_units() -> None:
    text = shown(Limits(macs_per_s={"fma": 58.7e9}, bytes_per_s={"L1": 2e11}))
    assert text == "One core, measured now: fma 58.7 GMAC/s; reads L1 200.0 GB/s"
