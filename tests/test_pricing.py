"""Pricing: each kernel by its record, else as learned, else by the roofline; and what two kernels in one cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from hwq.assignment import evaluate
from hwq.cache import default_cache_dir
from hwq.choose import problem_of
from hwq.cost import float_output_s, price_roofline
from hwq.execute import compile_kernels
from hwq.graph import Graph
from hwq.learned_price import shipped
from hwq.lower import convert_workload, layer_workload, lower
from hwq.numerics import QParams
from hwq.pricing import (
    FREE,
    Pricer,
    constant_bytes,
    footprints_of,
    measured,
    moved_programs,
    price_network,
    transposes,
)
from hwq.quantize import quantize_weights
from hwq.sensitivity import unit_program
from hwq.store import key_of, summarize
from hwq.target import Target

HOST = Target.load("host")
SAME = QParams(scale=0.05, zero_point=-3)


def network() -> Graph:
    """A picture turned to NHWC, two convolutions, their sum's channels flattened by a view."""
    shapes = {"x": (1, 3, 8, 8), "t": (1, 8, 8, 3), "b": (1, 8, 8, 32), "y": (1, 2048)}
    layers = [
        tiny.layer("transpose", ["x"], "t", shapes, attrs={"axes": (0, 2, 3, 1)}),
        tiny.conv("t", "a", (3, 32), size=(8, 8)),
        tiny.conv("a", "b", (32, 32), size=(8, 8), seed=2),
        tiny.layer("reshape", ["b"], "y", shapes),
    ]
    return tiny.graph(layers, ["x"], ["y"])


CANDIDATES = {"t": ("f32",), "a": ("f32", "w8a8"), "b": ("f32", "w8a8"), "y": ("f32", "w8a8")}


@pytest.fixture(scope="module")
def pricer() -> Pricer:
    """Prices as learned."""
    graph = network()
    qparams = dict.fromkeys(graph.shapes, SAME)
    weights = quantize_weights(graph, CANDIDATES, qparams, {})
    programs = [
        *(
            unit_program(graph, layer, scheme, qparams, weights, HOST, 1)
            for layer in graph.layers
            for scheme in CANDIDATES[layer.name]
        ),
        *moved_programs(graph, CANDIDATES, HOST, 1),
    ]
    kernels = compile_kernels(programs, HOST, default_cache_dir())
    _, resident = constant_bytes(programs, kernels)
    footprints = footprints_of(programs, resident)
    return Pricer(target=HOST, threads=1, kernels=kernels, footprints=footprints, learned=shipped(), records={})


def test_records_come_before_what_is_learned_and_that_before_the_roofline(pricer: Pricer) -> None:
    workload = layer_workload(network().layers[1], "w8a8", "int8", 1)
    assert workload is not None
    assert pricer.cost(workload).source == "learned"
    record = summarize(key_of(workload, "cpu/conv2d:1", HOST, "v"), [0.5])
    known = replace(pricer, records={workload: record})
    assert (known.cost(workload).source, known.cost(workload).latency_s) == ("measured", 0.5)
    assert replace(pricer, learned=None).cost(workload) == price_roofline(workload, HOST, 1)
    unmade = replace(workload, output_shape=(1, 8, 8, 31))
    assert pricer.cost(unmade).source == "roofline", "nobody knows its schedule"


def test_every_layer_and_conversion_has_a_price(pricer: Pricer) -> None:
    found = price_network(network(), CANDIDATES, pricer, {})
    assert found.costs.keys() == {(layer, scheme) for layer, names in CANDIDATES.items() for scheme in names}
    assert found.costs["y", "w8a8"] == FREE
    assert {cost.source for unit, cost in found.costs.items() if unit[0] != "y"} == {"learned"}
    assert found.conversions.keys() == network().shapes.keys()
    assert all(0 < second < 1e-3 for pair in found.conversions.values() for second in pair)
    assert found.direct_s.keys() == {"a", "b"}
    sizes = dict.fromkeys(pricer.kernels.kernels, 77)
    assert price_network(network(), CANDIDATES, pricer, sizes).costs["a", "f32"].weight_bytes == 77


def test_without_what_is_learned_a_float_output_costs_its_bytes(pricer: Pricer) -> None:
    workload = layer_workload(network().layers[1], "w8a8", "int8", 1)
    assert workload is not None
    found = price_network(network(), CANDIDATES, replace(pricer, learned=None), {})
    assert found.direct_s["a"] == float_output_s(workload, HOST, 1)


def test_a_transpose_for_an_integer_layer_is_one_kernel_with_its_quantize(pricer: Pricer, tmp_path: Path) -> None:
    """Priced, compiled and measured as ``lower`` makes it."""
    graph = network()
    (layer,) = transposes(graph, CANDIDATES)
    assert transposes(graph, dict.fromkeys(CANDIDATES, ("f32",))) == ()
    (program,) = moved_programs(graph, CANDIDATES, HOST, 1)
    workload = convert_workload("quantize", (1, 8, 8, 3), 1, layer)
    assert [step.workload for step in program.steps] == [workload]
    schemes = {"t": "f32", "a": "w8a8", "b": "w8a8", "y": "f32"}
    weights = quantize_weights(graph, CANDIDATES, dict.fromkeys(graph.shapes, SAME), {})
    lowered = lower(graph, schemes, dict.fromkeys(graph.shapes, SAME), weights, HOST, 1)
    assert workload in {step.workload for step in lowered.steps}
    known = measured(pricer, [program], tmp_path / "records.sqlite", lambda done, total: None)
    assert known.cost(workload).source == "measured"
    assert price_network(graph, CANDIDATES, known, {}).moved_s == {"t": known.cost(workload).latency_s}


def test_the_sum_of_an_assignment_is_that_of_the_kernels_it_becomes(pricer: Pricer) -> None:
    """Each program's kernels, priced one by one, take what the assignment problem says."""
    graph = network()
    prices = price_network(graph, CANDIDATES, pricer, {})
    study = SimpleNamespace(
        graph=graph,
        candidates=CANDIDATES,
        losses=dict.fromkeys(prices.costs, 0.0),
        pairs=(),
        **{key: getattr(prices, key) for key in ("costs", "conversions", "direct_s", "moved_s", "rows_s")},
    )
    problem = problem_of(study)  # type: ignore[arg-type]
    qparams = dict.fromkeys(graph.shapes, SAME)
    weights = quantize_weights(graph, CANDIDATES, qparams, {})
    for a, b in (("f32", "f32"), ("w8a8", "w8a8"), ("w8a8", "f32"), ("f32", "w8a8")):
        schemes = {"t": "f32", "a": a, "b": b, "y": "f32"}
        program = lower(graph, schemes, qparams, weights, HOST, 1)
        total = 0.0
        for step in program.steps:
            if step.workload is None:
                continue
            alike = replace(step.workload, out_dtype="int8") if step.workload.scheme == "w8a8" else step.workload
            both = step.name in CANDIDATES and step.workload.out_dtype == "float32" and alike != step.workload
            total += prices.costs[step.name, "w8a8"].latency_s + prices.direct_s[step.name] if both else 0.0
            total += 0.0 if both else pricer.cost(step.workload).latency_s
        assert evaluate(problem, schemes).latency_s == pytest.approx(total, rel=1e-9), schemes
