"""The epilogue of AMX kernels: bytes by whole registers, however a block's rows and channels fill them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from amx_runs import amx_target, on_tiles
from anchor_runs import RELU, TABLED, anchor, check_anchor
from kernel_runs import SCALAR_STORE, assembly
from tvm import tirx
from tvm.sym import Analyzer

from hwq.schedules.x86.amx import kernel_of, plans_of
from hwq.schedules.x86.amx_plan import Plan
from hwq.schedules.x86.amx_tail import Block, run_and_first
from hwq.target import Target
from hwq.workload import Workload

# name: (input shape, output channels, the rest of ``anchor``)
CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "one vector, residual": ((1, 8, 8, 20), 16, {"residual": True}),
    "two vectors, table": ((1, 8, 9, 32), 32, {"activation": TABLED}),
    "six vectors": ((1, 8, 8, 16), 96, {"activation": RELU}),
    "surplus rows": ((1, 7, 10, 16), 64, {}),
    "ragged, table and residual": ((1, 5, 9, 40), 120, {"activation": TABLED, "residual": True}),
}


def make(case: str) -> Workload:
    shape, out_c, more = CASES[case]
    return anchor("conv2d", "w8a8", shape, out_c, **more)


def ways(workload: Workload) -> dict[tuple[int, int], Plan]:
    """A plan for each way in which vectors of a row and rows of a block make a register: (nt, together)."""
    return {(plan.nt, plan.together): plan for plan in plans_of(workload)}


@pytest.mark.parametrize("case", CASES)
def test_every_way_to_fill_a_register_is_right(case: str, rng: np.random.Generator) -> None:
    workload, target = make(case), amx_target()
    for plan in ways(workload).values():
        with on_tiles():
            check_anchor(lambda *_, plan=plan, **__: kernel_of(plan, target), workload, target, rng)


def test_rows_are_finished_together_where_all_of_them_are_outputs() -> None:
    assert set(ways(make("one vector, residual"))) == {(1, 4)}
    assert set(ways(make("six vectors"))) == {(1, 4), (2, 2), (3, 1), (4, 1)}
    assert {together for nt, together in ways(make("ragged, table and residual"))} == {1}
    surplus = [plan for plan in plans_of(make("surplus rows")) if plan.blocks * plan.block_rows != plan.length]
    assert surplus
    assert all((plan.blocks * plan.block_rows - plan.length) % plan.together == 0 for plan in surplus)


@pytest.mark.parametrize(("out_c", "activation"), [(256, RELU), (128, TABLED), (96, RELU), (32, RELU), (16, TABLED)])
def test_bytes_are_stored_by_whole_registers(out_c: int, activation: Any) -> None:
    """No byte is stored alone; packs are of four vectors; and a table of 64 bytes is looked up by four instructions."""
    target = Target.load("x86-amx")
    workload = anchor("conv2d", "w8a8", (1, 16, 16, 64), out_c, activation=activation, residual=True)
    full = [plan for plan in ways(workload).values() if out_c % plan.block_lanes == 0]
    plans = [plan for plan in full if plan.nt * plan.together == 4]
    assert plans
    for plan in plans:
        lines = assembly(kernel_of(plan, target), target)
        assert [line for line in lines if SCALAR_STORE.match(line)] == []
        ops = Counter(match[1] for line in lines if (match := re.match(r"\s+(\w+)", line)))
        packs = [line for line in lines if re.match(r"\s+vpack(ssdw|uswb)", line)]
        assert len(packs) == 3 * ops["vpackuswb"] > 0
        assert all("%zmm" in line for line in packs)
        assert ops["vpermi2b"] + ops["vpermt2b"] == (2 * ops["vpackuswb"] if activation is TABLED else 0)


def test_blocks_overlap_where_they_do_not_divide_the_outputs() -> None:
    """The last block is moved back, and begins before the first output that no block has done."""
    plan = next(plan for plan in plans_of(make("surplus rows")) if plan.mt == 2 and plan.nt == 2)
    last = Block(pixels=tirx.const(plan.blocks - 1, "int32"), channels=tirx.const(0, "int32"))
    run, first, fresh = (int(Analyzer().simplify(value)) for value in run_and_first(plan, last))
    assert run == 0
    assert first + plan.block_rows == plan.length
    assert fresh == (plan.blocks - 1) * plan.block_rows > first
