"""unary: a 256-entry table for integers, the activation's expression for floats.

Limit on one Zen 4 core: loads, two for each byte looked up, 3.2 of them a nanosecond; bytes where the expression is a
clamp (hard_swish at 112 GB/s, its L2 gives 115); else arithmetic, an exponential and a division: 3.4 floats a
nanosecond for silu, 2.8 for sigmoid, 2.5 for tanh, 2.0 for gelu, where the exponential alone has 4.5.
"""

from __future__ import annotations

from tvm import te

from hwq.schedules.generic import common
from hwq.schedules.generic.float_math import activate
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/unary:1"


def apply(workload: Workload, target: Target) -> Kernel | None:
    """int8: x, table uint8 (256,) indexed by the stored byte, out. f32: x, out."""
    if workload.op != "unary":
        return None
    dtype = common.element_type(workload, target)
    x = te.placeholder(workload.output_shape, dtype, "x")
    if common.is_integer(workload):
        table = te.placeholder((256,), "uint8", "table")
        rule = lambda *at: table[x[at].astype("uint8").astype("int32")].astype(dtype)  # noqa: E731
        args = [x, table, common.compute(workload.output_shape, rule)]
    else:
        args = [x, common.compute(workload.output_shape, lambda *at: activate(workload.activation, x[at]))]
    sch = common.schedule_of(args)
    common.schedule_flat(sch, workload, target, item_bytes=16)  # arithmetic or lookups weigh more than the bytes moved
    return common.finish(workload, sch.mod["main"], NAME)
