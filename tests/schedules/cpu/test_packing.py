"""Packed weights hold every weight once, where the kernels look for it, and zeros elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwq.schedules.cpu.packing import pack_blocks, pack_nibbles, pack_stream, pack_taps


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize(("groups", "blocks", "lanes", "r"), [(1, 2, 16, 4), (2, 3, 4, 2), (3, 1, 8, 1)])
def test_each_weight_is_where_the_kernel_reads_it(columns: int, groups: int, blocks: int, lanes: int, r: int) -> None:
    group_out, group_in, kernel_h, kernel_w = blocks * lanes - 3, 5, 2, 3
    weight = np.arange(1, groups * group_out * kernel_h * kernel_w * group_in + 1, dtype=np.int32)
    weight = weight.reshape(groups * group_out, kernel_h, kernel_w, group_in)
    packed = pack_blocks(weight, groups=groups, columns=columns, blocks=blocks, lanes=lanes, r=r)
    run = kernel_w * group_in // columns
    steps = -(-run // r)
    assert packed.shape == (groups * blocks, kernel_h * columns * steps, lanes, r)
    assert np.count_nonzero(packed) == weight.size
    for group, channel, row, column, i in np.ndindex(groups, group_out, kernel_h, columns, run):
        value = weight[group * group_out + channel, row].reshape(columns, run)[column, i]
        step = (row * columns + column) * steps + i // r
        assert packed[group * blocks + channel // lanes, step, channel % lanes, i % r] == value


def test_dense_weights_are_one_run() -> None:
    weight = np.arange(1, 22, dtype=np.int8).reshape(3, 7)
    packed = pack_blocks(weight, groups=1, columns=1, blocks=1, lanes=4, r=4)
    assert packed.shape == (1, 2, 4, 4)
    np.testing.assert_array_equal(packed[0, :, :3].transpose(1, 0, 2).reshape(3, 8)[:, :7], weight)


@given(steps=st.integers(1, 9), axis=st.sampled_from([0, 1]), seed=st.integers(0, 99))
def test_nibbles_unpack_to_what_went_in(steps: int, axis: int, seed: int) -> None:
    shape = (steps, 3) if axis == 0 else (2, steps, 4, 2)
    weight = np.random.default_rng(seed).integers(-8, 8, shape).astype(np.int8)
    packed = pack_nibbles(weight, axis=axis)
    assert packed.dtype == np.uint8
    assert packed.shape[axis] == (steps + 1) // 2
    halves = [(packed & 15).astype(np.int8) - 8, (packed >> 4).astype(np.int8) - 8]
    unpacked = np.stack(halves, axis=axis + 1).reshape(*shape[:axis], -1, *shape[axis + 1 :])
    np.testing.assert_array_equal(unpacked.take(range(steps), axis), weight)
    assert not unpacked.take(range(steps, unpacked.shape[axis]), axis).any()


def test_taps_become_rows() -> None:
    weight = np.arange(1, 31, dtype=np.int8).reshape(5, 2, 3, 1)
    packed = pack_taps(weight, 8)
    assert packed.shape == (6, 8)
    np.testing.assert_array_equal(packed[:, :5], weight.reshape(5, 6).T)
    assert not packed[:, 5:].any()


@pytest.mark.parametrize(("vectors", "lanes", "r"), [(1, 16, 4), (3, 4, 2), (2, 8, 1)])
def test_a_stream_holds_block_after_block(vectors: int, lanes: int, r: int) -> None:
    weight = np.arange(1, 37 * 11 + 1, dtype=np.int32).reshape(37, 11)
    packed = pack_stream(weight, vectors=vectors, lanes=lanes, r=r)
    wide = vectors * lanes
    assert packed.shape == (-(-37 // wide), -(-11 // r), vectors, lanes, r)
    assert np.count_nonzero(packed) == weight.size
    for channel, i in np.ndindex(37, 11):
        assert packed[channel // wide, i // r, channel % wide // lanes, channel % lanes, i % r] == weight[channel, i]
