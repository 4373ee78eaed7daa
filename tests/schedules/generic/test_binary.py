"""add and multiply equal the reference bit for bit, broadcast or not, in both storages, and are vectors."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runs import CHANNELS, STORAGES, assert_vectorized, check, ints, machine, make, numbers

from hwq.errors import HwqError
from hwq.graph import Activation
from hwq.schedule import kernel_for
from hwq.schedules.generic import binary

FACTORS = {"add": [0.71, 0.453], "multiply": [0.0071]}
ACTIVATIONS = (Activation(), Activation(kind="relu"), Activation(kind="clip", lo=-1.0, hi=6.0))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("op", ["add", "multiply"])
def test_integers_equal_the_reference(op: str, storage: str, rng: np.random.Generator) -> None:
    target = machine(storage)
    for channels in CHANNELS:
        shape = (3, 5, 3, channels)
        other = (3, 1, 1, channels) if channels in (7, 127) else shape
        arguments = [numbers(rng, shape, storage), numbers(rng, other, storage), ints(storage)]
        check(make(op, "w8a8", [shape, other], shape), target, [*arguments, np.array(FACTORS[op], np.float32)])


def test_every_pair_of_bytes_equals_the_reference(rng: np.random.Generator) -> None:
    """All 65,536 sums and products, with factors that make ties and near-ties common."""
    target = machine("int8")
    a, b = (
        np.ascontiguousarray(grid.astype(np.int8)) for grid in np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
    )
    for op, factors in (("add", [0.5, 0.25]), ("add", [1 / 3, 2 / 3]), ("multiply", [0.0625]), ("multiply", [0.01])):
        workload = make(op, "w8a8", [a.shape, b.shape], a.shape)
        check(workload, target, [a, b, ints("int8"), np.array(factors, np.float32)])


@pytest.mark.parametrize("op", ["add", "multiply"])
def test_floats_with_each_clamp(op: str, rng: np.random.Generator) -> None:
    """One rounding, as in the reference, which computes in float64: half a unit in the last place, 2^-24."""
    for activation in ACTIVATIONS:
        shape, other = (2, 3, 5, 33), (2, 1, 1, 33)
        for second in (shape, other):
            arguments = [numbers(rng, shape, "float32"), numbers(rng, second, "float32")]
            check(
                make(op, "f32", [shape, second], shape, activation=activation), machine(), arguments, tolerance=2**-23
            )


def test_large_tensors_are_split_over_threads(rng: np.random.Generator) -> None:
    target = machine()
    for shape, other in (((1, 128, 128, 64), (1, 128, 128, 64)), ((2, 128, 128, 64), (2, 1, 1, 64))):
        workload = make("add", "w8a8", [shape, other], shape, parallel=2)
        assert "T.parallel" in kernel_for(workload, target).func.script()
        arguments = [numbers(rng, shape, "uint8"), numbers(rng, other, "uint8"), ints("uint8")]
        check(workload, target, [*arguments, np.array(FACTORS["add"], np.float32)])


def test_is_vectorized() -> None:
    shape = (1, 14, 14, 64)
    assert_vectorized(make("add", "w8a8", [shape, shape], shape), "vcvtdq2ps", "vfmadd", apply=binary.apply)
    one_a_channel = make("multiply", "w8a8", [shape, (1, 1, 1, 64)], shape)
    assert_vectorized(one_a_channel, "vpmul", "vmulps", apply=binary.apply)


def test_what_has_no_kernel_is_refused() -> None:
    shape = (1, 2, 2, 8)
    for workload in (
        make("add", "w8a8", [shape, shape], shape, activation=Activation(kind="sigmoid")),
        make("add", "w8a8", [shape, (1, 2, 2, 3)], shape),
        make("multiply", "f32", [shape, shape, shape], shape),
    ):
        with pytest.raises(HwqError, match=f"no kernel on host for {workload.op}") as caught:
            kernel_for(workload, machine())
        assert caught.value.code == "kernel-missing"
