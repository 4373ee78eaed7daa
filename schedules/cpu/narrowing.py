"""Floats to bytes, many at once: what the tensor intrinsics of ``x86.narrow`` and ``arm.narrow`` have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

# The bytes of one, two or four vectors of ``lanes`` floats, in order: of (floats, lanes, ints).
Join = Callable[[Sequence[Any], int, Any], Any]


def sharing(pixels: int, vectors: int) -> int:
    """How many of a tile's neighbouring pixels, each of ``vectors``, should share stores."""
    return next(n for n in (4, 3, 2, 1) if pixels % n == 0 and (n * vectors <= 4 or n == 1))


def narrowed(value: Any, zero_point: Any, least: Any, most: Any, dtype: str = "uint8") -> Any:
    """The meaning of the intrinsic, for one element."""
    return tirx.max(tirx.min(tirx.nearbyint(value).astype("int32") + zero_point, most), least).astype(dtype)


def pieces(vectors: int) -> list[tuple[int, int]]:
    """(first, number) of the vectors that share a store: fours, then a two, then a one."""
    found, first = [], 0
    for size in (4, 2, 1):
        while vectors - first >= size:
            found.append((first, size))
            first += size
    return found


def register(name: str, dtype: str, join: Join, lanes: int, vectors: int, pixels: int) -> str:
    """Registers and returns ``name``: float32 (vectors * lanes,), int32 (3,) = (zero point, least, most) to ``dtype``.

    With several pixels (pixels, vectors * lanes): they are neighbours in memory, and share stores.
    """
    meaning, code = (_function(dtype, each, lanes, vectors, pixels) for each in (None, join))
    TensorIntrin.register(name, meaning, code, override=True)
    return name


def _function(dtype: str, join: Join | None, lanes: int, vectors: int, pixels: int) -> Any:
    """What the intrinsic does, by ``join``; or, without, what it means."""
    channels = lanes * vectors
    shape = (pixels, channels) if pixels > 1 else (channels,)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        handles = [T.arg(name, T.handle()) for name in ("scaled", "ints", "out")]
        scaled = T.match_buffer(handles[0], shape, "float32", offset_factor=1, scope="local")
        ints = T.match_buffer(handles[1], (3,), "int32", offset_factor=1)
        out = T.match_buffer(handles[2], shape, dtype, offset_factor=1)
        whole = tuple(slice(0, size) for size in shape)
        with T.sblock("root"):
            T.reads(scaled[whole], ints[0:3])
            T.writes(out[whole])
            if join is None:
                with T.grid(*shape) as loops, T.sblock("narrow"):
                    loops = loops if pixels > 1 else [loops]
                    at = tuple(T.axis.spatial(size, loop) for size, loop in zip(shape, loops, strict=True))
                    T.reads(scaled[at], ints[0:3])
                    T.writes(out[at])
                    T.buffer_store(out, narrowed(scaled[at], ints[0], ints[1], ints[2], dtype), list(at))
            else:

                def place(vector: int) -> list[int]:
                    within = vector % vectors * lanes
                    return [vector // vectors, within] if pixels > 1 else [within]

                for first, some in pieces(pixels * vectors):
                    floats = [scaled.vload(place(first + i), dtype=f"float32x{lanes}") for i in range(some)]
                    *pixel, channel = place(first)
                    T.buffer_store(out, join(floats, lanes, ints), [*pixel, tirx.Ramp(channel, 1, some * lanes)])
    return builder.get()
