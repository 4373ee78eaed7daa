"""The program's own matters: ties and pairs, networks of many layers, the time they take, and what HiGHS prints."""

from __future__ import annotations

import ctypes
import time
from dataclasses import replace

import numpy as np
import pytest
from assign_problems import candidate, network

from hwq import mixed_integer
from hwq.assign import assign
from hwq.assignment import Limits, Pair, Problem, Tie, evaluate, keeps_ties

# Ties and pairs


def test_what_passes_values_through_is_int8_beside_int8_only() -> None:
    candidates = (
        *(candidate("a", "f32", 1.0), candidate("a", "w8a8", 1.5, 0.1)),
        *(candidate("pool", "f32", 9.0), candidate("pool", "w8a8", 1.0)),
        candidate("view", "w8a8", 1.0),
    )
    problem = Problem(candidates=candidates)
    assert assign(problem).schemes["a"] == "f32"
    tied = replace(problem, ties=(Tie(passing=("pool", "view"), neighbours=("a",)),))
    assert assign(tied).schemes == {"a": "w8a8", "pool": "w8a8", "view": "w8a8"}
    assert keeps_ties(tied, {"a": "f32", "pool": "f32", "view": "w8a8"}), "which can be nothing else"
    assert not keeps_ties(tied, {"a": "f32", "pool": "w8a8", "view": "w8a8"})
    lonely = replace(problem, ties=(Tie(passing=("pool",), neighbours=()),))
    assert assign(lonely).schemes["pool"] == "f32"


@pytest.mark.parametrize(("extra", "expected"), [(0.5, ("w8a8", "w4a8")), (-0.5, ("w4a8", "w4a8"))])
def test_pairs_lose_more_or_less_than_their_sum(extra: float, expected: tuple[str, str]) -> None:
    candidates = [
        candidate(layer, scheme, 1.0, lost, size)
        for layer, loss in (("a", 0.375), ("b", 0.125))
        for scheme, lost, size in (("w8a8", 0.01, 10), ("w4a8", loss, 5))
    ]
    pair = Pair(layers=("a", "b"), schemes=("w4a8", "w4a8"), loss=extra)
    problem = Problem(candidates=tuple(candidates), pairs=(pair,))
    got = assign(problem, Limits(weight_bytes=15, latency_s=2.0))
    assert tuple(got.schemes.values()) == expected
    assert evaluate(problem, {"a": "w4a8", "b": "w4a8"}).loss == 0.5 + extra
    gone = replace(pair, schemes=("bf16", "w4a8"))
    assert assign(replace(problem, pairs=(gone,)), Limits(weight_bytes=15)).loss == pytest.approx(0.135)


def test_network_of_many_layers_is_solved_within_its_budget(rng: np.random.Generator) -> None:
    problem = network(rng, 120)
    w8a8 = evaluate(problem, {f"l{i}": "w8a8" for i in range(120)})
    got = assign(problem, Limits(weight_bytes=0.7 * w8a8.weight_bytes), slack=0.01)
    assert got.weight_bytes <= 0.7 * w8a8.weight_bytes
    assert got.loss < evaluate(problem, {f"l{i}": "w4a8" for i in range(120)}).loss


@pytest.mark.parametrize(("size", "latency"), [(0.7, None), (None, 1.1), (0.8, 1.1), (None, None)])
def test_sixty_units_of_four_schemes_are_solved_in_two_seconds(
    rng: np.random.Generator, size: float | None, latency: float | None
) -> None:
    """Seconds of this process, whatever else the machine does: HiGHS runs in one thread."""
    problem = network(rng, 60)
    w8a8 = evaluate(problem, {f"l{i}": "w8a8" for i in range(60)})
    limits = Limits(
        weight_bytes=None if size is None else size * w8a8.weight_bytes,
        latency_s=None if latency is None else latency * w8a8.latency_s,
    )
    begin = time.process_time()
    assign(problem, limits)
    taken_s = time.process_time() - begin
    print(f"60 units x 4 schemes within {limits}: {taken_s:.3f} s")
    assert taken_s < 2.0


def test_the_solver_s_forgotten_line_is_kept_off_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    libc = ctypes.CDLL(None)
    print("before")
    with mixed_integer._without_forgotten_line():
        libc.puts(mixed_integer.FORGOTTEN + b" tmpSolver.run();")
        libc.puts(b"of another thread")
    libc.puts(b"after")
    libc.fflush(None)
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == "before\nof another thread\nafter\n"
