"""One kernel for every workload that a target may ask for, under a name that is the workload's."""

from __future__ import annotations

import pytest
from kernel_runs import machine, make

from hwq.errors import HwqError
from hwq.schedule import FAMILIES, kernel_for
from hwq.schedules.generic import quantize


def test_a_kernel_is_named_by_its_workload() -> None:
    workload = make("quantize", "w8a8", [(1, 4)], (1, 4))
    kernel = kernel_for(workload, machine())
    assert kernel.symbol == f"quantize_w8a8_{workload.digest}"
    assert kernel.func.attrs["global_symbol"] == kernel.symbol
    assert bool(kernel.func.attrs["tirx.is_scheduled"])
    assert kernel.schedule == quantize.NAME
    assert kernel.pack is None


def test_families_take_each_operator_once() -> None:
    """The order decides only between a family of one machine and the generic one: of tables, sums, pictures."""
    shape, pool = (1, 4, 4, 8), {"kernel": (4, 4), "strides": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1)}
    for workload in (
        make("quantize", "w8a8", [shape], shape),
        make("add", "f32", [shape, shape], shape),
        make("avg_pool2d", "w8a8", [shape], (1, 1, 1, 8), count_include_pad=False, **pool),
        make("concat", "w8a8", [shape, shape], (1, 4, 4, 16), axis=3),
        make("reshape", "w8a8", [shape], (1, 128)),
        make("transpose", "f32", [shape], (1, 8, 4, 4), axes=(0, 3, 1, 2)),
        make("softmax", "f32", [shape], shape, axis=3),
    ):
        assert sum(family(workload, machine()) is not None for family in FAMILIES) == 1, workload.op


def test_no_family_is_a_clear_error() -> None:
    with pytest.raises(HwqError, match=r"no kernel on host for softmax in w8a8 of \(1, 4\)") as caught:
        kernel_for(make("softmax", "w8a8", [(1, 4)], (1, 4), axis=1), machine())
    assert caught.value.code == "kernel-missing"


def test_a_float_layer_needs_its_function() -> None:
    with pytest.raises(AssertionError):
        kernel_for(make("float", "f32", [(1, 4)], (1, 4), func_digest="0"), machine())
