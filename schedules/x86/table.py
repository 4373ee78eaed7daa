"""unary of integers by byte shuffles: a table of 256 bytes is rows of one register, and a shuffle looks a vector up.

* AVX2: 16 rows of 16 bytes, vectors of 32. The low four bits of each byte choose within every row, the high four choose
  the row by four levels of selects: a quarter to half the time of lookups one by one.
  Limit: shuffles and selects, 32 of them for 32 bytes; one Zen 4 core looks up 7.6 bytes a nanosecond.
* AVX512-VBMI: 4 rows of 64 bytes, vectors of 64. A shuffle chooses by seven bits out of two rows, a select by the
  eighth: four instructions for 64 bytes. Limit: bytes; 110 GB/s of reads and writes where the L2 gives 115.

Both are written for one element, but mean something only in a loop that is vectorized by exactly ``lanes``: there TVM
makes vectors of the intrinsic's arguments. A kernel's own epilogue may use them as well.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.graph import Shape
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "x86/table:2"
# Bytes of a row, and of the vectors that are looked up: by the instruction.
ROW_BYTES = {"vpshufb": 16, "vpermi2b": 64}
LANES = {"vpshufb": 32, "vpermi2b": 64}
TABLE = 256


def apply(workload: Workload, target: Target) -> Kernel | None:
    """x, table uint8 (256,), out; activations stored as uint8, AVX2 or more, at least one vector of elements."""
    if workload.op != "unary" or not common.is_integer(workload):
        return None
    size = math.prod(workload.output_shape)
    known = instructions(target)
    if not known:
        return common.decline(workload, f"{target.name} has no avx2, or activations are not uint8")
    instruction = next((name for name in known if size >= LANES[name]), None)
    if instruction is None:
        return common.decline(workload, f"{size} elements are no vector of {LANES[known[-1]]}")
    sch = Schedule(_function(size, instruction), debug_mask="none")
    over, lane = sch.get_loops(sch.get_sblock("out"))
    sch.vectorize(lane)
    sch.vectorize(sch.get_loops(sch.get_sblock("rows"))[-1])
    if common.worth_parallel(workload.parallel, (4 if instruction == "vpshufb" else 1) * size, target):
        common.split_outer(sch, [over], [size // LANES[instruction]], workload.parallel)
    func = with_shapes(sch.mod["main"], {0: workload.input_shapes[0], 2: workload.output_shape})
    return common.finish(workload, func, NAME, instruction)


def instructions(target: Target) -> tuple[str, ...]:
    """Those of "vpermi2b", "vpshufb" that the target has, the best first; none where it does not store uint8."""
    if "avx2" not in target.cpu_flags or target.activation_storage != "uint8":
        return ()
    wide = "avx512vbmi" in target.cpu_flags and target.vector_bits == 512
    return ("vpermi2b", "vpshufb") if wide else ("vpshufb",)


def entries_shape(instruction: str) -> Shape:
    """(rows, lanes) of the table as ``lookup`` wants it: each of its rows, repeated to the vector's length."""
    return (TABLE // ROW_BYTES[instruction], LANES[instruction])


def lookup(rows: Any, byte: Any, lane: Any) -> Any:
    """The table's entry for ``byte`` (uint8) in ``lane`` of a vector; rows is of ``entries_shape``."""
    count = int(rows.shape[0])

    def constant(value: int) -> Any:
        return tirx.const(value, "uint8")

    if count == TABLE // ROW_BYTES["vpermi2b"]:
        name, bits = "llvm.x86.avx512.vpermi2var.qi.512", [128]
        found = [
            tirx.call_llvm_pure_intrin("uint8", name, rows[row, lane], byte, rows[row + 1, lane]) for row in (0, 2)
        ]
    else:
        name, bits = "llvm.x86.avx2.pshuf.b", [16, 32, 64, 128]
        low = byte & constant(ROW_BYTES["vpshufb"] - 1)
        found = [tirx.call_llvm_pure_intrin("uint8", name, rows[row, lane], low) for row in range(count)]
    for bit in bits:
        test = (byte & constant(bit)) != constant(0)
        found = [tirx.Select(test, found[at + 1], found[at]) for at in range(0, len(found), 2)]
    return found[0]


def repeated_rows(table: Any, instruction: str) -> Any:
    """What ``lookup`` takes as rows, in a function under construction: made by block "rows"."""
    (count, lanes), width = entries_shape(instruction), ROW_BYTES[instruction]
    rows = T.sblock_alloc_buffer((count, lanes), "uint8")
    with T.grid(count, lanes // width, width) as (row, copy, column), T.sblock("rows"):
        r, c, j = T.axis.spatial(count, row), T.axis.spatial(lanes // width, copy), T.axis.spatial(width, column)
        T.reads(table[r * width + j])
        T.writes(rows[r, c * width + j])
        T.buffer_store(rows, table[r * width + j], [r, c * width + j])
    return rows


def _function(size: int, instruction: str) -> Any:
    """Over flat tensors: block "rows" repeats the table's rows, "out" is whole vectors, "rest" is what is left."""
    lanes, whole = LANES[instruction], size // LANES[instruction] * LANES[instruction]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer((size,), "uint8"))
        table = T.arg("table", T.buffer((TABLE,), "uint8"))
        out = T.arg("out", T.buffer((size,), "uint8"))
        rows = repeated_rows(table, instruction)
        with T.grid(whole // lanes, lanes) as (over, lane), T.sblock("out"):
            o, i = T.axis.spatial(whole // lanes, over), T.axis.spatial(lanes, lane)
            T.reads(x[o * lanes + i], rows[0 : rows.shape[0], i])
            T.writes(out[o * lanes + i])
            T.buffer_store(out, lookup(rows, x[o * lanes + i], i), [o * lanes + i])
        if whole < size:
            with T.serial(0, size - whole) as left, T.sblock("rest"):
                at = T.axis.spatial(size - whole, left)
                T.reads(x[whole + at], table[0:TABLE])
                T.writes(out[whole + at])
                T.buffer_store(out, table[x[whole + at].astype("int32")], [whole + at])
    return builder.get()
