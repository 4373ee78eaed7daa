"""Border conversions equal the reference bit for bit, in both storages, and are vectors."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runs import CHANNELS, STORAGES, assert_vectorized, check, machine, make, numbers, run

from hwq import numerics
from hwq.schedule import kernel_for
from hwq.schedules.generic import quantize

SHAPES = [(3, 5, 3, channels) for channels in CHANNELS] + [(1, 1), (2, 33)]


@pytest.mark.parametrize("storage", STORAGES)
def test_equals_the_reference(storage: str, rng: np.random.Generator) -> None:
    target = machine(storage)
    for shape in SHAPES:
        x = rng.uniform(-60, 60, shape).astype(np.float32)
        zero = np.array([3 + target.activation_offset], np.int32)
        forward = make("quantize", "w8a8", [shape], shape)
        check(forward, target, [x, zero, np.array([1 / 0.37], np.float32)])
        dequantize = make("dequantize", "w8a8", [shape], shape, out_dtype="float32")
        check(dequantize, target, [numbers(rng, shape, storage), zero, np.array([0.37], np.float32)])


def test_a_picture_is_moved_on_the_way(rng: np.random.Generator) -> None:
    """NCHW to NHWC, and any other order of axes."""
    for shape, axes in (((2, channels, 5, 13), (0, 2, 3, 1)) for channels in (3, *CHANNELS)):
        moved = make("quantize", "w8a8", [shape], tuple(shape[axis] for axis in axes), axes=axes)
        arguments = [rng.uniform(-60, 60, shape).astype(np.float32), np.array([131], np.int32)]
        kernel = quantize.apply(moved, machine())
        check(moved, machine(), [*arguments, np.array([2.7], np.float32)], kernel=kernel)
    other = make("quantize", "w8a8", [(4, 8, 16)], (16, 4, 8), axes=(2, 0, 1))
    x = rng.uniform(-60, 60, (4, 8, 16)).astype(np.float32)
    check(other, machine("int8"), [x, np.array([3], np.int32), np.array([2.7], np.float32)])


@pytest.mark.parametrize("storage", STORAGES)
def test_ties_go_to_even_and_far_values_saturate(storage: str) -> None:
    target = machine(storage)
    x = np.array([-1e30, -200, -2.5, -1.5, -0.5, -0.0, 0.0, 0.5, 1.5, 2.5, 200, 1e30], np.float32)
    arguments = [x, np.array([target.activation_offset], np.int32), np.ones(1, np.float32)]
    workload = make("quantize", "w8a8", [x.shape], x.shape)
    result = run(kernel_for(workload, target), target, arguments, x.shape, storage)
    expected = np.array([-128, -128, -2, -2, 0, 0, 0, 0, 2, 2, 127, 127]) + target.activation_offset
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(
        result, numerics.quantize(x, numerics.QParams(scale=1.0), offset=target.activation_offset)
    )


def test_every_byte_comes_back(rng: np.random.Generator) -> None:
    target = machine()
    q = np.arange(256, dtype=np.uint8)
    zero, scale = np.array([77], np.int32), np.array([0.0123], np.float32)
    back = make("dequantize", "w8a8", [q.shape], q.shape, out_dtype="float32")
    real = run(kernel_for(back, target), target, [q, zero, scale], q.shape, "float32")
    there = make("quantize", "w8a8", [q.shape], q.shape)
    again = run(kernel_for(there, target), target, [real, zero, (1 / scale).astype(np.float32)], q.shape, "uint8")
    np.testing.assert_array_equal(again, q)


def test_large_tensors_are_split_over_threads(rng: np.random.Generator) -> None:
    target, shape = machine(), (1, 256, 256, 64)
    workload = make("quantize", "w8a8", [shape], shape, parallel=2)
    assert "T.parallel" in kernel_for(workload, target).func.script()
    assert "T.parallel" not in kernel_for(make("quantize", "w8a8", [(1, 9)], (1, 9), parallel=2), target).func.script()
    x = rng.uniform(-60, 60, shape).astype(np.float32)
    check(workload, target, [x, np.array([131], np.int32), np.array([2.7], np.float32)])
    picture = make("quantize", "w8a8", [(1, 3, 512, 512)], (1, 512, 512, 3), parallel=2, axes=(0, 2, 3, 1))
    assert "T.parallel" in kernel_for(picture, target).func.script()
    small = make("quantize", "w8a8", [(1, 3, 32, 32)], (1, 32, 32, 3), parallel=2, axes=(0, 2, 3, 1))
    assert "T.parallel" not in kernel_for(small, target).func.script()


def test_is_vectorized() -> None:
    shape = (1, 14, 14, 64)
    assert_vectorized(make("quantize", "w8a8", [shape], shape), "vmulps", "vminps", "vmaxps")
    moved = make("quantize", "w8a8", [(1, 3, 64, 64)], (1, 64, 64, 3), axes=(0, 2, 3, 1))
    assert_vectorized(moved, "vmulps", "vmaxps", apply=quantize.apply)
    assert_vectorized(make("dequantize", "w8a8", [shape], shape, out_dtype="float32"), "vcvtdq2ps", "vmulps")
