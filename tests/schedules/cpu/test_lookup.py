"""Each kind of CPU looks tables up by its own instructions, and only in the type it stores."""

from __future__ import annotations

from dataclasses import replace

import pytest

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
    ("name", "instruction"), [("x86-avx512-bf16", "vpermi2b"), ("x86-avx2", "vpshufb"), ("arm-cortex-a76", "tbl")]
)
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_a_dense_layer_looks_its_bytes_up_by_vectors(name: str, instruction: str, scheme: str) -> None:
    gelu = Activation(kind="gelu")
    workload = make("dense", scheme, [(8, 64)], (8, 128), activation=gelu, has_bias=True)
    target = Target.load(name)
    kernel = kernel_for(workload, target)
    assert kernel.schedule.startswith("cpu/dense:")
    text = assembly(kernel, target)
    assert re.search(rf"\bv?{instruction}\b", text)
