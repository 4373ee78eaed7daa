"""Running programs kernel by kernel: the same values as the reference, buffers kept, kernels shared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as floats
import tiny

from hwq.cache import default_cache_dir
from hwq.errors import HwqError
from hwq.execute import BoundStep, KernelSet, bind, compile_kernels, packed_constants, run, to_device
from hwq.lower import Program, lower
from hwq.quantize import quantize_weights
from hwq.space import propose
from hwq.target import Target

HOST = Target.load("host")
SCHEMES = {"stem": "w8a8", "left": "w8a8", "join": "w4a8", "depth": "w8a8", "pool": "w8a8"}


@pytest.fixture(scope="module")
def x() -> dict[str, Any]:
    return {"x": np.random.default_rng(3).standard_normal((1, 6, 5, 3)).astype(np.float32)}


@pytest.fixture(scope="module")
def program(x: dict[str, Any]) -> Program:
    """The tiny network, integer up to its pool and float behind."""
    plain = tiny.net()
    params = tiny.ranges(floats.run_graph(plain, x))
    params["left:pre"] = params["left"]
    candidates = {layer.name: (SCHEMES.get(layer.name, "f32"),) for layer in plain.layers}
    weights = quantize_weights(plain, candidates, params, {})
    return lower(plain, SCHEMES, params, weights, HOST, 1)


@pytest.fixture(scope="module")
def kernels(program: Program) -> KernelSet:
    return compile_kernels([program], HOST, default_cache_dir())


def test_every_value_is_the_reference(program: Program, kernels: KernelSet, x: dict[str, Any]) -> None:
    env = run(bind(program, kernels), to_device(x))
    expected = tiny.interpret(program, x, HOST.activation_storage)
    assert env.keys() == program.values.keys()
    for name, (shape, dtype) in program.values.items():
        value = env[name].numpy()
        assert (value.shape, value.dtype) == (shape, dtype)
        if dtype == "float32":  # float kernels may add in another order
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_the_runs_of_a_runner_share_buffers_and_runners_do_not(
    program: Program, kernels: KernelSet, x: dict[str, Any]
) -> None:
    one, other = bind(program, kernels), bind(program, kernels)
    first = run(one, to_device(x))["logits"]
    kept = first.numpy().copy()
    doubled = {"x": 2 * x["x"]}
    run(other, to_device(doubled))
    np.testing.assert_array_equal(first.numpy(), kept)
    second = run(one, to_device(doubled))["logits"]
    assert not np.array_equal(second.numpy(), kept)
    np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_some_steps_run_from_given_values(program: Program, kernels: KernelSet, x: dict[str, Any]) -> None:
    runner = bind(program, kernels)
    whole = run(runner, to_device(x))
    values = {name: value.numpy().copy() for name, value in whole.items()}
    seen: list[str] = []

    def watch(bound: BoundStep, env: Mapping[str, Any]) -> None:
        assert bound.step.output in env
        seen.append(bound.step.name)

    tail = runner.steps[-2:]
    given = to_device({"pool": 3 * values["pool"]})
    env = run(runner, given, steps=tail, watch=watch)
    assert seen == ["flat", "logits"]
    assert env.keys() == {"pool", "flat", "logits"}
    weight, bias = runner.steps[-1].step.constants
    np.testing.assert_allclose(env["logits"].numpy(), 3 * values["flat"] @ weight.T + bias, rtol=1e-5, atol=1e-5)


def test_a_view_is_the_memory_of_its_input(program: Program, kernels: KernelSet, x: dict[str, Any]) -> None:
    env = run(bind(program, kernels), to_device(x))
    assert env["flat"].shape == (1, 8)
    assert np.shares_memory(np.from_dlpack(env["flat"]), np.from_dlpack(env["pool"]))


def test_equal_workloads_are_one_kernel() -> None:
    layers = [tiny.conv("x", "a", (4, 4)), tiny.conv("a", "b", (4, 4), seed=2), tiny.conv("b", "c", (4, 5), seed=3)]
    program = lower(tiny.graph(layers, ["x"], ["c"]), {}, {}, {}, HOST, 1)
    seen: list[tuple[int, int]] = []
    found = compile_kernels([program, program], HOST, default_cache_dir(), lambda *at: seen.append(at))
    assert len(found.kernels) == len(found.objects) == 2
    assert seen[-1] == (2, 2)
    a, b, _ = program.steps
    assert found.of(a) is found.of(b)
    assert all(path.exists() for path in found.objects.values())


def test_joined_kernel_sets_hold_both(program: Program, kernels: KernelSet) -> None:
    other = compile_kernels(
        [lower(tiny.alone(tiny.conv("x", "y", (2, 3))), {}, {}, {}, HOST, 1)], HOST, default_cache_dir()
    )
    joined = kernels | other
    assert joined.kernels.keys() == kernels.kernels.keys() | other.kernels.keys()
    for workload in joined.kernels:
        assert callable(joined.function(workload))


def test_only_the_weight_is_packed(program: Program, kernels: KernelSet) -> None:
    steps = {step.name: step for step in program.steps}
    for name in ("stem", "join", "depth", "logits"):
        step = steps[name]
        assert step.weight == 0
        packed = packed_constants(step, kernels)
        pack = kernels.of(step).pack
        assert pack is not None
        np.testing.assert_array_equal(packed[0], pack(step.constants[0]))
        assert all(mine is plain for mine, plain in zip(packed[1:], step.constants[1:], strict=True))
    int4, int8 = (packed_constants(steps[name], kernels)[0].nbytes for name in ("join", "left"))
    assert int4 < int8, "two int4 weights to a byte"
    assert packed_constants(steps["pool"], kernels) is steps["pool"].constants


def test_arrays_reach_the_device_contiguous() -> None:
    strided = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    np.testing.assert_array_equal(to_device({"x": strided})["x"].numpy(), strided)


def test_nothing_to_compile() -> None:
    view = lower(tiny.alone(tiny.flat("x", "y", 3)), {}, {}, {}, HOST, 1)
    found = compile_kernels([view], HOST, Path("nowhere"))
    assert not found.kernels
    env = run(bind(view, found), to_device({"x": np.ones((1, 1, 1, 3), np.float32)}))
    assert env["y"].shape == (1, 3)


def test_a_decision_takes_the_place_of_the_default(program: Program, kernels: KernelSet, x: dict[str, Any]) -> None:
    (stem,) = (step.workload for step in program.steps if step.name == "stem")
    assert stem is not None
    ((decision, kernel),) = propose(stem, HOST, {}, 1, 0)
    found = compile_kernels([program], HOST, default_cache_dir(), decisions={stem.key: decision})
    assert found.kernels[stem].schedule == kernel.schedule
    assert [workload for workload in found.kernels if found.name_of(workload) != kernels.name_of(workload)] == [stem]
    assert found.code != kernels.code
    before, after = (run(bind(program, each), to_device(x))["left@int8"].numpy() for each in (kernels, found))
    np.testing.assert_array_equal(before, after)
    with pytest.raises(HwqError) as caught:
        compile_kernels([program], HOST, default_cache_dir(), decisions={stem.key: "?"})
    assert caught.value.code == "decision-invalid"
