"""The mixed-integer program behind ``hwq.assign``: its columns and rows, and SciPy's HiGHS to solve it exactly.

Columns: one binary for each candidate; then for each border six numbers in [0, 1]: the tensor is quantized, converted
back, written as float by its producer, wanted as int8 by somebody, quantized by the kernel that makes it, and read by
rows; then one for each pair: both are so. Once the binaries are set, the rows leave these one value each, or their
cost pushes them down to it.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, sparse

from hwq.assignment import Border, Limits, Problem, Solution, Tie, by_layer, evaluate, prune, within
from hwq.scheme import SCHEMES, Candidate

# HiGHS's tolerances are absolute, 1e-6: sums are scaled to this size for them to mean little.
_SIZE = 1e4
# Answers that round to an assignment beyond a limit are cut off one by one, at most this often.
_CUTS = 100
# What HiGHS prints whatever it is told.
FORGOTTEN = b"HighsMipSolverData::transformNewIntegerFeasibleSolution"

Vector = npt.NDArray[np.float64]
Row = tuple[dict[int, float], float, float]  # coefficients, lower and upper bound


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """A problem's rows, lower <= rows @ columns <= upper, and what each column adds to each of QUANTITIES."""

    problem: Problem
    column: Mapping[tuple[str, str], int]
    sums: Mapping[str, Vector]
    rows: sparse.csr_array
    lower: Vector
    upper: Vector


def formulate(problem: Problem, *, whole: bool = False) -> Program:
    """The program of ``problem``, dominated candidates left out unless it is to be ``whole``."""
    if not whole:
        problem = replace(problem, candidates=prune(problem.candidates, problem.pairs, problem.alike))
    groups = by_layer(problem.candidates)
    column = {(c.layer, c.scheme): i for i, c in enumerate(problem.candidates)}
    integer = {
        layer: {column[layer, c.scheme]: 1.0 for c in group if SCHEMES[c.scheme].domain == "int8"}
        for layer, group in groups.items()
    }
    rows: list[Row] = [({column[layer, c.scheme]: 1.0 for c in group}, 1.0, 1.0) for layer, group in groups.items()]
    latency = [c.cost.latency_s for c in problem.candidates]
    for border in problem.borders:
        quantized, back, direct, wanted, moved, by_rows = range(len(latency), len(latency) + 6)
        latency += [border.quantize_s, border.dequantize_s, border.direct_s or 0.0, 0.0, border.moved_s or 0.0]
        latency.append(border.rows_s)
        rows += [
            ({by_rows: 1.0, column[layer, one.scheme]: -1.0}, 0.0, math.inf)
            for layer in border.by_rows
            for one in groups[layer]
            if SCHEMES[one.scheme].dynamic
        ]
        rows += _border_rows(border, integer, quantized, back, direct, wanted, moved)
    for names in problem.alike:
        rows += _alike_rows(names, column)
    for tie in problem.ties:
        rows += _tie_rows(tie, integer, groups)
    pairs: dict[int, float] = {}
    for pair in problem.pairs:
        units = [column.get(unit) for unit in zip(pair.layers, pair.schemes, strict=True)]
        if None in units:  # not a choice here
            continue
        first, second = (unit for unit in units if unit is not None)
        both = len(latency) + len(pairs)
        pairs[both] = pair.loss
        rows += [({both: 1.0, one: -1.0}, -math.inf, 0.0) for one in (first, second)]
        rows.append(({both: 1.0, first: -1.0, second: -1.0}, -1.0, math.inf))
    latency += [0.0] * len(pairs)
    width = len(latency)
    sums = {"latency_s": np.array(latency), "loss": np.zeros(width), "weight_bytes": np.zeros(width)}
    for i, candidate in enumerate(problem.candidates):
        sums["loss"][i], sums["weight_bytes"][i] = candidate.loss, candidate.cost.weight_bytes
    for both, loss in pairs.items():
        sums["loss"][both] = loss
    matrix = sparse.lil_array((len(rows), width))
    for i, (row, _, _) in enumerate(rows):
        for j, value in row.items():
            matrix[i, j] = value
    return Program(
        problem=problem,
        column=column,
        sums=sums,
        rows=sparse.csr_array(matrix),
        lower=np.array([low for _, low, _ in rows]),
        upper=np.array([high for _, _, high in rows]),
    )


def _border_rows(
    border: Border,
    integer: Mapping[str, dict[int, float]],
    quantized: int,
    back: int,
    direct: int,
    wanted: int,
    moved: int,
) -> list[Row]:
    """Rows that tie one border's columns to the domains of its layers."""
    made = integer[border.producer] if border.producer is not None else {}
    readers = [integer[layer] for layer in dict.fromkeys(border.consumers)]
    floats = [*readers, {}] if border.output else readers  # the caller is a reader that is never int8
    rows = [({**_minus(reader), wanted: 1.0}, 0.0, math.inf) for reader in readers]
    rows.append((_add({wanted: 1.0}, *(_minus(reader) for reader in readers)), -math.inf, 0.0))
    # quantized >= wanted - made - moved
    rows.append((_add({quantized: 1.0, wanted: -1.0, moved: 1.0}, made), 0.0, math.inf))
    # moved may be a gain: it is 1 just where the tensor is made in float, and its readers, of whom there are, are int8
    if border.moved_s is None or not readers:
        rows.append(({moved: 1.0}, 0.0, 0.0))
    else:
        rows.append((_add({moved: 1.0}, made), -math.inf, 1.0))
        rows += [(_add({moved: 1.0}, _minus(reader)), -math.inf, 0.0) for reader in floats]
        if not border.output:
            rows.append((_add({moved: 1.0}, made, *map(_minus, readers)), 1.0 - len(readers), math.inf))
    for reader in floats:
        if border.direct_s is None:  # back >= made - reader
            rows.append((_add({back: 1.0}, reader, _minus(made)), 0.0, math.inf))
        else:  # back >= made - reader - (1 - wanted); direct >= made - reader - wanted
            rows.append((_add({back: 1.0, wanted: -1.0}, reader, _minus(made)), -1.0, math.inf))
            rows.append((_add({direct: 1.0, wanted: 1.0}, reader, _minus(made)), 0.0, math.inf))
    # direct may be a gain: direct <= made, direct <= 1 - wanted; without an output or a float reader it is not there
    rows.append((_add({direct: 1.0}, _minus(made)), -math.inf, 0.0))
    rows.append(({direct: 1.0, wanted: 1.0}, -math.inf, 1.0 if floats else 0.0))
    return rows


def _alike_rows(names: Sequence[str], column: Mapping[tuple[str, str], int]) -> list[Row]:
    """Each layer is in a scheme just where the first one is; in none that one of them lacks."""
    first, *others = names
    schemes = {scheme for layer, scheme in column if layer in names}
    found: list[Row] = []
    for scheme in sorted(schemes):
        there = {layer: {column[layer, scheme]: 1.0} for layer in names if (layer, scheme) in column}
        found += [(_add(there.get(first, {}), _minus(there.get(layer, {}))), 0.0, 0.0) for layer in others]
    return [row for row in found if row[0]]


def _tie_rows(tie: Tie, integer: Mapping[str, dict[int, float]], groups: Mapping[str, list[Candidate]]) -> list[Row]:
    """int8 of a passing layer <= how many neighbours are int8, for each that could be float."""
    around = _add(*(_minus(integer[layer]) for layer in tie.neighbours))
    able = [layer for layer in tie.passing if len(integer[layer]) < len(groups[layer])]
    return [(_add(integer[layer], around), -math.inf, 0.0) for layer in able]


def _minus(terms: Mapping[int, float]) -> dict[int, float]:
    return {column: -value for column, value in terms.items()}


def _add(*parts: Mapping[int, float]) -> dict[int, float]:
    total: dict[int, float] = {}
    for part in parts:
        for column, value in part.items():
            total[column] = total.get(column, 0.0) + value
    return total


def solve(
    program: Program,
    name: str,
    limits: Limits,
    *,
    without: Sequence[Mapping[str, str]] = (),
    fixed: Mapping[str, str] | None = None,
) -> Solution | None:
    """The solution of least ``name`` within ``limits``, checked by ``evaluate``; None if there is none.

    without: it agrees with none of these assignments in all the layers that they name. fixed: it agrees with this one,
    whose schemes must be candidates of the program.
    """
    candidates = program.problem.candidates
    if not candidates:
        nothing = evaluate(program.problem, {})
        return nothing if within(nothing, limits) and not without else None
    width = len(program.sums[name])
    binary, least = np.zeros(width), np.zeros(width)
    binary[: len(candidates)] = 1
    least[[program.column[unit] for unit in (fixed or {}).items()]] = 1
    rows, lower, upper = [program.rows], [program.lower], [program.upper]

    def at_most(coefficients: Vector, bound: float) -> None:
        rows.append(sparse.csr_array(coefficients[None]))
        lower.append(np.array([-math.inf]))
        upper.append(np.array([bound]))

    for quantity, sums in program.sums.items():
        limit = getattr(limits, quantity)
        if limit is not None:
            unit = _SIZE / (max(abs(limit), float(np.abs(sums).max())) or 1.0)
            at_most(sums * unit, limit * unit)
    for schemes in without:
        units = [program.column.get(unit) for unit in schemes.items()]
        if None not in units:  # else it is out already
            at_most(_marked(width, units), len(units) - 1.0)
    objective = program.sums[name]
    objective = objective * (_SIZE / (float(np.abs(objective).max()) or 1.0))
    for _ in range(_CUTS):
        constraint = optimize.LinearConstraint(sparse.vstack(rows), np.concatenate(lower), np.concatenate(upper))
        with _without_forgotten_line():
            answer = optimize.milp(
                objective, integrality=binary, bounds=(least, 1), constraints=constraint, options={"mip_rel_gap": 0.0}
            )
        if answer.x is None:
            return None
        on = np.flatnonzero(answer.x[: len(candidates)] > 0.5)
        found = evaluate(program.problem, {candidates[i].layer: candidates[i].scheme for i in on})
        if within(found, limits):
            return found
        at_most(_marked(width, on), len(on) - 1.0)
    return None


def _marked(width: int, columns: Any) -> Vector:
    """1 in these columns, else 0."""
    found = np.zeros(width)
    found[columns] = 1.0
    return found


@contextmanager
def _without_forgotten_line() -> Iterator[None]:
    """Keeps a line off standard output that HiGHS 1.12 at times forgets there (its issue 2783); all else goes on."""
    sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:  # no standard output to keep clean
        yield
        return
    with os.fdopen(os.memfd_create("stdout"), "w+b") as written:
        try:
            os.dup2(written.fileno(), 1)
            yield
        finally:
            ctypes.CDLL(None).fflush(None)  # what C has buffered belongs to where it was written
            os.dup2(saved, 1)
            os.close(saved)
            written.seek(0)
            others = b"".join(line for line in written if FORGOTTEN not in line)
            os.write(1, others)
