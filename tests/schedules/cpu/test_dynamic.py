"""Dense kernels on rows with scales of their own, and integer ones that add a float residual, equal the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from anchor_runs import RELU, RELU6, TABLED, TIERS, anchor, check_anchor, check_variants, tier
from kernel_runs import assembly

from hwq.graph import Activation
from hwq.schedule import kernel_for
from hwq.schedules.cpu import dense, grouped
from hwq.target import Target

W8, W4 = "w8a8_dyn", "w4a8_g64_dyn"
# name: (input shape, output channels, the rest of ``anchor``)
CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "1": ((1, 1), 1, {}),
    "7": ((7, 127), 33, {"activation": TABLED}),
    "16": ((16, 64), 16, {"residual": True, "activation": RELU}),
    "17": ((17, 33), 17, {"activation": Activation(kind="gelu")}),
    "33": ((33, 130), 127, {"activation": RELU6, "residual": True}),
    "a row": ((1, 256), 1000, {"residual": True}),
    "a sequence": ((2, 5, 65), 48, {"activation": Activation(kind="tanh"), "residual": True}),
}
APPLY = {W8: dense.apply, W4: grouped.apply}


def with_rows(target: Target) -> Target:
    """``target`` with rows for dynamic schemes where its file has none: as it computes the static ones."""
    found = {row.weight: row for row in target.compute if row.lists("dense") and row.act == "int8"}
    rows = [replace(found["int8"], act="int8_dyn", ops=("dense",))]
    rows.append(replace(found.get("int4_g64", found["int4"]), weight="int4_g64", act="int8_dyn", ops=("dense",)))
    return replace(target, compute=(*target.compute, *rows))


@pytest.mark.parametrize("scheme", [W8, W4])
@pytest.mark.parametrize(
    ("name", "case"),
    [*((TIERS[0], case) for case in CASES), *((name, case) for name in TIERS[1:] for case in ("7", "33"))],
)
def test_equals_the_reference(name: str, case: str, scheme: str, rng: np.random.Generator) -> None:
    shape, out_c, given = CASES[case]
    check_anchor(APPLY[scheme], anchor("dense", scheme, shape, out_c, **given), with_rows(tier(name)), rng)


@pytest.mark.parametrize("scheme", [W8, W4])
@pytest.mark.parametrize("storage", ["int8", "uint8"])
def test_activations_may_be_stored_either_way(storage: str, scheme: str, rng: np.random.Generator) -> None:
    target = replace(with_rows(tier("x86-avx2")), activation_storage=storage)
    check_anchor(APPLY[scheme], anchor("dense", scheme, (7, 127), 33), target, rng)


@pytest.mark.parametrize(("scheme", "templates"), [(W8, dense.templates), (W4, grouped.templates)])
def test_sampled_decisions_are_right_too(scheme: str, templates: Any, rng: np.random.Generator) -> None:
    check_variants(templates, anchor("dense", scheme, (16, 64), 48, residual=True), with_rows(tier("x86-avx2")), rng)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a8_g64"])
@pytest.mark.parametrize("name", ["x86-avx512-vnni", "x86-avx2"])
def test_a_float_residual_is_added_in_float(name: str, scheme: str, rng: np.random.Generator) -> None:
    for rows, channels, activation in ((1, 127, None), (17, 48, RELU), (7, 33, None)):
        given = {"residual": True, "float_residual": True, "out": "float32", "activation": activation}
        check_anchor(kernel_for_family, anchor("dense", scheme, (rows, 130), channels, **given), tier(name), rng)


def kernel_for_family(workload: Any, target: Target, *, seed: int | None) -> Any:
    assert seed is None
    return kernel_for(workload, target)


@pytest.mark.parametrize(("rows", "scheme"), [(1, W4), (64, W8), (64, W4)])
def test_the_float_epilogue_is_of_whole_registers(rows: int, scheme: str) -> None:
    target = with_rows(Target.load("x86-avx512-vnni"))
    kernel = APPLY[scheme](anchor("dense", scheme, (rows, 384), 1536, activation=Activation(kind="gelu")), target)
    assert kernel is not None
    assert kernel.instruction == "vpdpbusd"
    lines = assembly(kernel, target)
    assert [line for line in lines if "vmovss" in line and line.rstrip().endswith(")")] == [], "no single store"
    assert any("vfmadd" in line and "%zmm" in line for line in lines)


def test_threads_share_out_blocks_of_channels(rng: np.random.Generator) -> None:
    workload = anchor("dense", W8, (64, 512), 1016, parallel=2)
    kernel = check_anchor(dense.apply, workload, with_rows(tier("x86-avx2")), rng)
    assert "T.parallel" in kernel.func.script()
