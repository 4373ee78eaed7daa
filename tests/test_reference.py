"""Workloads on kernel arguments: integer results near the float ones by a derived bound, storage without effect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hwq import numerics, reference
from hwq.graph import Activation
from hwq.numerics import QParams
from hwq.workload import Workload

IN, WITH, OUT = (
    QParams(scale=0.02, zero_point=-20),
    QParams(scale=0.03, zero_point=7),
    QParams(scale=0.05, zero_point=-60),
)
CONV = {"strides": (2, 1), "padding": (1, 0, 1, 2), "dilation": (1, 1)}
POOL = {"kernel": (3, 3), "strides": (2, 2), "padding": (1, 1, 1, 1), "dilation": (1, 1)}
SHAPES = {
    "conv2d": ((2, 6, 5, 4), (6, 3, 2, 2), CONV | {"groups": 2}, (2, 3, 6, 6)),
    "depthwise_conv2d": ((2, 6, 5, 6), (6, 3, 2, 1), CONV | {"groups": 6}, (2, 3, 6, 6)),
    "dense": ((3, 9), (6, 9), {}, (3, 6)),
}


def _workload(op: str, scheme: str, shapes: Any, output: Any, attrs: dict[str, Any], **more: Any) -> Workload:
    return Workload(
        op=op, scheme=scheme, input_shapes=shapes, output_shape=output, attrs=tuple(sorted(attrs.items())), **more
    )


def _stored(q: Any, storage: str) -> Any:
    return (q.astype(int) + 128).astype(np.uint8) if storage == "uint8" else q


def _real(q: Any, qparams: QParams, storage: str) -> Any:
    return numerics.dequantize(q, qparams, offset=128 if storage == "uint8" else 0)


@pytest.mark.parametrize("kind", ["none", "relu", "clip", "hard_swish"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("op", sorted(SHAPES))
def test_integer_layer_is_near_the_float_one(op: str, residual: bool, kind: str, rng: np.random.Generator) -> None:
    shape, weight_shape, attrs, out_shape = SHAPES[op]
    activation = Activation(kind=kind, lo=-0.5, hi=1.5) if kind == "clip" else Activation(kind=kind)
    q = rng.integers(-128, 128, shape).astype(np.int8)
    r = rng.integers(-128, 128, out_shape).astype(np.int8)
    weight, scale = numerics.quantize_weight(rng.normal(size=weight_shape) * 0.3, 8)
    bias = numerics.quantize_bias(rng.normal(size=6), IN.scale, scale)
    # The same layer in float, on the very values that the integers stand for.
    common: dict[str, Any] = {"activation": activation, "residual": residual, "has_bias": True}
    shapes = (shape, out_shape) if residual else (shape,)
    real = [_real(q, IN, "int8"), *([_real(r, WITH, "int8")] if residual else [])]
    values = [*real, numerics.dequantize_weight(weight, scale), bias * (IN.scale * scale)]
    expected = reference.evaluate(_workload(op, "f32", shapes, out_shape, attrs, **common), values)

    found = []
    for storage, offset in (("int8", 0), ("uint8", 128)):
        relu = kind == "relu"
        lo = OUT.zero_point if relu else int(numerics.quantize(np.array([-0.5]), OUT)[0]) if kind == "clip" else -128
        hi = int(numerics.quantize(np.array([1.5]), OUT)[0]) if kind == "clip" else 127
        inputs = [_stored(q, storage), *([_stored(r, storage)] if residual else [])]
        folded = numerics.fold_zero_point(bias, weight, IN.zero_point + offset)
        ints = np.array([IN.zero_point, WITH.zero_point, OUT.zero_point, lo, hi], np.int32) + np.int32(offset)
        lo_f, hi_f = (0.0 if relu else -0.5 if kind == "clip" else -np.inf), (1.5 if kind == "clip" else np.inf)
        for out_dtype, out_scale in (("int8", OUT.scale), ("float32", 1.0)):
            if kind == "hard_swish" and out_dtype == "float32":
                continue
            multiplier = (IN.scale * scale.astype(np.float64) / out_scale).astype(np.float32)
            floats = np.array([WITH.scale / out_scale, lo_f, hi_f], np.float32)
            arguments = [*inputs, weight, folded, multiplier, ints, floats]
            if kind == "hard_swish":
                table = numerics.make_table(lambda x: numerics.activate(activation, x), OUT, OUT)
                arguments.append(numerics.store_table(table, offset))
            workload = _workload(op, "w8a8", shapes, out_shape, attrs, out_dtype=out_dtype, **common)
            got = reference.evaluate(workload, arguments, storage)
            if out_dtype == "float32":
                # Sums reach a few units; each is rounded to float32 three times.
                assert np.abs(got - expected).max() <= 2.0**-20
                continue
            found.append(got.astype(int) - offset)
            least, most = ((v - OUT.zero_point) * OUT.scale for v in (-128, 127))
            error = np.abs((found[-1] - OUT.zero_point) * OUT.scale - np.clip(expected, least, most)).max()
            # One rounding; a table rounds its input too, which hard-swish, of slope up to 1.5, passes on, and its own
            # input saturates where the float one does not.
            assert error <= OUT.scale * (0.5 + (0.75 if kind == "hard_swish" else 0.0) + 1e-3)
    assert np.array_equal(found[0], found[1])


def test_quantize_and_dequantize_in_storage(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3)).astype(np.float32)
    for storage, offset in (("int8", 0), ("uint8", 128)):
        zero = np.array([OUT.zero_point + offset], np.int32)
        floats = np.array([1.0 / OUT.scale], np.float32)
        q = reference.evaluate(_workload("quantize", "w8a8", ((2, 3),), (2, 3), {}), [x, zero, floats], storage)
        assert np.array_equal(q, numerics.quantize(x, OUT, offset=offset))
        assert q.dtype == np.dtype(storage)
        back = _workload("dequantize", "w8a8", ((2, 3),), (2, 3), {})
        got = reference.evaluate(back, [q, zero, np.array([OUT.scale], np.float32)], storage)
        assert np.array_equal(got, numerics.dequantize(q, OUT, offset=offset))


@pytest.mark.parametrize("op", ["add", "multiply", "avg_pool2d", "unary"])
def test_integer_operators_are_near_the_float_ones(op: str, rng: np.random.Generator) -> None:
    a, b = (rng.integers(-60, 60, (1, 5, 5, 3)).astype(np.int8) for _ in range(2))
    pair = op in ("add", "multiply")
    attrs = POOL | {"count_include_pad": False} if op == "avg_pool2d" else {}
    output = (1, 3, 3, 3) if op == "avg_pool2d" else a.shape
    shapes = (a.shape, b.shape) if pair else (a.shape,)
    activation = Activation(kind="tanh" if op == "unary" else "none")
    real = [_real(a, IN, "int8"), *([_real(b, WITH, "int8")] if pair else [])]
    expected = reference.evaluate(_workload(op, "f32", shapes, output, attrs, activation=activation), real)
    for storage, offset in (("int8", 0), ("uint8", 128)):
        second = WITH.zero_point if pair else 0
        row = [IN.zero_point, second, OUT.zero_point, -128, 127]
        if op == "avg_pool2d":
            row = [IN.zero_point, 0, OUT.zero_point, -128, 127]
        ints = np.array(row, np.int32) + np.int32(offset)
        ratio = 1.0 / OUT.scale
        constants = {
            "add": lambda r=ratio, i=ints: [i, np.array([IN.scale * r, WITH.scale * r], np.float32)],
            "multiply": lambda r=ratio, i=ints: [i, np.array([IN.scale * WITH.scale * r], np.float32)],
            "avg_pool2d": lambda i=ints: [_nine(), i],
            "unary": lambda o=offset: [numerics.store_table(numerics.make_table(np.tanh, IN, OUT), o)],
        }[op]()
        inputs = [_stored(a, storage), *([_stored(b, storage)] if pair else [])]
        got = reference.evaluate(_workload(op, "w8a8", shapes, output, attrs), [*inputs, *constants], storage)
        least, most = ((v - OUT.zero_point) * OUT.scale for v in (-128, 127))
        back = (got.astype(int) - offset - OUT.zero_point) * OUT.scale
        assert np.abs(back - np.clip(expected, least, most)).max() <= OUT.scale * (0.5 + 1e-3)


def _nine() -> Any:
    """Multipliers of a 3x3 pool over 5x5 with a border of one: 4, 6 or 9 taps."""
    rows = np.array([2.0, 3.0, 2.0])
    return (IN.scale / OUT.scale / np.outer(rows, rows)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pass_through_operators_only_copy(dtype: Any, rng: np.random.Generator) -> None:
    x = rng.integers(0, 250, (1, 4, 4, 2)).astype(dtype)
    scheme = "f32" if dtype == np.float32 else "w8a8"

    def run(op: str, output: Any, attrs: dict[str, Any], *arguments: Any) -> Any:
        shapes = tuple(argument.shape for argument in arguments if argument.ndim == 4)
        got = reference.evaluate(_workload(op, scheme, shapes, output, attrs), arguments)
        assert got.dtype == dtype
        assert got.shape == output
        return got

    assert np.array_equal(run("concat", (1, 4, 4, 4), {"axis": 3}, x, x)[..., 2:], x)
    attrs = {"begin": (0, 3, 1, 0), "end": (1, 0, 4, 2), "strides": (1, -2, 2, 1)}
    assert np.array_equal(run("slice", (1, 2, 2, 2), attrs, x), x[:, 3:0:-2, 1:4:2, :])
    assert np.array_equal(run("reshape", (1, 32), {}, x), x.reshape(1, 32))
    pads = {"pads": ((0, 0), (1, 0), (0, 0), (0, 0)), "value": 5.0}
    fill = () if scheme == "f32" else (np.array([5], np.int32),)
    assert (run("pad", (1, 5, 4, 2), pads, x, *fill)[:, 0] == 5).all()
    assert np.array_equal(run("max_pool2d", (1, 2, 2, 2), POOL, x)[0, 0, 0], x[0, :2, :2].max(axis=(0, 1)))
    resized = run("resize_nearest", (1, 8, 2, 2), {"map_h": (0, 0, 1, 1, 2, 2, 3, 3), "map_w": (0, 3)}, x)
    assert np.array_equal(resized[0, 5, 1], x[0, 2, 3])


def test_layer_norm_in_float(rng: np.random.Generator) -> None:
    x = (rng.normal(size=(3, 40)) * 5 + 50).astype(np.float32)
    scale, bias = np.full(40, 2, np.float32), np.full(40, 1, np.float32)
    got = reference.evaluate(_workload("layer_norm", "f32", (x.shape,), x.shape, {"epsilon": 1e-12}), [x, scale, bias])
    assert got.mean(axis=1) == pytest.approx([1.0] * 3, abs=1e-6)
    assert got.std(axis=1) == pytest.approx([2.0] * 3, abs=1e-6)


def test_softmax_and_transpose_in_float(rng: np.random.Generator) -> None:
    x = (rng.normal(size=(2, 5)) * 100).astype(np.float32)
    got = reference.evaluate(_workload("softmax", "f32", (x.shape,), x.shape, {"axis": 1}), [x])
    assert got.sum(axis=1) == pytest.approx([1.0, 1.0], abs=2.0**-20)
    assert np.array_equal(got.argmax(axis=1), x.argmax(axis=1))
    got = reference.evaluate(_workload("transpose", "f32", (x.shape,), (5, 2), {"axes": (1, 0)}), [x])
    assert np.array_equal(got, x.T)
