"""Dense kernels of CPUs for int4 weights in groups with float activations: scheme w4a16_g128, see ``hwq.weight_only``.

Activations become whole numbers of 16 bits at the kernel's head, so a multiply takes two of them for each sum, with no
conversion of weights to floats: half the multiplies of float32, and a vector of 32 weights costs a shift and a mask.

Limit: bytes at one row, the multiplier from some rows on. On a busy Zen 4 core, 4096 x 4096: one row from memory at 27
GB/s where float32 has 24 and w4a8_g64 27 (from the L3 at 46, of which unpacking is the limit); 64 rows at 104 GMAC/s,
where float32 has 53.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

from hwq.cost import weight_bytes
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.cpu.weight_only_code import kernel_code
from hwq.schedules.cpu.weight_only_plan import Plan, pack, tile_of
from hwq.schedules.generic import common
from hwq.scheme import SCHEMES
from hwq.target import Compute, Target
from hwq.workload import Kernel, Workload

NAME = "cpu/weight_only:1"
# What compute rows name: inputs of a multiply, sums of its widest vector, and whether it adds to its sums itself.
INSTRUCTIONS = {
    "avx512.vpdpwssd": (2, 16, True),
    "avx.vpdpwssd": (2, 8, True),
    "avx2.vpmaddwd": (2, 8, False),
    "neon.smlal": (1, 8, True),
}


def apply(workload: Workload, target: Target) -> Kernel | None:
    """x, [residual], weight, multiplier (``group_scales.in_lanes``), [bias], out; all float32 but the weight."""
    scheme = SCHEMES[workload.scheme]
    if workload.op != "dense" or scheme.weight is None or scheme.act is not None:
        return None
    row = target.instruction(workload.op, scheme.weight_type, scheme.act_type)
    if row is None or row.instruction not in INSTRUCTIONS:
        return common.decline(workload, f"no way to multiply {scheme.weight_type} and floats on {target.name}")
    plan = plan_of(workload, target, row)
    func = kernel_code(plan)
    scales = common.scale_shape(workload)
    assert scales is not None
    given = {
        "x": workload.input_shapes[0],
        "residual": workload.output_shape,
        "weight": (plan.blocks, plan.chunks, plan.vectors, plan.lanes, plan.r),
        "multiplier": scales,
        "out": workload.output_shape,
    }
    shapes = {at: given[param.name] for at, param in enumerate(func.params) if param.name in given}
    kernel = common.finish(workload, with_shapes(func, shapes), NAME, row.instruction.rpartition(".")[2])
    return replace(kernel, pack=functools.partial(pack, plan))


def plan_of(workload: Workload, target: Target, row: Compute) -> Plan:
    """The plan with the tile of fewest cycles."""
    group = SCHEMES[workload.scheme].group_size
    assert group is not None
    *outer, inputs = workload.input_shapes[0]
    count, channels = math.prod(outer), workload.output_shape[-1]
    r, widest, accumulates = INSTRUCTIONS[row.instruction]
    lanes = next((n for n in (16, 8) if n <= widest and n <= channels), 4)
    # A vector of eight sums is two registers of NEON's.
    registers = 32 if target.vector_bits == 512 else 14 if r == 1 else 16
    rows, vectors, chains = tile_of(count, channels, lanes, registers, accumulates=accumulates)
    seconds = max(
        count * inputs * channels / (row.macs_per_cycle * target.clock_hz),
        weight_bytes(workload) / (target.l3_bytes_per_s or target.memory_bytes_per_s),
    )
    plan = Plan(
        workload=workload,
        group=group,
        count=count,
        inputs=inputs,
        channels=channels,
        rows=rows,
        vectors=vectors,
        lanes=lanes,
        r=r,
        accumulates=accumulates,
        chains=chains,
    )
    return replace(
        plan,
        parallel=plan.blocks > 1 and common.worth_threads(workload.parallel, seconds, target),
        parallel_rows=count > 1 and common.worth_parallel(workload.parallel, 8 * count * inputs, target),
    )
