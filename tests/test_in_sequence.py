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
from hwq.in_sequence import Network, in_sequence, sequence
from hwq.lower import lower
from hwq.moments import HELD, Moments, collect
from hwq.progress import Callback
from hwq.quantize import Weights, quantize_weights
from hwq.target import Target

HOST = Target.load("host")
SCHEME = "w4a8_g64_dyn"
GRAPH: Graph = language.llama().graph
DENSE = [layer.name for layer in GRAPH.layers if layer.op == "dense"]
FLOAT = {layer.name: "f32" for layer in GRAPH.layers}
ALL = {**FLOAT, **dict.fromkeys(DENSE, SCHEME)}
CANDIDATES = {name: (scheme,) for name, scheme in ALL.items()}
RNG = np.random.default_rng(3)
BATCHES = [{"ids": RNG.integers(0, language.VOCABULARY, (1, 12))} for _ in range(48)]
JUDGED = [{"ids": RNG.integers(0, language.VOCABULARY, (1, 12))} for _ in range(16)]


def network(schemes: Mapping[str, str]) -> Network:
    """The network in ``schemes``."""
    kernels = None

    def made(weights: Weights) -> Runner:
        nonlocal kernels
        program = lower(GRAPH, schemes, {}, weights, HOST, 1)
        kernels = compile_kernels([program], HOST, default_cache_dir(), known=kernels)
        return bind(program, kernels)

    return made


REFERENCE = network(FLOAT)({})


def weights_of(roundings: Mapping[tuple[str, str], str], schemes: Mapping[str, str]) -> Weights:
    candidates = {name: (scheme,) for name, scheme in schemes.items()}
    return quantize_weights(GRAPH, candidates, {}, {}, roundings=roundings)


def error(roundings: Mapping[tuple[str, str], str], schemes: Mapping[str, str]) -> float:
    """The squared error of the outputs on samples that nothing was fitted to."""
    runners = REFERENCE, network(schemes)(weights_of(roundings, schemes))
    total = 0.0
    for batch in JUDGED:
        clean, mine = (seen(one, run(one, to_device(batch)), GRAPH.outputs[0]).copy() for one in runners)
        total += float(np.square(mine - clean).sum())
    return total


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Roundings:
    """Each layer rounded as if it read what it reads in float."""
    folder = tmp_path_factory.mktemp("roundings")

    def gather(layers: Sequence[Layer], progress: Callback) -> Mapping[str, Moments]:
        return collect(REFERENCE, layers, {}, BATCHES, len(BATCHES), progress)

    return correct(GRAPH, CANDIDATES, {}, gather, lambda layer, schemes: folder / layer.name)


@pytest.mark.parametrize("others", [SCHEME, "w8a8_dyn"])
def test_outputs_are_nearer_to_floats_than_with_layers_rounded_alone(alone: Roundings, others: str) -> None:
    """In groups throughout, and in a mix with int8: every other layer."""
    schemes = {**ALL, **dict.fromkeys(DENSE[::2], others)}
    steps: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))

    weights = weights_of(alone, schemes)
    found = in_sequence(GRAPH, schemes, weights, alone, REFERENCE, network(schemes), BATCHES, {}, progress=progress)
    groups = len(sequence(GRAPH, schemes))
    assert steps == [(at + 1, groups) for at in range(groups)]
    assert found
    assert found.keys() <= alone.keys()
    before, after = error(alone, schemes), error({**alone, **found}, schemes)
    print(f"squared error of outputs {before:.3f} -> {after:.3f}")
    assert after < (0.9 if others == SCHEME else 1.0) * before


def test_nothing_changes_where_nothing_is_in_groups_or_too_little_to_go_by(alone: Roundings) -> None:
    weights = weights_of(alone, ALL)
    given = (REFERENCE, network(ALL))
    assert not sequence(GRAPH, FLOAT)
    assert not in_sequence(GRAPH, FLOAT, {}, alone, *given, BATCHES, {})
    assert not in_sequence(GRAPH, ALL, weights, alone, *given, BATCHES[: HELD - 1], {})
    assert not in_sequence(GRAPH, ALL, weights, alone, *given, BATCHES, {}, most_macs=1.0)
