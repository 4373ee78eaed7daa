"""An assignment problem and its answers as plain values: candidates, borders, limits, and what a choice sums to.

``hwq.assign`` solves it. Nothing here does: ``evaluate`` is the definition that the program is checked against.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hwq.scheme import SCHEMES, Candidate

# What can be limited or minimized, in the order in which the unlimited ones are minimized.
QUANTITIES = ("latency_s", "loss", "weight_bytes")

# A limit is met if it is met to this part of itself, which allows for the rounding of sums.
_EXACT = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """One tensor between layers, and what its conversions cost.

    producer: a layer, or None for a network input, which is f32. consumers: layers; ``output`` if the caller, who wants
    f32, reads it too. An f32 tensor with an int8 consumer pays ``quantize_s`` once; an int8 tensor with an f32 consumer
    pays ``dequantize_s`` once. Neither is negative. ``direct_s``, of either sign, is paid instead of the latter where
    it is given and nobody wants int8: the producer then writes float itself. ``moved_s``, of either sign, is paid
    instead of ``quantize_s`` where it is given and nobody wants f32: the conversion then does the producer's work too.
    """

    tensor: str
    producer: str | None
    consumers: tuple[str, ...]
    output: bool = False
    quantize_s: float = 0.0
    dequantize_s: float = 0.0
    direct_s: float | None = None
    moved_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tie:
    """A unit of shared tensors: layers that only pass values through, and those that write or read what they pass.

    What passes values through is priced as losing nothing, which holds where a neighbour has the error already: one of
    ``passing`` may be int8 only if one of ``neighbours`` is. A layer that can be nothing but int8 is free of that.
    """

    passing: tuple[str, ...]
    neighbours: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What two layers in these schemes lose together beyond the sum of their own losses; of either sign."""

    layers: tuple[str, str]
    schemes: tuple[str, str]
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Candidates of every layer, in the order of execution; the tensors between; what layers are to each other."""

    candidates: tuple[Candidate, ...]
    borders: tuple[Border, ...] = ()
    ties: tuple[Tie, ...] = ()
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds on a solution; None for no bound."""

    latency_s: float | None = None
    loss: float | None = None
    weight_bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A scheme for each layer, and what that makes in sum: conversions included."""

    schemes: Mapping[str, str]
    latency_s: float
    weight_bytes: int
    loss: float


def evaluate(problem: Problem, schemes: Mapping[str, str]) -> Solution:
    """The sums of ``schemes``, which must name a candidate for each of the problem's layers."""
    table = {(candidate.layer, candidate.scheme): candidate for candidate in problem.candidates}
    layers = list(by_layer(problem.candidates))
    chosen = [table[layer, schemes[layer]] for layer in layers]
    conversions = [conversion_s(border, schemes) for border in problem.borders]
    pairs = [pair.loss for pair in problem.pairs if tuple(schemes[layer] for layer in pair.layers) == pair.schemes]
    return Solution(
        schemes={layer: schemes[layer] for layer in layers},
        latency_s=math.fsum([*(candidate.cost.latency_s for candidate in chosen), *conversions]),
        weight_bytes=sum(candidate.cost.weight_bytes for candidate in chosen),
        loss=math.fsum([*(candidate.loss for candidate in chosen), *pairs]),
    )


def keeps_ties(problem: Problem, schemes: Mapping[str, str]) -> bool:
    """Whether no layer that only passes values through is int8 between float neighbours, where it could be float."""
    able = {one.layer for one in problem.candidates if SCHEMES[one.scheme].domain == "f32"}

    def is_integer(layer: str) -> bool:
        return SCHEMES[schemes[layer]].domain == "int8"

    return all(
        any(map(is_integer, tie.neighbours)) or not any(is_integer(layer) and layer in able for layer in tie.passing)
        for tie in problem.ties
    )


def conversion_s(border: Border, schemes: Mapping[str, str]) -> float:
    """What the conversions of one tensor take under ``schemes``."""
    integer = [SCHEMES[schemes[layer]].domain == "int8" for layer in border.consumers]
    if border.producer is None or SCHEMES[schemes[border.producer]].domain == "f32":
        if border.moved_s is not None and integer and all(integer) and not border.output:
            return border.moved_s
        return border.quantize_s if any(integer) else 0.0
    if all(integer) and not border.output:
        return 0.0
    return border.dequantize_s if any(integer) or border.direct_s is None else border.direct_s


def prune(candidates: tuple[Candidate, ...], pairs: tuple[Pair, ...] = ()) -> tuple[Candidate, ...]:
    """``candidates`` without those that another of the same layer and domain beats or equals in every quantity.

    Across domains nothing is dropped, since neighbours decide what a conversion costs; nor by or for one of ``pairs``,
    whose loss is not its own. Of equals the first stays.
    """
    paired = {unit for pair in pairs for unit in zip(pair.layers, pair.schemes, strict=True)}
    kept: list[Candidate] = []
    for group in by_layer(candidates).values():
        alone = [(i, one) for i, one in enumerate(group) if (one.layer, one.scheme) not in paired]
        for i, candidate in enumerate(group):
            domain = SCHEMES[candidate.scheme].domain
            rivals = [(j, other) for j, other in alone if SCHEMES[other.scheme].domain == domain and j != i]
            own = (candidate.layer, candidate.scheme) in paired
            if own or not any(_beats(other, candidate, j < i) for j, other in rivals):
                kept.append(candidate)
    return tuple(kept)


def _beats(other: Candidate, candidate: Candidate, wins_ties: bool) -> bool:
    mine = (candidate.cost.latency_s, candidate.loss, candidate.cost.weight_bytes)
    theirs = (other.cost.latency_s, other.loss, other.cost.weight_bytes)
    return all(a <= b for a, b in zip(theirs, mine, strict=True)) and (theirs != mine or wins_ties)


def within(solution: Solution, limits: Limits) -> bool:
    """Whether ``solution`` keeps ``limits``."""
    for name in QUANTITIES:
        limit = getattr(limits, name)
        if limit is not None and getattr(solution, name) > limit + _EXACT * abs(limit):
            return False
    return True


def by_layer(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """The candidates of each layer, both in the order given."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.layer, []).append(candidate)
    return groups
