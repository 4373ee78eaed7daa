"""Panels of int4 weights for AMX hold what int8 weights would be, the next one's filled step by step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from amx_runs import amx_target
from anchor_runs import anchor
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.lowering import pipeline
from hwq.schedules.x86.amx import pack, plans_of
from hwq.schedules.x86.amx_code import packed_shape
from hwq.schedules.x86.amx_panel import make_panels, unpack_beside
from hwq.schedules.x86.amx_plan import Plan


def panels_of(plan: Plan, passes: int) -> tirx.PrimFunc:
    """packed weights to both panels: the first block of channels at once, the second beside the steps of the first."""
    weight = tirx.decl_buffer(packed_shape(plan), "uint8", "weight")
    size = 4 * 64 * packed_shape(plan)[1]
    out = tirx.decl_buffer((size,), "int8", "out")
    zero = tirx.const(0, "int32")
    with IRBuilder() as builder:
        with T.seq_scope():
            panels = make_panels(weight, zero, zero, tirx.const(plan.channel_blocks, "int32"))
            with T.grid(passes, plan.steps) as (pixels, step):
                unpack_beside(panels, plan, pixels, zero, step)
            with T.serial(0, size) as i:
                T.buffer_store(out, panels.bytes[i], [i])
        body = builder.get().body
    return tirx.PrimFunc([weight, out], body).with_attrs({"global_symbol": "panels", "tirx.is_scheduled": True})


@pytest.mark.parametrize(("pixels", "in_c"), [(9, 64), (40, 200), (70, 13)])
def test_panels_hold_every_weight(pixels: int, in_c: int, rng: np.random.Generator) -> None:
    target = amx_target()
    weight = rng.integers(-8, 8, (96, in_c)).astype(np.int8)
    plans = {(plan.mt, plan.nt): plan for plan in plans_of(anchor("dense", "w4a8", (pixels, in_c), 96))}
    for plan in plans.values():
        # As many blocks of pixels as the smallest section has.
        func = panels_of(plan, plan.runs * plan.blocks // plan.chunks[0])
        library = tvm.compile(tvm.IRModule({"panels": func}), target.tvm(), tir_pipeline=pipeline())
        size = 4 * 64 * packed_shape(plan)[1]
        found = tvm.runtime.tensor(np.full(size, 99, np.int8))
        library["panels"](tvm.runtime.tensor(pack(plan, weight)), found)
        expected = pack(replace(plan, weight="int8"), weight).reshape(plan.channel_blocks, -1)
        for block, half in enumerate(found.numpy().reshape(2, -1)[: plan.channel_blocks]):
            np.testing.assert_array_equal(half[: expected.shape[1]], expected[block])
