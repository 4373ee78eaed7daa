"""A network with a stream of rows, compiled in dynamic schemes without a sample."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_nets import network, node, weights

import hwq
from hwq import numerics
from hwq.arguments import schemes_of_network
from hwq.model import Model
from hwq.scheme import parse_schemes

DYNAMIC = ("w8a8_dyn", "w4a8_g64_dyn")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    nodes = [
        node("LayerNormalization", ["x", "s", "b"], ["n"], axis=-1, name="n"),
        node("MatMul", ["n", "w"], ["u"], name="up"),
        node("Relu", ["u"], ["a"], name="a"),
        node("MatMul", ["a", "v"], ["d"], name="down"),
        node("Add", ["d", "x"], ["r"], name="r"),
        node("LayerNormalization", ["r", "s", "b"], ["y"], axis=-1, name="y"),
    ]
    consts = {"w": weights(48, 70), "v": weights(70, 48), "s": np.ones(48, np.float32), "b": weights(48)}
    return hwq.load(network(nodes, (1, 9, 48), consts=consts, opset=17))


@pytest.mark.parametrize("scheme", DYNAMIC)
def test_no_samples_are_needed(model: Model, scheme: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 9, 48)).astype(np.float32)
    clean = hwq.compile(model, schemes=["f32"], threads=1, measure=False)(x)
    artifact = hwq.compile(model, schemes=[scheme], threads=1, measure=False)
    dense = [layer for layer in model.graph.layers if layer.op == "dense"]
    assert len(dense) == 2
    assert {artifact.plan.schemes[layer.name] for layer in dense} == {scheme}
    assert dense[1].float_residual
    assert 0 < artifact.plan.loss < 0.1
    assert any("for want of samples" in note for note in artifact.report["notes"])
    assert numerics.sqnr_db(clean, artifact(x)) > (30 if scheme == "w8a8_dyn" else 12)


def test_beside_float_the_faster_is_taken_by_price(model: Model) -> None:
    plan = hwq.plan(model, schemes=["f32", *DYNAMIC], threads=1, measure=False)
    weighted = {plan.schemes[layer.name] for layer in model.graph.layers if layer.op == "dense"}
    assert weighted <= {"f32", *DYNAMIC}
    assert plan.latency_s <= hwq.plan(model, schemes=["f32"], threads=1, measure=False).latency_s


def test_static_schemes_still_ask_for_samples(model: Model) -> None:
    with pytest.raises(hwq.HwqError, match=r"which w8a8 needs; .*'w8a8_dyn'") as caught:
        hwq.compile(model, schemes=["w8a8", "w8a8_dyn"], threads=1, measure=False)
    assert caught.value.code == "samples-empty"


def test_unasked_they_are_tried_where_there_are_norms_of_rows(model: Model) -> None:
    every = parse_schemes(None)
    assert schemes_of_network(model.graph, every) == every
    convolution = hwq.load(network([node("Conv", ["x", "w"], ["y"])], (1, 4, 5, 5), consts={"w": weights(4, 4, 1, 1)}))
    kept = [scheme.name for scheme in schemes_of_network(convolution.graph, every)]
    assert kept == ["f32", "bf16", "w8a8", "w4a8", "w4a8_g64"]
