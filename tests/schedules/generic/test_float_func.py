"""Any PrimFunc that Relax makes of an operator: scheduled, it computes what it did; reductions and exp are vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from kernel_runs import assembly, machine, make, run
from tvm import relax, tirx

from hwq.graph import Shape
from hwq.schedule import kernel_for
from hwq.schedules.generic import float_func

op = relax.op
CASES: dict[str, tuple[Callable[..., Any], tuple[Shape, ...]]] = {
    "softmax": (lambda x: op.nn.softmax(x, axis=-1), ((3, 5, 64),)),
    "layer_norm": (lambda x, g, b: op.nn.layer_norm(x, g, b, axes=[-1]), ((1, 7, 96), (96,), (96,))),
    "gelu": (lambda x: op.nn.gelu(x), ((1, 9, 33),)),
    "silu": (lambda x: op.nn.silu(x), ((1, 5, 5, 17),)),
    "mean_of_rows_and_columns": (lambda x: op.mean(x, axis=[1, 2]), ((2, 7, 5, 64),)),
    "mean_of_channels": (lambda x: op.mean(x, axis=[-1]), ((1, 5, 7, 64),)),
    "mean_of_a_unit_axis_too": (lambda x: op.mean(x, axis=[1, 3]), ((2, 1, 5, 32),)),
    "sum_of_all": (lambda x: op.sum(x), ((33, 16),)),
    "maximum_of_a_prime": (lambda x: op.max(x, axis=[-1]), ((5, 127),)),
    "bilinear": (lambda x: op.image.resize2d(x, (10, 14), layout="NHWC", method="linear"), ((1, 5, 7, 17),)),
    "matmul": (lambda a, b: op.matmul(a, b), ((3, 8, 20), (3, 20, 32))),
    "ragged_matmul": (lambda a, b: op.matmul(a, b), ((7, 5), (5, 13))),
    "argmax": (lambda x: op.argmax(x, axis=-1), ((4, 50),)),
    "instance_norm": (
        lambda x, g, b: op.nn.instance_norm(x, g, b, channel_axis=3, axes=[1, 2]),
        ((1, 6, 6, 16), (16,), (16,)),
    ),
    "group_norm": (
        lambda x, g, b: op.nn.group_norm(x, g, b, num_groups=4, channel_axis=1, axes=[2, 3]),
        ((1, 8, 6, 6), (8,), (8,)),
    ),
    "subtract": (lambda a, b: op.subtract(a, b), ((2, 5, 7, 33), (1, 1, 1, 33))),
    "log_softmax": (lambda x: op.nn.log_softmax(x), ((3, 100),)),
    "slice": (lambda x: op.strided_slice(x, axes=[1], begin=[1], end=[5]), ((3, 100),)),
    "transposed_convolution": (lambda a, b: op.nn.conv2d_transpose(a, b, strides=2), ((1, 4, 6, 6), (4, 8, 2, 2))),
    "scalar": (lambda x: op.exp(x), ((),)),
}


def legalize(name: str) -> Any:
    """The one PrimFunc of a case."""
    build, shapes = CASES[name]
    builder = relax.BlockBuilder()
    inputs = [relax.Var(f"x{at}", relax.TensorType(shape, "float32")) for at, shape in enumerate(shapes)]
    with builder.function("main", inputs):
        builder.emit_func_output(builder.emit(build(*inputs)))
    module = relax.transform.LegalizeOps()(builder.get())
    (func,) = (func for func in module.functions.values() if isinstance(func, tirx.PrimFunc))
    return func


def workload_of(name: str, parallel: int = 1) -> tuple[Any, Any]:
    func = legalize(name)
    out = tuple(int(size) for size in func.params[-1].ty.shape)
    digest = float_func.func_digest(func)
    return make("float", "f32", CASES[name][1], out, parallel=parallel, func_digest=digest), func


@pytest.mark.parametrize("name", CASES)
def test_computes_what_it_did(name: str, rng: np.random.Generator) -> None:
    """Sums are reordered and exp is another one: 128 roundings of 2^-24 at most, relative to values of up to 10."""
    workload, func = workload_of(name)
    target, dtype = machine(), str(func.params[-1].ty.dtype)
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in workload.input_shapes]
    plain = tvm.compile(tvm.IRModule({"plain": func.with_attr("global_symbol", "plain")}), target.tvm())
    expected = tvm.runtime.empty(workload.output_shape, dtype)
    plain["plain"](*map(tvm.runtime.tensor, inputs), expected)
    for parallel in (1, 2):
        kernel = kernel_for(workload_of(name, parallel)[0], target, func)
        result = run(kernel, target, inputs, workload.output_shape, dtype)
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["matmul", "layer_norm", "mean_of_channels", "mean_of_rows_and_columns"])
def test_reductions_are_scheduled(name: str) -> None:
    """Not merely right: no block of these keeps its own loops."""
    workload, func = workload_of(name)
    assert "T.vectorized" in kernel_for(workload, machine(), func).func.script()


def test_work_is_split_over_threads_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float_func.common, "PARALLEL_GAIN", 0.0)
    for name in ("matmul", "layer_norm", "mean_of_channels", "softmax", "ragged_matmul"):
        workload, func = workload_of(name, parallel=2)
        kernel = kernel_for(workload, machine(), func)
        assert "T.parallel" in kernel.func.script(), name


def test_no_library_is_called() -> None:
    target = machine()
    for name in ("softmax", "gelu", "silu"):
        workload, func = workload_of(name)
        lines = assembly(kernel_for(workload, target, func), target)
        assert [line for line in lines if "call" in line and any(name in line for name in ("exp", "erf", "tanh"))] == []


def test_another_function_is_another_kernel() -> None:
    """Two functions of equal shapes must not share a compiled kernel."""
    digests = {float_func.func_digest(legalize(name)) for name in CASES}
    assert len(digests) == len(CASES)
    workload, _ = workload_of("gelu")
    with pytest.raises(AssertionError):
        kernel_for(workload, machine(), legalize("silu"))
