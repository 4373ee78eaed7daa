"""Sensitivity: a unit's loss is what running the whole network with only that layer integer gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as floats
import tiny

from hwq import loss, sensitivity
from hwq.cache import default_cache_dir
from hwq.calibrate import split_activations
from hwq.execute import KernelSet, Runner, bind, compile_kernels, run, to_device
from hwq.lower import Program, lower
from hwq.numerics import QParams
from hwq.quantize import Weights, quantize_weights
from hwq.target import Target

HOST = Target.load("host")
# Two outputs, one of which other layers read.
GRAPH = replace(tiny.net(), outputs=("logits", "join"))
INTEGER = {
    layer.name: ("f32", "w8a8", "w4a8") if layer.weight is not None else ("f32", "w8a8") for layer in GRAPH.layers
}
UNITS = [(layer, scheme) for layer in INTEGER for scheme in INTEGER[layer][1:]]
BATCHES = [{"x": np.random.default_rng(seed).standard_normal((1, 6, 5, 3)).astype(np.float32)} for seed in range(4)]


class Prepared:
    """The network's ranges, weights and kernels, made once."""

    def __init__(self) -> None:
        self.split = split_activations(GRAPH)
        runs = [floats.run_graph(self.split, batch) for batch in BATCHES]
        self.params: dict[str, QParams] = tiny.ranges({name: np.stack([one[name] for one in runs]) for name in runs[0]})
        self.weights: Weights = quantize_weights(GRAPH, INTEGER, self.params, {})
        self.float_program = lower(self.split, {}, {}, {}, HOST, 1)
        layers = {layer.name: layer for layer in GRAPH.layers}
        self.units: dict[tuple[str, str], Program] = {
            (name, scheme): sensitivity.unit_program(GRAPH, layers[name], scheme, self.params, self.weights, HOST, 1)
            for name, scheme in UNITS
        }
        self.kernels: KernelSet = self.compiled([self.float_program, *self.units.values()])
        self.runner: Runner = bind(self.float_program, self.kernels)

    def compiled(self, programs: list[Program]) -> KernelSet:
        return compile_kernels(programs, HOST, default_cache_dir())

    def brute_force(self, unit: tuple[str, str]) -> float:
        """The whole network lowered with just this layer integer: what its outputs lose."""
        program = lower(GRAPH, dict([unit]), self.params, self.weights, HOST, 1, direct=False)
        runner = bind(program, self.compiled([program]))
        sums = loss.Sums()
        for batch in BATCHES:
            clean = run(self.runner, to_device(batch))
            good = [clean[name].numpy().copy() for name in GRAPH.outputs]
            mine = run(runner, to_device(batch))
            sums += loss.compare([mine[name].numpy() for name in GRAPH.outputs], good, "logits")
        return sums.loss

    def measure(self, **options: Any) -> dict[tuple[str, str], float]:
        found = sensitivity.measure(self.runner, self.units, self.kernels, BATCHES, **options)
        return {unit: sums.loss for unit, sums in found.items()}


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return Prepared()


@pytest.fixture(scope="module")
def losses(prepared: Prepared) -> dict[tuple[str, str], float]:
    return prepared.measure()


@pytest.mark.parametrize("unit", UNITS, ids="-".join)
def test_loss_is_that_of_the_whole_network_with_one_integer_layer(
    unit: tuple[str, str], prepared: Prepared, losses: dict[tuple[str, str], float]
) -> None:
    assert losses[unit] > 0
    # Float kernels that fuse an activation, or not, may differ in the last bit: noise of 1e-3 feels that by 1e-4.
    assert losses[unit] == pytest.approx(prepared.brute_force(unit), rel=1e-3)


def test_fewer_bits_lose_more(losses: dict[tuple[str, str], float]) -> None:
    for name in ("stem", "left", "join", "logits"):
        assert losses[name, "w4a8"] > 2 * losses[name, "w8a8"]


def test_downstream_is_what_depends_on_a_tensor(prepared: Prepared) -> None:
    def steps(tensor: str) -> list[str]:
        return [bound.step.name for bound in sensitivity.downstream(prepared.runner, tensor)]

    assert steps("stem") == ["left", "left:activation", "join", "depth", "pool", "flat", "logits"]
    assert steps("left") == ["join", "depth", "pool", "flat", "logits"]
    assert steps("logits") == []


def test_a_unit_stands_between_float_tensors(prepared: Prepared) -> None:
    program = prepared.units["join", "w8a8"]
    assert [step.name for step in program.steps] == ["left:quantize", "stem:quantize", "join", "join:dequantize"]
    assert (program.inputs, program.outputs) == (("left", "stem"), ("join",))


def test_progress_counts_units_of_all_samples(prepared: Prepared) -> None:
    seen: list[tuple[int, int]] = []
    prepared.measure(progress=lambda *at: seen.append(at))
    total = len(UNITS) * len(BATCHES)
    assert seen == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("stop_at", [1, len(UNITS), len(UNITS) + 3, 3 * len(UNITS) + 1])
def test_an_interrupted_call_goes_on_after_its_last_whole_sample(
    stop_at: int,
    prepared: Prepared,
    losses: dict[tuple[str, str], float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = tmp_path / "sensitivity.json"

    def stop(done: int, total: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared.measure(journal=journal, progress=stop)
    seen: list[int] = []
    found = prepared.measure(journal=journal, progress=lambda done, total: seen.append(done))
    whole = (stop_at - 1) // len(UNITS)
    assert seen[0] == whole * len(UNITS) + 1
    assert found == pytest.approx(losses, rel=1e-12)
    again: list[int] = []
    monkeypatch.setattr(sensitivity, "bind", lambda *_: pytest.fail("weights are put on the device for nothing"))
    assert prepared.measure(journal=journal, progress=lambda done, total: again.append(done)) == found
    assert again == [], "all is in the journal"


@pytest.mark.parametrize("text", ["", "{", '{"done": 1}', '{"done": 2, "sums": [["a", "w8a8", {"rows": 1}]]}'])
def test_a_damaged_journal_counts_as_none(
    text: str, prepared: Prepared, losses: dict[tuple[str, str], float], tmp_path: Path
) -> None:
    journal = tmp_path / "sensitivity.json"
    journal.write_text(text)
    assert prepared.measure(journal=journal) == losses
