"""Rows of a table equal the reference's bit for bit in every form, whatever the ids are."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
import tvm_ffi
from kernel_runs import Array, assert_vectorized, machine, make, run

from hwq import group_scales, numerics
from hwq.graph import Activation, Shape
from hwq.lowering import pipeline
from hwq.reference import evaluate
from hwq.schedule import kernel_for
from hwq.schedules.generic import embedding
from hwq.target import Target
from hwq.workload import Workload

SCHEMES = ("f32", "w8a8_dyn", "w4a16_g128")
COLUMNS = (1, 7, 16, 17, 33, 127, 128, 129, 321)


def _make(scheme: str, ids: Shape, rows: int, columns: int, kind: str = "int64", parallel: int = 1) -> Workload:
    return make("gather", scheme, [ids], (*ids, columns), ids=kind, rows=rows, out_dtype="float32", parallel=parallel)


def _table(scheme: str, rows: int, columns: int, rng: np.random.Generator) -> list[Array]:
    table = rng.standard_normal((rows, columns)).astype(np.float32)
    if scheme == "f32":
        return [table]
    quantized = group_scales.quantize_weight(table, 4, 128) if scheme == "w4a16_g128" else None
    return list(quantized or numerics.quantize_weight(table, 8))


def _check(workload: Workload, target: Target, ids: Array, table: list[Array]) -> None:
    kernel = kernel_for(workload, target)
    assert kernel.pack is not None
    packed = [ids, kernel.pack(table[0]), *table[1:]]
    result = run(kernel, target, packed, workload.output_shape, "float32")
    np.testing.assert_array_equal(result, evaluate(workload, [ids, *table]))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["x86-generic", "host"])
def test_equals_the_reference(name: str, scheme: str, rng: np.random.Generator) -> None:
    """int4 of every value there is."""
    for columns in COLUMNS:
        rows, kind = int(rng.integers(1, 40)), ("int64", "int32")[columns % 2]
        ids = rng.integers(-rows, rows, (3, 2)).astype(kind)
        _check(_make(scheme, (3, 2), rows, columns, kind), Target.load(name), ids, _table(scheme, rows, columns, rng))


@pytest.mark.parametrize("kind", ["int64", "int32"])
def test_nothing_outside_of_the_table_is_read(kind: str, rng: np.random.Generator) -> None:
    """Wrapped once, then clamped: -1 is the last row, -9 of 7 the first. The table ends where its page does."""
    ids = np.array([0, 6, 7, -1, -7, -8, -9, 2**31 - 1, -(2**31)], kind)
    if kind == "int64":
        ids = np.concatenate([ids, np.array([2**63 - 1, -(2**63), 2**32, -(2**32)])])
    table = _table("f32", 7, 17, rng)
    workload = _make("f32", ids.shape, 7, 17, kind)
    _check(workload, machine(), ids, table)
    expected = [0, 6, 6, 6, 0, 0, 0, 6, 0, *([6, 0, 6, 0] if kind == "int64" else [])]
    np.testing.assert_array_equal(evaluate(workload, [ids, *table]), table[0][expected])


def test_places_beyond_31_bits_are_reached(rng: np.random.Generator) -> None:
    """The last row of a table of more bytes than int32 counts; of those that nobody touched there is no memory."""
    rows, columns = 300_000, 8192
    kernel = kernel_for(_make("w8a8_dyn", (1,), rows, columns), machine())
    library = tvm.compile(tvm.IRModule(kernel.functions), machine().tvm(), tir_pipeline=pipeline())
    table, scales = np.zeros((rows, columns), np.int8), np.full(rows, 0.5, np.float32)
    table[-1] = rng.integers(-127, 128, columns)
    out = tvm.runtime.empty((1, columns), "float32")
    ids = tvm.runtime.tensor(np.array([-1]))
    library[kernel.symbol](ids, *(tvm_ffi.from_dlpack(each, require_alignment=1) for each in (table, scales)), out)
    np.testing.assert_array_equal(out.numpy()[0], table[-1].astype(np.float32) * np.float32(0.5))


def test_rows_are_packed_without_waste(rng: np.random.Generator) -> None:
    for columns in COLUMNS:
        table = rng.integers(-8, 8, (3, columns)).astype(np.int8)
        packed = embedding.pack("w4a16_g128", table)
        assert packed.shape == (3, -(-columns // 2))
        assert packed.dtype == np.uint8
    assert embedding.pack("w8a8_dyn", table) is table


def test_large_ones_are_split_over_threads(rng: np.random.Generator) -> None:
    workload = _make("w8a8_dyn", (512,), 1000, 768, parallel=2)
    assert "T.parallel" in kernel_for(workload, machine()).func.script()
    _check(workload, machine(), rng.integers(0, 1000, 512), _table("w8a8_dyn", 1000, 768, rng))


def test_integers_are_vectorized() -> None:
    for scheme in SCHEMES[1:]:
        assert_vectorized(_make(scheme, (128,), 100, 768), "vcvtdq2ps", "vmulps")


def test_takes_its_own_only() -> None:
    assert embedding.apply(make("slice", "f32", [(4,)], (4,)), machine()) is None
    int8 = make("gather", "w8a8", [(1,)], (1, 8), ids="int32", rows=4, activation=Activation())
    assert embedding.apply(int8, machine()) is None
