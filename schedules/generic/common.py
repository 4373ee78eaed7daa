"""What the generic kernels share: element types, the requantizing end, splitting over threads, and the finished Kernel.

The innermost loops here are plain unit-stride loops, and LLVM turns them into vectors: measured against explicit
vectorization of 16 and 64 lanes its code was as fast or faster, ragged tails included. The tests check the assembly.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from hwq import group_scales
from hwq.graph import ANCHORS, Shape
from hwq.schedules.cut import cut_function
from hwq.schedules.generic.float_math import ROUNDER_BITS, rounder_bits
from hwq.scheme import SCHEMES
from hwq.target import Target
from hwq.workload import Kernel, Workload

log = logging.getLogger(__name__)
# A parallel loop pays where the work takes one core this many times what starting the loop costs: two threads then
# take three quarters of the time.
PARALLEL_GAIN = 4.0
# Bytes a core moves in a second, whatever its caches could: these kernels compute a little with each.
CORE_BYTES_PER_S = 40e9
ITEM_BYTES = {"int8": 1, "uint8": 1, "float32": 4}


def is_integer(workload: Workload) -> bool:
    """Whether the tensors that enter are quantized."""
    return SCHEMES[workload.scheme].domain == "int8"


def is_dynamic(workload: Workload) -> bool:
    """Whether rows of bytes enter, each with a scale of its own."""
    return workload.op in ANCHORS and SCHEMES[workload.scheme].dynamic


def is_tabled(workload: Workload) -> bool:
    """Whether the activation is a table of bytes."""
    return is_integer(workload) and not workload.activation.clamps


def scale_shape(workload: Workload) -> Shape | None:
    """The shape of the scales of an anchor with a group size, as ``group_scales.in_lanes`` lays them; None without."""
    group = SCHEMES[workload.scheme].group_size
    if group is None:
        return None
    vectors = math.ceil(workload.output_shape[-1] / group_scales.LANES)
    return (vectors, group_scales.group_count(workload.input_shapes[0][-1], group), group_scales.LANES)


def element_type(workload: Workload, target: Target) -> str:
    """The element type of an operator that keeps its type: the target's storage, or float32."""
    return target.activation_storage if is_integer(workload) else "float32"


def decline(workload: Workload, why: str) -> Kernel | None:
    """Says at debug level why a schedule does not take ``workload``; returns None for ``return decline(...)``."""
    log.debug("%s %s declined: %s", workload.op, workload.digest, why)
    return None


def scalars(name: str, count: int, dtype: str) -> te.Tensor:
    """An argument of ``count`` run-time numbers, "ints" or "floats"."""
    return te.placeholder((count,), dtype, name)


def centred(value: Any, zero_point: Any) -> Any:
    """float32(value - zero_point), the subtraction in int32: exact."""
    return (value.astype("int32") - zero_point).astype("float32")


def round_clamp(value: Any, lo: Any, hi: Any, zero_point: Any, storage: str) -> Any:
    """clamp(nearbyint(value), lo - zp, hi - zp) + zp in ``storage``: the end of a requantizing kernel.

    The clamp comes first, which changes nothing, since rounding keeps order and whole numbers; so what is rounded lies
    within 2^22 of zero.
    """
    least = (lo - zero_point).astype("float32")
    most = (hi - zero_point).astype("float32")
    return rounded(tirx.min(tirx.max(value, least), most), origin_of(zero_point), storage)


def origin_of(zero_point: Any) -> Any:
    """What ``rounded`` adds to the bits of its sum for a value's integer to count from ``zero_point`` (int32)."""
    return zero_point - tirx.const(ROUNDER_BITS, "int32")


def rounded(value: Any, origin: Any, dtype: str, lanes: int = 1) -> Any:
    """nearbyint(value) + zp in ``dtype``, for a value within 2^22 of zero; origin is ``origin_of(zp)``. Of ``lanes``
    such values with one origin, where those are more than one."""
    bits = rounder_bits(value, lanes) + wide(origin, lanes)
    return bits.astype(dtype if lanes == 1 else f"{dtype}x{lanes}")


def wide(number: Any, lanes: int) -> Any:
    """``number`` in each of ``lanes``; itself where that is one."""
    return tirx.Broadcast(number, lanes) if lanes > 1 else number


def fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding, whatever LLVM thinks of contraction."""
    return tirx.call_llvm_pure_intrin("float32", "llvm.fma", a, b, c)


def moved_bytes(workload: Workload, item_bytes: int) -> int:
    """Bytes read and written by one call, each tensor counted once."""
    elements = sum(math.prod(shape) for shape in (*workload.input_shapes, workload.output_shape))
    return elements * item_bytes


def worth_threads(parallel: int, work_s: float, target: Target) -> bool:
    """Whether there are threads, and splitting what takes one core ``work_s`` gains more than starting them costs."""
    return parallel > 1 and work_s > PARALLEL_GAIN * target.parallel_overhead_s


def worth_parallel(parallel: int, work_bytes: int, target: Target) -> bool:
    """``worth_threads`` of a kernel that moves ``work_bytes`` and computes little with each."""
    return worth_threads(parallel, work_bytes / min(target.l2_bytes_per_s, CORE_BYTES_PER_S), target)


def even_split(extent: int, parallel: int) -> int:
    """The least divisor of ``extent`` that gives no thread a quarter above its share; 1 if none up to 1024 does."""
    for parts in range(parallel, min(extent, 1024) + 1):
        if extent % parts == 0 and math.ceil(parts / parallel) * parallel <= 1.25 * parts:
            return parts
    return 1


def split_outer(sch: Schedule, loops: Sequence[Any], extents: Sequence[int], parallel: int) -> None:
    """Makes the outermost of ``loops`` parallel, in equal chunks."""
    fused = sch.fuse(*loops) if len(loops) > 1 else loops[0]
    parts = even_split(math.prod(extents), parallel)
    if parts > 1:
        outer, _ = sch.split(fused, [parts, None])
        sch.parallel(outer)


def schedule_flat(sch: Schedule, workload: Workload, target: Target, *, item_bytes: int = 1) -> None:
    """For kernels whose tensors all have the output's shape: one flat loop, its chunks parallel where that pays."""
    loops = sch.get_loops(sch.get_sblock("out"))
    flat = sch.fuse(*loops) if len(loops) > 1 else loops[0]
    if worth_parallel(workload.parallel, moved_bytes(workload, item_bytes), target):
        split_outer(sch, [flat], [math.prod(workload.output_shape)], workload.parallel)


def schedule_rows(sch: Schedule, workload: Workload, target: Target, work_bytes: int) -> None:
    """Leaves the innermost loop as it is, and makes the others parallel where that pays."""
    outer = sch.get_loops(sch.get_sblock("out"))[:-1]
    if outer and worth_parallel(workload.parallel, work_bytes, target):
        split_outer(sch, outer, workload.output_shape[: len(outer)], workload.parallel)


def finish(workload: Workload, func: Any, schedule: str, instruction: str | None = None) -> Kernel:
    """The Kernel of a scheduled function: named ``{op}_{scheme}_{digest}`` and marked as scheduled."""
    name = f"{workload.op}_{workload.scheme}_{workload.digest}"
    return named(name, cut_function(func, workload), schedule, instruction)


def named(symbol: str, func: Any, schedule: str, instruction: str | None = None) -> Kernel:
    """The Kernel of a scheduled function under a name of its own."""
    attrs = {"global_symbol": symbol, "tirx.is_scheduled": True, "tirx.noalias": True}
    return Kernel(symbol=symbol, func=func.with_attrs(attrs), schedule=schedule, instruction=instruction)


def schedule_of(args: Sequence[te.Tensor], seed: int | None = None) -> Schedule:
    """A schedule of the function of these arguments, the output last; ``seed`` of its sampled decisions."""
    return Schedule(te.create_prim_func(list(args)), seed=seed, debug_mask="none")


def choose(sch: Schedule, options: Sequence[int], default: int, seed: int | None) -> Any:
    """One of ``options`` as a decision of the schedule: ``default``, or a sample where a seed was given."""
    chances = [1.0 / len(options)] * len(options)
    decision = None if seed is not None else list(options).index(default)
    return sch.sample_categorical(list(options), chances, decision=decision)


def compute(shape: Shape, rule: Callable[..., Any], name: str = "out") -> te.Tensor:
    """The tensor of ``shape`` whose elements are ``rule`` of their position; "out" is a kernel's output."""
    return te.compute(shape, rule, name=name)
