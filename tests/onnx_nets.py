"""Small ONNX networks for tests, and the check that hwq's graph of one computes what ONNX Runtime computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from reference import run_graph

from hwq.model import Model, load

Array = np.ndarray[Any, Any]
node = helper.make_node


def network(
    nodes: Sequence[onnx.NodeProto],
    x: Sequence[int | str] = (1, 8, 6, 5),
    *,
    consts: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Sequence[int | str]] | None = None,
    outputs: Sequence[str] | None = None,
    dtypes: Mapping[str, int] | None = None,
    opset: int = 13,
) -> onnx.ModelProto:
    """A model of ``nodes`` over input "x" (or ``inputs``); outputs: what no node reads, unless given."""
    read = {name for item in nodes for name in item.input}
    made = [name for item in nodes for name in item.output if name]
    wanted = list(outputs) if outputs is not None else [name for name in made if name not in read]
    known = dtypes or {}
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [
            helper.make_tensor_value_info(k, known.get(k, TensorProto.FLOAT), s)
            for k, s in ({"x": x} if inputs is None else inputs).items()
        ],
        [helper.make_tensor_value_info(k, known.get(k, TensorProto.FLOAT), None) for k in wanted],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (consts or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def weights(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def same_as_onnxruntime(
    proto: onnx.ModelProto, *, scale: float = 2.0, tolerance: float = 2e-5, **options: Any
) -> Model:
    """Load ``proto`` and compare its graph, run in NumPy, with ONNX Runtime on random inputs; returns the model.

    tolerance is relative to the largest output: sums of up to some hundred float32 products in another order.
    """
    import onnxruntime

    model = load(proto, **options)
    rng = np.random.default_rng(0)
    feeds = {spec.name: _random(rng, spec.shape, spec.dtype, scale) for spec in model.inputs}
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level, settings.intra_op_num_threads = 3, 1
    expected = onnxruntime.InferenceSession(proto.SerializeToString(), settings).run(None, feeds)
    found = run_graph(
        model.graph, {g: feeds[spec.name] for g, spec in zip(model.graph.inputs, model.inputs, strict=True)}
    )
    for spec, name, want in zip(model.outputs, model.graph.outputs, expected, strict=True):
        got = found[name]
        assert (got.shape, str(got.dtype)) == (want.shape, str(want.dtype)) == (spec.shape, spec.dtype)
        limit = tolerance * max(float(np.abs(want).max(initial=0)), 1e-3)
        np.testing.assert_allclose(got, want, rtol=0, atol=limit, err_msg=spec.name)
    return model


def ops(model: Model) -> list[str]:
    return [layer.op for layer in model.graph.layers]


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, scale: float) -> Array:
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 4, shape).astype(dtype)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    return (rng.standard_normal(shape) * scale).astype(dtype)
