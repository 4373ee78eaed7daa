"""Operators without kernels of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reference import run_layer
from tvm import IRModule, relax

from hwq import relax_tools as rt
from hwq.float_ops import NoKernelError, float_layers

X = relax.Var("x", relax.TensorType((2, 3, 4), "float32"))
Y = relax.Var("y", relax.TensorType((4,), "float32"))
op = relax.op


def _run(call: rt.Expr, mod: IRModule | None = None) -> tuple[Any, list[Any]]:
    """The layers of a call and the values of its results on fixed inputs."""
    scope = rt.Scope()
    value = scope.definition(scope.emit(call))
    names = iter(range(99))
    made = float_layers(mod or IRModule(), value, "it", {X: "x", Y: "y"}, lambda name: f"{name}{next(names)}")
    rng = np.random.default_rng(0)
    tensors = {"x": rng.random((2, 3, 4)).astype("float32"), "y": rng.random(4).astype("float32")}
    inputs = dict(tensors)
    for layer in made.layers:
        assert layer.op == "float"
        tensors[layer.output] = run_layer(layer, [tensors[name] for name in layer.inputs], made.dtypes[layer.output])
    return made, [inputs["x"], inputs["y"], *(tensors[name] for name in made.results)]


def test_one_function_one_layer() -> None:
    made, (x, y, out) = _run(op.power(X, Y))
    assert [layer.inputs for layer in made.layers] == [("x", "y")]
    np.testing.assert_allclose(out, x**y, rtol=1e-5)
    assert made.layers[0].attrs["operator"] == "power"


def test_constants_come_after_the_tensors_and_numbers_stay_inside() -> None:
    table = np.arange(4, dtype="float32")
    made, (x, _, out) = _run(op.subtract(rt.const(table), X))
    (layer,) = made.layers
    assert (layer.inputs, layer.input_shapes) == (("x",), ((2, 3, 4),))
    np.testing.assert_array_equal(layer.constants[0], table)
    np.testing.assert_allclose(out, table - x)
    made, (x, _, out) = _run(op.subtract(relax.const(1.0, "float32"), X))
    assert [len(layer.constants) for layer in made.layers] in ([0], [1])
    np.testing.assert_allclose(out, 1 - x)


def test_a_tensor_read_twice() -> None:
    _, (x, _, out) = _run(op.power(X, X))
    np.testing.assert_allclose(out, x**x, rtol=1e-5)


def test_each_result_is_a_layer() -> None:
    made, (x, _, first, second) = _run(op.split(X, [1], axis=1))
    assert [layer.output_shape for layer in made.layers] == [(2, 1, 4), (2, 2, 4)]
    np.testing.assert_array_equal(first, x[:, :1])
    np.testing.assert_array_equal(second, x[:, 1:])
    made, (x, _, values, indices) = _run(op.topk(X, 2, dtype="int64"))
    assert made.dtypes[made.results[1]] == "int64"
    np.testing.assert_array_equal(indices, np.argsort(-x, axis=-1)[..., :2])
    np.testing.assert_array_equal(values, -np.sort(-x, axis=-1)[..., :2])


def test_a_function_that_the_importer_wrote() -> None:
    builder = relax.BlockBuilder()
    with builder.function("main", [X]):
        builder.emit_func_output(builder.emit(relax.op.nn.pad(X, [0, 0, 0, 0, 1, 1], "reflect")))
    mod = relax.transform.LegalizeOps()(builder.get())
    call = rt.bindings_of(mod)[0][1]
    _, (x, _, out) = _run(call, mod)
    np.testing.assert_array_equal(out, np.pad(x, ((0, 0), (0, 0), (1, 1)), mode="reflect"))


def test_an_operator_without_a_kernel() -> None:
    with pytest.raises(NoKernelError):
        _run(op.call_dps_packed("nowhere", [X], out_ty=X.ty))
