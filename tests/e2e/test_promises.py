"""What users hold on to: names of outputs, calls from several threads, offered budgets, plans of other models."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hwq
from hwq.demo import load_demo

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def artifact() -> hwq.Artifact:
    path, calibration, _ = load_demo()
    return hwq.compile(hwq.load(path), calibration=calibration, schemes=["w8a8"], measure=False, threads=1)


def dense(weight: Floats, outputs: tuple[str, ...] = ("y",), bias: Floats | None = None) -> onnx.ModelProto:
    """y = Relu(x @ weight + bias), and every further output an Identity of it."""
    names = ["x", "w"] + (["b"] if bias is not None else [])
    nodes = [helper.make_node("Gemm", names, ["h"], "fc"), helper.make_node("Relu", ["h"], [outputs[0]], "act")]
    nodes += [helper.make_node("Identity", [outputs[0]], [name], name) for name in outputs[1:]]
    arrays = {"w": weight} if bias is None else {"w": weight, "b": bias}
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", weight.shape[0]])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", weight.shape[1]]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_outputs_bear_the_models_names(artifact: hwq.Artifact) -> None:
    assert list(artifact.outputs) == [value.name for value in onnx.load(load_demo()[0]).graph.output]


def test_one_tensor_under_two_names(rng: np.random.Generator) -> None:
    x = rng.standard_normal((64, 24)).astype(np.float32)
    weight = rng.standard_normal((24, 16)).astype(np.float32)
    both = hwq.compile(hwq.load(dense(weight, ("y", "z"))), calibration=x, schemes=["f32"], measure=False, threads=1)
    y, z = both(x)
    assert list(both.outputs) == ["y", "z"]
    np.testing.assert_array_equal(y, z)
    np.testing.assert_allclose(y, np.maximum(x @ weight, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["f32", "w8a8"])
def test_the_first_input_may_be_a_number(scheme: str, rng: np.random.Generator) -> None:
    """y = (x * s) @ w. Such an input has no batch axis, so a sample is all inputs, whole."""
    weight = rng.standard_normal((8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "s"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])],
        "scaled",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("s", []), ("x", [1, 8]))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = hwq.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))
    x = rng.uniform(-1, 1, (6, 1, 8)).astype(np.float32)
    samples = [{"s": np.float32(1 + at / 8), "x": one} for at, one in enumerate(x)]
    artifact = hwq.compile(model, calibration=samples, schemes=[scheme], measure=False, threads=1)
    assert artifact.report["calibration_samples"] == 6
    # x, s, their product, w and y may each be off by half a step, at most 1/254 of its largest value.
    limit = 5 / 254 * 8 * 1.625 * float(np.abs(weight).max())
    np.testing.assert_allclose(artifact(samples[5]), 1.625 * x[5] @ weight, atol=limit if scheme == "w8a8" else 1e-5)


def test_calls_from_several_threads(artifact: hwq.Artifact) -> None:
    _, _, (inputs, _) = load_demo()
    expected = artifact(inputs)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            parts = list(pool.map(artifact, np.array_split(inputs, 20)))
            np.testing.assert_array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize("count", [1000, 40_000, 80_000])
def test_long_sums_stay_in_their_integers(count: int, rng: np.random.Generator) -> None:
    """All weights and inputs large and of one sign: the sum of products is as large as it can be."""
    x = rng.uniform(0.9, 1.0, (16, count)).astype(np.float32)
    x[0] = 0.0  # so that the range of inputs is not a point
    weight = np.full((count, 4), 1.0 / count, np.float32)
    model = hwq.load(dense(weight, bias=np.full(4, 0.25, np.float32)))
    y = hwq.compile(model, calibration=x, schemes=["w8a8"], measure=False, threads=1)(x)
    np.testing.assert_allclose(y, np.maximum(x @ weight + 0.25, 0), atol=0.02)


@pytest.mark.parametrize(("bound", "tiny", "unit"), [("weight_bytes", 1.0, 1.0), ("latency_s", 1e-7, 1e-3)])
def test_the_budget_that_an_error_offers_can_be_met(bound: str, tiny: float, unit: float) -> None:
    """Bytes exactly; a latency but for what load the machine has meanwhile."""
    path, calibration, _ = load_demo()
    model = hwq.load(path)
    with pytest.raises(hwq.HwqError) as caught:
        hwq.compile(model, calibration=calibration, budget=hwq.Budget(**{bound: tiny}), threads=1)
    assert caught.value.code == "budget-impossible"
    offered = re.search(r"closest that can be met is ([0-9.e+-]+)", caught.value.message)
    assert offered, caught.value.message
    load = 2.0 if bound == "latency_s" else 1.0
    budget = hwq.Budget(**{bound: float(offered[1]) * unit * load})
    report = hwq.compile(model, calibration=calibration, budget=budget, threads=1).report
    assert report["measured"][bound] <= getattr(budget, bound)


def test_a_plan_of_other_weights_is_refused(tmp_path: Path, artifact: hwq.Artifact) -> None:
    proto = onnx.load(load_demo()[0])
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(3 * values, tensor.name))
    with pytest.raises(hwq.HwqError) as caught:
        hwq.build(hwq.load(proto), artifact.plan)
    assert caught.value.code == "plan-other"
