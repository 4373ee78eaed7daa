"""Tables that many layers hold alike are stored once, at the same price, and give the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import language
import numpy as np
from tvm import relax

import hwq
from hwq import relax_tools as rt
from hwq.artifact import Artifact
from hwq.execute import KernelSet
from hwq.graph import Graph
from hwq.layer_functions import Functions
from hwq.layers import find_layers
from hwq.model import Model
from hwq.pricing import Pricer, price_network
from hwq.tables import repeated_bytes, with_one_of_each
from hwq.target import Target

APART = language.llama()
ROPES = [layer.name for layer in APART.graph.layers if layer.op == "rope"]
EACH = sum(array.nbytes for array in language.turns(12, language.WIDTH // language.HEADS))
IDS = np.random.default_rng(0).integers(0, language.VOCABULARY, (1, 12))


def once(graph: Graph) -> Graph:
    return replace(graph, layers=with_one_of_each(graph.layers))


def compiled(model: Model, folder: Path, **more: Any) -> Artifact:
    return hwq.compile(model, schemes=["w8a8_dyn"], measure=False, threads=1, work_dir=folder, **more)


def test_equal_tables_are_one_array_and_others_stay() -> None:
    graph = once(APART.graph)
    assert not any(repeated_bytes(APART.graph).values())
    found = repeated_bytes(graph)
    assert [found[name] for name in ROPES] == [0, EACH, EACH, EACH]
    for before, after in zip(APART.graph.layers, graph.layers, strict=True):
        assert (before is after) == (before.op not in ("rope", "attention"))
        for one, other in zip(before.constants, after.constants, strict=True):
            assert one.tobytes() == other.tobytes()
    changed = [
        replace(layer, constants=tuple(array + np.float32(layer.name == ROPES[2]) for array in layer.constants))
        for layer in APART.graph.layers
    ]
    found = repeated_bytes(replace(APART.graph, layers=with_one_of_each(changed)))
    assert [found[name] for name in ROPES] == [0, EACH, 0, EACH]


def test_the_library_holds_them_once_as_the_price_says(tmp_path: Path) -> None:
    """The layers behind the first hold nothing; outputs are the same bits."""
    apart = compiled(APART, tmp_path / "apart")
    shared = compiled(replace(APART, graph=once(APART.graph)), tmp_path / "shared")
    saved = EACH * (len(ROPES) - 1)
    for artifact, less in ((apart, 0), (shared, saved)):
        assert artifact.report["measured"]["weight_bytes"] == artifact.plan.weight_bytes
        assert artifact.report["measured"]["weight_bytes"] == apart.plan.weight_bytes - less
    rows = {row["name"]: row["weight_bytes"] for row in shared.report["layers"]}
    assert [rows[name] for name in ROPES] == [EACH, *[0] * (len(ROPES) - 1)]
    assert len(shared.library.constants) <= len(apart.library.constants) - saved
    assert shared(IDS).tobytes() == apart(IDS).tobytes()


def test_so_they_are_where_lengths_vary(tmp_path: Path) -> None:
    """Predicted as delivered, and read again from a file."""
    model = replace(APART, graph=once(APART.graph))
    artifact = compiled(model, tmp_path / "work", dynamic={"ids": {1: (1, 12)}})
    assert artifact.report["measured"]["weight_bytes"] == artifact.plan.weight_bytes
    sources = {name: cost.source for name, (cost, _) in artifact.plan.layers.items()}
    whole = compiled(model, tmp_path / "whole")
    assert sources == {name: cost.source for name, (cost, _) in whole.plan.layers.items()}, "prices of its own kernels"
    artifact.save(tmp_path / "saved")
    again = Artifact.load(tmp_path / "saved")
    assert again.plan.layers == artifact.plan.layers
    assert [again.plan.layers[name][0].weight_bytes for name in ROPES] == [EACH, 0, 0, 0]
    assert again(IDS[:, :5]).tobytes() == artifact(IDS[:, :5]).tobytes()


def test_what_is_not_known_to_be_stored_is_not_taken_off() -> None:
    """As of kernels that write float in a plan's network, and bytes in the price list."""
    graph = once(APART.graph)
    nothing = KernelSet(kernels={}, objects={}, libraries={})
    pricer = Pricer(target=Target.load("host"), threads=1, kernels=nothing, footprints={}, learned=None, records={})
    candidates = {layer.name: ("f32",) for layer in graph.layers}
    costs = price_network(graph, candidates, pricer, {}).costs
    assert all(cost.weight_bytes >= 0 for cost in costs.values())


def test_an_imported_network_has_them_once() -> None:
    builder = relax.BlockBuilder()
    functions = Functions(builder=builder)
    x = relax.Var("x", relax.TensorType((1, 12, 12), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            value = x
            for _ in range(3):
                tables = [rt.const(table) for table in language.turns(12, 6)]
                value = builder.emit(functions.call("rope", [value, *tables], {"heads": 2, "style": "half"}))
            out = builder.emit_output(value)
        builder.emit_func_output(out)
    graph = find_layers(builder.get())
    assert [layer.op for layer in graph.layers] == ["rope"] * 3
    assert list(repeated_bytes(graph).values()) == [0, EACH, EACH]
