"""Values computed from the length: a network with a free axis is held against itself at a second length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_nets import network, node, weights

import hwq
from hwq.baked import check_constants, same_layers
from hwq.errors import HwqError
from hwq.model import load

MOST, C = 6, 8
DYNAMIC = {"x": {1: (1, MOST)}}
# How long x is, as an exporter asks: the number, and the same in float.
LONG = [
    node("Shape", ["x"], ["shape"]),
    node("Gather", ["shape", "one"], ["n"]),
    node("Cast", ["n"], ["m"], to=1),
]
COUNTED = {
    "a divisor": [node("ReduceSum", ["x", "axis"], ["t"], keepdims=0), node("Div", ["t", "m"], ["y"], name="bad")],
    "a factor of rows": [node("Mul", ["b", "m"], ["c"]), node("Add", ["x", "c"], ["y"], name="bad")],
    "weights": [node("Mul", ["w", "m"], ["v"]), node("MatMul", ["x", "v"], ["y"], name="bad")],
    "a table from its end": [
        node("Range", ["none", "n", "one"], ["r"]), node("Cast", ["r"], ["f"], to=1), node("Sub", ["f", "m"], ["g"]),
        node("Unsqueeze", ["g", "axis"], ["p"]), node("Add", ["x", "p"], ["y"], name="bad"),
    ],
}  # fmt: skip
PASSING = {
    "positions": [
        node("Range", ["none", "n", "one"], ["r"]), node("Gather", ["pos", "r"], ["p"]), node("Add", ["x", "p"], ["y"]),
    ],
    "a mean": [node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)],
    "shapes": [
        node("Unsqueeze", ["n", "none1"], ["n1"]), node("Concat", ["start", "n1", "end"], ["s"], axis=0),
        node("Reshape", ["x", "s"], ["h"]), node("Relu", ["h"], ["k"]), node("Shape", ["x"], ["s2"]),
        node("Reshape", ["k", "s2"], ["y"]),
    ],
}  # fmt: skip


def _net(nodes: list[Any], length: int | str = "n") -> Any:
    consts = {name: np.array(value, np.int64) for name, value in {"one": 1, "none": 0, "none1": [0]}.items()}
    consts |= {name: np.array(value, np.int64) for name, value in {"axis": [1], "start": [1], "end": [2, 4]}.items()}
    consts |= {"b": weights(C), "w": weights(C, C), "pos": weights(MOST, C)}
    read = {name for item in [*LONG, *nodes] for name in item.input}
    return network(
        [*LONG, *nodes], inputs={"x": (1, length, C)}, consts={k: v for k, v in consts.items() if k in read}, opset=17,
        outputs=["y"],
    )  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_a_value_computed_from_the_length_is_refused(name: str) -> None:
    with pytest.raises(HwqError, match=r"'bad.*computed from the length, another at 6 tokens than at 5") as caught:
        load(_net(COUNTED[name]), dynamic=DYNAMIC)
    assert caught.value.code == "tokens-mixed"


@pytest.mark.parametrize("name", PASSING)
def test_tables_means_and_shapes_follow_the_length(name: str) -> None:
    model = load(_net(PASSING[name]), dynamic=DYNAMIC)
    assert model.seen
    assert model.inputs[0].shape == (1, MOST, C)


def test_where_the_axis_is_fixed_the_report_says_of_what_length_such_values_are(rng: np.random.Generator) -> None:
    model = load(_net(COUNTED["a divisor"], MOST), dynamic=DYNAMIC)
    assert not model.seen
    artifact = hwq.compile(model, "host", schemes=["f32"], measure=False, threads=1)
    assert any(f"axis 1 of input 'x' was loaded {MOST} long only" in note for note in artifact.report["notes"])
    x = rng.standard_normal((1, 3, C)).astype(np.float32)
    np.testing.assert_allclose(artifact(x), x.sum(1) / MOST, rtol=1e-5, atol=1e-6)


def test_layers_are_compared_in_their_order() -> None:
    six, five = (load(_net(PASSING["positions"], n)).graph for n in (6, 5))
    assert same_layers(six, five)
    assert not same_layers(six, load(_net(PASSING["a mean"], 5)).graph)
    check_constants(six, five, 6, 5)
    with pytest.raises(HwqError, match="computed from the length"):
        check_constants(five, six, 5, 6)


@pytest.mark.parametrize(
    ("dynamic", "found"),
    [
        ({"y": {1: (1, 6)}}, "input 'y'; accepted: 'x'"),
        ({"x": {3: (1, 6)}}, "axis 3 of input 'x'; accepted: 0 to 2"),
        ({"x": {1: (1, 6)}, "z": {1: (1, 6)}}, "input 'z'; accepted: 'x'"),
    ],
)
def test_what_dynamic_names_and_the_file_lacks(dynamic: Any, found: str) -> None:
    with pytest.raises(HwqError, match=found) as caught:
        load(_net(PASSING["positions"]), dynamic=dynamic)
    assert caught.value.code == "dynamic-invalid"


def _program(divided: bool) -> Any:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'hwq[torch]'")

    class Mean(torch.nn.Module):  # type: ignore[misc]
        """The sum of rows, or their mean."""

        def forward(self, x: Any) -> Any:
            total = torch.tanh(x).sum(1)
            return total / x.shape[1] if divided else total

    dims = {"x": {1: torch.export.Dim("n", min=2, max=64)}}
    return torch.export.export(Mean().eval(), (torch.zeros(1, MOST, C),), dynamic_shapes=dims)


def test_a_free_axis_of_a_program_needs_no_other_word(tmp_path: Path) -> None:
    program = _program(divided=False)
    model = load(program, dynamic=DYNAMIC)
    assert model.seen
    assert model.inputs[0].shape == (1, MOST, C)
    import torch

    torch.export.save(program, tmp_path / "net.pt2")
    assert load(tmp_path / "net.pt2", dynamic=DYNAMIC).fingerprint == model.fingerprint
    with pytest.raises(HwqError, match="input 'y'; accepted: 'x'"):
        load(program, dynamic={"y": {1: (1, 6)}})
    with pytest.raises(HwqError, match="dynamic gives axis 1 of input 'x' 65"):
        load(program, dynamic={"x": {1: (1, 65)}})


def test_a_program_that_divides_by_its_length_is_refused() -> None:
    with pytest.raises(HwqError, match="computed from the length") as caught:
        load(_program(divided=True), dynamic=DYNAMIC)
    assert caught.value.code == "tokens-mixed"
