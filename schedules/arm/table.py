"""unary of integers by NEON's table lookup: 256 bytes are sixteen registers, and four instructions look 16 bytes up.

``tbl`` of four registers gives 0 for bytes from 64 on, ``tbx`` leaves those as they are: so each further quarter of the
table overwrites what its 64 values, counted from 0, choose. A kernel's own epilogue may use the same.

Limit: those four, each of 64 bytes of table; one by one a byte takes two loads and a store.
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

NAME = "arm/table:1"
INSTRUCTION = "tbl"
# Bytes of a register, and registers that one instruction reads.
LANES, TOGETHER = 16, 4
TABLE = 256


def apply(workload: Workload, target: Target) -> Kernel | None:
    """x, table uint8 (256,), out; activations stored as int8 on NEON, at least one vector of elements."""
    if workload.op != "unary" or not common.is_integer(workload):
        return None
    size = math.prod(workload.output_shape)
    if not instructions(target):
        return common.decline(workload, f"{target.name} has no NEON, or activations are not int8")
    if size < LANES:
        return common.decline(workload, f"{size} elements are no vector of {LANES}")
    sch = Schedule(_function(size), debug_mask="none")
    if common.worth_parallel(workload.parallel, 2 * size, target):
        common.split_outer(sch, sch.get_loops(sch.get_sblock("out")), [size // LANES], workload.parallel)
    func = with_shapes(sch.mod["main"], {0: workload.input_shapes[0], 2: workload.output_shape})
    return common.finish(workload, func, NAME, INSTRUCTION)


def instructions(target: Target) -> tuple[str, ...]:
    """INSTRUCTION, if the target has it and stores int8."""
    return (INSTRUCTION,) if "asimd" in target.cpu_flags and target.activation_storage == "int8" else ()


def entries_shape() -> Shape:
    """(rows, lanes) of the table as ``lookup`` wants it."""
    return (TABLE // LANES, LANES)


def lookup(rows: Any, byte: Any, lane: Any) -> Any:
    """The table's entry for ``byte`` (uint8) in ``lane`` of a vector; rows is of ``entries_shape``. Written for one
    element, it means something only in a loop that is vectorized by LANES.
    """
    return _looked_up([rows[row, lane] for row in range(TABLE // LANES)], byte, "uint8", 1)


def _looked_up(rows: list[Any], places: Any, kind: str, lanes: int) -> Any:
    found = tirx.call_llvm_pure_intrin(kind, "llvm.aarch64.neon.tbl4", *rows[:TOGETHER], places)
    for first in range(TOGETHER, len(rows), TOGETHER):
        places = places - common.wide(tirx.const(TOGETHER * LANES, "uint8"), lanes)
        found = tirx.call_llvm_pure_intrin(
            kind, "llvm.aarch64.neon.tbx4", found, *rows[first : first + TOGETHER], places
        )
    return found


def _function(size: int) -> Any:
    """Over flat tensors: block "out" is whole vectors, "rest" is what is left."""
    vector, bytes_, whole = f"uint8x{LANES}", f"int8x{LANES}", size // LANES * LANES
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer((size,), "int8"))
        table = T.arg("table", T.buffer((TABLE,), "uint8"))
        out = T.arg("out", T.buffer((size,), "int8"))
        with T.serial(0, whole // LANES) as over, T.sblock("out"):
            at = T.axis.spatial(whole // LANES, over) * LANES
            T.reads(x[at : at + LANES], table[0:TABLE])
            T.writes(out[at : at + LANES])
            rows = [table.vload([first], vector) for first in range(0, TABLE, LANES)]
            found = _looked_up(rows, tirx.reinterpret(vector, x.vload([at], bytes_)), vector, LANES)
            T.buffer_store(out, tirx.reinterpret(bytes_, found), [tirx.Ramp(at, 1, LANES)])
        if whole < size:
            with T.serial(0, size - whole) as left, T.sblock("rest"):
                at = T.axis.spatial(size - whole, left) + whole
                T.reads(x[at], table[0:TABLE])
                T.writes(out[at])
                byte = tirx.reinterpret("uint8", x[at])
                T.buffer_store(out, tirx.reinterpret("int8", table[byte.astype("int32")]), [at])
    return builder.get()
