"""Border conversions: quantize (float32 to int8) and dequantize (int8 to float32), one pass over memory each.

q = clamp(nearbyint(x * (1 / s))) + zp and real = float32(q - zp) * s, equal to ``hwq.numerics``. A quantize with an
attribute "axes" moves axes on its way (a picture from NCHW to NHWC), as ``generic/transpose`` does.

Limit: bytes. One Zen 4 core, whose L2 gives 115 GB/s, reads and writes 117 in dequantizing and 85 in quantizing, of
which the rest is arithmetic; with a move of 64 planes, in tiles of 8 x 8, 23.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from hwq.schedules.generic import common, transpose
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/quantize:2"
ITEM_BYTES = 1  # 4 + 1 bytes an element at 100 GB/s take as long as these two at ``common.CORE_BYTES_PER_S``


def apply(workload: Workload, target: Target) -> Kernel | None:
    """quantize: x float32, ints (zp_y,), floats (1 / s,), out. dequantize: x, ints (zp_x,), floats (s,), out."""
    if workload.op not in ("quantize", "dequantize"):
        return None
    storage = target.activation_storage
    shape = workload.output_shape
    axes: tuple[int, ...] = dict(workload.attrs).get("axes", tuple(range(len(shape))))
    forward = workload.op == "quantize"
    x = te.placeholder(workload.input_shapes[0], "float32" if forward else storage, "x")
    ints = common.scalars("ints", 1, "int32")
    floats = common.scalars("floats", 1, "float32")
    if forward:
        lo, hi = (bound.astype("int32") for bound in (tirx.min_value(storage), tirx.max_value(storage)))

        def rule(*at: Any) -> Any:
            return common.round_clamp(x[transpose.source(at, axes)] * floats[0], lo, hi, ints[0], storage)

        out = common.compute(shape, rule)
    else:
        out = common.compute(shape, lambda *at: common.centred(x[at], ints[0]) * floats[0])
    sch = common.schedule_of([x, ints, floats, out])
    if axes == tuple(range(len(shape))):
        common.schedule_flat(sch, workload, target, item_bytes=ITEM_BYTES)
    else:
        parallel = common.worth_parallel(workload.parallel, common.moved_bytes(workload, ITEM_BYTES), target)
        transpose.schedule_moved(sch, shape, axes, workload.parallel if parallel else 1)
    return common.finish(workload, sch.mod["main"], NAME)
