"""Activations that stay in a register: loaded once for several steps of a reduction, each step taking its own group.

Instructions with a ``reach`` multiply by an element of a register, so a load of 16 bytes replaces four broadcasts. The
reduction over a run of inputs then has more axes: registers, the steps of one, the parts of a step, and what is added
up at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import te
from tvm.s_tir import Schedule

from hwq.schedules.cpu.geometry import Form

# What a step of a tile takes, in products of one vector, and what its broadcasts take where nothing is held: both of a
# tile of four pixels by four vectors, its loads included.
STEP_PRODUCTS, BROADCASTS = 20, 6


def hold_of(found: Form, run: int) -> int:
    """Steps of a run of ``run`` inputs whose activations are held together: as many as the register has, unless filling
    the run up to whole registers takes longer than broadcasts; 1 where activations are not held.
    """
    if not found.reach:
        return 1
    most = found.reach // found.r
    options = [size for size in (4, 2, 1) if size <= most]

    def products(hold: int) -> float:
        return math.ceil(run / (found.r * hold)) * hold * (STEP_PRODUCTS + BROADCASTS / hold)

    return min(options, key=products)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reduction:
    """The axes of a reduction over a run. outer: the register; step: of the whole run; within: the input, in its
    register, or in its step where nothing is held; part: of a step, if it has several; i: what is added up at once.
    """

    axes: tuple[Any, ...]
    outer: Any
    step: Any
    within: Any
    part: Any
    i: Any

    def lane(self, lane: Any, lanes: int) -> Any:
        """Where the weight of ``lane`` stands in its step."""
        return lane if self.part is None else self.part * lanes + lane


def reduction(found: Form, steps: int, hold: int) -> Reduction:
    """The axes over ``steps`` steps, ``hold`` to a register."""
    k = te.reduce_axis((0, steps // hold), "k")
    inner = te.reduce_axis((0, hold), "step") if hold > 1 else None
    part = te.reduce_axis((0, found.parts), "part") if found.parts > 1 else None
    i = te.reduce_axis((0, found.r // found.parts), "i")
    group = i if part is None else part * (found.r // found.parts) + i
    return Reduction(
        axes=tuple(axis for axis in (k, inner, part, i) if axis is not None),
        outer=k,
        step=k if inner is None else k * hold + inner,
        within=group if inner is None else inner * found.r + group,
        part=part,
        i=i,
    )


def run_axes(found: Form, hold: int) -> int:
    """How many axes ``reduction`` has."""
    return 2 + (hold > 1) + (found.parts > 1)


def axes_of(loops: list[Any], hold: int) -> tuple[Any, list[Any], list[Any]]:
    """The loops of a ``reduction``: over registers, over the steps of one if they are held, and what a dot product adds
    up.
    """
    return (loops[0], loops[1:2], loops[2:]) if hold > 1 else (loops[0], [], loops[1:])


def schedule_held(sch: Schedule, at: Any) -> None:
    """The block "held" at the loop ``at``: a load into a register for each place that the tile there has."""
    held = sch.get_sblock("held")
    rank = len(sch.get(held).iter_vars)
    sch.compute_at(held, at, preserve_unit_loops=True)
    sch.set_scope(held, 0, "local")
    *loops, within = sch.get_loops(held)[-rank:]
    for loop in loops:
        sch.unroll(loop)
    sch.vectorize(within)
