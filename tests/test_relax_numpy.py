"""Operators in NumPy against the kernels that TVM makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from relax_cases import run
from tvm import relax

from hwq import relax_tools as rt
from hwq.relax_numpy import MOVES, cut_of, evaluate, tensors_of

op = relax.op
X = relax.Var("x", relax.TensorType((2, 6, 4), "float32"))
Y = relax.Var("y", relax.TensorType((2, 6, 4), "float32"))
PICKED = rt.const(np.array([3, 0, 1]))


@pytest.mark.parametrize(
    "call",
    [
        op.reshape(X, (3, 16)), op.expand_dims(X, [0, 2]), op.permute_dims(X), op.permute_dims(X, [1, 2, 0]),
        op.broadcast_to(X, (3, 2, 6, 4)), op.concat([X, Y, X], 1), op.stack([X, Y], -1), op.take(X, PICKED, 1),
        op.take(X, relax.const(1, "int64"), 2), op.strided_slice(X, [1, -1], [1, -3], [6, 100], [2, 1]),
        op.strided_slice(X, [1], [4], [0], [-2]), op.split(X, 3, 1), op.split(X, [1, 3], 2), op.repeat(X, 2, 1),
        op.tile(X, (2, 1, 3)), op.flip(X, 1), op.where(op.less(X, Y), X, relax.const(0.5)), op.floor(X), op.sin(X),
        op.power(X, relax.const(2.0)), op.tril(X, -1), op.triu(X, 1), op.cumsum(X, 1), op.astype(X, "int32"),
        op.zeros_like(X), op.ones((2, 3), "int64"), op.full((2, 3), relax.const(1.5), "float32"), op.cos(X),
        op.arange(1, 7, 2, "int64"), op.matmul(X, op.permute_dims(Y, [0, 2, 1])), op.square(X),
        op.logical_not(op.greater_equal(X, Y)),
    ],
)  # fmt: skip
def test_as_the_kernel_computes(call: rt.Expr) -> None:
    builder = relax.BlockBuilder()
    with builder.function("main", [X, Y]):
        with builder.dataflow():
            out = builder.emit_output(builder.normalize(call))
        builder.emit_func_output(out)
    mod = builder.get()
    rng = np.random.default_rng(0)
    found = {var: (rng.standard_normal((2, 6, 4)) * 3).astype(np.float32) for var in mod["main"].params}
    for var, value in rt.bindings_of(mod):
        arrays = [rt.value_of(arg) if rt.is_const(arg) else found[arg] for arg in tensors_of(value)]
        found[var] = evaluate(value, arrays)
    results = found[var] if isinstance(found[var], list) else [found[var]]
    for got, expected in zip(results, run(mod), strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_what_is_not_known() -> None:
    builder = relax.BlockBuilder()
    whole = relax.Var("n", relax.TensorType((2, 6, 4), "int32"))
    array = np.ones((2, 6, 4), np.int32)
    for call in (op.erf(X), op.cumsum(X, 1, exclusive=True), op.divide(whole, whole)):
        assert evaluate(builder.normalize(call), [array] * 2) is None
    assert "erf" not in MOVES


def test_a_cut_goes_backwards_too() -> None:
    call = relax.BlockBuilder().normalize(op.strided_slice(X, [1], [-1], [-100], [-1]))
    cut = cut_of(call)
    assert cut is not None
    assert np.arange(6)[cut[1]].tolist() == [5, 4, 3, 2, 1, 0]
