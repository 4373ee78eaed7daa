"""Names of layers that came from torch modules."""

from __future__ import annotations

import pytest
from tiny import alone, conv, graph, layer

from hwq.graph import Activation, Graph, Layer
from hwq.layer_names import name_layers
from hwq.relax_tools import module_origin

SHAPES = {"x": (1, 6, 5, 4), "y": (1, 6, 5, 4), "z": (1, 6, 5, 4)}


def add(inputs: tuple[str, str], output: str) -> Layer:
    return layer("add", inputs, output, {name: SHAPES["x"] for name in (*inputs, output)})


def unary(x: str, output: str) -> Layer:
    return layer("unary", (x,), output, {x: SHAPES["x"], output: SHAPES["x"]}, activation=Activation(kind="silu"))


def names(made: Graph) -> list[str]:
    return [item.name for item in made.layers]


def test_a_module_of_one_layer_bears_its_path() -> None:
    made = name_layers(alone(conv("x", module_origin("layer1.0.conv1"), (4, 4))))
    assert names(made) == ["layer1.0.conv1"]
    assert made.outputs == ("layer1.0.conv1",)
    assert set(made.shapes) == set(made.dtypes) == {"x", "layer1.0.conv1"}


def test_the_one_layer_with_weights_bears_the_path_and_others_say_what_they_do() -> None:
    first, second = module_origin("a.b"), f"{module_origin('a.b')}:1"
    made = name_layers(graph([unary("x", first), conv(first, second, (4, 4))], ["x"], [second]))
    assert names(made) == ["a.b.silu", "a.b"]
    assert made.layers[1].inputs == ("a.b.silu",)


def test_what_lies_between_modules_is_named_by_what_it_does() -> None:
    inner, outer, root = module_origin("block.conv"), module_origin("block"), module_origin("")
    layers = [conv("x", inner, (4, 4)), add(("x", inner), outer), add((outer, inner), f"{outer}:1")]
    layers.append(add((outer, f"{outer}:1"), root))
    made = name_layers(graph(layers, ["x"], [root]))
    assert names(made) == ["block.conv", "block.add", "block.add:2", "add"]


def test_two_products_of_one_module_are_told_apart() -> None:
    first, second = module_origin("attn"), f"{module_origin('attn')}:1"
    made = name_layers(graph([conv("x", first, (4, 4)), conv(first, second, (4, 4))], ["x"], [second]))
    assert names(made) == ["attn.conv2d", "attn.conv2d:2"]


def test_views_are_named_after_what_they_read() -> None:
    path = module_origin("conv")
    turned = layer("transpose", (path,), f"{path}:transpose", {path: SHAPES["x"], f"{path}:transpose": (1, 4, 6, 5)})
    made = name_layers(graph([conv("x", path, (4, 4)), turned], ["x"], [turned.output]))
    assert names(made) == ["conv", "conv:transpose"]


@pytest.mark.parametrize("name", ["/layer1/Conv", "node.", "a:2", "x"])
def test_other_names_are_kept(name: str) -> None:
    made = alone(conv("input", name, (4, 4)))
    assert names(name_layers(made)) == [name]


def test_a_name_that_an_input_has_is_not_given_twice() -> None:
    made = name_layers(alone(conv("stem", module_origin("stem"), (4, 4))))
    assert names(made) == ["stem:2"]
