"""Transformers as networks: what remains are their own operators, whatever wrote them, and they compute the same."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_nets import same_as_onnxruntime
from reference import run_graph

from hwq.graph import Graph
from hwq.model import Model, load
from hwq.tables import repeated_bytes

# What may stand around the operators of a transformer: masks, and sums with constants.
CHEAP = ("add", "subtract", "multiply", "astype", "where")


def _counts(graph: Graph) -> Counter[str]:
    """Layers by operator, views aside; "+" for a residual in a dense layer."""
    ops = (
        layer.attrs["operator"] if layer.op == "float" else layer.op + "+" * layer.residual for layer in graph.layers
    )
    return Counter(str(op) for op in ops if op != "reshape")


def _exported(name: str, way: str) -> tuple[Model, list[Any]]:
    """A module of ``torch_nets`` loaded in one of three ways, with what torch computes and what its layers do."""
    torch = pytest.importorskip("torch")
    from torch_nets import module

    net, inputs = module(name)
    with torch.no_grad():
        found = net(**inputs)
    expected = [item.numpy() for item in (found.values() if isinstance(found, dict) else [found])]
    if way == "torch":
        model = load(net, inputs)
    else:
        blob = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(net, tuple(inputs.values()), blob, input_names=list(inputs), dynamo=False)
        model = load(onnx.load_from_string(blob.getvalue()))
    feeds = {tensor: inputs[spec.name].numpy() for tensor, spec in zip(model.graph.inputs, model.inputs, strict=True)}
    tensors = run_graph(model.graph, feeds)
    return model, [(tensors[name], want) for name, want in zip(model.graph.outputs, expected, strict=True)]


@pytest.mark.parametrize(
    ("name", "way", "wanted"),
    [
        ("encoder", "torch", {"gather": 1, "attention": 1, "layer_norm": 2, "dense": 4, "dense+": 2}),
        ("encoder", "onnx", {"gather": 1, "attention": 1, "layer_norm": 2, "dense": 4, "dense+": 2}),
        ("transformer", "torch", {"attention": 1, "layer_norm": 2, "dense": 4, "dense+": 2}),
        (
            "decoder", "torch",
            {"gather": 1, "attention": 1, "rope": 2, "rms_norm": 3, "dense": 6, "dense+": 2, "multiply": 1},
        ),
        (
            "decoder", "onnx",
            {"gather": 1, "attention": 1, "rope": 2, "rms_norm": 3, "dense": 6, "dense+": 2, "multiply": 1},
        ),
    ],
)  # fmt: skip
def test_modules_of_torch(name: str, way: str, wanted: dict[str, int]) -> None:
    model, pairs = _exported(name, way)
    counts = _counts(model.graph)
    rest = {op for op in counts if op not in wanted}
    assert {op: counts[op] for op in wanted} == wanted
    assert rest <= set(CHEAP)
    for got, want in pairs:
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * float(np.abs(want).max()))


def test_a_language_model_of_the_data(data_dir: Path) -> None:
    path = data_dir / "stories260k" / "stories260K_T128.onnx"
    model = same_as_onnxruntime(onnx.load(path))
    layers = 5
    assert _counts(model.graph) == {
        "gather": 1, "rms_norm": 2 * layers + 1, "rope": 2 * layers, "attention": layers, "multiply": layers,
        "dense": 5 * layers + 1, "dense+": 2 * layers,
    }  # fmt: skip
    tables = 2 * 128 * 8 * 4
    assert sum(repeated_bytes(model.graph).values()) == (2 * layers - 1) * tables
    (first, *_) = [layer for layer in model.graph.layers if layer.op == "attention"]
    assert (first.attrs["heads"], first.attrs["kv_heads"], first.attrs["causal"], len(first.inputs)) == (8, 4, True, 3)
