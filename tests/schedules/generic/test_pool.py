"""Pools equal the reference at every kind of window: ragged, padded, dilated, strided, large, global."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from kernel_runs import CHANNELS, STORAGES, assembly, assert_vectorized, check, ints, machine, make, numbers

from hwq import operators
from hwq.graph import Activation, Shape
from hwq.schedule import kernel_for
from hwq.schedules.generic import pool
from hwq.target import Target
from hwq.workload import Workload

# (height, width), kernel, strides, padding (top, left, bottom, right), dilation
WINDOWS = [
    ((9, 11), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    ((8, 7), (3, 2), (2, 1), (0, 1, 1, 0), (1, 1)),
    ((7, 7), (7, 7), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((6, 5), (1, 1), (3, 2), (0, 0, 0, 0), (1, 1)),
    ((9, 9), (3, 3), (1, 2), (2, 2, 2, 2), (2, 2)),
    ((10, 12), (9, 5), (1, 1), (4, 2, 4, 2), (1, 1)),
    ((30, 4), (28, 2), (1, 1), (0, 1, 0, 0), (1, 1)),
    ((18, 17), (17, 17), (1, 1), (0, 1, 0, 1), (1, 1)),  # more taps than 16 bits hold the sum of
    ((3, 3), (2, 2), (2, 2), (1, 1, 2, 2), (3, 3)),  # dilated beyond the picture: windows with no tap in it
]

VNNI = Target.load("x86-avx512-vnni")


def windows(op: str, scheme: str, batch: int, channels: int, **more: Any) -> Iterator[tuple[Workload, dict[str, Any]]]:
    """Each of WINDOWS as a workload, and its attributes."""
    for (height, width), kernel, strides, padding, dilation in WINDOWS:
        attrs = {"kernel": kernel, "strides": strides, "padding": padding, "dilation": dilation}
        shape = (batch, height, width, channels)
        out = operators.max_pool2d(np.zeros(shape, np.uint8), **attrs).shape
        yield make(op, scheme, [shape], out, **attrs, **more), attrs


def multiplier(shape: Shape, attrs: dict[str, Any], include_pad: bool = False) -> np.ndarray[Any, Any]:
    return operators.pool_multiplier(0.83, shape, include_pad=include_pad, **attrs)


@pytest.mark.parametrize("storage", STORAGES)
def test_integer_maximum(storage: str, rng: np.random.Generator) -> None:
    for workload, _ in windows("max_pool2d", "w8a8", 3, 17):
        check(workload, machine(storage), [numbers(rng, workload.input_shapes[0], storage)])


@pytest.mark.parametrize("storage", STORAGES)
def test_integer_average(storage: str, rng: np.random.Generator) -> None:
    for include_pad in (False, True):
        for workload, attrs in windows("avg_pool2d", "w8a8", 3, 17, count_include_pad=include_pad):
            shape = workload.input_shapes[0]
            arguments = [numbers(rng, shape, storage), multiplier(shape, attrs, include_pad), ints(storage)]
            check(workload, machine(storage), arguments)


def test_floats(rng: np.random.Generator) -> None:
    """A maximum is one of its inputs. A sum of n floats rounds n times: 56 taps of up to 20 give 56 * 20 * 2^-24."""
    for workload, _ in windows("max_pool2d", "f32", 2, 9):
        check(workload, machine(), [numbers(rng, workload.input_shapes[0], "float32")])
    relu = Activation(kind="relu")
    for workload, _ in windows("avg_pool2d", "f32", 2, 9, count_include_pad=False, activation=relu):
        check(workload, machine(), [numbers(rng, workload.input_shapes[0], "float32")], tolerance=56 * 20 * 2**-24)


@pytest.mark.parametrize("channels", CHANNELS)
def test_channel_counts(channels: int, rng: np.random.Generator) -> None:
    shape = (3, 7, 9, channels)
    x = numbers(rng, shape, "uint8")
    strided = {"kernel": (3, 3), "strides": (2, 2), "padding": (0, 1, 1, 0), "dilation": (1, 1)}
    check(make("max_pool2d", "w8a8", [shape], (3, 3, 4, channels), **strided), machine(), [x])
    whole = {"kernel": (7, 9), "strides": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1)}
    workload = make("avg_pool2d", "w8a8", [shape], (3, 1, 1, channels), count_include_pad=False, **whole)
    check(workload, machine(), [x, multiplier(shape, whole), ints("uint8")])


def test_sampled_decisions_are_right(rng: np.random.Generator) -> None:
    shape, whole = (1, 7, 7, 192), {"kernel": (7, 7), "strides": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1)}
    workload = make("avg_pool2d", "w8a8", [shape], (1, 1, 1, 192), count_include_pad=False, **whole)
    target, x = machine(), numbers(rng, shape, "uint8")
    kernels = [pool.apply(workload, target, seed=seed) for seed in range(1, 7)]
    assert len({kernel.func.script() for kernel in kernels if kernel is not None}) > 1
    for kernel in kernels:
        check(workload, target, [x, multiplier(shape, whole), ints("uint8")], kernel=kernel)


def test_large_pools_are_split_over_threads(rng: np.random.Generator) -> None:
    target, attrs = machine(), {"kernel": (3, 3), "strides": (2, 2), "padding": (1, 1, 1, 1), "dilation": (1, 1)}
    for op in ("max_pool2d", "avg_pool2d"):
        workload = make(op, "w8a8", [(1, 224, 224, 64)], (1, 112, 112, 64), parallel=2, count_include_pad=True, **attrs)
        kernel = pool.apply(workload, target)
        assert kernel is not None
        assert "T.parallel" in kernel.func.script()
        x = numbers(rng, workload.input_shapes[0], "uint8")
        extra = [] if op == "max_pool2d" else [multiplier(x.shape, attrs, True), ints("uint8")]
        check(workload, target, [x, *extra], kernel=kernel)


def test_is_vectorized() -> None:
    shape, attrs = (1, 14, 14, 64), {"kernel": (2, 2), "strides": (2, 2), "padding": (0, 0, 0, 0), "dilation": (1, 1)}
    assert_vectorized(make("max_pool2d", "w8a8", [shape], (1, 7, 7, 64), **attrs), "vpmaxub")
    average = make("avg_pool2d", "w8a8", [shape], (1, 7, 7, 64), count_include_pad=False, **attrs)
    assert_vectorized(average, "vpadd", "vcvtdq2ps", "vmulps")
    whole = {"kernel": (14, 14), "strides": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1)}
    everything = make("avg_pool2d", "w8a8", [shape], (1, 1, 1, 64), count_include_pad=False, **whole)
    assert_vectorized(everything, "vpadd", "vcvtdq2ps", "vmulps")
    around = {"kernel": (3, 3), "strides": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1)}
    padded = make("avg_pool2d", "w8a8", [shape], shape, count_include_pad=False, **around)
    lines = assembly(kernel_for(padded, VNNI), VNNI)
    assert any("vmulps" in line and "%zmm" in line for line in lines)
    assert not any("%k" in line and "(%r" in line for line in lines), "masked loads"


def test_another_number_of_axes_is_declined() -> None:
    attrs = {"kernel": (2, 2), "strides": (2, 2), "padding": (0, 0, 0, 0), "dilation": (1, 1)}
    assert pool.apply(make("max_pool2d", "w8a8", [(14, 14, 8)], (7, 7, 8), **attrs), machine()) is None
