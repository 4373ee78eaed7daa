"""The ONNX side of loading; what it refuses is in test_model.py."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper
from onnx_nets import network, node, same_as_onnxruntime, weights

from hwq.onnx_prepare import free_inputs, opset_of, prepare, read_proto


def test_shapes_are_fixed_and_inferred_throughout() -> None:
    proto = network(
        [node("Conv", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])],
        ("N", 3, "H", 6),
        consts={"w": weights(4, 3, 3, 3)},
    )
    found = prepare(proto, batch=1, shapes={"x": (2, 3, 8, 6)})
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*found.graph.value_info, *found.graph.output]
    }
    assert shapes == {"h": [2, 4, 6, 4], "y": [2, 4, 6, 4]}
    assert opset_of(found) == 13


def test_the_callers_model_is_not_touched() -> None:
    proto = network([node("Relu", ["x"], ["y"])], ("N", 3))
    before = proto.SerializeToString()
    prepare(read_proto(proto)[1], batch=4, shapes={})
    assert proto.SerializeToString() == before


def test_an_initializer_among_the_inputs_is_no_input() -> None:
    proto = network([node("Add", ["x", "c"], ["y"])], (1, 3), consts={"c": weights(3)})
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [3]))
    assert [value.name for value in free_inputs(proto)] == ["x"]
    assert len(same_as_onnxruntime(proto).inputs) == 1


def test_local_functions_are_inlined() -> None:
    body = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["c"],
        [node("Relu", ["a"], ["b"]), node("Add", ["b", "b"], ["c"])],
        [helper.make_opsetid("", 13)],
    )
    graph = helper.make_graph(
        [node("Twice", ["x"], ["y"], domain="local")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("local", 1)]
    proto = helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=8)
    assert [item.op_type for item in prepare(proto, batch=1, shapes={}).graph.node] == ["Relu", "Add"]


def test_exporters_shapes_do_not_stand_in_the_way() -> None:
    proto = network([node("Flatten", ["x"], ["y"])], ("N", 3, 4))
    del proto.graph.value_info[:], proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [7, 12]))
    assert same_as_onnxruntime(proto).outputs[0].shape == (1, 12)
    assert isinstance(proto, onnx.ModelProto)
