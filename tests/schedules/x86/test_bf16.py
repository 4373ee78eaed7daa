"""Rounding to bfloat16 in a kernel is NumPy's, by the machine's own instruction; elsewhere such layers are refused."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest
from amx_runs import amx_target, on_tiles
from anchor_runs import BF16_TIER, anchor, check_anchor, packed, tier
from kernel_runs import Array, assembly, run

from hwq import numerics
from hwq.errors import HwqError
from hwq.schedule import kernel_for
from hwq.schedules.cpu import conv2d
from hwq.target import Target

# 64 outputs of one product each: x[m, 0] times the identity.
COPY = anchor("dense", "bf16", (64, 64), 64, has_bias=False)


TIERS = (BF16_TIER, "x86-amx")


def copied(name: str, values: Array) -> Array:
    """64 x 64 ``values`` as the kernel of the target ``name`` multiplies them, by one each."""
    target = amx_target() if name == "x86-amx" else tier(name)
    kernel = kernel_for(COPY, target)
    arguments = packed(COPY, kernel, [values, np.eye(64, dtype=np.float32)])
    with on_tiles() if name == "x86-amx" else contextlib.nullcontext():
        return run(kernel, target, arguments, COPY.output_shape, "float32")


@pytest.mark.parametrize("name", TIERS)
def test_values_are_rounded_as_numpy_rounds_them(name: str, rng: np.random.Generator) -> None:
    """All exponents whose numbers and products with one are normal; every third value a tie."""
    bits = rng.integers(0, 1 << 32, (64, 64), dtype=np.uint32)
    exponent = (bits >> 23 & 0xFF).clip(1, 253)
    bits = bits & np.uint32(0x807FFFFF) | exponent.astype(np.uint32) << 23
    bits[:, ::3] = bits[:, ::3] & np.uint32(0xFFFF0000) | np.uint32(0x8000)
    values = bits.view(np.float32)
    np.testing.assert_array_equal(copied(name, values), numerics.round_bf16(values))


@pytest.mark.parametrize("name", TIERS)
def test_denormals_count_as_zero(name: str) -> None:
    values = np.full((64, 64), 1e-39, np.float32)
    assert (copied(name, values) == 0).all()


@pytest.mark.parametrize("name", TIERS)
def test_what_is_not_finite_stays_so(name: str) -> None:
    values = np.zeros((64, 64), np.float32)
    values[3, 5], values[9, 9] = np.inf, np.nan
    result = copied(name, values)
    assert np.isnan(result[9]).all()
    assert result[3, 5] == np.inf
    assert np.isfinite(np.delete(result, (3, 9), axis=0)).all()


def test_rounding_is_by_vectors() -> None:
    for workload in (COPY, anchor("conv2d", "bf16", (1, 9, 9, 64), 64, kernel=(3, 3), padding=(1, 1, 1, 1))):
        lines = assembly(kernel_for(workload, Target.load(BF16_TIER)), Target.load(BF16_TIER))
        assert any(re.match(r"\s*vcvtneps2bf16\w*\s.*%[yz]mm", line) for line in lines)
        assert [line for line in lines if "call" in line and "bf16" in line] == [], "what was imported is inlined"


@pytest.mark.parametrize("name", ["x86-avx512-vnni", "x86-avx2", "x86-generic"])
def test_tiers_without_the_instruction_have_no_kernel(name: str) -> None:
    with pytest.raises(HwqError, match=f"no kernel on {name} for dense in bf16") as caught:
        kernel_for(COPY, Target.load(name))
    assert caught.value.code == "kernel-missing"


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_threads_and_sampled_decisions(seed: int | None, rng: np.random.Generator) -> None:
    """What is imported reaches the body of a parallel loop, and every decision."""
    for shape, out_c in (((1, 33, 33, 16), 128), ((1, 7, 7, 255), 512)):
        workload = anchor("conv2d", "bf16", shape, out_c, kernel=(3, 3), padding=(1, 1, 1, 1), parallel=2)
        kernel = check_anchor(conv2d.apply, workload, tier(BF16_TIER), rng, seed=seed)
        assert "T.parallel" in kernel.func.script()
