"""Rounding in sequence: layers take back what those before them are off by, where held-out samples say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import language
import numpy as np
import pytest

from hwq.cache import default_cache_dir
from hwq.correct import Roundings, correct
from hwq.execute import Runner, bind, compile_kernels, run, seen, to_device
from hwq.graph import Graph, Layer
from hwq.in_sequence import Network, in_sequence, sequences
from hwq.lower import lower
from hwq.moments import HELD, Moments, collect
from hwq.progress import Callback
from hwq.quantize import Weights, quantize_weights
from hwq.target import Target

HOST = Target.load("host")
SCHEME = "w4a8_g64_dyn"
GRAPH: Graph = language.llama().graph
DENSE = [layer.name for layer in GRAPH.layers if layer.op == "dense"]
CANDIDATES = {layer.name: (SCHEME,) if layer.name in DENSE else ("f32",) for layer in GRAPH.layers}
RNG = np.random.default_rng(3)
BATCHES = [{"ids": RNG.integers(0, language.VOCABULARY, (1, 12))} for _ in range(48)]
JUDGED = [{"ids": RNG.integers(0, language.VOCABULARY, (1, 12))} for _ in range(16)]


@pytest.fixture(scope="module")
def network() -> Network:
    kernels = None

    def made(schemes: Mapping[str, str], weights: Weights) -> Runner:
        nonlocal kernels
        program = lower(GRAPH, schemes, {}, weights, HOST, 1)
        kernels = compile_kernels([program], HOST, default_cache_dir(), known=kernels)
        return bind(program, kernels)

    return made


def error(network: Network, roundings: Mapping[tuple[str, str], str]) -> float:
    """The squared error of the outputs, all dense layers in the scheme, on samples that nothing was fitted to."""
    weights = quantize_weights(GRAPH, CANDIDATES, {}, {}, roundings=roundings)
    runners = network({}, {}), network(dict.fromkeys(DENSE, SCHEME), weights)
    total = 0.0
    for batch in JUDGED:
        clean, mine = (seen(one, run(one, to_device(batch)), GRAPH.outputs[0]).copy() for one in runners)
        total += float(np.square(mine - clean).sum())
    return total


@pytest.fixture(scope="module")
def alone(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Roundings:
    """Each layer rounded as if it read what it reads in float."""
    folder, runner = tmp_path_factory.mktemp("roundings"), network({}, {})

    def gather(layers: Sequence[Layer], progress: Callback) -> Mapping[str, Moments]:
        return collect(runner, layers, {}, BATCHES, len(BATCHES), progress)

    return correct(GRAPH, CANDIDATES, {}, gather, lambda layer, schemes: folder / layer.name)


def test_outputs_are_nearer_to_floats_than_with_layers_rounded_alone(network: Network, alone: Roundings) -> None:
    steps: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))

    found = in_sequence(GRAPH, CANDIDATES, alone, network({}, {}), network, BATCHES, {}, progress=progress)
    groups = len(sequences(GRAPH, CANDIDATES)[SCHEME])
    assert steps == [(at + 1, groups) for at in range(groups)]
    assert found.keys() == alone.keys()
    before, after = error(network, alone), error(network, found)
    print(f"squared error of outputs {before:.3f} -> {after:.3f}")
    assert after < 0.9 * before


def test_nothing_changes_where_there_is_no_sequence_or_too_little_to_go_by(network: Network, alone: Roundings) -> None:
    runner = network({}, {})
    one = {name: (SCHEME,) if name == DENSE[0] else () for name in CANDIDATES}
    mixed = {name: (*found, "w8a8_dyn") for name, found in CANDIDATES.items()}
    assert not sequences(GRAPH, one)
    assert not sequences(GRAPH, mixed), "what stands before a layer is not known in a mix"
    assert in_sequence(GRAPH, one, alone, runner, network, BATCHES, {}) == alone
    assert in_sequence(GRAPH, CANDIDATES, alone, runner, network, BATCHES[: HELD - 1], {}) == alone
    assert in_sequence(GRAPH, CANDIDATES, alone, runner, network, BATCHES, {}, most_macs=1.0) == alone
