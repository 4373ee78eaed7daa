"""add and multiply, of integers with requantize and of floats, with a clamp or any float activation at the end.

The second input has the first one's shape, or (N, 1, 1, C) against (N, H, W, C), or any shape that NumPy broadcasts.

Limit: bytes in float, on one Zen 4 core 108 to 114 GB/s of reads and writes where its L2 gives 115. In integers
arithmetic, with conversions one by one: 21 to 23 GB/s, where ``x86/binary`` has 28 to 30.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te

from hwq.graph import Shape
from hwq.schedules.generic import common
from hwq.schedules.generic.float_math import activate
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/binary:1"


def apply(workload: Workload, target: Target) -> Kernel | None:
    """int8: a, b, ints (zp_a, zp_b, zp_y, lo, hi), floats (m_a, m_b) to add, (m,) to multiply, out. f32: a, b, out."""
    if workload.op not in ("add", "multiply"):
        return None
    shape = workload.output_shape
    if len(workload.input_shapes) != 2:
        return common.decline(workload, f"{len(workload.input_shapes)} inputs")
    if not all(_broadcasts(given, shape) for given in workload.input_shapes):
        return common.decline(workload, f"{workload.input_shapes} do not broadcast to {shape}")
    dtype = common.element_type(workload, target)
    a = te.placeholder(workload.input_shapes[0], dtype, "a")
    b = te.placeholder(workload.input_shapes[1], dtype, "b")
    if common.is_integer(workload):
        if workload.out_dtype == "float32" or not workload.activation.clamps:
            return common.decline(workload, "an integer sum or product with a float output or a table")
        args = _integer(workload, a, b, dtype)
    else:
        args = _float(workload, a, b)
    sch = common.schedule_of(args)
    item_bytes = common.ITEM_BYTES[dtype]
    if all(math.prod(given) == math.prod(shape) for given in workload.input_shapes):
        common.schedule_flat(sch, workload, target, item_bytes=item_bytes)
    else:
        common.schedule_rows(sch, workload, target, common.moved_bytes(workload, item_bytes))
    return common.finish(workload, sch.mod["main"], NAME)


def _broadcasts(given: Shape, shape: Shape) -> bool:
    padded = (1,) * (len(shape) - len(given)) + given
    return len(padded) == len(shape) and all(size in (1, full) for size, full in zip(padded, shape, strict=True))


def _element(tensor: te.Tensor, at: tuple[Any, ...]) -> Any:
    """tensor at output position ``at``, broadcast as NumPy does."""
    last = at[len(at) - len(tensor.shape) :]
    return tensor[tuple(0 if int(size) == 1 else index for size, index in zip(tensor.shape, last, strict=True))]


def _integer(workload: Workload, a: te.Tensor, b: te.Tensor, storage: str) -> list[te.Tensor]:
    ints = common.scalars("ints", 5, "int32")
    summed = workload.op == "add"
    floats = common.scalars("floats", 2 if summed else 1, "float32")

    def rule(*at: Any) -> Any:
        left, right = _element(a, at), _element(b, at)
        if summed:
            value = common.fma(common.centred(left, ints[0]), floats[0], common.centred(right, ints[1]) * floats[1])
        else:
            product = (left.astype("int32") - ints[0]) * (right.astype("int32") - ints[1])
            value = product.astype("float32") * floats[0]
        return common.round_clamp(value, ints[3], ints[4], ints[2], storage)

    return [a, b, ints, floats, common.compute(workload.output_shape, rule)]


def _float(workload: Workload, a: te.Tensor, b: te.Tensor) -> list[te.Tensor]:
    def rule(*at: Any) -> Any:
        left, right = _element(a, at), _element(b, at)
        return activate(workload.activation, left + right if workload.op == "add" else left * right)

    return [a, b, common.compute(workload.output_shape, rule)]
