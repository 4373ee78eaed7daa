"""Lowering of whole graphs: conversions only where types meet, each value made once, and what is legal where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference as floats  # the tests' interpreter of graphs
import tiny

from hwq import numerics
from hwq.graph import Activation, Graph
from hwq.lower import Program, layer_workload, legal_schemes, lower
from hwq.operators import linear_sources
from hwq.quantize import quantize_layer
from hwq.scheme import parse_schemes
from hwq.target import Target
from hwq.ties import with_float_residuals

TARGET = Target.load("x86-avx512-vnni")
NONE, SWISH = Activation(), Activation(kind="hard_swish")


def lowered(plain: Graph, schemes: dict[str, str], rng: np.random.Generator, **options: Any) -> tuple[Program, Any]:
    """A graph lowered with ranges and weights of its own; what its float form computes."""
    x = {name: rng.standard_normal(plain.shapes[name]).astype(np.float32) for name in plain.inputs}
    values = floats.run_graph(plain, x)
    params = tiny.ranges(values)
    for layer in plain.layers:
        if layer.weight is not None and not layer.activation.clamps:
            bare = floats.run_layer(replace(layer, activation=NONE), [values[name] for name in layer.inputs])
            params |= tiny.ranges({f"{layer.name}:pre": bare})
    weights = {
        (layer.name, schemes[layer.name]): quantize_layer(layer, schemes[layer.name], params[layer.inputs[0]])
        for layer in plain.layers
        if layer.weight is not None and schemes.get(layer.name, "f32") != "f32"
    }
    return lower(plain, schemes, params, weights, TARGET, 1, **options), values


def names(program: Program) -> list[str]:
    return [step.name for step in program.steps]


ALL8 = dict.fromkeys(("stem", "left", "join", "depth", "pool", "flat", "logits"), "w8a8")


def test_float_program_computes_the_graph(rng: np.random.Generator) -> None:
    program, values = lowered(tiny.net(), {}, rng)
    assert names(program) == [layer.name for layer in tiny.net().layers]
    found = tiny.interpret(program, {"x": values["x"]}, "uint8")
    np.testing.assert_allclose(found["logits"], values["logits"], rtol=1e-5, atol=1e-5)


def test_integer_program_is_close_and_converts_at_its_ends_only(rng: np.random.Generator) -> None:
    program, values = lowered(tiny.net(), ALL8, rng)
    assert names(program) == ["x:quantize", "stem", "left", "join", "depth", "pool", "flat", "logits"]
    found = tiny.interpret(program, {"x": values["x"]}, "uint8")
    assert numerics.sqnr_db(values["logits"], found["logits"]) > 25
    assert program.values["logits"] == ((1, 5), "float32"), "the last layer writes float itself"
    assert program.values["join@int8"] == ((1, 6, 5, 8), "uint8")


@pytest.mark.parametrize(
    ("floats", "expected"),
    [
        # left reads stem as int8, join its residual as float: stem exists in both, made once each.
        (["join"], ["x:quantize", "stem", "stem:dequantize", "left", "left:dequantize", "join", "join:quantize"]),
        # stem is read as int8 (join) and as float (left).
        (["left"], ["x:quantize", "stem", "stem:dequantize", "left", "left:quantize", "join"]),
        (["stem"], ["stem", "stem:quantize", "left", "join"]),
        # A clamped anchor before float layers only writes float itself: no conversion.
        (["depth", "pool", "flat", "logits"], ["left", "join", "depth", "pool", "flat", "logits"]),
        # avg_pool2d cannot write float.
        (["flat", "logits"], ["pool", "pool:dequantize", "flat", "logits"]),
        # A view is free in either type.
        (["flat"], ["pool", "pool:dequantize", "flat", "flat:quantize", "logits"]),
    ],
    ids=lambda value: "+".join(value) if len(value) < 5 else "steps",
)
def test_conversions_stand_only_where_types_meet(
    floats: list[str], expected: list[str], rng: np.random.Generator
) -> None:
    program, values = lowered(tiny.net(), ALL8 | dict.fromkeys(floats, "f32"), rng)
    text = " ".join(names(program))
    assert " ".join(expected) in text, text
    made = [step.output for step in program.steps]
    assert len(set(made)) == len(made), "a value is made once"
    assert set(program.values) == {*made, "x"}
    read = {name for step in program.steps for name in step.inputs} | set(program.outputs)
    assert read == set(program.values), "what is made is read"
    found = tiny.interpret(program, {"x": values["x"]}, "uint8")
    assert numerics.sqnr_db(values["logits"], found["logits"]) > 25


def test_table_activation_cannot_write_float(rng: np.random.Generator) -> None:
    """left ends in a table: with join in float its int8 is converted."""
    program, _ = lowered(tiny.net(), {"left": "w8a8"}, rng)
    assert "stem:quantize left left:dequantize join" in " ".join(names(program))


def test_without_direct_every_layer_leaves_as_int8(rng: np.random.Generator) -> None:
    program, values = lowered(tiny.net(), ALL8, rng, direct=False)
    assert names(program)[-2:] == ["logits", "logits:dequantize"]
    found = tiny.interpret(program, {"x": values["x"]}, "uint8")
    assert numerics.sqnr_db(values["logits"], found["logits"]) > 25


def test_an_output_that_int8_layers_read_is_converted_for_the_caller(rng: np.random.Generator) -> None:
    both = replace(tiny.net(), outputs=("join", "logits"))
    program, values = lowered(both, ALL8, rng)
    assert names(program)[3:6] == ["join", "join:dequantize", "depth"]
    found = tiny.interpret(program, {"x": values["x"]}, "uint8")
    # Rounded once at the end, and three roundings before: some steps of the output's scale.
    assert np.abs(found["join"] - values["join"]).max() < 5 * np.ptp(values["join"]) / 255


def test_an_input_read_in_both_types_is_quantized_once(rng: np.random.Generator) -> None:
    plain = tiny.graph(
        [tiny.conv("x", "a", (3, 4)), tiny.conv("x", "b", (3, 4), seed=7), tiny.conv("x", "c", (3, 4), seed=8)],
        ["x"],
        ["a", "b", "c"],
    )
    program, _ = lowered(plain, {"a": "w8a8", "b": "w4a8"}, rng)
    assert names(program) == ["x:quantize", "a", "b", "c"]
    assert [step.inputs for step in program.steps] == [("x",), ("x@int8",), ("x@int8",), ("x",)]


def test_linear_resizing_computes_in_the_format_of_its_neighbours(rng: np.random.Generator) -> None:
    sources = (*linear_sources(6, 11, "half_pixel"), *linear_sources(5, 15, "half_pixel"))
    shapes = {"a": (1, 6, 5, 4), "r": (1, 11, 15, 4)}
    resized = tiny.layer("resize_linear", ("a",), "r", shapes, constants=sources)
    behind = tiny.conv("r", "b", (4, 4), size=(11, 15), seed=7)
    plain = tiny.graph([tiny.conv("x", "a", (3, 4)), resized, behind], ["x"], ["b"])
    values = floats.run_graph(plain, {"x": rng.standard_normal(plain.shapes["x"]).astype(np.float32)})
    params = tiny.ranges(values)
    params["r"] = params["a"]  # tied
    weights = {
        (layer.name, "w8a8"): quantize_layer(layer, "w8a8", params[layer.inputs[0]]) for layer in plain.layers[::2]
    }
    program = lower(plain, dict.fromkeys(("a", "r", "b"), "w8a8"), params, weights, TARGET, 1)
    assert names(program) == ["x:quantize", "a", "r", "b"]
    assert [array.dtype for array in program.steps[2].constants] == [np.int32] * 4
    found = tiny.interpret(program, {"x": values["x"]}, "uint8")
    assert numerics.sqnr_db(values["b"], found["b"]) > 25
    assert legal_schemes(plain, resized, TARGET, parse_schemes(None)) == ("f32", "w8a8")


@pytest.mark.parametrize(
    ("schemes", "expected"),
    [
        ({"a": "w8a8", "b": "w8a8"}, ["t:quantize", "a", "b"]),
        ({"a": "w8a8"}, ["t", "t:quantize", "a", "b"]),  # b wants the float one as well
        ({}, ["t", "a", "b"]),
    ],
)
def test_a_transpose_in_front_of_int8_is_done_by_the_quantize(
    schemes: dict[str, str], expected: list[str], rng: np.random.Generator
) -> None:
    moved = tiny.layer("transpose", ("x",), "t", {"x": (1, 3, 6, 5), "t": (1, 6, 5, 3)}, attrs={"axes": (0, 2, 3, 1)})
    plain = tiny.graph([moved, tiny.conv("t", "a", (3, 4)), tiny.conv("t", "b", (3, 4), seed=7)], ["x"], ["a", "b"])
    program, values = lowered(plain, schemes, rng)
    assert names(program) == expected
    assert ("t" in program.values) == ("t" in expected)
    found = tiny.interpret(program, {"x": values["x"]}, "uint8")
    for name in ("a", "b"):
        assert numerics.sqnr_db(values[name], found[name]) > 25


# Workloads and legality


BF16 = Target.load("x86-avx512-bf16")


@pytest.mark.parametrize(
    ("op", "allowed", "expected"),
    [
        ("conv2d", None, ("f32", "bf16", "w8a8", "w4a8")),
        ("conv2d", ["bf16"], ("bf16",)),
        ("conv2d", ["bf16", "w8a8"], ("bf16", "w8a8")),
        ("depthwise_conv2d", None, ("f32", "w8a8", "w4a8")),
        ("depthwise_conv2d", ["bf16"], ("f32",)),
        ("depthwise_conv2d", ["bf16", "w8a8"], ("w8a8",)),
        ("add", ["bf16"], ("f32",)),
        ("add", ["bf16", "w8a8"], ("f32", "w8a8")),
    ],
)
def test_bf16_is_for_products_of_weights_that_the_target_can_form(
    op: str, allowed: list[str] | None, expected: tuple[str, ...]
) -> None:
    weighted = {"conv2d": tiny.conv("x", "y", (3, 4)), "depthwise_conv2d": tiny.depthwise("x", "y", 3)}
    plain = tiny.alone(weighted[op]) if op in weighted else op_graph(op)
    assert legal_schemes(plain, plain.layers[0], BF16, parse_schemes(allowed)) == expected
    without = tuple(name for name in expected if name != "bf16")
    if without:
        assert legal_schemes(plain, plain.layers[0], TARGET, parse_schemes(allowed)) == without


def test_bf16_and_float_layers_meet_without_conversions(rng: np.random.Generator) -> None:
    plain = tiny.graph([tiny.conv("x", "a", (3, 4)), tiny.conv("a", "b", (4, 4), seed=7)], ["x"], ["b"])
    program = lower(plain, {plain.layers[0].name: "bf16"}, {}, {}, BF16, 1)
    assert names(program) == [layer.name for layer in plain.layers]
    assert program.values["a"][1] == "float32"


def test_equal_layers_share_a_workload() -> None:
    one, other = tiny.conv("x", "a", (8, 8), seed=1), tiny.conv("y", "b", (8, 8), seed=2, bias=False)
    assert layer_workload(one, "w8a8", "int8", 1) == layer_workload(other, "w8a8", "int8", 1), "int8 always has a bias"
    assert layer_workload(one, "f32", "float32", 1) != layer_workload(other, "f32", "float32", 1)
    assert layer_workload(one, "w8a8", "int8", 1) != layer_workload(one, "w8a8", "int8", 2)
    assert layer_workload(tiny.flat("x", "y", 3), "f32", "float32", 1) is None


def op_graph(op: str, **fields: Any) -> Graph:
    return tiny.alone(tiny.layer(op, ("x",), "y", {"x": (1, 4, 4, 3), "y": (1, 4, 4, 3)}, **fields))


@pytest.mark.parametrize(
    ("plain", "allowed", "expected"),
    [
        (tiny.alone(tiny.conv("x", "y", (3, 4))), None, ("f32", "w8a8", "w4a8")),
        (tiny.alone(tiny.conv("x", "y", (3, 4), activation=SWISH)), None, ("f32", "w8a8", "w4a8")),
        (tiny.alone(tiny.conv("x", "y", (3, 4))), ["w4a8"], ("w4a8",)),
        (tiny.alone(tiny.conv("x", "y", (3, 4))), ["f32"], ("f32",)),
        (op_graph("add"), None, ("f32", "w8a8")),
        (op_graph("add"), ["w4a8"], ("w8a8",)),
        (op_graph("unary", activation=SWISH), ["w8a8"], ("w8a8",)),
        (op_graph("add", activation=SWISH), ["w8a8"], ("f32",)),
        (op_graph("softmax"), ["w8a8"], ("f32",)),
        (op_graph("transpose"), ["w8a8", "w4a8"], ("f32",)),
        (op_graph("float"), None, ("f32",)),
        (tiny.with_types(op_graph("max_pool2d"), x="int64", y="int64"), ["w8a8"], ("f32",)),
    ],
)
def test_legal_schemes(plain: Graph, allowed: list[str] | None, expected: tuple[str, ...]) -> None:
    assert legal_schemes(plain, plain.layers[0], TARGET, parse_schemes(allowed)) == expected


def test_schemes_that_the_target_lacks_are_not_legal() -> None:
    without = replace(TARGET, compute=tuple(row for row in TARGET.compute if row.weight != "int4"))
    plain = tiny.alone(tiny.conv("x", "y", (3, 4)))
    assert legal_schemes(plain, plain.layers[0], without, parse_schemes(None)) == ("f32", "w8a8")


def transformer() -> Graph:
    """Two projections of a normed tensor, and one back to the stream."""
    shapes = dict.fromkeys(("x", "n", "y"), (9, 33))
    constants = (np.ones(33, np.float32), np.zeros(33, np.float32))
    norm = tiny.layer("layer_norm", ["x"], "n", shapes, attrs={"epsilon": 1e-5}, constants=constants)
    layers = [
        norm,
        tiny.dense("n", "up", (33, 70), rows=9, activation=Activation(kind="gelu")),
        tiny.dense("n", "side", (33, 7), rows=9, seed=8),
        tiny.dense("up", "down", (70, 33), rows=9, residual="x", seed=9),
        tiny.layer("layer_norm", ["down"], "y", shapes | {"down": (9, 33)}, attrs=norm.attrs, constants=constants),
    ]
    return with_float_residuals(tiny.graph(layers, ["x"], ["side", "y"]))


@pytest.mark.parametrize("scheme", ["w8a8_dyn", "w4a8_g64_dyn"])
def test_rows_are_made_once_for_all_dynamic_readers(scheme: str, rng: np.random.Generator) -> None:
    plain = transformer()
    program, values = lowered(plain, dict.fromkeys(("up", "side", "down"), scheme), rng)
    of_n, of_up = (tuple(f"{name}:{step}" for step in ("row_scales", "quantize_rows")) for name in ("n", "up"))
    assert names(program) == ["n", *of_n, "up", *of_up, "side", "down", "y"]
    up, down = (next(step for step in program.steps if step.name == name) for name in ("up", "down"))
    assert up.inputs == ("n@rows", "n@scales")
    assert down.inputs == ("up@rows", "up@scales", "x")
    assert program.values["n@scales"] == ((9,), "float32")
    assert program.values["n@rows"] == ((9, 33), "uint8")
    found = tiny.interpret(program, {"x": values["x"]}, "uint8")
    least = 35 if scheme == "w8a8_dyn" else 15
    assert all(numerics.sqnr_db(values[name], found[name]) > least for name in ("side", "y"))


def test_dynamic_and_static_readers_each_have_their_form(rng: np.random.Generator) -> None:
    schemes = {"up": "w8a8", "side": "w8a8_dyn", "down": "w8a8"}
    program, values = lowered(transformer(), schemes, rng)
    steps = {step.name: step for step in program.steps}
    assert {"n:quantize", "n:row_scales", "n:quantize_rows"} <= steps.keys()
    assert "up:quantize" not in steps, "up writes int8 itself"
    found = tiny.interpret(program, {"x": values["x"]}, "uint8")
    assert all(numerics.sqnr_db(values[name], found[name]) > 30 for name in ("side", "y"))


@pytest.mark.parametrize("direct", [True, False])
def test_a_float_residual_is_not_quantized(direct: bool, rng: np.random.Generator) -> None:
    program, values = lowered(transformer(), {"down": "w8a8"}, rng, direct=direct)
    down = next(step for step in program.steps if step.name == "down")
    assert down.inputs == ("up@int8", "x")
    assert down.workload is not None
    assert down.workload.float_residual
    assert down.workload.out_dtype == "float32"
    assert names(program) == ["n", "up", "up:quantize", "side", "down", "y"]
    found = tiny.interpret(program, {"x": values["x"]}, "uint8")
    assert numerics.sqnr_db(values["y"], found["y"]) > 35
