"""RMS norm over the last axis: right at every length, a row's bits whatever stands around it, no library calls."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from kernel_runs import assembly, check, machine, make

from hwq.errors import HwqError
from hwq.graph import Activation, Shape
from hwq.lowering import pipeline
from hwq.schedule import kernel_for
from hwq.schedules.generic import rms_norm
from hwq.target import Target

SIZES = (1, 7, 16, 17, 33, 127, 384, 2048)


def _arguments(shape: Shape, rng: np.random.Generator) -> list[np.ndarray]:
    return [(rng.standard_normal(each) * 3 + 1).astype(np.float32) for each in (shape, shape[-1:])]


@pytest.mark.parametrize("name", ["x86-generic", "x86-avx2", "host"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_reference(name: str, size: int, rng: np.random.Generator) -> None:
    """A sum of squares rounds at most 32 + 6 times (steps of a row of 2048, halves; others less), each 6e-8
    of what is all positive, and its root halves that; four more are behind it: 4e-6 of outputs of at most 30 or so."""
    for shape in ((3, size), (2, 5, 1, size), (size,)):
        workload = make("rms_norm", "f32", [shape], shape, epsilon=1e-5)
        check(workload, Target.load(name), _arguments(shape, rng), tolerance=4e-6)


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("size", [7, 33, 127, 768])
def test_a_row_has_the_same_bits_among_any_number_of_rows(op: str, size: int, rng: np.random.Generator) -> None:
    """Decoding calls for one row what a whole sequence calls for all of them."""
    x = (rng.standard_normal((41, size)) * 3 + 1).astype(np.float32)
    constants = [rng.standard_normal(size).astype(np.float32) for _ in range(1 if op == "rms_norm" else 2)]
    found = []
    for rows in (1, 3, 8, 41):
        workload = make(op, "f32", [(rows, size)], (rows, size), epsilon=1e-5)
        kernel = kernel_for(workload, machine())
        library = tvm.compile(tvm.IRModule(kernel.functions), machine().tvm(), tir_pipeline=pipeline())
        parts = [np.empty((rows, size), np.float32) for _ in range(41 // rows)]
        for at, part in enumerate(parts):
            given = np.ascontiguousarray(x[at * rows : (at + 1) * rows])
            values = [tvm.runtime.tensor(each) for each in (given, *constants)]
            out = tvm.runtime.empty(part.shape, "float32")
            library[kernel.symbol](*values, out)
            part[...] = out.numpy()
        found.append(np.concatenate(parts))
    for each in found[:-1]:
        np.testing.assert_array_equal(each, found[-1][: len(each)])


def test_large_ones_are_split_over_threads(rng: np.random.Generator) -> None:
    shape = (1, 197, 1536)
    workload = make("rms_norm", "f32", [shape], shape, epsilon=1e-6, parallel=2)
    kernel = rms_norm.apply(workload, machine())
    assert kernel is not None
    assert "T.parallel" in kernel.func.script()
    check(workload, machine(), _arguments(shape, rng), tolerance=4e-6, kernel=kernel)


@pytest.mark.parametrize(("name", "register"), [("x86-avx2", "%ymm"), ("x86-avx512-vnni", "%zmm")])
def test_is_vectorized(name: str, register: str) -> None:
    target = Target.load(name)
    lines = assembly(kernel_for(make("rms_norm", "f32", [(64, 384)], (64, 384), epsilon=1e-5), target), target)
    for wanted in ("vaddps", "vmulps", "vfmadd"):
        assert any(re.match(rf"\s*({wanted})", line) and register in line for line in lines), wanted
    assert [line for line in lines if re.match(r"\s*v?movss\s.*\)$", line) and "%rsp" not in line] == []
    assert [line for line in lines if "call" in line and "*" not in line] == []  # the runtime's are by pointer


def test_only_float_without_activation() -> None:
    with pytest.raises(HwqError, match="no kernel on host for rms_norm"):
        kernel_for(make("rms_norm", "w8a8", [(1, 8)], (1, 8), epsilon=1e-5), machine())
    relu = Activation(kind="relu")
    assert rms_norm.apply(make("rms_norm", "f32", [(1, 8)], (1, 8), activation=relu), machine()) is None
    assert rms_norm.apply(make("softmax", "f32", [(1, 8)], (1, 8), axis=1), machine()) is None
