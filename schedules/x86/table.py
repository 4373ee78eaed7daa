"""unary of integers by byte shuffles: a table of 256 bytes is 16 rows of 16, and a shuffle looks 32 bytes up in a row.

The low four bits of each byte choose within every row, the high four choose the row by four levels of selects. On AVX2
and up that is a quarter to half the time of lookups one by one (0.25 cycles a byte on Zen 4, 0.45 without AVX512).

``lookup`` is written for one element, but means something only in a loop that is vectorized by exactly ``LANES``:
there TVM makes vectors of the intrinsic's arguments. A kernel's own epilogue may use it as well.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.schedules.generic import common
from hwq.schedules.x86.views import with_shapes
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "x86/table:1"
LANES = 32
ROWS = ROW = 16


def apply(workload: Workload, target: Target) -> Kernel | None:
    """x, table uint8 (256,), out; activations stored as uint8, AVX2 or more, at least ``LANES`` elements."""
    if workload.op != "unary" or not common.is_integer(workload):
        return None
    size = math.prod(workload.output_shape)
    if not usable(target):
        return common.decline(workload, f"{target.name} has no avx2, or activations are not uint8")
    if size < LANES:
        return common.decline(workload, f"{size} elements are no vector of {LANES}")
    sch = Schedule(_function(size), debug_mask="none")
    over, lane = sch.get_loops(sch.get_sblock("out"))
    sch.vectorize(lane)
    sch.vectorize(sch.get_loops(sch.get_sblock("rows"))[-1])
    if common.worth_parallel(workload.parallel, 4 * size, target):
        common.split_outer(sch, [over], [size // LANES], workload.parallel)
    func = with_shapes(sch.mod["main"], {0: workload.input_shapes[0], 2: workload.output_shape})
    return common.finish(workload, func, NAME, "vpshufb")


def usable(target: Target) -> bool:
    """Whether the target has the instructions, and stores bytes that index the table."""
    return "avx2" in target.cpu_flags and target.activation_storage == "uint8"


def lookup(rows: Any, byte: Any, lane: Any) -> Any:
    """The table's entry for ``byte`` (uint8) in ``lane`` of a vector; ``rows`` (ROWS, LANES) repeats each row twice."""

    def constant(value: int) -> Any:
        return tirx.const(value, "uint8")

    low = byte & constant(ROW - 1)
    found = [tirx.call_llvm_pure_intrin("uint8", "llvm.x86.avx2.pshuf.b", rows[row, lane], low) for row in range(ROWS)]
    for bit in (16, 32, 64, 128):
        test = (byte & constant(bit)) != constant(0)
        found = [tirx.Select(test, found[at + 1], found[at]) for at in range(0, len(found), 2)]
    return found[0]


def _function(size: int) -> Any:
    """Over flat tensors: block "rows" repeats the table's rows, "out" is whole vectors, "rest" is what is left."""
    whole = size // LANES * LANES
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer((size,), "uint8"))
        table = T.arg("table", T.buffer((ROWS * ROW,), "uint8"))
        out = T.arg("out", T.buffer((size,), "uint8"))
        rows = T.sblock_alloc_buffer((ROWS, LANES), "uint8")
        with T.grid(ROWS, LANES // ROW, ROW) as (row, copy, column), T.sblock("rows"):
            r, c, j = T.axis.spatial(ROWS, row), T.axis.spatial(LANES // ROW, copy), T.axis.spatial(ROW, column)
            T.reads(table[r * ROW + j])
            T.writes(rows[r, c * ROW + j])
            T.buffer_store(rows, table[r * ROW + j], [r, c * ROW + j])
        with T.grid(whole // LANES, LANES) as (over, lane), T.sblock("out"):
            o, i = T.axis.spatial(whole // LANES, over), T.axis.spatial(LANES, lane)
            T.reads(x[o * LANES + i], rows[0:ROWS, i])
            T.writes(out[o * LANES + i])
            T.buffer_store(out, lookup(rows, x[o * LANES + i], i), [o * LANES + i])
        if whole < size:
            with T.serial(0, size - whole) as left, T.sblock("rest"):
                at = T.axis.spatial(size - whole, left)
                T.reads(x[whole + at], table[0 : ROWS * ROW])
                T.writes(out[whole + at])
                T.buffer_store(out, table[x[whole + at].astype("int32")], [whole + at])
    return builder.get()
