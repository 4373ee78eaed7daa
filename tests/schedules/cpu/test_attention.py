"""attention: right at awkward sizes, the same bits however keys are padded and rows are cut, on fused multiply-adds."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import numpy as np
import pytest
from kernel_runs import Array, assembly, machine, make, run

from hwq.cost import op_macs
from hwq.graph import Activation, Shape
from hwq.reference import evaluate
from hwq.schedule import kernel_for
from hwq.schedules.cpu import attention
from hwq.schedules.cpu.attention_plan import make_plan
from hwq.schedules.cpu.attention_step import TOGETHER
from hwq.target import Target
from hwq.transformer import split_heads
from hwq.workload import Workload

# (queries, keys, heads, heads of keys, depth, width, more)
CASES: list[tuple[int, int, int, int, int, int, dict[str, Any]]] = [
    (1, 1, 1, 1, 4, 4, {}),
    (1, 127, 6, 2, 64, 64, {}),
    (7, 7, 2, 2, 8, 8, {"causal": True}),
    (7, 127, 2, 1, 32, 32, {"bias": (1, 2, 1, 127)}),
    (16, 16, 2, 1, 80, 80, {"causal": True}),
    (17, 33, 3, 3, 64, 32, {"causal": True, "bias": (2, 1, 17, 33)}),
    (33, 17, 4, 2, 32, 80, {"bias": (2, 4, 33, 17)}),
    (33, 33, 2, 2, 4, 3, {"bias": (1, 1, 1, 1)}),
    (127, 127, 2, 1, 64, 160, {"causal": True}),
    (1, 33, 4, 1, 12, 20, {"bias": (2, 4, 1, 33), "constant": True}),
    (17, 16, 2, 2, 8, 16, {"scale": -0.3}),
    (33, 127, 3, 1, 32, 32, {"cut": True, "causal": True}),
    (1, 127, 8, 2, 64, 64, {"cut": True, "bias": (1, 8, 1, 127), "constant": True}),
]


def _workload(
    queries: int,
    keys: int,
    heads: int,
    kv_heads: int,
    depth: int,
    width: int,
    *,
    bias: Shape | None = None,
    constant: bool = False,
    cut: bool = False,
    batch: int = 2,
    causal: bool = False,
    scale: float | None = None,
    parallel: int = 1,
) -> Workload:
    attrs: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "causal": causal}
    attrs["scale"] = depth**-0.5 if scale is None else scale
    inputs: list[Shape] = [
        (batch, queries, heads * depth),
        (batch, keys, kv_heads * depth),
        (batch, keys, kv_heads * width),
    ]
    if constant:
        attrs["bias"] = bias
    elif bias is not None:
        inputs.append(bias)
    if cut:
        attrs["cut"] = True
        inputs.append((2,))
    return make("attention", "f32", inputs, (batch, queries, heads * width), parallel=parallel, **attrs)


def _arguments(workload: Workload, rng: np.random.Generator, span: tuple[int, int] | None = None) -> list[Array]:
    """In the kernel's order. What lies beyond the span is NaN."""
    attrs = dict(workload.attrs)
    found: list[Array] = [rng.standard_normal(shape).astype(np.float32) for shape in workload.input_shapes]
    if span is not None:
        found[-1] = np.array(span, np.int32)
        found[0][:, span[0] :] = found[1][:, span[1] :] = found[2][:, span[1] :] = np.nan
    if "bias" in attrs:
        found.append(rng.standard_normal(attrs["bias"]).astype(np.float32))
    return found


def _bound(workload: Workload, arguments: list[Array]) -> float:
    """By how much a kernel in float32 may differ from the reference in float64.

    A score is a sum of D products: off by (D + 4) * 2^-24 of the sum of their sizes, and a power by as much of itself,
    by 1.6e-7 for its polynomial and by 2^-23 of its exponent; a sum of T shares by T * 2^-24; the quotient twice.
    """
    attrs = dict(workload.attrs)
    q, k, v, *others = (np.nan_to_num(each) for each in arguments)
    depth = q.shape[-1] // attrs["heads"]
    squares = [
        float(np.square(split_heads(x, attrs[name])).sum(axis=-1).max()) for x, name in ((q, "heads"), (k, "kv_heads"))
    ]
    sizes = abs(attrs["scale"]) * math.sqrt(squares[0] * squares[1])  # Cauchy and Schwarz
    sizes += sum(float(np.abs(each).max()) for each in others if each.ndim == 4)
    off = (depth + 6) * 2.0**-24 * sizes + 1.6e-7 + k.shape[1] * 2.0**-24
    return 2 * off * float(np.abs(v).max())


def _check(workload: Workload, target: Target, arguments: list[Array]) -> Array:
    result = run(kernel_for(workload, target), target, arguments, workload.output_shape, "float32")
    attrs = dict(workload.attrs)
    count = int(arguments[len(workload.input_shapes) - 1][0]) if "cut" in attrs else result.shape[1]
    expected = evaluate(workload, arguments)[:, :count]
    np.testing.assert_allclose(result[:, :count], expected, rtol=0, atol=_bound(workload, arguments))
    assert np.isfinite(result).all()
    return result


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case: Any, rng: np.random.Generator) -> None:
    *sizes, more = case
    workload = _workload(*sizes, **more)
    span = (min(case[0], 20), min(case[1], 70)) if more.get("cut") else None
    _check(workload, machine(), _arguments(workload, rng, span))


@pytest.mark.parametrize("name", ["x86-generic", "x86-avx2"])
@pytest.mark.parametrize("number", [1, 5])
def test_equals_the_reference_on_narrow_vectors(name: str, number: int, rng: np.random.Generator) -> None:
    target = Target.load(name)
    if target.missing_flags():
        pytest.skip(f"this machine lacks {', '.join(target.missing_flags())}")
    *sizes, more = CASES[number]
    workload = _workload(*sizes, **more)
    _check(workload, target, _arguments(workload, rng))


def test_bits_depend_on_neither_padding_nor_cut(rng: np.random.Generator) -> None:
    """The same rows from a kernel of just their size, from one that is cut to it, and one by one with a cache."""
    n, heads, kv_heads, depth = 33, 4, 2, 32
    exact = _workload(n, n, heads, kv_heads, depth, depth, causal=True, batch=1)
    arguments = _arguments(exact, rng)
    wanted = _check(exact, machine(), arguments)

    def padded(x: Array, length: int) -> Array:
        return np.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0)), constant_values=np.nan)

    @functools.cache
    def cut_rows(queries: int, count: int, first: int) -> Array:
        """Rows ``first`` to ``first`` + count by a kernel of at most ``queries`` of them and 127 keys."""
        workload = _workload(queries, 127, heads, kv_heads, depth, depth, causal=True, cut=True, batch=1)
        q = padded(arguments[0][:, first : first + count], queries)
        span = np.array([count, first + count], np.int32)
        values = [q, padded(arguments[1], 127), padded(arguments[2], 127), span]
        return run(kernel_for(workload, machine()), machine(), values, workload.output_shape, "float32")[:, :count]

    for queries, count, first in ((127, n, 0), (127, 7, 0), (17, 16, 17), (1, 1, 32)):
        np.testing.assert_array_equal(cut_rows(queries, count, first), wanted[:, first : first + count])


def test_one_query_takes_any_number_of_keys(rng: np.random.Generator) -> None:
    """By a kernel for 33 of them, about the number that it reads together and that of lanes."""
    workload = _workload(1, 33, 4, 2, 32, 32, cut=True, batch=1)
    kernel, target = kernel_for(workload, machine()), machine()
    for keys in (TOGETHER - 1, TOGETHER, TOGETHER + 1, 17):
        arguments = _arguments(workload, rng, (1, keys))
        result = run(kernel, target, arguments, workload.output_shape, "float32")
        np.testing.assert_allclose(result, evaluate(workload, arguments), rtol=0, atol=_bound(workload, arguments))


def test_what_is_masked_is_exactly_nothing(rng: np.random.Generator) -> None:
    """Keys with a bias of -inf, or the least float, change no bit, whatever their values are."""
    plain = _workload(17, 33, 2, 1, 32, 32, batch=1)
    arguments = _arguments(plain, rng)
    wider = _workload(17, 127, 2, 1, 32, 32, batch=1, bias=(1, 1, 1, 127))
    more = [arguments[0], *(np.pad(x, ((0, 0), (0, 94), (0, 0)), constant_values=9.0) for x in arguments[1:])]
    masks = np.zeros((1, 1, 1, 127), np.float32)
    wanted = _workload(17, 33, 2, 1, 32, 32, batch=1, bias=(1, 1, 1, 33))
    target = machine()
    zeros = np.zeros((1, 1, 1, 33), np.float32)
    expected = run(kernel_for(wanted, target), target, [*arguments, zeros], wanted.output_shape, "float32")
    for least in (-np.inf, np.finfo(np.float32).min):
        masks[..., 33:] = least
        result = run(kernel_for(wider, target), target, [*more, masks], wider.output_shape, "float32")
        np.testing.assert_array_equal(result, expected)


def test_one_key_gives_its_value(rng: np.random.Generator) -> None:
    workload = _workload(7, 1, 2, 2, 16, 16)
    arguments = _arguments(workload, rng)
    result = run(kernel_for(workload, machine()), machine(), arguments, workload.output_shape, "float32")
    np.testing.assert_array_equal(result, np.broadcast_to(arguments[2], result.shape))


@pytest.mark.parametrize(("batch", "heads", "kv_heads", "queries"), [(1, 3, 1, 64), (1, 16, 8, 1)])
def test_large_ones_are_split_over_threads(
    batch: int, heads: int, kv_heads: int, queries: int, rng: np.random.Generator
) -> None:
    workload = _workload(queries, 512, heads, kv_heads, 64, 64, batch=batch, parallel=2)
    assert make_plan(workload, machine()).parallel
    assert "T.parallel" in kernel_for(workload, machine()).func.script()
    result = _check(workload, machine(), _arguments(workload, np.random.default_rng(3)))
    alone = _workload(queries, 512, heads, kv_heads, 64, 64, batch=batch)
    np.testing.assert_array_equal(result, _check(alone, machine(), _arguments(alone, np.random.default_rng(3))))


@pytest.mark.parametrize(
    ("name", "multiply", "register"),
    [
        ("x86-avx2", "vfmadd", "%ymm"),
        ("x86-avx512-vnni", "vfmadd", "%zmm"),
        ("arm-cortex-a72", "fmla", ".4s"),
    ],
)
def test_is_built_on_the_fused_multiply_add(name: str, multiply: str, register: str) -> None:
    """By whole registers, and without a library's function (the runtime's are called by pointer)."""
    target = Target.load(name)
    lines = assembly(kernel_for(_workload(64, 64, 2, 2, 32, 32), target), target)
    assert sum(bool(re.match(rf"\s*{multiply}", line)) and register in line for line in lines) > 64
    assert [line for line in lines if re.match(r"\s*(call|bl)\s", line) and "*" not in line] == []


def test_tiles_have_registers() -> None:
    """Sums, a step's vectors and a broadcast lie in registers, for products of both kinds."""
    for name, most in (("x86-avx512-vnni", 32), ("x86-avx2", 16), ("x86-generic", 16), ("arm-cortex-a76", 32)):
        for sizes in (
            (64, 64, 12, 12, 32, 32),
            (128, 128, 12, 12, 64, 64),
            (512, 512, 8, 2, 64, 64),
            (1, 512, 8, 2, 64, 64),
        ):
            plan = make_plan(_workload(*sizes), Target.load(name))
            assert (plan.rows + 1) * max(plan.vectors, plan.values) + 1 <= most, (name, sizes)
            assert plan.pitch // 16 % 2 == 1
            assert plan.pitch >= plan.blocks * plan.block


def test_macs_count_what_is_seen() -> None:
    """Products of queries with keys, and of shares with values; behind the causal limit there are none."""
    assert op_macs(_workload(3, 5, 2, 1, 8, 16)) == 2 * 2 * 3 * 5 * (8 + 16)
    assert op_macs(_workload(3, 5, 2, 1, 8, 16, causal=True)) == 2 * 2 * (3 + 4 + 5) * (8 + 16)


def test_only_float_without_activation() -> None:
    workload = _workload(3, 5, 2, 1, 8, 16)
    target = machine()
    assert attention.apply(workload, target) is not None
    relu = make("attention", "f32", workload.input_shapes, workload.output_shape, activation=Activation(kind="relu"))
    assert attention.apply(relu, target) is None
    assert attention.apply(make("softmax", "f32", [(1, 8)], (1, 8), axis=1), target) is None
