"""Each kind of CPU looks tables up by its own instructions, and only in the type it stores."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kernel_runs import assembly, make

from hwq.graph import Activation
from hwq.schedule import kernel_for
from hwq.schedules.cpu import lookup
from hwq.target import Target


@pytest.mark.parametrize(
    ("name", "found"),
    [("x86-generic", ()), ("x86-avx2", ("vpshufb",)), ("arm-cortex-a72", ("tbl",)), ("arm-cortex-a76", ("tbl",))],
)
def test_instructions_of_a_target(name: str, found: tuple[str, ...]) -> None:
    target = Target.load(name)
    assert lookup.instructions(target) == found
    other = {"uint8": "int8", "int8": "uint8"}[target.activation_storage]
    assert lookup.instructions(replace(target, activation_storage=other)) == ()


@pytest.mark.parametrize("instruction", sorted(lookup.LANES))
def test_rows_hold_the_table_once_or_more(instruction: str) -> None:
    rows, lanes = lookup.entries_shape(instruction)
    assert lanes == lookup.LANES[instruction]
    assert rows * lanes % lookup.TABLE == 0


@pytest.mark.parametrize(
    ("name", "instructions"),
    [("x86-avx512-bf16", {"vpermi2b", "vpermt2b"}), ("x86-avx2", {"vpshufb"}), ("arm-cortex-a76", {"tbl"})],
)
def test_a_dense_layer_looks_its_bytes_up_by_vectors(name: str, instructions: set[str]) -> None:
    gelu = Activation(kind="gelu")
    target = Target.load(name)
    kernel = kernel_for(replace(make("dense", "w8a8", [(4, 64)], (4, 128), activation=gelu), has_bias=True), target)
    assert kernel.schedule.startswith("cpu/dense:")
    used = {line.split()[0] for line in assembly(kernel, target) if line.split()}
    assert instructions & used
