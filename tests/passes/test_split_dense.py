"""Dense layers whose output is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from relax_cases import assert_left_alone, assert_same_in_numpy
from tvm import IRModule, relax

from hwq import relax_tools as rt
from hwq.passes.split_dense import SplitDense

op = relax.op
Emit = Callable[[rt.Expr], rt.Expr]
B, S, C, H, D = 2, 3, 8, 2, 4
RNG = np.random.default_rng(2)
W, BIAS = RNG.standard_normal((C, 3 * C)).astype("float32"), RNG.standard_normal(3 * C).astype("float32")


def _module(make: Any) -> IRModule:
    """``make(emit, y)`` of a dense layer's output (B, S, 3 * C)."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((B, S, C), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(op.add(rt.const(BIAS), builder.emit(op.matmul(x, rt.const(W)))))
            outs = [builder.emit_output(item) for item in make(builder.emit, y)]
        builder.emit_func_output(relax.Tuple(outs))
    return builder.get()


def _slices(e: Emit, y: rt.Expr) -> list[rt.Expr]:
    """GPT-2."""
    return [e(op.strided_slice(y, [2], [at * C], [(at + 1) * C])) for at in range(3)]


def _split(e: Emit, y: rt.Expr) -> list[rt.Expr]:
    parts = e(op.split(e(op.reshape(y, (B * S, 3 * C))), [C, 2 * C], 1))
    return [e(relax.TupleGetItem(parts, at)) for at in range(3)]


def _items(e: Emit, y: rt.Expr) -> list[rt.Expr]:
    """Vision transformers: (3, batch, heads, length, size)."""
    apart = e(op.permute_dims(e(op.reshape(y, (B, S, 3, H, D))), [2, 0, 3, 1, 4]))
    return [e(op.take(apart, relax.const(at, "int64"), 0)) for at in range(3)]


def _by_head(e: Emit, y: rt.Expr) -> list[rt.Expr]:
    """GPT-NeoX: the three parts of each head beside each other."""
    apart = e(op.permute_dims(e(op.reshape(y, (B, S, H, 3 * D))), [0, 2, 1, 3]))
    return [e(op.strided_slice(apart, [3], [at * D], [(at + 1) * D])) for at in range(3)]


def _packed(e: Emit, y: rt.Expr) -> list[rt.Expr]:
    """torch.nn.MultiheadAttention."""
    apart = e(op.expand_dims(e(op.reshape(y, (B, S, 3, C))), [0]))
    apart = e(op.squeeze(e(op.permute_dims(apart, [3, 1, 2, 0, 4])), [3]))
    return [e(op.reshape(e(op.strided_slice(apart, [0], [at], [at + 1])), (B, S, C))) for at in range(3)]


@pytest.mark.parametrize("make", [_slices, _split, _items, _by_head, _packed])
def test_each_part_is_a_dense_layer(make: Any) -> None:
    before = _module(make)
    after = SplitDense()(before)
    relax.analysis.well_formed(after)
    calls = [value for _, value in rt.bindings_of(after)]
    weights = [rt.value_of(value.args[1]) for value in calls if rt.op_name(value) == "matmul"]
    assert [weight.shape for weight in weights] == [(C, C)] * 3
    assert {rt.op_name(value) for value in calls} <= {
        "",
        "matmul",
        "add",
        "reshape",
        "permute_dims",
        "squeeze",
        "expand_dims",
    }
    if make is not _by_head:
        np.testing.assert_array_equal(np.concatenate(weights, 1), W)
    assert_same_in_numpy(before, after)
    tvm.ir.assert_structural_equal(SplitDense()(after), after)


@pytest.mark.parametrize(
    "make",
    [
        lambda e, y: [e(op.strided_slice(y, [2], [0], [C])), e(op.tanh(y))],
        lambda e, y: [e(op.strided_slice(y, [2], [0], [C])), y],
        lambda e, y: [e(op.strided_slice(y, [1], [0], [1]))],
        lambda e, y: [e(op.strided_slice(e(op.tanh(y)), [2], [0], [C]))],
        lambda e, y: [e(op.strided_slice(e(op.reshape(y, (B, C, 3 * S))), [2], [0], [S]))],
    ],
    ids=["read elsewhere", "an output", "tokens", "through another operator", "across columns"],
)
def test_what_is_left_alone(make: Any) -> None:
    assert_left_alone(SplitDense(), _module(make))


def test_a_sum_along_rows_is_not_one_per_column() -> None:
    """As many rows as columns: (S, 1) has a number for each row."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, S, C), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(op.matmul(x, rt.const(W[:, :S])))
            y = builder.emit(op.add(y, rt.const(BIAS[:S, None])))
            out = builder.emit_output(op.strided_slice(y, [2], [0], [1]))
        builder.emit_func_output(out)
    assert_left_alone(SplitDense(), builder.get())
