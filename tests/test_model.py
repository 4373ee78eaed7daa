"""hwq.load: what it takes, what it tells, what it refuses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_nets import network, node, same_as_onnxruntime, weights
from reference import run_graph

from hwq.errors import HwqError
from hwq.model import load

CONV = {"w": weights(4, 3, 3, 3)}


def _conv_net(**options: Any) -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w"], ["h"], name="conv"), node("Exp", ["h"], ["y"])]
    return network(nodes, **{"x": ("N", 3, 6, 6), "consts": CONV, **options})


def _refused(source: Any, code: str, **options: Any) -> str:
    with pytest.raises(HwqError) as caught:
        load(source, **options)
    assert caught.value.code == code
    message = caught.value.message
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def test_a_model_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    onnx.save(_conv_net(), path)
    model = load(path, batch=2)
    assert (model.name, model.batch, model.opset) == ("small", 2, 13)
    assert [(spec.name, spec.shape, spec.dtype) for spec in model.inputs] == [("x", (2, 3, 6, 6), "float32")]
    assert [(spec.name, spec.shape, spec.dtype) for spec in model.outputs] == [("y", (2, 4, 4, 4), "float32")]
    assert model.graph.shapes["x"] == (2, 3, 6, 6)
    assert model.float_ops == {"exp": 1}
    assert load(str(path), batch=2).fingerprint == model.fingerprint


def test_a_model_is_shown_in_one_line_without_its_weights() -> None:
    model = load(_conv_net(), batch=2)
    expected = "x float32 (2, 3, 6, 6) -> y float32 (2, 4, 4, 4); "
    assert repr(model) == f"Model({model.name!r}: {expected}{len(model.graph.layers)} layers)"
    assert "array" not in repr(model.graph)


def test_the_fingerprint_is_of_the_content_and_the_shapes(tmp_path: Path) -> None:
    one = load(_conv_net()).fingerprint
    assert load(_conv_net()).fingerprint == one
    assert load(_conv_net(), shapes={"x": (1, 3, 6, 6)}).fingerprint == one
    assert load(_conv_net(), batch=3).fingerprint != one
    assert load(_conv_net(consts={"w": CONV["w"] + 1})).fingerprint != one


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    onnx.save_model(_conv_net(), path, save_as_external_data=True, location="big.data", size_threshold=0)
    assert load(path).graph.layers[1].weight is not None
    (tmp_path / "big.data").unlink()
    assert "big" in _refused(path, "model-invalid")


@pytest.mark.parametrize("batch", [1, 3])
def test_a_free_batch_is_fixed(batch: int) -> None:
    same_as_onnxruntime(
        network([node("Conv", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])], ("N", 3, 6, 6), consts=CONV), batch=batch
    )


def test_all_dimensions_may_be_given() -> None:
    proto = _conv_net(x=("N", 3, "H", "W"))
    assert load(proto, shapes={"x": (2, 3, 8, 5)}).outputs[0].shape == (2, 4, 6, 3)
    message = _refused(proto, "model-dynamic")
    assert "2 (H)" in message
    assert "shapes={'x': (...)}" in message
    assert "dynamic={'x': {2: (least, most)}}" in message


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"shapes": {"x": (1, 4, 6, 6)}}, "(free, 3, 6, 6)"),
        ({"shapes": {"x": (1, 3, 6)}}, "(free, 3, 6, 6)"),
        ({"shapes": {"x": (0, 3, 6, 6)}}, "positive integers"),
        ({"shapes": {"image": (1, 3, 6, 6)}}, "'x'"),
        ({"batch": 0}, "positive integer"),
        ({"batch": 2.0}, "positive integer"),
    ],
)
def test_shapes_that_do_not_fit(options: dict[str, Any], part: str) -> None:
    assert part in _refused(_conv_net(), "shapes-invalid", **options)


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "gone.onnx" in _refused(tmp_path / "gone.onnx", "model-missing")
    assert "folder" in _refused(tmp_path, "model-missing")
    whole = _conv_net().SerializeToString()
    for name, content in {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"this is no model\n" * 9,
        "zeros": bytes(999),
    }.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        assert name in _refused(path, "model-invalid")
    _refused(3, "model-invalid")


def test_every_cut_of_a_file_is_refused_clearly(tmp_path: Path) -> None:
    whole = _conv_net().SerializeToString()
    path = tmp_path / "cut.onnx"
    for end in range(0, len(whole), 37):
        path.write_bytes(whole[:end])
        with pytest.raises(HwqError):
            load(path)


@pytest.mark.parametrize("size", [3, 64])
def test_a_weight_that_is_cut_short(size: int) -> None:
    proto = _conv_net(consts={"w": weights(size, 3, 6, 6)})
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    assert "w" in _refused(proto, "model-invalid")


def test_an_onnx_file_of_another_kind() -> None:
    training = _conv_net()
    training.training_info.add()
    assert "training" in _refused(training, "model-kind")
    norm = network(
        [node("BatchNormalization", ["x", *"abcd"], ["y", "m", "v"], training_mode=1)], (1, 3, 6, 6), opset=15,
        consts={key: np.ones(3, np.float32) for key in "abcd"},
    )  # fmt: skip
    assert "BatchNormalization" in _refused(norm, "model-kind")
    sequence = _conv_net()
    sequence.graph.input[0].type.CopyFrom(
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    )
    assert "sequence" in _refused(sequence, "model-kind")
    inputs = network([node("Relu", ["c"], ["y"])], inputs={}, consts={"c": weights(2)})
    assert "no input" in _refused(inputs, "model-kind")
    constant = network([node("Relu", ["x"], ["y"]), node("Relu", ["c"], ["z"])], consts={"c": weights(2)})
    assert "'z'" in _refused(constant, "model-kind")
    trees = _conv_net()
    trees.opset_import[0].domain = "ai.onnx.ml"
    assert "ai.onnx.ml" in _refused(trees, "model-kind")


@pytest.mark.parametrize("opset", [7, 22])
def test_opsets_outside_the_range(opset: int) -> None:
    proto = _conv_net()
    proto.opset_import[0].version = opset
    assert f"opset {opset}" in _refused(proto, "model-opset")


def test_all_unsupported_operators_at_once() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["h"]),
        node("Det", ["h"], ["d"]),
        node("StringNormalizer", ["s"], ["t"]),
        node("MaxPool", ["h"], ["p", "q"], kernel_shape=[2, 2]),
        node("Det", ["p"], ["e"]),
        node("NonsenseOp", ["e"], ["y"], domain="com.example"),
    ]
    proto = network(
        [nodes[i] for i in (0, 1, 3, 4)], consts={"w": CONV["w"]}, x=(1, 3, 6, 6), dtypes={"q": TensorProto.INT64}
    )
    proto.graph.node.append(nodes[5])
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    message = _refused(proto, "model-unsupported")
    assert "Det (2, first 'd')" in message
    assert "MaxPool (1, first" in message
    assert "com.example.NonsenseOp (1," in message
    assert "Conv" not in message


def test_what_stands_behind_a_refused_operator_is_not_built(capfd: pytest.CaptureFixture[str]) -> None:
    """TVM complains on stderr of each that it begins and cannot end."""
    behind = [node("Erf", ["a"], ["b"]), node("Sqrt", ["b"], ["c"]), node("Exp", ["c"], ["y"])]
    proto = network([node("Abs", ["x"], ["a"]), *behind])
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "NonsenseOp", "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    assert ": com.example.NonsenseOp (1, first 'a'); " in _refused(proto, "model-unsupported")
    assert capfd.readouterr() == ("", "")


def test_a_quantized_network_is_refused_by_its_operators() -> None:
    consts = {"xs": np.float32(0.1), "xz": np.uint8(0), "w": np.ones((2, 3, 1, 1), np.uint8)}
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("QLinearConv", ["q", "xs", "xz", "w", "xs", "xz", "xs", "xz"], ["r"]),
        node("DequantizeLinear", ["r", "xs", "xz"], ["y"]),
    ]
    assert "QLinearConv (1," in _refused(network(nodes, (1, 3, 4, 4), consts=consts), "model-unsupported")


def test_control_flow_is_refused() -> None:
    value = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branch = helper.make_graph([node("Relu", ["x"], ["b"])], "branch", [], [value])
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    assert "If (1," in _refused(network(nodes), "model-unsupported")


def test_a_shape_that_depends_on_data() -> None:
    message = _refused(
        network([node("NonZero", ["x"], ["i"], name="where")], dtypes={"i": TensorProto.INT64}), "model-dynamic"
    )
    assert "NonZero 'where'" in message


def test_a_graph_that_onnx_refuses() -> None:
    proto = _conv_net()
    proto.graph.node[0].input[0] = "nowhere"
    assert "ONNX refuses" in _refused(proto, "model-invalid")
    # ONNX's checker does not compare the channels; the importer does.
    assert "Conv (1, first 'conv')" in _refused(_conv_net(consts={"w": weights(4, 5, 3, 3)}), "model-unsupported")


REAL = {
    "resnet_cifar10/resnet20_cifar10.onnx": ("layer1.0.conv1", {}),
    "resnet_cifar10/resnet32_cifar10.onnx": ("layer3.4.conv2", {}),
    "mobilenetv2/mobilenetv2_1.0_224_fp32.onnx": ("block0.dw", {}),
    "extra_onnx/ultraface_RFB-320_no_post.onnx": ("245", {"softmax": 1}),
}


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real_networks(data_dir: Path, name: str) -> None:
    import onnxruntime

    start = time.process_time()
    model = load(data_dir / name)
    assert time.process_time() - start < 5.0  # 0.1 to 0.5 s on an idle machine
    layer, float_ops = REAL[name]
    assert layer in [item.name for item in model.graph.layers]
    assert model.float_ops == float_ops
    transposes = [item for item in model.graph.layers if item.op == "transpose"]
    assert [item.inputs for item in transposes] == [("input",)]
    x = np.random.default_rng(0).standard_normal(model.inputs[0].shape).astype(np.float32)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    expected = onnxruntime.InferenceSession(str(data_dir / name), settings).run(None, {"input": x})
    found = run_graph(model.graph, {"input": x})
    for want, output in zip(expected, model.graph.outputs, strict=True):
        np.testing.assert_allclose(found[output], want, rtol=0, atol=2e-5 * np.abs(want).max())
