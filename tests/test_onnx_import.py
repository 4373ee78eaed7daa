"""ONNX to Relax, node by node."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_nets import network, node, ops, same_as_onnxruntime, weights
from tvm import relax

from hwq import relax_tools as rt
from hwq.onnx_import import import_graph
from hwq.onnx_prepare import prepare


def _import(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    mod = import_graph(prepare(proto, batch=1, shapes={}))
    relax.analysis.well_formed(mod)
    return [(rt.op_name(value), rt.origin(value)) for _, value in rt.bindings_of(mod)]


def test_every_call_knows_its_node() -> None:
    nodes = [node("Conv", ["x", "w", "b"], ["h"], name="stem/conv.1"), node("HardSwish", ["h"], ["y"])]
    found = _import(network(nodes, consts={"w": weights(4, 8, 3, 3), "b": weights(4)}, opset=14))
    assert found[0] == ("nn.conv2d", "stem/conv.1")
    assert {name for op, name in found if op in ("multiply", "clip", "divide")} == {"y"}


def test_what_is_known_is_evaluated() -> None:
    """The usual arithmetic on shapes: x.reshape(x.shape[0], -1, 2) as exporters write it."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Constant", [], ["zero"], value=onnx.numpy_helper.from_array(np.array(0))),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n"], ["n1"], axes=[0]),
        node("Concat", ["n1", "rest"], ["t"], axis=0),
        node("Reshape", ["x", "t"], ["y"]),
    ]
    proto = network(nodes, consts={"rest": np.array([-1, 2])}, opset=11)
    assert [op for op, _ in _import(proto)] == ["reshape"]
    assert ops(same_as_onnxruntime(proto)) == ["reshape"]


@pytest.mark.parametrize(("attrs", "opset", "shape"), [({}, 13, (4,)), ({"start": 1, "end": -1}, 15, (2,))])
def test_the_shape_of_an_input_and_its_size(attrs: dict[str, int], opset: int, shape: tuple[int, ...]) -> None:
    nodes = [
        node("Shape", ["x"], ["s"], **attrs),
        node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        node("ReduceSum", ["f"], ["r"], keepdims=0),
    ]
    nodes += [
        node("Size", ["x"], ["z"]),
        node("Cast", ["z"], ["g"], to=TensorProto.FLOAT),
        node("Add", ["r", "g"], ["c"]),
        node("Mul", ["x", "c"], ["y"]),
    ]
    proto = network(nodes, consts={}, opset=opset)
    assert [op for op, _ in _import(proto)] == ["multiply"]
    same_as_onnxruntime(proto)
    assert shape


def test_weights_that_are_dequantized_are_float_weights() -> None:
    consts = {"q": np.arange(-16, 16, dtype=np.int8).reshape(4, 8, 1, 1), "s": np.float32(0.1), "z": np.int8(3)}
    model = same_as_onnxruntime(
        network([node("DequantizeLinear", ["q", "s", "z"], ["w"]), node("Conv", ["x", "w"], ["y"])], consts=consts)
    )
    assert ops(model) == ["transpose", "conv2d", "transpose"]


def test_an_operator_of_onnx_runtimes_own_domain() -> None:
    proto = network([node("Relu", ["x"], ["h"])], (1, 6))
    proto.graph.node.append(node("Gelu", ["h"], ["y"], domain="com.microsoft"))
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    model = same_as_onnxruntime(proto)
    assert [layer.activation.kind for layer in model.graph.layers] == ["relu", "gelu"]


def test_random_numbers_are_no_constants() -> None:
    proto = network([node("RandomNormal", [], ["r"], shape=[1, 8, 6, 5]), node("Add", ["x", "r"], ["y"])])
    with pytest.raises(Exception, match="RandomNormal"):
        _import(proto)


def test_a_missing_input_in_the_middle() -> None:
    same_as_onnxruntime(network([node("Clip", ["x", "", "hi"], ["y"])], consts={"hi": np.float32(1)}))
