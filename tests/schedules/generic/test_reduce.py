"""Sums, means and maxima of rows: near NumPy's, and the same bits whatever longer buffer the rows stand in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_runs import Array, machine, make, run
from onnx_nets import network, node, ops, same_as_onnxruntime

from hwq.schedule import kernel_for
from hwq.workload import Workload

MOST = 20


def _workload(kind: str, rows: int, columns: int, parallel: int = 1) -> Workload:
    return make("reduce", "f32", [(1, rows, columns)], (1, columns), kind=kind, axes=(1,), parallel=parallel)


def _numbers(columns: int) -> Array:
    return np.random.default_rng(columns).standard_normal((1, MOST, columns)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "columns", "parallel"), [("sum", 1, 1), ("mean", 7, 1), ("max", 1, 1), ("sum", 192, 2)]
)
def test_rows_that_are_there(kind: str, columns: int, parallel: int) -> None:
    target = replace(machine(), parallel_overhead_s=1e-12)
    x = _numbers(columns)
    cut = kernel_for(replace(_workload(kind, MOST, columns, parallel), cut=MOST), target)
    for n in (1, 15, 16, 17, MOST):
        some = np.ascontiguousarray(x[:, :n])
        alone = run(kernel_for(_workload(kind, n, columns, parallel), target), target, [some], (1, columns), "float32")
        garbage = np.where(np.arange(MOST)[:, None] < n, x, np.float32(np.nan))
        found = run(cut, target, [garbage, np.array([n], np.int32)], (1, columns), "float32")
        assert found.tobytes() == alone.tobytes()
        exact = getattr(some.astype(np.float64), kind)(axis=1)
        np.testing.assert_allclose(alone, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "columns"), [("mean", 7), ("max", 1)])
@pytest.mark.parametrize(("given", "taken"), [(MOST + 1, MOST), (2**31 - 1, MOST), (0, 1), (-5, 1)])
def test_a_count_of_tokens_that_cannot_be_is_the_nearest(kind: str, columns: int, given: int, taken: int) -> None:
    target, x = machine(), _numbers(columns)
    cut = kernel_for(replace(_workload(kind, MOST, columns), cut=MOST), target)
    found, nearest = (run(cut, target, [x, np.array([n], np.int32)], (1, columns), "float32") for n in (given, taken))
    assert found.tobytes() == nearest.tobytes()


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax"])
def test_a_reduction_over_tokens_is_a_layer(op: str) -> None:
    given = {"keepdims": 0} | ({} if op == "ReduceSum" else {"axes": [1]})
    inputs = ["x", "axis"] if op == "ReduceSum" else ["x"]
    consts = {"axis": np.array([1])} if op == "ReduceSum" else {}
    model = same_as_onnxruntime(network([node(op, inputs, ["y"], **given)], (1, 9, 6), consts=consts))
    assert ops(model) == ["reduce"]


def test_a_reduction_beside_another_axis_is_no_such_layer() -> None:
    model = same_as_onnxruntime(network([node("ReduceMean", ["x"], ["y"], axes=[2])], (1, 9, 6)))
    assert ops(model) == ["float"]
