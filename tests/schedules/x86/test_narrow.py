"""Floats become the bytes that ``hwq.numerics`` says, whatever the zero point, the clamp and the size of the value."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import tvm
from anchor_runs import tier
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runs import Array
from tvm import te
from tvm.s_tir import Schedule

from hwq import numerics
from hwq.schedules.cpu.narrowing import narrowed, pieces, sharing
from hwq.schedules.x86.narrow import narrow

# (target, lanes, vectors, pixels): every register size, and every way to divide vectors into stores.
FORMS = [("x86-avx512-vnni", 16, vectors, 1) for vectors in (1, 2, 3, 4, 7)]
FORMS += [("x86-avx2", lanes, vectors, 1) for lanes in (4, 8) for vectors in (1, 2, 4, 5)]
FORMS += [("x86-generic", 4, 1, 1), ("x86-generic", 4, 6, 1), ("x86-generic", 4, 1, 4)]
FORMS += [("x86-avx512-vnni", 16, 1, 4), ("x86-avx512-vnni", 16, 1, 3), ("x86-avx2", 8, 2, 2)]
ROWS = 64


@functools.cache
def compiled(name: str, lanes: int, vectors: int, pixels: int) -> Callable[[Array, Array], Array]:
    """(ROWS, pixels, channels) floats and the three ints to bytes, by the intrinsic."""
    shape = (ROWS, pixels, lanes * vectors)
    x = te.placeholder(shape, "float32", "x")
    ints = te.placeholder((5,), "int32", "ints")
    scaled = te.compute(shape, lambda *at: x(*at), name="scaled")
    ends = (ints[2], ints[3], ints[4])
    out = te.compute(shape, lambda *at: narrowed(scaled(*at), *ends), name="out")
    sch = Schedule(te.create_prim_func([x, ints, out]))
    row, pixel, channel = sch.get_loops(sch.get_sblock("out"))
    sch.compute_at(sch.get_sblock("scaled"), row)
    sch.set_scope(sch.get_sblock("scaled"), 0, "local")
    sch.tensorize(channel if pixels == 1 else pixel, narrow(lanes, vectors, pixels))
    library = tvm.compile(sch.mod, tier(name).tvm())

    def run(values: Array, numbers: Array) -> Array:
        result = tvm.runtime.tensor(np.full(shape, 99, np.uint8))
        library["main"](tvm.runtime.tensor(values), tvm.runtime.tensor(numbers), result)
        return np.asarray(result.numpy())

    return run


def expected(values: Array, zero_point: int, lo: int, hi: int) -> Array:
    """As the reference rounds and clamps: in float, before the cast."""
    clamped = np.clip(np.rint(values), np.float32(lo - zero_point), np.float32(hi - zero_point))
    return np.asarray(clamped.astype(np.int32) + zero_point, np.uint8)


@pytest.mark.parametrize(("name", "lanes", "vectors", "pixels"), FORMS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_narrowing_is_the_references(name: str, lanes: int, vectors: int, pixels: int, data: st.DataObject) -> None:
    run = compiled(name, lanes, vectors, pixels)
    zero_point = data.draw(st.integers(0, 255), "zero point")
    lo, hi = sorted(data.draw(st.tuples(st.integers(0, 255), st.integers(0, 255)), "clamp"))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    shape = (ROWS, pixels, lanes * vectors)
    near = rng.integers(-1100, 1100, shape) / 4  # halves among them
    far = rng.choice([-1, 1], shape) * 2.0 ** rng.uniform(-149, 30, shape)
    values = np.where(rng.random(shape) < 0.5, near, far).astype(np.float32)
    values[rng.random(shape) < 0.1] = -np.inf
    values[rng.random(shape) < 0.1] = 2.0**30
    values[rng.random(shape) < 0.1] = -(2.0**31) * 1.5
    numbers = np.array([0, 0, zero_point, lo, hi], np.int32)
    np.testing.assert_array_equal(run(values, numbers), expected(values, zero_point, lo, hi))


def test_every_byte_of_every_zero_point() -> None:
    run = compiled("x86-avx2", 8, 4, 1)
    steps = np.arange(-1024, 1024, dtype=np.float32).reshape(ROWS, 1, 32) / 2
    for zero_point in range(0, 256, 5):
        numbers = np.array([0, 0, zero_point, 0, 255], np.int32)
        np.testing.assert_array_equal(run(steps, numbers), expected(steps, zero_point, 0, 255))
        scale = numerics.QParams(scale=1.0, zero_point=zero_point - 128)
        np.testing.assert_array_equal(run(steps, numbers), numerics.quantize(steps, scale, offset=128))


def test_pieces() -> None:
    assert [pieces(vectors) for vectors in (1, 2, 3, 4)] == [[(0, 1)], [(0, 2)], [(0, 2), (2, 1)], [(0, 4)]]
    assert pieces(7) == [(0, 4), (4, 2), (6, 1)]


def test_pixels_share_stores_of_at_most_four_vectors() -> None:
    assert [sharing(8, vectors) for vectors in (1, 2, 3, 4)] == [4, 2, 1, 1]
    assert [sharing(pixels, 1) for pixels in (6, 7, 14)] == [3, 1, 2]
