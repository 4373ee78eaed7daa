"""The shared end of anchor kernels: rounding without a rounding instruction, tables, and int4 halves, exhaustively."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import te, tirx

from hwq.schedules import epilogue as ep
from hwq.schedules.generic import common, float_math
from hwq.target import Target


def compute(rule: Any, inputs: list[tuple[Any, str]], target: str = "x86-generic") -> Any:
    """rule(*elements) over arrays of one shape, compiled."""
    shape = np.shape(inputs[0][0])
    tensors = [te.placeholder(shape, dtype) for _, dtype in inputs]
    out = te.compute(shape, lambda *at: rule(*(tensor(*at) for tensor in tensors)))
    library = tvm.compile(te.create_prim_func([*tensors, out]), Target.load(target).tvm())
    result = tvm.runtime.tensor(np.zeros(shape, str(out.dtype)))
    library(*(tvm.runtime.tensor(np.asarray(value, dtype)) for value, dtype in inputs), result)
    return result.numpy()


@pytest.mark.parametrize("zp", [0, 128, 255, -128])
def test_rounds_like_rint(zp: int) -> None:
    """Every multiple of 1/8 within the range of differences of two bytes, and the floats next to each half."""
    values = np.arange(-255, 255.01, 0.125, dtype=np.float32)
    halves = values[values % 1 == 0.5]
    values = np.concatenate([values, np.nextafter(halves, np.float32(-999)), np.nextafter(halves, np.float32(999))])
    origin = common.origin_of(tirx.const(zp, "int32"))
    result = compute(lambda value: common.rounded(value, origin, "int32"), [(values, "float32")])
    np.testing.assert_array_equal(result, np.rint(values) + zp)


def test_rounder_bits_are_the_rounder() -> None:
    assert np.float32(float_math.ROUNDER).view(np.int32) == float_math.ROUNDER_BITS


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_tables_are_indexed_by_the_byte(dtype: str) -> None:
    table = np.random.default_rng(0).permutation(256).astype(np.uint8)
    q = np.arange(256, dtype=np.uint8).view(dtype)
    tensors = te.placeholder((256,), "uint8"), te.placeholder((256,), dtype)
    out = te.compute((256,), lambda i: ep.lookup(tensors[0], tensors[1][i], dtype))
    library = tvm.compile(te.create_prim_func([*tensors, out]), Target.load("x86-generic").tvm())
    result = tvm.runtime.tensor(np.zeros(256, dtype))
    library(tvm.runtime.tensor(table), tvm.runtime.tensor(q), result)
    np.testing.assert_array_equal(result.numpy().view(np.uint8), table)


def test_nibbles_of_every_byte() -> None:
    everything = np.arange(256, dtype=np.uint8)
    for odd in (0, 1):
        result = compute(lambda byte, odd=odd: ep.nibble(byte, tirx.const(odd, "int32")), [(everything, "uint8")])
        np.testing.assert_array_equal(result, (everything >> (4 * odd) & 15).astype(np.int8) - 8)
