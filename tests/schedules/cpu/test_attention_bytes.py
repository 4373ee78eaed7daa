"""attention on bytes: equal to NumPy at awkward sizes, cut or not, and on the product of bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernel_runs import Array, assembly, machine, make, run

from hwq.errors import HwqError
from hwq.graph import Shape
from hwq.integer_attention import LOG2_E, MOST_KEYS, counts
from hwq.reference import evaluate
from hwq.schedule import kernel_for
from hwq.schedules.cpu.attention_bytes import SCORE_STEP, VALUE_STEP, ZERO_OUT
from hwq.target import Target
from hwq.workload import Workload

# (queries, keys, heads, heads of keys, depth, width, more)
CASES: list[tuple[int, int, int, int, int, int, dict[str, Any]]] = [
    (7, 7, 2, 2, 16, 16, {}),
    (33, 17, 4, 2, 32, 80, {"bias": (2, 4, 33, 17)}),
    (17, 127, 2, 1, 80, 16, {"causal": True}),
    (16, 33, 2, 2, 64, 64, {"bias": (1, 1, 1, 33), "out_dtype": "float32", "constant": True}),
    (33, 33, 3, 1, 128, 48, {"cut": True, "causal": True}),
    (1, 127, 6, 2, 64, 64, {"out_dtype": "float32"}),
    (1, 127, 4, 2, 32, 32, {"cut": True, "bias": (1, 4, 1, 127)}),
]


def _workload(
    queries: int, keys: int, heads: int, kv_heads: int, depth: int, width: int, *, bias: Shape | None = None,
    constant: bool = False, cut: bool = False, causal: bool = False, out_dtype: str = "int8", parallel: int = 1,
) -> Workload:  # fmt: skip
    attrs: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "causal": causal, "scale": depth**-0.5}
    inputs: list[Shape] = [
        (2, queries, heads * depth),
        (2, keys, kv_heads * depth),
        (2, keys, kv_heads * width),
    ]
    if bias is not None:
        inputs += [] if constant else [bias]
        attrs |= {"bias": bias} if constant else {}
    if cut:
        inputs.append((2,))
        attrs["cut"] = True
    return make(
        "attention", "w8a8", inputs, (2, queries, heads * width), out_dtype=out_dtype, parallel=parallel, **attrs
    )


def _arguments(workload: Workload, rng: np.random.Generator) -> list[Array]:
    """All bytes there are, zero points in the middle; scores of a few units, outputs some of which are clamped."""
    attrs = dict(workload.attrs)
    found: list[Array] = [rng.integers(0, 256, shape).astype(np.uint8) for shape in workload.input_shapes[:3]]
    biases = [shape for shape in (*workload.input_shapes[3:], attrs.get("bias", ())) if len(shape) == 4]
    bias = [rng.standard_normal(shape).astype(np.float32) for shape in biases]
    span = [np.array([min(9, workload.output_shape[1]), 30], np.int32)] if "cut" in attrs else []
    found += span + bias if "bias" in attrs else bias + span
    floats = np.zeros(2, np.float32)
    floats[SCORE_STEP] = 4e-4 * attrs["scale"] * (1.0 if biases and counts(biases[0]) else LOG2_E)
    floats[VALUE_STEP] = 0.02 if workload.out_dtype == "float32" else 3.5
    return [*found, np.array([120, 131, 125, 140], np.int32), floats]


def _vnni() -> Target:
    target = machine()
    if "w8a8" not in target.schemes_for("attention"):
        pytest.skip(f"{target.description} has no product of unsigned and signed bytes")
    return target


def _check(workload: Workload, target: Target, arguments: list[Array]) -> Array:
    dtype = "uint8" if workload.out_dtype == "int8" else "float32"
    result = run(kernel_for(workload, target), target, arguments, workload.output_shape, dtype)
    count = 9 if "cut" in dict(workload.attrs) else result.shape[1]
    expected = evaluate(workload, arguments)
    np.testing.assert_array_equal(result[:, :count], expected[:, :count])
    assert result.dtype == expected.dtype
    assert len(np.unique(expected[:, :count])) > 5, "not all clamped"
    return result


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case: Any, rng: np.random.Generator) -> None:
    *sizes, more = case
    workload = _workload(*sizes, **more)
    _check(workload, _vnni(), _arguments(workload, rng))


@pytest.mark.parametrize("number", [1, 5])
def test_equals_the_reference_on_narrow_vectors(number: int, rng: np.random.Generator) -> None:
    """As on a machine with AVX-VNNI alone."""
    target = replace(_vnni(), vector_bits=256)
    *sizes, more = CASES[number]
    workload = _workload(*sizes, **more)
    _check(workload, target, _arguments(workload, rng))


@pytest.mark.parametrize(("queries", "out_dtype"), [(17, "int8"), (17, "float32"), (1, "int8")])
def test_a_row_whose_keys_are_all_masked_is_nothing(queries: int, out_dtype: str, rng: np.random.Generator) -> None:
    target, row = _vnni(), queries // 2
    bias = (1, 2, queries, 33)
    workload = _workload(queries, 33, 2, 1, 32, 32, bias=bias, out_dtype=out_dtype)
    arguments = _arguments(workload, rng)
    arguments[3][:, 1, row] = -np.inf
    result = _check(workload, target, arguments)
    assert (result[:, row, 32:] == (arguments[4][ZERO_OUT] if out_dtype == "int8" else 0)).all()


def test_threads_change_nothing(rng: np.random.Generator) -> None:
    target, sizes = _vnni(), (256, 256, 4, 2, 64, 64)
    workload = _workload(*sizes, parallel=2)
    assert "T.parallel" in kernel_for(workload, target).func.script()
    _check(workload, target, _arguments(workload, rng))


@pytest.mark.parametrize(("name", "register"), [("x86-avx512-vnni", "%zmm"), ("x86-avx-vnni", "%ymm")])
def test_is_built_on_the_product_of_bytes(name: str, register: str) -> None:
    """Scores and sums, by whole registers."""
    lines = assembly(kernel_for(_workload(64, 64, 2, 2, 32, 32), Target.load(name)), Target.load(name))
    assert sum("vpdpbusd" in line and register in line for line in lines) > 32


def test_no_other_heads_or_machines() -> None:
    """Depths and widths in sixteens; what has no product of unsigned and signed bytes has float kernels alone."""
    for sizes in ((3, 5, 2, 1, 8, 16), (3, 5, 2, 1, 16, 24), (3, 5, 2, 1, 144, 16), (1, MOST_KEYS + 1, 1, 1, 16, 16)):
        with pytest.raises(HwqError, match="no kernel on x86-avx512-vnni for attention in w8a8"):
            kernel_for(_workload(*sizes), Target.load("x86-avx512-vnni"))
    for name in ("x86-generic", "x86-avx2", "arm-cortex-a76"):
        assert Target.load(name).schemes_for("attention") == ("f32",)
    assert ZERO_OUT == 3
