"""The model of the core chooses tiles that fit the registers, cover little beyond the edges, and respect the caches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from anchor_runs import SCHEMES, TIERS, anchor

from hwq.schedules.cpu.conv2d_plan import core_of
from hwq.schedules.cpu.geometry import Form, Geometry, form, geometry
from hwq.schedules.cpu.tiling import Core, Tile, best_tile, crowding, cycles, divisors, fits
from hwq.target import Target
from hwq.workload import Workload


def layer(size: int, in_c: int, out_c: int, kernel: int = 1, scheme: str = "w8a8") -> Workload:
    pad = (kernel // 2,) * 4
    return anchor("conv2d", scheme, (1, size, size, in_c), out_c, kernel=(kernel, kernel), padding=pad)


def seen(workload: Workload, name: str) -> tuple[Geometry, Form, Core]:
    """What the model sees of a workload on a target."""
    target = Target.load(name)
    found = form(workload, target)
    assert found is not None
    return geometry(workload), found, core_of(workload, found, target)


@pytest.mark.parametrize("name", TIERS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 17, 33), (14, 256, 256), (33, 127, 1), (112, 3, 64)])
def test_a_tile_is_found_for_any_shape(name: str, scheme: str, shape: tuple[int, int, int]) -> None:
    shape_seen, found, core = seen(layer(*shape, kernel=3, scheme=scheme), name)
    tile = best_tile(shape_seen, found, core)
    assert fits(found, tile)
    assert tile.lanes in found.vectors
    assert tile.rows <= shape_seen.out_h
    assert tile.pixels <= shape_seen.out_w


@pytest.mark.parametrize("name", ["x86-avx512-vnni", "x86-avx2"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(56, 64, 64, 3), (28, 128, 128, 3), (7, 512, 512, 3), (14, 512, 256)])
def test_ordinary_layers_waste_little(name: str, scheme: str, shape: tuple[int, ...]) -> None:
    """At most an eighth is computed beyond the edges, with enough sums to hide their latency."""
    shape_seen, found, core = seen(layer(*shape, scheme=scheme), name)
    tile = best_tile(shape_seen, found, core)
    high, wide = math.ceil(shape_seen.out_h / tile.rows), math.ceil(shape_seen.out_w / tile.pixels)
    assert high * tile.rows * wide * tile.pixels <= shape_seen.out_w * shape_seen.out_h * 1.15
    assert tile.rows * tile.pixels * tile.vectors >= 7


def test_more_work_costs_more() -> None:
    tile = Tile(rows=1, pixels=7, vectors=2, lanes=16)
    costs = []
    for shape in ((7, 64, 64), (14, 64, 64), (14, 128, 64), (14, 128, 128)):
        costs.append(cycles(*seen(layer(*shape), "x86-avx512-vnni"), tile))
    assert costs == sorted(costs)
    assert len(set(costs)) == len(costs)


def test_registers_are_counted() -> None:
    _, vnni, _ = seen(layer(7, 64, 64), "x86-avx512-vnni")
    assert fits(vnni, Tile(rows=1, pixels=6, vectors=4, lanes=16))
    assert not fits(vnni, Tile(rows=1, pixels=7, vectors=4, lanes=16))  # no register for a pixel's broadcast
    _, avx2, _ = seen(layer(7, 64, 64), "x86-avx2")  # products need registers too
    assert fits(avx2, Tile(rows=1, pixels=5, vectors=2, lanes=8))
    assert not fits(avx2, Tile(rows=1, pixels=6, vectors=2, lanes=8))


def test_pixels_4096_bytes_apart_crowd_the_cache() -> None:
    shape_seen, found, core = seen(layer(14, 1024, 256, scheme="f32"), "x86-avx512-vnni")
    assert crowding(shape_seen, found, 8) == 1.0
    assert crowding(shape_seen, found, 9) > 1.0
    assert best_tile(shape_seen, found, core).pixels <= 8
    assert crowding(replace(shape_seen, in_c=1040), found, 28) == 1.0


def test_weights_beyond_the_cache_make_narrow_blocks_cheaper() -> None:
    """Eight vectors of 7x7x512 3x3 weights in float32 fill more than the L2: reading them for every pixel is dear."""
    shape_seen, found, core = seen(layer(7, 512, 512, 3, scheme="f32"), "x86-avx2")
    wide = cycles(shape_seen, found, core, Tile(rows=1, pixels=1, vectors=8, lanes=8))
    assert wide > 1.5 * cycles(shape_seen, found, core, Tile(rows=1, pixels=4, vectors=2, lanes=8))


def test_divisors() -> None:
    assert divisors(12, 6) == [1, 2, 3, 4, 6]
    assert divisors(7, 7) == [1, 7]
    assert divisors(1, 9) == [1]
