"""Masks of -infinity: given, made of conditions, or computed, beside attention that is recognized or is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_nets import network, node, weights

import hwq
from hwq.errors import HwqError
from hwq.masks import limits, weighed_by
from hwq.numerics import sqnr_db
from hwq.samples import MASK

T, C = 8, 16
SHOWN = np.arange(T) < np.array([[5], [3]])
LARGE = ("as large as the scores", "of a large logarithm")
KINDS = ("given", *LARGE, "chosen", "of a logarithm", "joined")


def net(kind: str, *outputs: str) -> onnx.ModelProto:
    """Queries, keys and values of x (2, T, C), one head; the weights are "w"."""
    shape = (2, T, T) if kind in LARGE else (2, 1, T)
    made = {
        "chosen": [node("Cast", ["mask"], ["seen"], to=9), node("Where", ["seen", "zero", "hidden"], ["m"])],
        "of a logarithm": (logarithm := [node("Log", ["mask"], ["m"])]),
        "of a large logarithm": logarithm,
        "joined": [
            node("Slice", ["mask", "starts", "ends", "axes"], ["rest"]),
            node("Slice", ["mask", "zeros", "starts", "axes"], ["begin"]),
            node("Concat", ["begin", "rest"], ["m"], axis=2),
        ],
    }.get(kind, [])
    nodes = [
        *made,
        *(node("MatMul", ["x", f"weight{name}"], [name]) for name in "qkv"),
        node("Transpose", ["k"], ["turned"], perm=[0, 2, 1]),
        node("MatMul", ["q", "turned"], ["product"]),
        node("Div", ["product", "root"], ["scores"]),
        node("Add", ["scores", "m" if made else "mask"], ["sum"]),
        node("Softmax", ["sum"], ["w"], axis=-1),
        node("MatMul", ["w", "v"], ["y"]),
    ]
    consts: dict[str, Any] = {f"weight{name}": weights(C, C, seed=i) / 4 for i, name in enumerate("qkv")}
    consts |= {"root": np.float32(4), "zero": np.float32(0), "hidden": np.float32(-np.inf)}
    consts |= {"zeros": np.array([0]), "starts": np.array([2]), "ends": np.array([T]), "axes": np.array([2])}
    used = {name for item in nodes for name in item.input}
    consts = {name: value for name, value in consts.items() if name in used}
    return network(nodes, consts=consts, inputs={"x": (2, T, C), "mask": shape}, outputs=["y", *outputs])


def sample(kind: str, seed: int = 0) -> dict[str, Any]:
    x = np.random.default_rng(seed).standard_normal((2, T, C)).astype(np.float32)
    mask = SHOWN[:, None].astype(np.float32)
    if kind in ("given", "as large as the scores", "joined"):
        mask = np.where(SHOWN[:, None], np.float32(0), np.float32(-np.inf))
    return {"x": x, "mask": np.repeat(mask, T, axis=1) if kind in LARGE else mask}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [(), ("w",)], ids=["attention", "softmax"])
def test_masks_of_infinity_calibrate_and_give_the_same_as_elsewhere(
    kind: str, outputs: tuple[str, ...], tmp_path: Path
) -> None:
    proto, given = net(kind, *outputs), sample(kind)
    wanted = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, given)
    model = hwq.load(proto)
    assert ("attention" in {layer.op for layer in model.graph.layers}) == (not outputs)
    calibration = [sample(kind, seed) for seed in range(1, 5)]
    for scheme, least in (("f32", 120.0), ("w8a8", 28.0)):
        made = hwq.compile(
            model, calibration=calibration, schemes=[scheme], measure=False, work_dir=tmp_path, sensitivity_s=0.0
        )
        path = tmp_path / "artifact.hwq"
        made.save(path)
        found = hwq.Artifact.load(path)(given)
        for got, want in zip(found if outputs else (found,), wanted, strict=True):
            assert sqnr_db(want, got) > least


def test_what_is_no_mask_is_refused() -> None:
    graph = hwq.load(net("given", "w")).graph
    assert limits(graph) == {"mask": MASK}
    (add,) = [layer.output for layer in graph.layers if layer.op == "float" and layer.attrs["operator"] == "add"]
    assert {"mask", add} < weighed_by(graph)
    elsewhere = net("given")
    elsewhere.graph.node.append(node("Relu", ["mask"], ["z"]))
    elsewhere.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, (2, 1, T)))
    assert limits(hwq.load(elsewhere).graph) == {}
    for proto, number in ((elsewhere, -np.inf), (net("given"), np.inf), (net("given"), np.nan)):
        given = sample("given") | {"mask": np.full((2, 1, T), number, np.float32)}
        with pytest.raises(HwqError, match="'mask' holds NaN or infinity") as caught:
            hwq.plan(hwq.load(proto), calibration=[given], measure=False)
        assert caught.value.code == "input-nan"


def test_a_sample_that_is_hidden_whole_weighs_all_alike() -> None:
    made = hwq.compile(hwq.load(net("given", "w")), schemes=["f32"], measure=False)
    _, found = made(sample("given") | {"mask": np.full((2, 1, T), -np.inf)})
    np.testing.assert_allclose(found, 1 / T, rtol=1e-6)


def test_what_classes_are_weighed_by_may_be_of_integers() -> None:
    """A dense layer writes float itself where a softmax alone reads it, a mask added or not."""
    nodes = [
        node("Gemm", ["x", "w1"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "w2"], ["scores"]),
        node("Add", ["scores", "allowed"], ["sum"]),
        node("Softmax", ["sum"], ["y"], axis=-1),
    ]
    consts = {"w1": weights(C, C), "w2": weights(C, T)}
    model = hwq.load(network(nodes, inputs={"x": (1, C), "allowed": (1, T)}, consts=consts, outputs=["y"]))
    rng = np.random.default_rng(1)
    allowed = np.where(np.arange(T) < 5, 0, -np.inf).astype(np.float32)[None]
    samples = [{"x": rng.standard_normal((1, C)).astype(np.float32), "allowed": allowed} for _ in range(8)]
    exact, found = (
        hwq.compile(model, calibration=samples, schemes=[scheme], measure=False, sensitivity_s=0.0)
        for scheme in ("f32", "w8a8")
    )
    dense = [layer.name for layer in model.graph.layers if layer.op == "dense"]
    assert [found.plan.schemes[name] for name in dense] == ["w8a8", "w8a8"]
    assert sqnr_db(exact(samples[0]), found(samples[0])) > 30.0
