"""Assignment problems: random small ones that brute force can solve, and networks of many layers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from hwq.assignment import Border, Pair, Problem, Solution, Tie, evaluate, keeps_ties
from hwq.scheme import Candidate, Cost


def candidate(layer: str, scheme: str, latency_s: float, loss: float = 0.0, weight_bytes: int = 0) -> Candidate:
    cost = Cost(latency_s=latency_s, weight_bytes=weight_bytes, source="roofline", interval_s=(0.0, 1.0))
    return Candidate(layer=layer, scheme=scheme, loss=loss, cost=cost)


def random_problem(seed: int, layers: int) -> Problem:
    """A network of ``layers`` layers with random candidates, edges, outputs, conversion costs, ties and pairs."""
    rng = np.random.default_rng([seed, layers])
    unit = 1e-5 if seed % 2 else 1.0
    names = [f"l{i}" for i in range(layers)]
    candidates = []
    for layer in names:
        schemes = [s for s in ("f32", "w8a8", "w4a8") if rng.random() < 0.8] or ["f32"]
        for scheme in schemes:
            loss = 0.0 if scheme == "f32" else float(rng.lognormal(-3, 1))
            # Coarse numbers make ties, which fine ones never show.
            latency = float(rng.integers(1, 5)) if rng.random() < 0.5 else float(rng.uniform(0.1, 3))
            candidates.append(candidate(layer, scheme, latency * unit, loss, int(rng.integers(0, 1000))))
    borders = []
    for i, maker in enumerate([None, *names]):
        after = [layer for layer in names[i:] if rng.random() < 0.5]
        borders.append(
            Border(
                tensor=f"t{i}",
                producer=maker,
                consumers=tuple(after),
                output=bool(rng.random() < 0.3),
                quantize_s=float(rng.uniform(0, 2)) * unit,
                dequantize_s=float(rng.uniform(0, 2)) * unit,
                moved_s=[None, float(rng.uniform(-1.0, 4.0)) * unit][rng.integers(0, 2)],
                direct_s=[None, 0.0, float(rng.uniform(-1.0, 4.0)) * unit, -unit][rng.integers(0, 4)],
            )
        )
    # After all else, so that these draws leave the ones before as they are.
    passing = {name: rng.random() < 0.3 for name in names}
    ties = [
        Tie(
            passing=(name,),
            neighbours=tuple(other for other in names if other != name and not passing[other] and rng.random() < 0.6),
        )
        for name in names
        if passing[name]
    ]
    pairs = []
    for first, second in itertools.pairwise(candidates):
        if first.layer != second.layer and rng.random() < 0.4:
            loss = float(rng.uniform(-0.5, 0.5)) * (first.loss + second.loss)
            pairs.append(Pair(layers=(first.layer, second.layer), schemes=(first.scheme, second.scheme), loss=loss))
    return Problem(candidates=tuple(candidates), borders=tuple(borders), ties=tuple(ties), pairs=tuple(pairs))


def dynamic_problem(seed: int, layers: int) -> Problem:
    """A ``random_problem`` with dynamic schemes, tensors read by rows, and two layers that take one scheme."""
    found, rng = random_problem(seed, layers), np.random.default_rng([seed, layers, 1])
    names = list(dict.fromkeys(one.layer for one in found.candidates))
    unit = 1e-5 if seed % 2 else 1.0
    more = [
        candidate(layer, scheme, float(rng.uniform(0.1, 2)) * unit, float(rng.lognormal(-4, 1)), int(rng.integers(999)))
        for layer in names
        for scheme in ("w8a8_dyn", "w4a8_g64_dyn")
        if rng.random() < 0.7
    ]
    alike = tuple(str(name) for name in rng.permutation(names)[:2])
    have = {(one.layer, one.scheme) for one in (*found.candidates, *more)}
    more += [candidate(name, "f32", unit, 0.0, 500) for name in alike if (name, "f32") not in have]
    borders = [
        replace(
            border,
            by_rows=tuple(layer for layer in border.consumers if rng.random() < 0.7),
            rows_s=float(rng.uniform(0, 1)) * unit,
        )
        for border in found.borders
    ]
    candidates = (*found.candidates, *more)
    return replace(found, candidates=candidates, borders=tuple(borders), alike=(alike,))


def everything_of(problem: Problem) -> list[Solution]:
    """Every assignment that keeps the ties."""
    layers: dict[str, list[str]] = {}
    for one in problem.candidates:
        layers.setdefault(one.layer, []).append(one.scheme)
    choices = [dict(zip(layers, schemes, strict=True)) for schemes in itertools.product(*layers.values())]
    return [evaluate(problem, schemes) for schemes in choices if keeps_ties(problem, schemes)]


def network(rng: np.random.Generator, layers: int) -> Problem:
    """A network of layers with a skip over two each, four schemes, conversions at every tensor."""
    candidates, borders = [], []
    for i in range(layers):
        base, size = rng.uniform(0.1, 3) * 1e-4, int(rng.uniform(1e3, 1e6))
        candidates += [
            candidate(f"l{i}", "f32", base, 0.0, 4 * size),
            candidate(f"l{i}", "bf16", base * rng.uniform(0.5, 0.9), rng.lognormal(-8, 1), 2 * size),
            candidate(f"l{i}", "w8a8", base * rng.uniform(0.2, 0.6), rng.lognormal(-5, 1), size),
            candidate(f"l{i}", "w4a8", base * rng.uniform(0.2, 0.7), rng.lognormal(-2, 1), size // 2),
        ]
        after = tuple(f"l{j}" for j in (i + 1, i + 3) if j < layers)
        borders.append(
            Border(tensor=f"t{i}", producer=f"l{i}", consumers=after, quantize_s=1e-5, dequantize_s=1e-5, direct_s=0.0)
        )
    return Problem(candidates=tuple(candidates), borders=tuple(borders))
