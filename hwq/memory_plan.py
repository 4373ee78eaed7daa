"""Where each value of a program lives while the network runs: with the caller, or at an offset of one workspace.

Inputs and outputs are the caller's arrays; what lives across calls has a block of its own, which the caller keeps; all
others share a workspace, two of them the same bytes where one is dead before the other is written. Offsets are found
greedily, the largest value first, each at the lowest that is free for as long as it lives (Pisarchyk and Lee,
arXiv:2001.03288, "greedy by size").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hwq.lower import Program

# What kernels may assume of their arguments' addresses: a cache line, and a vector of AVX-512.
ALIGNMENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """base: "input", "output", "workspace" or "state". index: which of the inputs or outputs; offset: bytes into the
    workspace or the state."""

    base: str
    index: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """places: value -> where it is. copies: (value, output's index) of outputs that are a view of another's bytes."""

    places: Mapping[str, Place]
    copies: tuple[tuple[str, int], ...]
    workspace_bytes: int
    state_bytes: int = 0


def aligned(size: int) -> int:
    """``size`` rounded up to ``ALIGNMENT``."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def value_bytes(program: Program, name: str) -> int:
    """Bytes of a value of ``program``."""
    shape, dtype = program.values[name]
    return math.prod(shape) * np.dtype(dtype).itemsize


def plan_memory(program: Program) -> MemoryPlan:
    """The plan of ``program``. A value and its views are one; an output gets the caller's array where it can."""
    roots: dict[str, str] = {name: name for name in program.inputs}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for at, step in enumerate(program.steps):
        for name in step.inputs:
            last[roots[name]] = at
        roots[step.output] = step.output if step.workload is not None else roots[step.inputs[0]]
        if step.workload is not None:
            first[step.output] = last[step.output] = at
    places = {name: Place(base="input", index=i) for i, name in enumerate(program.inputs)}
    state_bytes = 0
    for name in program.state:
        places[name] = Place(base="state", offset=state_bytes)
        state_bytes += aligned(value_bytes(program, name))
    copies = []
    for index, name in enumerate(program.outputs):
        if roots[name] in places:
            copies.append((name, index))
        else:
            places[roots[name]] = Place(base="output", index=index)
    inner = sorted((name for name in first if name not in places), key=lambda name: (-value_bytes(program, name), name))
    spans: list[tuple[int, int, str]] = []  # (offset, end, value), by offset
    for name in inner:
        size, offset = aligned(value_bytes(program, name)), 0
        for start, end, other in spans:
            if first[other] <= last[name] and first[name] <= last[other]:
                if offset + size <= start:
                    break
                offset = max(offset, end)
        spans = sorted([*spans, (offset, offset + size, name)])
        places[name] = Place(base="workspace", offset=offset)
    return MemoryPlan(
        places={name: places[root] for name, root in roots.items()},
        copies=tuple(copies),
        workspace_bytes=max((end for _, end, _ in spans), default=0),
        state_bytes=state_bytes,
    )
