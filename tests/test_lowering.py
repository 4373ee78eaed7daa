"""Lowering: local buffers are on the stack, where they become registers; larger ones and others are the pool's."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from kernel_runs import machine
from tvm import te
from tvm.s_tir import Schedule

from hwq.lowering import LARGEST_BYTES, pipeline


def asm_of(size: int, scope: str, dtype: str = "int32") -> tuple[str, tvm.runtime.Module]:
    """x + 1, doubled, through a buffer of ``size`` elements in ``scope``."""
    x = te.placeholder((4 * size,), dtype, "x")
    more = te.compute((4 * size,), lambda i: x[i] + tvm.tirx.const(1, dtype), name="more")
    out = te.compute((4 * size,), lambda i: more[i] * tvm.tirx.const(2, dtype), name="out")
    sch = Schedule(te.create_prim_func([x, out]))
    outer, _ = sch.split(sch.get_loops(sch.get_sblock("out"))[0], [None, size])
    sch.set_scope(sch.get_sblock("more"), 0, scope)
    sch.compute_at(sch.get_sblock("more"), outer)
    func = sch.mod["main"].with_attr({"global_symbol": "main", "tirx.is_scheduled": True})
    module = tvm.compile(tvm.IRModule({"main": func}), machine().tvm(), tir_pipeline=pipeline()).mod
    return module.inspect_source("asm"), module


@pytest.mark.parametrize(
    ("size", "scope", "pooled"),
    [
        (64, "local", False),
        (LARGEST_BYTES // 4, "local", False),
        (LARGEST_BYTES // 4 + 1, "local", True),
        (1024, "global", True),
    ],
)
def test_where_a_buffer_is(size: int, scope: str, pooled: bool) -> None:
    asm, module = asm_of(size, scope)
    assert bool(re.search("BackendAllocWorkspace", asm)) == pooled
    x = np.arange(4 * size, dtype=np.int32)
    out = tvm.runtime.tensor(np.zeros_like(x))
    module["main"](tvm.runtime.tensor(x), out)
    np.testing.assert_array_equal(out.numpy(), 2 * (x + 1))


def test_a_wide_element_counts_whole() -> None:
    assert re.search("BackendAllocWorkspace", asm_of(LARGEST_BYTES // 8 + 1, "local", "int64")[0])
    assert not re.search("BackendAllocWorkspace", asm_of(LARGEST_BYTES // 8, "local", "int64")[0])
