"""Kernels cut to n tokens: the first n tokens' bits are the static kernel's, the memory behind them stays as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
from amx_runs import amx_target, on_tiles
from anchor_runs import anchor, make_arguments, result_of
from kernel_runs import at_the_edge, machine, run, shared

from hwq.execute import BoundStep, bind_step, compile_kernels
from hwq.graph import Activation, Graph
from hwq.lengths import EXTRA, Length, counts
from hwq.lower import Program, lower
from hwq.numerics import QParams
from hwq.quantize import quantize_weights
from hwq.schedule import kernel_for
from hwq.target import Target
from hwq.tokens import with_lengths
from hwq.workload import Workload

S, C = 20, 40
Q = QParams(scale=0.1, zero_point=3)


def _graph(op: str, inputs: int = 1, width: int = C, **fields: Any) -> Graph:
    shapes = {f"x{i}": (1, S, width) for i in range(inputs)} | {"y": (1, S, width)}
    return tiny.graph(
        [tiny.layer(op, [f"x{i}" for i in range(inputs)], "y", shapes, **fields)], list(shapes)[:-1], ["y"]
    )


def _dense(channels: int, inputs: int, residual: bool = False, activation: str = "none") -> Graph:
    rng = np.random.default_rng(channels)
    names = ["x", "r"] if residual else ["x"]
    shapes = {"x": (S, inputs), "r": (S, channels), "y": (S, channels)}
    layer = tiny.layer(
        "dense", names, "y", {name: shapes[name] for name in (*names, "y")}, residual=residual,
        weight=rng.standard_normal((channels, inputs)).astype(np.float32), activation=Activation(kind=activation),
        bias=rng.standard_normal(channels).astype(np.float32),
    )  # fmt: skip
    return tiny.graph([layer], names, ["y"])


def _program(graph: Graph, scheme: str, target: Target, parallel: int, *, cut: bool) -> Program:
    if cut:
        axis = {name: graph.shapes[name].index(S) for name in graph.inputs}
        graph = with_lengths(graph, {name: name for name in axis}, {name: {at: (1, S)} for name, at in axis.items()})
    qparams = {name: Q for name in (*graph.shapes, "y:pre")}
    weights = quantize_weights(graph, {"y": (scheme,)}, qparams, {})
    return lower(graph, {"y": scheme}, qparams, weights, target, parallel)


NORM = (np.linspace(0.5, 2, C, dtype=np.float32), np.linspace(-1, 1, C, dtype=np.float32))
ANGLES = (np.ones((S, C // 2), np.float32),) * 2
CASES: dict[str, tuple[Graph, str]] = {
    "dense": (_dense(40, 24), "f32"),
    "dense of many channels": (_dense(200, 64, residual=True, activation="gelu"), "f32"),
    "dense int8": (_dense(72, 50, residual=True), "w8a8"),
    "dense int8 table": (_dense(72, 64, activation="gelu"), "w8a8"),
    "dense int4": (_dense(72, 64), "w4a8"),
    "dense groups": (_dense(72, 128), "w4a8_g64"),
    "dense of rows": (_dense(72, 50, residual=True), "w8a8_dyn"),
    "dense of rows, groups": (_dense(40, 128, activation="gelu"), "w4a8_g64_dyn"),
    "dense of int4 weights": (_dense(72, 200, residual=True), "w4a16_g128"),
    "layer_norm": (_graph("layer_norm", attrs={"epsilon": 1e-5}, constants=NORM), "f32"),
    "rms_norm": (_graph("rms_norm", attrs={"epsilon": 1e-5}, constants=NORM[:1]), "f32"),
    "softmax": (_graph("softmax", attrs={"axis": 2}), "f32"),
    "softmax of few": (_graph("softmax", width=5, attrs={"axis": 2}), "f32"),
    "add": (_graph("add", 2), "f32"),
    "add int8": (_graph("add", 2), "w8a8"),
    "multiply": (_graph("multiply", 2, width=7), "w8a8"),
    "unary": (_graph("unary", activation=Activation(kind="gelu")), "f32"),
    "unary int8": (_graph("unary", activation=Activation(kind="tanh")), "w8a8"),
    "rope": (_graph("rope", attrs={"heads": 2, "style": "half"}, constants=ANGLES), "f32"),
}  # fmt: skip


def _values(program: Program) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    names = [name for name in program.inputs if name not in EXTRA]
    return {name: rng.standard_normal(program.values[name][0]).astype(np.float32) for name in names}


def _bound(program: Program, target: Target, cache: Any) -> list[BoundStep]:
    kernels = compile_kernels([program], target, cache)
    return [bind_step(step, kernels) for step in program.steps]


def _ran(program: Program, steps: list[BoundStep], given: dict[str, Any], tokens: int = S) -> dict[str, Any]:
    """Every value of the program, in memory that held 99 and ends at its end."""
    env = given | counts(tokens)
    for bound in steps:
        shape, dtype = program.values[bound.step.output]
        out = at_the_edge(np.full(shape, 99, dtype))
        bound.function(*(shared(at_the_edge(env[name])) for name in bound.step.inputs), *bound.constants, shared(out))
        env[bound.step.output] = out
    return env


@pytest.mark.parametrize("name", CASES)
def test_every_number_of_tokens(name: str, tmp_path: Any) -> None:
    graph, scheme = CASES[name]
    target = replace(machine(), parallel_overhead_s=1e-12)
    parallel = 1 + 2 * (list(CASES).index(name) % 2)
    static, cut = (_program(graph, scheme, target, parallel, cut=flag) for flag in (False, True))
    given = _values(static)
    expected = _ran(static, _bound(static, target, tmp_path), given)
    steps = _bound(cut, target, tmp_path)
    for n in range(1, S + 1):
        garbage = {name: np.where(_behind(value, n), np.float32(np.nan), value) for name, value in given.items()}
        found = _ran(cut, steps, garbage, n)
        for step in cut.steps:
            whole, mine = expected[step.output], found[step.output]
            at = next(axis for axis, size in enumerate(cut.values[step.output][0]) if isinstance(size, Length))
            there, behind = [tuple([slice(None)] * at + [part]) for part in (slice(n), slice(n + 16, None))]
            np.testing.assert_array_equal(mine[there], whole[there], err_msg=f"{step.name} of {n}")
            assert (mine[behind] == 99).all(), f"{step.name} of {n} writes beyond a tile"


def _behind(value: Any, n: int) -> Any:
    """Which elements are of tokens from n on."""
    axis = value.shape.index(S)
    return (np.arange(S) >= n).reshape([-1 if at == axis else 1 for at in range(value.ndim)])


@pytest.mark.parametrize("scheme", ["w8a8", "bf16"])
def test_tiles_of_tokens_that_are_not_there_are_left_out(scheme: str) -> None:
    target, tokens = amx_target(), 100
    static = anchor("dense", scheme, (tokens, 65), 31, residual=True)
    workload = replace(static, cut=tokens)
    kernel = kernel_for(workload, target)
    assert kernel.schedule.startswith("x86/amx")
    arguments = make_arguments(static, target, np.random.default_rng(0))
    seen = []
    with on_tiles() as amx:
        whole = result_of(static, target, kernel_for(static, target), arguments)
        for n in (1, 33, 64, tokens):
            before = 0 if amx is None else amx.counts[kernel.instruction]
            given = [*arguments[:2], np.array([n], np.int32), *arguments[2:]]
            ready = [*given[:3], kernel.pack(given[3]), *given[4:]]
            found = run(kernel, target, ready, workload.output_shape, str(whole.dtype))
            np.testing.assert_array_equal(found[:n], whole[:n])
            seen.append(0 if amx is None else amx.counts[kernel.instruction] - before)
    assert amx is None or (seen == sorted(seen) and seen[0] < seen[-1] / 2)


@pytest.mark.parametrize("scheme", ["f32", "w8a8_dyn", "w4a16_g128"])
def test_a_table_is_read_for_the_tokens_that_are_there(scheme: str) -> None:
    workload = Workload(
        op="gather", scheme=scheme, input_shapes=((1, S),), output_shape=(1, S, C), cut=S,
        attrs=(("ids", "int64"), ("rows", 9)),
    )  # fmt: skip
    target, rng = machine(), np.random.default_rng(0)
    table, scales = rng.standard_normal((9, C)).astype(np.float32), []
    if scheme != "f32":
        table, scales = rng.integers(-7, 8, (9, C)).astype(np.int8), [rng.random(9).astype(np.float32)]
    ids, kernel = np.arange(S)[None] % 9, kernel_for(workload, target)
    rows = table * scales[0][:, None] if scales else table
    packed = [kernel.pack(table), *(scales if scheme != "w4a16_g128" else [scales[0][:, None]])]
    for n in (1, 7, S):
        given = [np.where(np.arange(S) < n, ids, -(2**62)), np.array([n], np.int32), *packed]
        found = run(kernel, target, given, workload.output_shape, "float32")
        np.testing.assert_array_equal(found[0, :n], rows[ids[0, :n]])
        assert (found[0, n:] == 99).all()
