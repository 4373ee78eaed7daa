"""Border conversions: quantize (float32 to int8) and dequantize (int8 to float32), one flat vectorized loop each.

q = clamp(nearbyint(x * (1 / s))) + zp and real = float32(q - zp) * s, equal to ``hwq.numerics``.
"""

from __future__ import annotations

from tvm import te, tirx

from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/quantize:1"


def apply(workload: Workload, target: Target) -> Kernel | None:
    """quantize: x float32, ints (zp_y,), floats (1 / s,), out. dequantize: x, ints (zp_x,), floats (s,), out."""
    if workload.op not in ("quantize", "dequantize"):
        return None
    storage = target.activation_storage
    shape = workload.output_shape
    forward = workload.op == "quantize"
    x = te.placeholder(shape, "float32" if forward else storage, "x")
    ints = common.scalars("ints", 1, "int32")
    floats = common.scalars("floats", 1, "float32")
    if forward:
        lo, hi = (bound.astype("int32") for bound in (tirx.min_value(storage), tirx.max_value(storage)))
        out = common.compute(shape, lambda *at: common.round_clamp(x[at] * floats[0], lo, hi, ints[0], storage))
    else:
        out = common.compute(shape, lambda *at: common.centred(x[at], ints[0]) * floats[0])
    sch = common.schedule_of([x, ints, floats, out])
    common.schedule_flat(sch, workload, target, item_bytes=3)  # (4 + 1) / 2 tensors, rounded up
    return common.finish(workload, sch.mod["main"], NAME)
