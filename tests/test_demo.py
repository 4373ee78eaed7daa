"""The network and pictures that ship: what the demo says of them must be so."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

from hwq.demo import load_demo, prepare


def test_pictures_have_the_shapes_and_range_that_are_documented() -> None:
    _, calibration, (inputs, labels) = load_demo()
    assert calibration.shape == (128, 1, 16, 16)
    assert inputs.shape == (500, 1, 16, 16)
    assert calibration.dtype == inputs.dtype == np.float32
    assert labels.shape == (500,)
    assert labels.dtype == np.int64
    assert sorted(set(labels.tolist())) == list(range(10))
    for pictures in (calibration, inputs):
        assert pictures.min() == 0.0
        assert pictures.max() == 1.0


def test_no_picture_is_for_calibration_and_evaluation() -> None:
    _, calibration, (inputs, _) = load_demo()
    seen = {picture.tobytes() for picture in calibration}
    assert not any(picture.tobytes() in seen for picture in inputs)


def test_prepare_doubles_pixels_and_scales_16_to_1() -> None:
    picture = np.zeros((1, 8, 8), dtype=np.uint8)
    picture[0, 2, 5] = 16
    picture[0, 7, 0] = 8
    wide = prepare(picture)[0, 0]
    expected = np.zeros((16, 16), dtype=np.float32)
    expected[4:6, 10:12] = 1.0
    expected[14:16, 0:2] = 0.5
    np.testing.assert_array_equal(wide, expected)


def test_network_is_what_the_demo_promises() -> None:
    path, _, _ = load_demo()
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    ops = [node.op_type for node in model.graph.node]
    groups = {attribute.i for node in model.graph.node for attribute in node.attribute if attribute.name == "group"}
    names = [node.name for node in model.graph.node]
    assert groups == {1, 32, 96}, "a plain, and two depthwise convolutions"
    assert ops.count("Add") == 3
    assert ops.count("BatchNormalization") == ops.count("Conv") == 11
    assert {"stem", "block1.conv1", "block3.depthwise", "block4.add", "classifier"} <= set(names)
    assert len(set(names)) == len(names)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert path.stat().st_size < 200_000


def test_network_reads_at_least_97_of_100_pictures() -> None:
    path, _, (inputs, labels) = load_demo()
    (logits,) = onnxruntime.InferenceSession(str(path)).run(None, {"image": inputs})
    assert (logits.argmax(axis=1) == labels).mean() >= 0.97
