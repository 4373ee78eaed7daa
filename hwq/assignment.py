"""An assignment problem and its answers as plain values: candidates, borders, limits, and what a choice sums to.

``hwq.assign`` solves it. Nothing here does: ``evaluate`` is the definition that the program is checked against.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

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
    ``rows_s``, not negative, is paid once if any of ``by_rows``, some of the consumers, is in a dynamic scheme.
    """

    tensor: str
    producer: str | None
    consumers: tuple[str, ...]
    output: bool = False
    quantize_s: float = 0.0
    dequantize_s: float = 0.0
    direct_s: float | None = None
    moved_s: float | None = None
    by_rows: tuple[str, ...] = ()
    rows_s: float = 0.0


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
    """Candidates of every layer, in the order of execution; the tensors between; what layers are to each other.

    alike: groups of layers, none of them in two, that take one scheme.
    """

    candidates: tuple[Candidate, ...]
    borders: tuple[Border, ...] = ()
    ties: tuple[Tie, ...] = ()
    pairs: tuple[Pair, ...] = ()
    alike: tuple[tuple[str, ...], ...] = ()


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
    """Whether no layer that only passes values through is int8 between float neighbours, where it could be float, and
    layers that are alike have one scheme."""
    able = {one.layer for one in problem.candidates if SCHEMES[one.scheme].domain == "f32"}

    def is_integer(layer: str) -> bool:
        return SCHEMES[schemes[layer]].domain == "int8"

    return all(len({schemes[layer] for layer in group}) == 1 for group in problem.alike) and all(
        any(map(is_integer, tie.neighbours)) or not any(is_integer(layer) and layer in able for layer in tie.passing)
        for tie in problem.ties
    )


def conversion_s(border: Border, schemes: Mapping[str, str]) -> float:
    """What the conversions of one tensor take under ``schemes``."""
    rows_s = border.rows_s if any(SCHEMES[schemes[layer]].dynamic for layer in border.by_rows) else 0.0
    return rows_s + _domain_s(border, schemes)


def _domain_s(border: Border, schemes: Mapping[str, str]) -> float:
    """What it takes that layers of both domains meet at one tensor."""
    integer = [SCHEMES[schemes[layer]].domain == "int8" for layer in border.consumers]
    if border.producer is None or SCHEMES[schemes[border.producer]].domain == "f32":
        if border.moved_s is not None and integer and all(integer) and not border.output:
            return border.moved_s
        return border.quantize_s if any(integer) else 0.0
    if all(integer) and not border.output:
        return 0.0
    return border.dequantize_s if any(integer) or border.direct_s is None else border.direct_s


def form_of(scheme: str) -> str:
    """What a layer in ``scheme`` has tensors made into for it: "int8", "rows" or "f32" (nothing)."""
    return "rows" if SCHEMES[scheme].dynamic else SCHEMES[scheme].domain


def units_of(candidates: Iterable[Candidate], alike: Iterable[tuple[str, ...]]) -> list[list[Candidate]]:
    """The choices there are: each layer's candidates; of layers that are ``alike`` those of all together, in the
    schemes that all of them have, under the first one's name.
    """
    groups = by_layer(candidates)
    first = {layer: names[0] for names in alike for layer in names}
    units: dict[str, list[list[Candidate]]] = {}
    for layer, group in groups.items():
        units.setdefault(first.get(layer, layer), []).append(group)
    found = []
    for name, members in units.items():
        tables = [{one.scheme: one for one in group} for group in members]
        common = [one.scheme for one in members[0] if all(one.scheme in table for table in tables)]
        found.append([_together(name, [table[scheme] for table in tables]) for scheme in common])
    return found


def members_of(alike: Iterable[tuple[str, ...]], layer: str) -> tuple[str, ...]:
    """The layers of the unit that ``layer`` is in: those that it is ``alike`` with, or it alone."""
    return next((names for names in alike if layer in names), (layer,))


def _together(layer: str, ones: list[Candidate]) -> Candidate:
    """Several layers in one scheme as if they were one layer."""
    if len(ones) == 1:
        return ones[0]
    latency_s = math.fsum(one.cost.latency_s for one in ones)
    cost = replace(ones[0].cost, latency_s=latency_s, weight_bytes=sum(one.cost.weight_bytes for one in ones))
    return replace(ones[0], layer=layer, loss=math.fsum(one.loss for one in ones), cost=cost)


def only(
    candidates: Iterable[Candidate], kept: Iterable[Candidate], alike: Iterable[tuple[str, ...]]
) -> tuple[Candidate, ...]:
    """Those of ``candidates`` that are in ``kept``, of ``units_of`` them."""
    first = {layer: names[0] for names in alike for layer in names}
    units = {(one.layer, one.scheme) for one in kept}
    return tuple(one for one in candidates if (first.get(one.layer, one.layer), one.scheme) in units)


def prune(
    candidates: tuple[Candidate, ...], pairs: tuple[Pair, ...] = (), alike: tuple[tuple[str, ...], ...] = ()
) -> tuple[Candidate, ...]:
    """``candidates`` without those that another of the same layer and form beats or equals in every quantity.

    Across forms nothing is dropped, since neighbours decide what a conversion costs; nor by or for one of ``pairs``,
    whose loss is not its own. Of equals the first stays. Layers that are ``alike`` are judged together.
    """
    first = {layer: names[0] for names in alike for layer in names}
    paired = {
        (first.get(layer, layer), scheme)
        for pair in pairs
        for layer, scheme in zip(pair.layers, pair.schemes, strict=True)
    }
    kept: list[Candidate] = []
    for group in units_of(candidates, alike):
        alone = [(i, one) for i, one in enumerate(group) if (one.layer, one.scheme) not in paired]
        for i, candidate in enumerate(group):
            form = form_of(candidate.scheme)
            rivals = [(j, other) for j, other in alone if form_of(other.scheme) == form and j != i]
            own = (candidate.layer, candidate.scheme) in paired
            if own or not any(_beats(other, candidate, j < i) for j, other in rivals):
                kept.append(candidate)
    return only(candidates, kept, alike)


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
