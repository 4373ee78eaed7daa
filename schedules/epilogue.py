"""What follows an anchor's sum: bias, requantize, residual, activation, for one element, as expressions of TE.

The one place for it, so that every kernel family computes the same bits: ``hwq.numerics`` is the reference for the
integer side. ``Epilogue`` holds a kernel's arguments in their order (see ``arguments``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from hwq.schedules.generic import common
from hwq.schedules.generic.float_math import activate
from hwq.workload import Workload

Expr = Any  # a tirx expression; TVM's Python types do not carry element types
Tensor = Any

# Positions in the run-time numbers `ints` and `floats` of an integer anchor.
ZP_X, ZP_R, ZP_Y, LO, HI = range(5)
M_R, LO_F, HI_F = range(3)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Epilogue:
    """The arguments of an anchor kernel besides x and the output; None where the workload has no use for one.

    Integer kernels take [residual], weight, bias, multiplier, ints, floats, [table]; f32 ones [residual], weight, [bias].
    """

    workload: Workload
    dtype: str
    residual: Tensor | None
    bias: Tensor | None
    multiplier: Tensor | None
    ints: Tensor | None
    floats: Tensor | None
    table: Tensor | None

    def arguments(self, x: Tensor, weight: Tensor, out: Tensor) -> list[Tensor]:
        """All of the kernel's arguments, in order."""
        others = (self.bias, self.multiplier, self.ints, self.floats, self.table)
        return [tensor for tensor in (x, self.residual, weight, *others, out) if tensor is not None]


def make_epilogue(workload: Workload, out_c: int, dtype: str, residual: Tensor | None) -> Epilogue:
    """The placeholders of ``workload``'s epilogue; ``dtype`` is the output's element type."""
    integer = workload.scheme != "f32"
    tabled = integer and not workload.activation.clamps
    assert not (tabled and dtype == "float32"), workload
    return Epilogue(
        workload=workload,
        dtype=dtype,
        residual=residual,
        bias=te.placeholder((out_c,), "int32" if integer else "float32", "bias") if integer or workload.has_bias else None,
        multiplier=te.placeholder((out_c,), "float32", "multiplier") if integer else None,
        ints=common.scalars("ints", 5, "int32") if integer else None,
        floats=common.scalars("floats", 3, "float32") if integer else None,
        table=te.placeholder((256,), "uint8", "table") if tabled else None,
    )


def finish(epilogue: Epilogue, acc: Expr, bias: Expr | None, multiplier: Expr | None, residual: Expr | None) -> Expr:
    """The value that follows ``acc``, in the epilogue's dtype; before the table, where there is one."""
    total = acc if bias is None else acc + bias
    ints, floats = epilogue.ints, epilogue.floats
    if ints is None or floats is None:
        total = total if residual is None else total + residual
        return activate(epilogue.workload.activation, total)
    value = total.astype("float32") * multiplier
    if residual is not None:
        value = common.fma(common.centred(residual, ints[ZP_R]), floats[M_R], value)
    if epilogue.dtype == "float32":
        return tirx.max(tirx.min(value, floats[HI_F]), floats[LO_F])
    return common.round_clamp(value, ints[LO], ints[HI], ints[ZP_Y], epilogue.dtype)


def lookup(table: Tensor, q: Expr, dtype: str) -> Expr:
    """table[q's byte] in ``dtype``; q is in storage (uint8 or int8), the table uint8 (256,)."""
    byte = q if dtype == "uint8" else tirx.reinterpret("uint8", q)
    found = table[byte.astype("int32")]
    return found if dtype == "uint8" else tirx.reinterpret(dtype, found)


def nibble(byte: Expr, odd: Expr) -> Expr:
    """The int4 weight, as int8, in the low (odd 0) or high (odd 1) half of a byte that holds it plus 8."""
    half = (byte >> (odd * 4).astype("uint8")) & tirx.const(15, "uint8")
    return half.astype("int8") - tirx.const(8, "int8")
