"""attention: softmax(scale * q k^T + bias) v for each head, in one kernel, on q, k and v as dense layers write them.

Limit: multiply-adds. Of 58 GMAC/s that one Zen 4 core does, 64 queries and keys of 12 heads of 32 have 44 (71 us; of 64
products for a score, 14 cycles a vector are for its exponential), 128 of 12 heads of 64 have 47, 512 of heads of 64,
causal, 43. One query reads 512 keys of 32 heads of 64 at 36 GB/s, and 4096 keys from L3 at 24 to 30. By products of
bytes the same take 32 and 180 us, 2.2 and 3.0 times as fast, and one query of 4096 keys in eight heads 125 us for 677.
"""

from __future__ import annotations

from hwq.integer_attention import MOST_DEPTH, MOST_KEYS, takes
from hwq.schedules.cpu import attention_code
from hwq.schedules.cpu.attention_plan import Plan, make_plan
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.target import Compute, Target
from hwq.workload import Kernel, Workload

NAME = "cpu/attention:1"


def no_bytes(plan: Plan, row: Compute | None) -> str:
    """Why the integer form cannot compute ``plan``; empty where it can."""
    if row is None or not row.instruction.endswith("vpdpbusd") or plan.stored != "uint8":
        return "no products of unsigned and signed bytes"
    if not takes(plan.depth, plan.width, plan.scale, plan.keys):
        accepted = f"multiples of 16 up to {MOST_DEPTH}, at most {MOST_KEYS} keys, a positive scale"
        return f"heads of {plan.depth} and {plan.width}, {plan.keys} keys; accepted: {accepted}"
    return ""


def apply(workload: Workload, target: Target) -> Kernel | None:
    """q (B, S, H*D), k (B, T, G*D), v (B, T, G*E), [bias], [span int32 (2,)], [constant bias], [ints (zero
    points of q, k, v, out), floats (a step of scores, and of v) of the integer form], out (B, S, H*E)."""
    if workload.op != "attention":
        return None
    if workload.activation.kind != "none":
        return common.decline(workload, "it has an activation")
    row = target.instruction(
        "attention", *(("int8", "int8") if common.is_integer(workload) else ("float32", "float32"))
    )
    plan = make_plan(workload, target)
    why = no_bytes(plan, row) if plan.integer else ""
    if why:
        return common.decline(workload, why)
    func = attention_code.kernel_code(plan)
    named = dict(zip(("q", "k", "v"), workload.input_shapes, strict=False)) | {"out": workload.output_shape}
    if plan.bias is not None:
        named["bias"] = plan.bias
    shapes = {place: named[param.name] for place, param in enumerate(func.params) if param.name in named}
    instruction = row.instruction if row is not None and plan.fused else None
    return common.finish(workload, with_shapes(func, shapes), NAME, instruction)
