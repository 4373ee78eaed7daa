"""Einsum of two tensors: matrices' products, and what is none of these."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_nets import network, node, ops, same_as_onnxruntime, weights
from tvm import relax

import hwq
from hwq import relax_tools as rt
from hwq.einsum import matmul_of
from hwq.relax_numpy import evaluate, tensors_of

SIZES = {"a": 1, "b": 2, "h": 3, "s": 4, "t": 5, "d": 6, "e": 7}


def shaped(names: str) -> tuple[int, ...]:
    return tuple(SIZES[name] for name in names)


@pytest.mark.parametrize(
    "equation",
    [
        *(
            "bsd,de->bse",
            "bsd,ed->bse",
            "bsd, de",
            "de,bsd->bse",
            "ts,bsd->btd",
            "d,ds->s",
            "bsd,dhe->bhse",
        ),
        *(
            "bhse,hed->bsd",
            "bhsd,bhtd->bhst",
            "bhst,bhtd->bshd",
            "bsd,bsd->bs",
            "bsd,bsd->",
            "bad,de->bae",
        ),
    ],
)
def test_products_of_matrices_are_those_of_numpy(equation: str) -> None:
    one, two = equation.replace(" ", "").split("->")[0].split(",")
    arrays = [weights(*shaped(names), seed=i) for i, names in enumerate((one, two))]
    scope, known = rt.Scope(), dict[Any, Any]()
    params = [
        relax.Var(name, relax.TensorType(array.shape, "float32")) for name, array in zip("xy", arrays, strict=True)
    ]
    found = matmul_of(equation, *params, scope.emit)
    known.update(zip(params, arrays, strict=True))
    assert [rt.op_name(value) for value in scope.made.values()].count("matmul") == 1
    for var, value in scope.made.items():
        known[var] = evaluate(value, [known[item] for item in tensors_of(value)])
    np.testing.assert_allclose(known[found], np.einsum(equation, *arrays), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "equation", ["...d,de->...e", "bss,se->be", "bsd,de->be", "bsd,de->bsee", "bsd", "bsd,de,es->bs"]
)
def test_what_is_no_product_of_matrices(equation: str) -> None:
    one, two = (relax.Var("x", relax.TensorType(shape, "float32")) for shape in ((2, 4, 4), (4, 4)))
    assert matmul_of(equation, one, two, rt.Scope().emit) is None


@pytest.mark.parametrize("equation", ["bs,t->bst", "bs,bs->sb", "ba,at->bt", "s,t->st"])
def test_where_nothing_is_summed_there_is_no_product_of_matrices(equation: str) -> None:
    names = equation.split("->")[0].split(",")
    one, two = (relax.Var("x", relax.TensorType(shaped(each), "float32")) for each in names)
    assert matmul_of(equation, one, two, rt.Scope().emit) is None


def test_angles_of_positions_are_float() -> None:
    """As int8 they would be lost: positions go far beyond what weights of one column can say."""
    nodes = [
        node("Cast", ["at"], ["t"], to=1),
        node("Einsum", ["t", "rates"], ["angles"], equation="bi,j->bij"),
        node("Sin", ["angles"], ["y"]),
    ]
    consts = {"rates": (10000.0 ** -np.linspace(0, 1, 8)).astype(np.float32)}
    proto = network(nodes, inputs={"at": (1, 6)}, dtypes={"at": 7}, consts=consts, opset=13, outputs=["y"])
    assert "dense" not in ops(hwq.load(proto))


def test_lengths_that_are_spread_are_left() -> None:
    one, two = (relax.Var("x", relax.TensorType(shape, "float32")) for shape in ((2, 4, 1), (4, 4)))
    assert matmul_of("bsd,de->bse", one, two, rt.Scope().emit) is None


@pytest.mark.parametrize(
    ("inputs", "equation", "shape", "found"),
    [
        (["x", "w"], "bsd,de->bse", "de", ["reshape", "dense", "reshape"]),
        (["x", "w"], "bsd,ed->bse", "ed", ["reshape", "dense", "reshape"]),
        (["w", "x"], "ts,bsd->btd", "ts", ["transpose", "reshape", "dense", "reshape", "transpose"]),
    ],
)
def test_constants_are_weights_of_dense_layers(inputs: list[str], equation: str, shape: str, found: list[str]) -> None:
    nodes = [node("Einsum", inputs, ["y"], equation=equation)]
    if inputs[0] == "x":
        nodes = [node("Einsum", inputs, ["h"], equation=equation), node("Add", ["h", "bias"], ["y"])]
    consts = {"w": weights(*shaped(shape)), "bias": weights(SIZES["e"])}
    read = {name for item in nodes for name in item.input}
    consts = {name: value for name, value in consts.items() if name in read}
    proto = network(nodes, x=shaped("bsd"), consts=consts, opset=13)
    assert ops(same_as_onnxruntime(proto)) == found
