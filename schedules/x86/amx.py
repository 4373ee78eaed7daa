"""Convolution and dense kernels for AMX: int8 and int4 weights on tdpb[su][su]d, bfloat16 on tdpbf16ps.

Takes conv2d (any stride, dilation, padding; one group) and dense. See ``amx_plan`` for the shape of kernels,
``amx_model`` for the choice among them, ``amx_code`` and ``amx_tail`` for their code.

Limit: 1,024 int8 products a cycle, 512 of bfloat16. What of it the tiles of a layer use is ``Plan.utilization``. No
machine has timed these kernels; by the model, of the 2,458 GMAC/s that int8 could do at 2.4 GHz, ResNet-50's 3x3 layers
get 1,710 to 1,890, that of 7x7 1,090 (its weights come from the L3; in int4 1,550), 1x1 layers 990 to 1,920 (the least
wait for the L2), but 56x56x64->256 650, and with a residual 430: those are bound by the epilogue. bfloat16 gets about
half, and 310 to 390 at 56x56x64->64 and ->256, where the input's copy and float stores take longer than products.

Declines groups (``conv2d`` takes them), depthwise, and dense layers of few rows (``dense``). ``seed`` samples among the
plans, the model's choice is the default: tile shape, source and order of loops decide the code's structure, so they are
no schedule instructions.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq import numerics
from hwq.schedules import epilogue as ep
from hwq.schedules.cpu.ends import kernel_function
from hwq.schedules.cpu.geometry import geometry
from hwq.schedules.cpu.packing import pack_nibbles
from hwq.schedules.generic import common
from hwq.schedules.x86 import amx_tiles as tiles
from hwq.schedules.x86 import table
from hwq.schedules.x86.amx_code import kernel_code, packed_shape
from hwq.schedules.x86.amx_model import best_plan, sectioned
from hwq.schedules.x86.amx_plan import LANES, Plan, candidates
from hwq.scheme import SCHEMES
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "x86/amx:2"
# With so few rows, weights that pass once are the limit, and a vector multiplies them as fast as they come: it takes a
# cycle a row for 64 bytes, tiles one cycle however few rows they have, and the L3 gives ten bytes in one.
FEW_ROWS = 4
WEIGHTS = {"w8a8": "int8", "w4a8": "int4", "bf16": "bfloat16", "w8a8_dyn": "int8"}


def apply(workload: Workload, target: Target, *, seed: int | None = None) -> Kernel | None:
    """The kernel of a conv2d or dense workload, or None. seed: sample a plan, instead of taking the model's."""
    if workload.op not in ("conv2d", "dense"):
        return common.decline(workload, "neither conv2d nor dense")
    if not on_amx(workload, target):
        return common.decline(workload, f"no AMX for it on {target.name}")
    shape = geometry(workload)
    if shape.groups > 1:
        return common.decline(workload, "groups")
    if shape.out_h == shape.kernel_h == shape.kernel_w == 1 and shape.batch * shape.out_w <= FEW_ROWS:
        return common.decline(workload, "few rows")
    return kernel_of(make_plan(workload, target, seed), target)


def kernel_of(plan: Plan, target: Target) -> Kernel:
    """The kernel of a plan."""
    workload, shape = plan.workload, plan.geometry
    stored = "float32" if plan.bf16 else target.activation_storage
    instruction = tiles.dot_instruction(plan.weight if plan.bf16 else stored, plan.weight_type)
    tail = ep.make_epilogue(workload, stored, (shape.batch, shape.out_h, shape.out_w, shape.out_c))
    code = kernel_code(plan, tail, stored, instruction, shuffles="vpermi2b" in table.instructions(target))
    kernel = common.finish(workload, kernel_function(code, workload, tail), NAME, instruction)
    return replace(kernel, pack=functools.partial(pack, plan))


def on_amx(workload: Workload, target: Target) -> bool:
    """Whether the target computes the workload on tiles."""
    weight = WEIGHTS.get(workload.scheme)
    if weight is None:
        return False
    row = target.instruction(workload.op, weight, SCHEMES[workload.scheme].act_type)
    return row is not None and row.instruction.startswith("amx.")


def make_plan(workload: Workload, target: Target, seed: int | None = None) -> Plan:
    """The best plan by the model; or, of a ``seed``, any."""
    plans = plans_of(workload)
    if seed is None:
        return sectioned(best_plan(plans, target), target)
    chance = random.Random(seed)
    plan = sectioned(chance.choice(plans), target)
    return replace(
        plan,
        chunks=(
            chance.randint(plan.chunks[0], min(plan.runs * plan.blocks, plan.chunks[0] + 2)),
            chance.randint(plan.chunks[1], min(plan.channel_blocks, plan.chunks[1] + 2)),
        ),
    )


def plans_of(workload: Workload) -> list[Plan]:
    """Every plan for a conv2d or dense workload in a scheme of WEIGHTS."""
    weight = WEIGHTS[workload.scheme]
    wide = weight == "bfloat16"
    return candidates(workload, geometry(workload), 2 if wide else 1, weight, convert=wide)


def pack(plan: Plan, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``Layer.weight``, or its integers, as the kernel of ``plan`` reads it: see ``packed_shape``.

    Where the last step of a stretch is moved back, what it has in common with the step before is zero there.
    """
    taps = weight.reshape(weight.shape[0], -1, plan.stretch)
    group = 4 // plan.item_bytes
    steps = np.zeros((plan.channel_blocks * plan.block_lanes, taps.shape[1], plan.run_steps, plan.width), weight.dtype)
    for k in range(plan.run_steps):
        begin, end = k * plan.width, min((k + 1) * plan.width, plan.stretch)
        moved = max(0, (k + 1) * plan.width - plan.stretch) if plan.stretch >= plan.width else 0
        steps[: len(taps), :, k, moved : moved + end - begin] = taps[:, :, begin:end]
    tiled = steps.reshape(plan.channel_blocks, plan.nt, LANES, plan.steps, plan.width // group, group)
    tiled = np.ascontiguousarray(tiled.transpose(0, 3, 1, 4, 2, 5))
    if plan.weight == "int4":
        rows = tiled.reshape(plan.channel_blocks, math.prod(tiled.shape[1:4]), LANES * group)
        return pack_nibbles(rows)
    assert tiled.shape == packed_shape(plan)
    return numerics.to_bf16(tiled) if plan.bf16 else tiled
