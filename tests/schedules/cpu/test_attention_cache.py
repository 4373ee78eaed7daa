"""attention_cache: one query on keys and values of int8 is the reference's, for any number of keys and heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from kernel_runs import Array, at_the_edge, machine, make, run, shared

from hwq.cost import moved_bytes
from hwq.lowering import pipeline
from hwq.price_features import FEATURES, describe
from hwq.reference import evaluate
from hwq.schedule import kernel_for
from hwq.schedules.cpu.attention_cache import NAME, make_plan
from hwq.target import Target
from hwq.workload import Workload

# Heads, heads of keys, depth, width, length, shape of a bias.
SIZES = (
    (4, 2, 6, 6, 12, None),
    (8, 4, 8, 8, 40, None),
    (4, 1, 64, 64, 33, (1, 4, 1, 33)),
    (6, 6, 40, 17, 127, (1, 1, 1, 127)),
    (2, 1, 33, 7, 16, (1, 2, 1, 1)),
    (3, 1, 128, 127, 5, None),
)


def _workload(size: tuple[int, int, int, int, int, tuple[int, ...] | None], constant: bool = False) -> Workload:
    heads, groups, depth, width, length, bias = size
    shapes = [(1, 1, heads * depth), (1, length, groups * depth), (1, length, groups)]
    shapes += [(1, length, groups * width), (1, length, groups), *([bias] if bias and not constant else []), (2,)]
    attrs = {"heads": heads, "kv_heads": groups, "scale": depth**-0.5, **({"bias": bias} if constant else {})}
    return make("attention_cache", "f32", shapes, (1, 1, heads * width), **attrs)


def _arguments(workload: Workload, rng: np.random.Generator) -> list[Array]:
    found: list[Array] = []
    for place, shape in enumerate(workload.input_shapes[:5]):
        if place in (1, 3):
            found.append(rng.integers(-127, 128, shape).astype(np.int8))
        else:
            found.append((rng.standard_normal(shape) if place == 0 else 0.02 * rng.random(shape)).astype(np.float32))
    return found + [rng.standard_normal(shape).astype(np.float32) for shape in workload.input_shapes[5:-1]]


def _check(workload: Workload, target: Target, rng: np.random.Generator, last: list[Array]) -> None:
    """Scores are sums of depth products below 2.5 * 3 in any order: off by depth * 2^-23 * 7 at most, times which the
    shares are off, and a sum of values below 2.5 besides: within 1e-4 for 128."""
    kernel = kernel_for(workload, target)
    library = tvm.compile(tvm.IRModule(kernel.functions), target.tvm(), tir_pipeline=pipeline())
    given = _arguments(workload, rng)
    length = workload.input_shapes[1][1]
    for keys in sorted({1, 2, length // 2, length - 1, length}):
        arguments = [*given, np.array([1, keys], np.int32), *last]
        out = at_the_edge(np.full(workload.output_shape, 99, np.float32))
        library[kernel.symbol](*(shared(at_the_edge(value)) for value in arguments), shared(out))
        np.testing.assert_allclose(out, evaluate(workload, arguments), atol=1e-4, rtol=0, err_msg=str(keys))


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_reference(
    size: tuple[int, int, int, int, int, tuple[int, ...] | None], rng: np.random.Generator
) -> None:
    _check(_workload(size), machine(), rng, [])


@pytest.mark.parametrize(("number", "parts"), [(1, 2), (3, 2), (4, 1)])
def test_heads_of_keys_are_shared_by_threads(number: int, parts: int, rng: np.random.Generator) -> None:
    """The same bits as on one, on any number of keys."""
    target = replace(machine(), parallel_overhead_s=1e-12)
    workload = _workload(SIZES[number])
    given = _arguments(workload, rng)
    arguments = [*given, np.array([1, SIZES[number][4] - 1], np.int32)]
    alone, shared_out = (
        run(
            kernel_for(replace(workload, parallel=threads), target), target, arguments, workload.output_shape, "float32"
        )
        for threads in (1, 2)
    )
    assert make_plan(replace(workload, parallel=2), target).parts == parts
    assert ("T.parallel" in kernel_for(replace(workload, parallel=2), target).func.script()) == (parts > 1)
    assert alone.tobytes() == shared_out.tobytes()


@pytest.mark.parametrize("length", [16, 4096])
def test_threads_are_priced_where_they_are(length: int) -> None:
    target = replace(Target.load("x86-avx512-vnni"), cores=2)
    workload = replace(_workload((8, 8, 64, 64, length, None)), parallel=2)
    found = describe(workload, NAME, "l2", target).features[FEATURES.index("parallel")]
    assert (found > 1) == (make_plan(workload, target).parts > 1) == (length > 100)


def test_a_constant_bias_comes_last(rng: np.random.Generator) -> None:
    _check(_workload(SIZES[2], constant=True), machine(), rng, [rng.standard_normal(SIZES[2][5]).astype(np.float32)])


@pytest.mark.parametrize("name", ["x86-generic", "x86-avx2"])
def test_machines_with_narrower_vectors(name: str, rng: np.random.Generator) -> None:
    _check(_workload(SIZES[3]), Target.load(name), rng, [])


def test_its_bytes_are_a_quarter() -> None:
    size = (8, 8, 64, 64, 512, None)
    floats = make(
        "attention", "f32", [(1, 1, 512), (1, 512, 512), (1, 512, 512), (2,)], (1, 1, 512), heads=8, kv_heads=8
    )
    assert moved_bytes(_workload(size)) < 0.27 * moved_bytes(floats)
