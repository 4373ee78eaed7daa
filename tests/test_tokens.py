"""Token axes: what passes leaves the first tokens' values alone whatever the others are; what mixes is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_nets import network, node, weights
from reference import run_graph

from hwq.errors import HwqError
from hwq.lengths import check_dynamic
from hwq.model import load
from hwq.token_func import MixedError, TokenAxis
from hwq.tokens import find_tokens, reshaped, with_lengths

S, C = 6, 8
NAMES = {"w": weights(C, C), "b": weights(C), "pos": weights(S, C), "words": weights(11, C), "wide": weights(C, 2 * C)}
SHAPES = {
    "heads": [1, S, 2, C // 2],
    "flat": [1, S, C],
    "torn": [1, S * C],
    "rows": [S * 2, C // 2],
    "one": [1, 1, 1, S],
}
CONSTS = {
    **NAMES, **{name: np.array(value, np.int64) for name, value in SHAPES.items()},
    **{"zero": np.array([0], np.int64), "first": np.array([1], np.int64), "axis1": np.array([1], np.int64)},
    **{"two": np.array([2], np.int64), "last": np.array([S], np.int64), "half": np.array(0.5, np.float32)},
    "both": np.array([1, 2], np.int64),
    "mask": np.tril(np.ones((S, S), np.float32)),
}  # fmt: skip


def _net(*nodes: Any, ids: bool = False, **outputs: Any) -> Any:
    read = {name for item in nodes for name in item.input}
    return network(
        nodes, (1, S) if ids else (1, S, C), consts={k: v for k, v in CONSTS.items() if k in read}, opset=17,
        dtypes={"x": 7} if ids else None, **outputs,
    )  # fmt: skip


PASSING = {
    "dense": [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["r"]), node("Add", ["r", "x"], ["y"])],
    "positions": [node("Add", ["x", "pos"], ["y"])],
    "norm": [node("LayerNormalization", ["x", "b", "b"], ["y"], axis=-1)],
    "softmax": [node("Softmax", ["x"], ["y"], axis=-1)],
    "activations": [node("Tanh", ["x"], ["h"]), node("Mul", ["h", "x"], ["y"])],
    "heads": [node("Reshape", ["x", "heads"], ["h"]), node("Transpose", ["h"], ["t"], perm=[0, 2, 1, 3]),
              node("Sqrt", ["t"], ["s"]), node("Transpose", ["s"], ["u"], perm=[0, 2, 1, 3]),
              node("Reshape", ["u", "flat"], ["y"])],
    "rows of heads": [node("Reshape", ["x", "rows"], ["h"]), node("Softmax", ["h"], ["s"], axis=-1),
                      node("Reshape", ["s", "flat"], ["y"])],
    "sums beside tokens": [node("Mul", ["x", "x"], ["h"]), node("ReduceMean", ["h"], ["m"], axes=[-1]),
                           node("Div", ["x", "m"], ["y"])],
    "beside": [node("Abs", ["x"], ["h"]), node("Concat", ["x", "h"], ["y"], axis=2)],
    "channels": [node("Slice", ["x", "zero", "two", "two"], ["y"])],
    "first": [node("Slice", ["x", "zero", "first", "axis1"], ["y"])],
    "scores": [node("Transpose", ["x"], ["k"], perm=[0, 2, 1]), node("MatMul", ["x", "k"], ["s"]),
               node("Add", ["s", "mask"], ["y"])],
}  # fmt: skip


@pytest.mark.parametrize("name", PASSING)
def test_first_tokens_do_not_see_the_others(name: str) -> None:
    graph = load(_net(*PASSING[name])).graph
    tokens = find_tokens(graph, {"x": 1})
    (output,) = graph.outputs
    x = np.abs(weights(1, S, C, seed=5)) + 1
    whole = run_graph(graph, {"x": x})[output]
    for n in range(1, S + 1):
        other = x.copy()
        other[:, n:] = 7.0
        cut = [slice(None)] * whole.ndim
        for one in tokens.axes.get(output, ()):
            cut[one.axis] = slice(n * one.inner)
        np.testing.assert_array_equal(run_graph(graph, {"x": other})[output][tuple(cut)], whole[tuple(cut)])
    assert bool(tokens.axes.get(output)) == (name != "first")


def test_indices_and_their_mask_have_the_axis_wherever_they_go() -> None:
    nodes = [
        node("Gather", ["words", "x"], ["h"], name="words_of"),
        node("Cast", ["x"], ["m"], to=1),
        node("Reshape", ["m", "one"], ["bias"], name="bias"),
        node("Mul", ["bias", "half"], ["z"]),
    ]
    graph = load(_net(*nodes, ids=True, outputs=["h", "z"])).graph
    tokens = find_tokens(graph, {"x": 1})
    assert [tokens.axes[name] for name in graph.outputs] == [(TokenAxis(axis=1),), (TokenAxis(axis=3),)]
    assert tokens.leading(graph.outputs[0], (1, S, C)) == 1
    assert tokens.leading(graph.outputs[1], (1, 1, 1, S)) == 1
    assert tokens.most == S


MIXING = {
    "over tokens": ([node("Softmax", ["x"], ["y"], axis=1, name="bad")], "mixes tokens"),
    "torn": ([node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), node("Reshape", ["t", "torn"], ["h"], name="bad"),
              node("Relu", ["h"], ["y"])], "layer 'y.*tears tokens"),
    "late": ([node("Slice", ["x", "first", "two", "axis1"], ["y"], name="bad")], "by their number, 1 to 1"),
    "products": ([node("Transpose", ["x"], ["k"], perm=[0, 2, 1]), node("MatMul", ["k", "x"], ["y"], name="bad")],
                 "reduces over tokens"),
    "channels of tokens": ([node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), node("Softmax", ["t"], ["y"], name="bad")],
                           "mixes tokens"),
    "behind each other": ([node("Concat", ["x", "x"], ["y"], axis=1, name="bad")], "one behind the other"),
    "sums beside tokens behind": ([node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
                                   node("ReduceSum", ["t", "first"], ["y"], name="bad", keepdims=0)],
                                  "reduces beside tokens"),
    "sums of all": ([node("ReduceSum", ["x", "both"], ["y"], name="bad", keepdims=0)], "another axis at once"),
    "running sums": ([node("CumSum", ["x", "first"], ["y"], name="bad")], "plain loops|moves|known"),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXING)
def test_a_layer_that_mixes_tokens_is_named(name: str) -> None:
    nodes, reason = MIXING[name]
    graph = load(_net(*nodes)).graph
    with pytest.raises(HwqError, match=reason) as caught:
        find_tokens(graph, {"x": 1})
    assert caught.value.code == "tokens-mixed"
    assert any(repr(layer.name) in caught.value.message for layer in graph.layers)


def test_tokens_that_are_always_there_may_be_taken_by_number() -> None:
    graph = load(_net(node("Slice", ["x", "first", "two", "axis1"], ["y"], name="bad"))).graph
    assert find_tokens(graph, {"x": 1}, least=2).rules == {graph.outputs[0]: "still"}


def test_an_axis_that_does_not_vary_does_not_join_one_that_does() -> None:
    nodes = [node("Add", ["x", "z"], ["y"], name="bad")]
    graph = load(network(nodes, inputs={"x": (1, S, C), "z": (1, S, C)})).graph
    with pytest.raises(HwqError, match="does not vary"):
        find_tokens(graph, {"x": 1})
    assert find_tokens(graph, {"x": 1, "z": 1}).rules == {graph.outputs[0]: "rows"}


@pytest.mark.parametrize(
    ("inputs", "found"), [({"q": 1}, "input 'q'"), ({"x": 3}, "axis 3"), ({"x": 1, "z": 1}, "6.*5")]
)
def test_axes_that_are_not_there_are_refused(inputs: dict[str, int], found: str) -> None:
    graph = load(network([node("MatMul", ["x", "z"], ["y"])], inputs={"x": (1, S, 5), "z": (1, 5, C)})).graph
    with pytest.raises(HwqError, match=found) as caught:
        find_tokens(graph, inputs)
    assert caught.value.code == "dynamic-invalid"


@pytest.mark.parametrize(
    ("dynamic", "found"),
    [
        ({"q": {1: (1, S)}}, "input 'q'; accepted: 'x'"),
        ({"x": {3: (1, S)}}, "axis 3 of input 'x'; accepted: 0 to 2"),
        ({"x": {1: (1, S + 1)}}, "loaded with 6; .*example_inputs"),
        ({"x": {2: (1, C)}}, "nothing but 1s before it"),
    ],
)
def test_why_lengths_cannot_vary_along_an_axis(dynamic: Any, found: str) -> None:
    graph = load(_net(*PASSING["dense"])).graph
    with pytest.raises(HwqError, match=found) as caught:
        with_lengths(graph, dict(zip(["x"], graph.inputs, strict=True)), check_dynamic(dynamic))
    assert caught.value.code == "dynamic-invalid"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((1, S, C), (S, C), TokenAxis(axis=0)),
        ((1, S, C), (S * 2, C // 2), TokenAxis(axis=0, inner=2)),
        ((1, S, C), (1, 1, S, 2, 4), TokenAxis(axis=2)),
        ((1, S, C), (1, S * C), TokenAxis(axis=1, inner=C)),
    ],
)
def test_reshapes_keep_tokens_in_one_axis(before: Any, after: Any, expected: TokenAxis) -> None:
    assert reshaped(TokenAxis(axis=1), before, after, S) == expected


def test_a_reshape_that_leaves_no_axis_is_refused() -> None:
    with pytest.raises(MixedError, match="tears"):
        reshaped(TokenAxis(axis=2), (1, 2, S, C), (2 * S, C), S)
