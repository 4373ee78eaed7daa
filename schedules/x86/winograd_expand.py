"""The weights of the Winograd kernels: as they are stored, and their transform when a library is loaded.

Stored are the plain weights, blocked as the kernel walks them: (blocks, 9 taps, pairs, vectors, lanes, 2) int8, or with
half the pairs as nibbles. What the kernel reads is eight or sixteen times as much:
(blocks, chunks, 6, 6, steps, vectors, lanes, 2) int16, where chunks * steps are the pairs of input channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import te, tirx

from hwq.graph import Shape
from hwq.schedules import epilogue as ep
from hwq.schedules.cpu.packing import pack_nibbles
from hwq.schedules.generic import common
from hwq.schedules.x86.winograd_maths import KERNEL, WINDOW, weight_rows
from hwq.workload import Expand


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How weights are blocked: ``blocks`` times ``vectors`` of ``lanes`` output channels, ``chunks`` times ``steps``
    pairs of input channels. kind: "int8" or "int4"."""

    kind: str
    blocks: int
    vectors: int
    lanes: int
    chunks: int
    steps: int

    @property
    def pairs(self) -> int:
        return self.chunks * self.steps

    @property
    def expanded(self) -> Shape:
        """The shape that the kernel reads."""
        return (self.blocks, self.chunks, WINDOW, WINDOW, self.steps, self.vectors, self.lanes, 2)

    @property
    def stored(self) -> Shape:
        """The shape of the packed weights."""
        pairs = math.ceil(self.pairs / 2) if self.kind == "int4" else self.pairs
        return (self.blocks, KERNEL * KERNEL, pairs, self.vectors, self.lanes, 2)


def pack(layout: Layout, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(O, 3, 3, I) as ``layout.stored``, zero beyond O and I."""
    out_c, _, _, in_c = weight.shape
    padded = np.zeros((layout.blocks * layout.vectors * layout.lanes, KERNEL * KERNEL, layout.pairs * 2), np.int8)
    padded[:out_c, :, :in_c] = weight.reshape(out_c, KERNEL * KERNEL, in_c)
    blocked = padded.reshape(layout.blocks, layout.vectors, layout.lanes, KERNEL * KERNEL, layout.pairs, 2)
    packed = np.ascontiguousarray(blocked.transpose(0, 3, 4, 1, 2, 5))
    return pack_nibbles(packed, axis=2) if layout.kind == "int4" else packed


def expand(layout: Layout, symbol: str) -> Expand:
    """From ``layout.stored`` to ``layout.expanded``, a vector of 16-bit weights at a time."""
    stored = te.placeholder(layout.stored, "uint8" if layout.kind == "int4" else "int8", "stored")

    def tap(b: Any, y: Any, x: Any, pair: Any, *at: Any) -> Any:
        if layout.kind == "int4":
            return ep.nibble(stored[(b, y * KERNEL + x, pair // 2, *at)], pair % 2).astype("int16")
        return stored[(b, y * KERNEL + x, pair, *at)].astype("int16")

    def across(b: Any, i: Any, x: Any, pair: Any, *at: Any) -> Any:
        return pick(i, weight_rows([tap(b, y, x, pair, *at) for y in range(KERNEL)]))

    inner = (layout.vectors, layout.lanes, 2)
    rows = te.compute((layout.blocks, WINDOW, KERNEL, layout.pairs, *inner), across, name="rows")

    def along(b: Any, q: Any, i: Any, j: Any, step: Any, *at: Any) -> Any:
        return pick(j, weight_rows([rows[(b, i, x, q * layout.steps + step, *at)] for x in range(KERNEL)]))

    sch = common.schedule_of([stored, te.compute(layout.expanded, along, name="out")])
    out, first = sch.get_sblock("out"), sch.get_sblock("rows")
    b, q, i, j, step, vec, lane, r = sch.get_loops(out)
    sch.reorder(b, q, step, vec, i, j, lane, r)
    sch.compute_at(first, i, preserve_unit_loops=True)
    sch.set_scope(first, 0, "local")
    for block, loop in ((out, j), (first, sch.get_loops(first)[-5])):
        *_, lane, r = sch.get_loops(block)
        sch.vectorize(sch.fuse(lane, r))
        sch.unroll(loop)
    sch.unroll(i)
    func = common.named(symbol, sch.mod["main"], "").func
    return Expand(symbol=symbol, func=func, shape=layout.expanded, dtype="int16")


def pick(index: Any, values: Sequence[Any]) -> Any:
    """The value at ``index``, which is a constant once its loop is unrolled."""
    chosen = values[-1]
    for i in range(len(values) - 2, -1, -1):
        chosen = tirx.Select(index == i, values[i], chosen)
    return chosen
