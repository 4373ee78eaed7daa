"""attention: softmax(scale * q k^T + bias) v for each head, in one kernel, on q, k and v as dense layers write them.

Limit: multiply-adds. Of 58 GMAC/s that one Zen 4 core does, 64 queries and keys of 12 heads of 32 have 44 (71 us; of 64
products for a score, 14 cycles a vector are for its exponential), 128 of 12 heads of 64 have 47, 512 of heads of 64,
causal, 43. One query reads 512 keys of 32 heads of 64 at 36 GB/s, and 4096 keys from L3 at 24 to 30.
"""

from __future__ import annotations

from hwq.schedules.cpu import attention_code
from hwq.schedules.cpu.attention_plan import make_plan
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "cpu/attention:1"


def apply(workload: Workload, target: Target) -> Kernel | None:
    """q (B, S, H*D), k (B, T, G*D), v (B, T, G*E), [bias], [span int32 (2,)], [constant bias], out (B, S, H*E)."""
    if workload.op != "attention":
        return None
    if common.is_integer(workload) or workload.activation.kind != "none":
        return common.decline(workload, "only float32 without an activation")
    plan = make_plan(workload, target)
    func = attention_code.kernel_code(plan)
    named = dict(zip(("q", "k", "v"), workload.input_shapes, strict=False)) | {"out": workload.output_shape}
    if plan.bias is not None:
        named["bias"] = plan.bias
    shapes = {place: named[param.name] for place, param in enumerate(func.params) if param.name in named}
    row = target.instruction("attention", "float32", "float32")
    instruction = row.instruction if row is not None and plan.fused else None
    return common.finish(workload, with_shapes(func, shapes), NAME, instruction)
