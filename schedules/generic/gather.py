"""slice, reshape, resize_nearest: each output element is one input element, found by index arithmetic.

Limit: bytes. Where whole pixels move, one Zen 4 core reads and writes 112 to 115 GB/s, all that its L2 gives; a slice
of 32 of 64 channels 74, since its runs are shorter than a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from hwq.graph import Shape
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Kernel, Workload

NAME = "generic/gather:1"
# Denominators tried for a map of indices that the ratio of sizes does not explain.
MAX_DENOMINATOR = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Source index clamp(floor((a * i + b) / c), 0, last) of output index i."""

    a: int
    b: int
    c: int
    last: int

    def __call__(self, at: Any) -> Any:
        index = at * self.a + self.b
        index = index if self.c == 1 else tirx.floordiv(index, self.c)
        return tirx.min(tirx.max(index, 0), self.last)


def apply(workload: Workload, target: Target) -> Kernel | None:
    """x, out; integer or float, the values are not touched."""
    if workload.op not in ("slice", "reshape", "resize_nearest"):
        return None
    if workload.activation.kind != "none":
        return common.decline(workload, f"activation {workload.activation.kind}")
    dtype = common.element_type(workload, target)
    x = te.placeholder(workload.input_shapes[0], dtype, "x")
    if workload.op == "reshape":
        out = common.compute(workload.output_shape, lambda *at: x[unravel(ravel(at, workload.output_shape), x.shape)])
    elif workload.op == "slice":
        out = _slice(workload, x)
    else:
        out = _resize(workload, x)
    sch = common.schedule_of([x, out])
    work = math.prod(workload.output_shape) * common.ITEM_BYTES[dtype]  # read and written at 100 GB/s
    if workload.op == "reshape":
        common.schedule_flat(sch, workload, target, item_bytes=common.ITEM_BYTES[dtype])
    else:
        common.schedule_rows(sch, workload, target, work)
    return common.finish(workload, sch.mod["main"], NAME)


def ravel(at: Sequence[Any], shape: Shape) -> Any:
    """The flat index of position ``at``."""
    flat: Any = 0
    for index, size in zip(at, shape, strict=True):
        flat = flat * size + index
    return flat


def unravel(flat: Any, shape: Sequence[Any]) -> tuple[Any, ...]:
    """The position of a flat index in ``shape``."""
    sizes = [int(size) for size in shape]
    at = []
    for axis, size in enumerate(sizes):
        inner = math.prod(sizes[axis + 1 :])
        index = tirx.floordiv(flat, inner)
        at.append(index if axis == 0 else tirx.floormod(index, size))
    return tuple(at)


def _slice(workload: Workload, x: te.Tensor) -> te.Tensor:
    """Python's slices begin:end:stride of each axis; the output may lack axes of one element."""
    keys = zip(workload.attr("begin"), workload.attr("end"), workload.attr("strides"), strict=True)
    spans = [range(*slice(*key).indices(int(size))) for key, size in zip(keys, x.shape, strict=True)]
    sliced = tuple(len(span) for span in spans)
    shape = workload.output_shape
    assert math.prod(sliced) == math.prod(shape), (sliced, shape)

    def rule(*at: Any) -> Any:
        place = at if sliced == shape else unravel(ravel(at, shape), sliced)
        return x[tuple(index * span.step + span.start for index, span in zip(place, spans, strict=True))]

    return common.compute(shape, rule)


def _resize(workload: Workload, x: te.Tensor) -> te.Tensor:
    rows, columns = (index_rule(workload.attr(key), int(x.shape[axis])) for key, axis in (("map_h", 1), ("map_w", 2)))
    return common.compute(workload.output_shape, lambda n, h, w, c: x[n, rows(h), columns(w), c])


def index_rule(indices: Sequence[int], size: int) -> Any:
    """A function of the output index that gives ``indices``: one ``Line`` if there is one, else a choice of several."""
    wanted = [int(index) for index in indices]
    assert all(0 <= index < size for index in wanted), wanted
    line = find_line(wanted, size)
    if line is not None:
        return line
    middle = len(wanted) // 2
    first, second = index_rule(wanted[:middle], size), index_rule(wanted[middle:], size)
    return lambda at: tirx.Select(at < middle, first(at), second(at - middle))


def find_line(wanted: Sequence[int], size: int) -> Line | None:
    """The ``Line`` through all of ``wanted``, or None. The usual rounding rules of a resize are all such lines.

    For given a and c each index bounds b from both sides, except that those at an end of the picture are clamped.
    """
    count = len(wanted)
    if count == 1:
        return Line(a=0, b=wanted[0], c=1, last=size - 1)
    slopes = [(2 * size, 2 * count)]
    for c in range(1, MAX_DENOMINATOR + 1):
        near = round(c * (wanted[-1] - wanted[0]) / (count - 1))
        slopes += [(a, c) for a in range(near - 2, near + 3) if math.gcd(a, c) == 1]
    for a, c in slopes:
        lower = max((index * c - a * at for at, index in enumerate(wanted) if index > 0), default=-(2**20))
        upper = min((index * c + c - 1 - a * at for at, index in enumerate(wanted) if index < size - 1), default=2**20)
        if lower <= upper:
            divisor = math.gcd(a, c)
            b = math.ceil(lower / divisor) if lower > -(2**20) else upper // divisor
            if b * divisor <= upper:
                return Line(a=a // divisor, b=b, c=c // divisor, last=size - 1)
            return Line(a=a, b=lower, c=c, last=size - 1)
    return None
