"""int4 weights on AMX: unpacked to bytes in memory, which tiles are loaded from, once for each block of channels.

A panel is one block's weights as bytes. There are two: while tiles multiply by the one, the next block's weights are
unpacked to the other, some beside the products of every step, over all blocks of pixels that pass. So what shows is the
first panel of a section, and of the others what vectors cannot do beside tiles.

A byte holds two weights, w + 8 in each half (``packing.pack_nibbles``). A permutation looks 64 of them up at once by
the low six bits of each byte, in a table that repeats itself every 16: the bits above the half do not matter, and the
upper half wants but a shift. For 128 weights that is a load, a shift, two permutations and two stores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwq.schedules.x86.amx_plan import LANES, TILE_BYTES, Plan

Expr = Any
_PERMUTE = "llvm.x86.avx512.permvar.qi.512"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panels:
    """The two panels of a section: ``bytes`` (2 * panel), of ``weight``, packed (channel blocks, pairs, 64).

    The section's first block of pixels and end of its blocks of channels say when to unpack what.
    """

    bytes: Any
    weight: Any
    first_pixels: Expr
    end_channels: Expr

    @property
    def pairs(self) -> int:
        """Pairs of rows of 64 bytes in a panel."""
        return int(self.weight.shape[1])


def make_panels(weight: Any, first_pixels: Expr, first_channels: Expr, end_channels: Expr) -> Panels:
    """A section's panels, that of its first block of channels filled."""
    pairs = int(weight.shape[1])
    panels = Panels(
        bytes=T.alloc_buffer((4 * pairs * TILE_BYTES,), "int8"),
        weight=weight,
        first_pixels=first_pixels,
        end_channels=end_channels,
    )
    with T.serial(0, pairs) as pair:
        _unpack(panels, first_channels, pair)
    return panels


def tile_address(panels: Panels, plan: Plan, channels: Expr, tile: Expr) -> Expr:
    """Where tile number ``tile`` of a block of channels begins."""
    start = _start(panels, channels) + tile * (plan.width * LANES)
    return T.handle_add_byte_offset(panels.bytes.data, start)


def unpack_beside(panels: Panels, plan: Plan, pixels: Expr, channels: Expr, step: Expr) -> None:
    """A step's share of the next block of channels, if there is one."""
    if plan.channel_blocks == 1:
        return
    # No section has fewer blocks of pixels.
    passes = plan.runs * plan.blocks // plan.chunks[0]
    share = math.ceil(panels.pairs / (passes * plan.steps))
    first = T.Bind(((pixels - panels.first_pixels) * plan.steps + step) * share)
    with T.If(tirx.all(first < panels.pairs, channels + 1 < panels.end_channels)), T.Then():
        with T.serial(0, share) as i:
            if panels.pairs % share == 0:
                _unpack(panels, channels + 1, first + i)
            else:
                with T.If(first + i < panels.pairs), T.Then():
                    _unpack(panels, channels + 1, first + i)


def _start(panels: Panels, channels: Expr) -> Expr:
    """Where the panel of a block of channels begins."""
    return channels % 2 * (2 * panels.pairs * TILE_BYTES)


def _unpack(panels: Panels, channels: Expr, pair: Expr) -> None:
    """Two rows of a panel."""
    kind = f"int8x{TILE_BYTES}"
    packed = panels.weight.vload([channels, pair, 0], f"uint8x{TILE_BYTES}")
    words = tirx.reinterpret(f"uint16x{TILE_BYTES // 2}", packed) >> tirx.const(4, f"uint16x{TILE_BYTES // 2}")
    values = tirx.Ramp(tirx.const(0, "int8"), tirx.const(1, "int8"), TILE_BYTES)
    values = (values & tirx.const(15, kind)) - tirx.const(8, kind)
    start = T.Bind(_start(panels, channels) + pair * (2 * TILE_BYTES))
    for odd, half in enumerate((packed, words)):
        found = tirx.call_llvm_pure_intrin(kind, _PERMUTE, values, tirx.reinterpret(kind, half))
        T.buffer_store(panels.bytes, found, [tirx.Ramp(start + odd * TILE_BYTES, 1, TILE_BYTES)])
