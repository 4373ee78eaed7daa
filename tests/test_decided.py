"""Kernels as tuning decided: where the decision holds, and only there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from hwq import store
from hwq.cache import default_cache_dir
from hwq.compile_kernel import object_path
from hwq.decided import compile_decided, decisions_for, without_decided
from hwq.execute import bind, compile_kernels, run, to_device
from hwq.lower import Program, lower
from hwq.numerics import QParams
from hwq.quantize import quantize_weights
from hwq.schedule import kernel_for
from hwq.space import propose
from hwq.store import Decision, key_of, put, tool_versions
from hwq.target import Target
from hwq.workload import Workload

HOST = Target.load("host")


def program() -> Program:
    """Two convolutions in int8."""
    layers = [tiny.conv("x", "a", (16, 32)), tiny.conv("a", "b", (32, 32), seed=2)]
    graph = tiny.graph(layers, ["x"], ["b"])
    schemes = dict.fromkeys(("a", "b"), "w8a8")
    qparams = dict.fromkeys(graph.shapes, QParams(scale=0.05, zero_point=-3))
    weights = quantize_weights(graph, {name: (one,) for name, one in schemes.items()}, qparams, {})
    return lower(graph, schemes, qparams, weights, HOST, 1)


def convolution(found: Program) -> Workload:
    """The workload of the first of them."""
    return next(step.workload for step in found.steps if step.workload is not None and step.workload.op == "conv2d")


def decision_for(workload: Workload, text: str, schedule: str = "", code: str = "") -> Decision:
    schedule = schedule or f"{kernel_for(workload, HOST).schedule}@l2"
    return Decision(
        key=key_of(workload, schedule, HOST, tool_versions()),
        decision=text,
        code=code or object_path(kernel_for(workload, HOST, None, text), HOST, Path()).stem[:12],
        median_s=1.0,
        default_s=2.0,
        measured_at=1.0,
    )


def near(workload: Workload) -> str:
    """All weights are in L2."""
    del workload
    return "l2"


def test_a_decision_makes_another_kernel_with_the_same_output() -> None:
    found = program()
    workload = convolution(found)
    ((text, _),) = propose(workload, HOST, {}, 1, 0)
    default = compile_kernels([found], HOST, default_cache_dir())
    row = decision_for(workload, text)
    stale = decision_for(workload, "{", "cpu/conv2d:0@l2", "later")
    decisions = {row.key: row, stale.key: replace(stale, measured_at=2.0)}
    known = without_decided(default, decisions)
    assert workload not in known.kernels
    tuned = compile_decided([found], HOST, default_cache_dir(), decisions, near, known=known)
    changed = [one for one in default.kernels if tuned.name_of(one) != default.name_of(one)]
    assert changed == [workload]
    x = {"x": np.random.default_rng(0).standard_normal((1, 6, 5, 16)).astype(np.float32)}
    outputs = [run(bind(found, kernels), to_device(x))["b"].numpy() for kernels in (default, tuned)]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("stale", ["template", "default", "text", "code", "home"])
def test_a_decision_that_holds_no_more_is_passed_over(stale: str) -> None:
    found = program()
    workload = convolution(found)
    ((text, _),) = propose(workload, HOST, {}, 1, 0)
    name = text.split('"')[1]
    row = {
        "template": lambda: decision_for(workload, text.replace(name, f"{name}00"), code="c"),
        "default": lambda: decision_for(workload, text, "cpu/conv2d:0@l2"),
        "text": lambda: decision_for(workload, "{", code="c"),
        "code": lambda: decision_for(workload, text, code="c"),
        "home": lambda: decision_for(workload, text, f"{kernel_for(workload, HOST).schedule}@memory"),
    }[stale]()
    tuned = compile_decided([found], HOST, default_cache_dir(), {row.key: row}, near)
    assert tuned.code == compile_kernels([found], HOST, default_cache_dir()).code


def test_decisions_are_those_of_the_machine_and_the_tools(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    mine = decision_for(convolution(program()), "d", code="c")
    put(path, mine, replace(mine, key=replace(mine.key, target="foreign")))
    assert decisions_for(HOST, path) == {mine.key: mine}
    emulated = replace(HOST, cpu_model="emulated thing")
    put(path, replace(mine, key=replace(mine.key, target=emulated.fingerprint)))
    assert not decisions_for(emulated, path)
    assert len(store.contents(path).decisions) == 3
