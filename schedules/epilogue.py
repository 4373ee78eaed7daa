"""What follows an anchor's sum: bias, requantize, residual, activation, for one element, as expressions of TE.

The one place for it, so that every kernel family computes the same bits: ``hwq.numerics`` is the reference for the
integer side. ``Epilogue`` holds a kernel's arguments in their order. The run-time numbers in ``ints`` and ``floats``
enter the computation as scalar variables, and ``close`` defines them at the function's head: read once, before every
loop and branch, so that no vector code has to load them under a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from hwq.graph import Shape
from hwq.schedules.generic import common
from hwq.schedules.generic.float_math import activate
from hwq.workload import Workload

Expr = Any  # a tirx expression; TVM's Python types do not carry element types
Tensor = Any

# Positions in the run-time numbers `ints` and `floats` of an integer anchor.
ZP_X, ZP_R, ZP_Y, LO, HI = range(5)
M_R, LO_F, HI_F = range(3)
# The bits of 2^30 as a float32.
FAR_BITS = 0x4E800000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Numbers:
    """An integer anchor's run-time numbers, ready for use: zero points of x and residual, the residual's multiplier;
    least and most, the clamp of the value before its zero point is added (or of the float output); and origin, what
    ``common.rounded`` takes for the output's zero point.
    """

    zp_x: Expr
    zp_r: Expr
    m_r: Expr
    least: Expr
    most: Expr
    origin: Expr

    def all(self) -> tuple[Expr, ...]:
        return (self.zp_x, self.zp_r, self.m_r, self.least, self.most, self.origin)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Epilogue:
    """The arguments of an anchor kernel besides x and the output; None where the workload has no use for one.

    Integer kernels take [residual], weight, bias, multiplier, ints, floats, [table]; f32 ones [residual], weight,
    [bias]; dynamic ones scales, [residual], weight, bias, multiplier, shift: bias is what ``hwq.row_scales`` calls
    start, and shift its bias. The residual is in storage, or a float. dtype: the output's element type.
    """

    workload: Workload
    dtype: str
    scales: Tensor | None
    residual: Tensor | None
    bias: Tensor | None
    multiplier: Tensor | None
    shift: Tensor | None
    ints: Tensor | None
    floats: Tensor | None
    table: Tensor | None
    numbers: Numbers | None

    def arguments(self, x: Tensor, weight: Tensor, out: Tensor) -> list[Tensor]:
        """All of the kernel's arguments, in order; then the scalar variables, until ``close``."""
        others = (self.bias, self.multiplier, self.shift, self.ints, self.floats, self.table)
        tensors = [tensor for tensor in (x, self.scales, self.residual, weight, *others, out) if tensor is not None]
        return tensors if self.numbers is None else [*tensors, *self.numbers.all()]


def make_epilogue(workload: Workload, stored: str, out_shape: Shape) -> Epilogue:
    """The placeholders of ``workload``'s epilogue, its output and residual as the kernel sees them: of ``out_shape``.

    stored: the element type of activations in memory.
    """
    dtype = "float32" if workload.out_dtype == "float32" else stored
    integer, dynamic = common.is_integer(workload), common.is_dynamic(workload)
    tabled = common.is_tabled(workload)
    assert not (tabled and dtype == "float32"), workload
    assert not (workload.float_residual and dtype != "float32"), workload
    channels = (out_shape[-1],)
    scaled = integer or dynamic
    groups = common.scale_shape(workload)
    added = "float32" if dynamic or workload.float_residual else stored
    numbers = Numbers(
        zp_x=tirx.Var("zp_x", "int32"),
        zp_r=tirx.Var("zp_r", "int32"),
        m_r=tirx.Var("m_r", "float32"),
        least=tirx.Var("least", "float32"),
        most=tirx.Var("most", "float32"),
        origin=tirx.Var("origin", "int32"),
    )
    return Epilogue(
        workload=workload,
        dtype=dtype,
        scales=te.placeholder(out_shape[:-1], "float32", "scales") if dynamic else None,
        residual=te.placeholder(out_shape, added, "residual") if workload.residual else None,
        bias=te.placeholder(channels, "int32" if scaled and not groups else "float32", "bias")
        if scaled or workload.has_bias
        else None,
        multiplier=te.placeholder(groups or channels, "float32", "multiplier") if scaled else None,
        shift=te.placeholder(channels, "float32", "shift") if dynamic else None,
        ints=common.scalars("ints", 5, "int32") if integer else None,
        floats=common.scalars("floats", 3, "float32") if integer else None,
        table=te.placeholder((256,), "uint8", "table") if tabled else None,
        numbers=numbers if integer else None,
    )


def close(func: Any, tail: Epilogue) -> Any:
    """``func`` without the scalar parameters: they are read from ``ints`` and ``floats`` at its head."""
    if tail.numbers is None:
        return func
    count = len(tail.numbers.all())
    params = func.params[:-count]
    ints, floats = (next(param for param in params if param.name == name) for name in ("ints", "floats"))
    zp_y = ints[ZP_Y]
    if tail.dtype == "float32":
        least, most = floats[LO_F], floats[HI_F]
    else:
        least, most = (ints[LO] - zp_y).astype("float32"), (ints[HI] - zp_y).astype("float32")
    values = (ints[ZP_X], ints[ZP_R], floats[M_R], least, most, common.origin_of(zp_y))
    head = [tirx.Bind(var, value) for var, value in zip(func.params[-count:], values, strict=True)]
    return tirx.PrimFunc(params, tirx.SeqStmt([*head, func.body]), func.ret_type, func.attrs)


def finish(tail: Epilogue, acc: Expr, at: Sequence[Expr], *, biased: bool = False) -> Expr:
    """The value that follows ``acc`` at the output's element ``at``, in its dtype; before the table, if any.

    biased: the sum started at the bias, so that it is in ``acc`` already.
    """
    total = acc if tail.bias is None or biased else acc + tail.bias[at[-1]]
    numbers = tail.numbers
    if tail.scales is not None:
        assert tail.shift is not None
        total = common.fma(_multiplied(tail, total, at), tail.scales(*at[:-1]), tail.shift[at[-1]])
    if numbers is None:
        total = total if tail.residual is None else total + tail.residual(*at)
        return activate(tail.workload.activation, total)
    clamped = tirx.min(tirx.max(_scaled(tail, total, at), numbers.least), numbers.most)
    if tail.dtype == "float32":
        return clamped
    return common.rounded(clamped, numbers.origin, tail.dtype)


def scaled(tail: Epilogue, acc: Expr, at: Sequence[Expr], *, biased: bool) -> Expr:
    """The first part of an integer epilogue that ends in ``narrow``: what follows ``acc``, in float32; for uint8 at
    most 2^30, since x86 does not convert what is beyond int32 to its end.

    Compared as integers, floats below 0 are all smaller than those above, and keep their order there.
    """
    total = acc if tail.bias is None or biased else acc + tail.bias[at[-1]]
    if tail.dtype == "int8":
        return _scaled(tail, total, at)
    bits = tirx.min(tirx.reinterpret("int32", _scaled(tail, total, at)), tirx.const(FAR_BITS, "int32"))
    return tirx.reinterpret("float32", bits)


def _multiplied(tail: Epilogue, total: Expr, at: Sequence[Expr]) -> Expr:
    """float32(total) times its channel's multiplier; with groups, the sum has their scales already."""
    assert tail.multiplier is not None
    value = total.astype("float32")
    return value * tail.multiplier[at[-1]] if len(tail.multiplier.shape) == 1 else value


def _scaled(tail: Epilogue, total: Expr, at: Sequence[Expr]) -> Expr:
    assert tail.numbers is not None
    value = _multiplied(tail, total, at)
    if tail.residual is None:
        return value
    if tail.workload.float_residual:
        assert tail.multiplier is not None
        added = tail.residual(*at)
        if len(tail.multiplier.shape) == 1:
            return common.fma(total.astype("float32"), tail.multiplier[at[-1]], added)
        return value + added
    return common.fma(common.centred(tail.residual(*at), tail.numbers.zp_r), tail.numbers.m_r, value)


def lookup(table: Tensor, q: Expr, dtype: str) -> Expr:
    """table[q's byte] in ``dtype``; q is in storage (uint8 or int8), the table uint8 (256,)."""
    byte = q if dtype == "uint8" else tirx.reinterpret("uint8", q)
    found = table[byte.astype("int32")]
    return found if dtype == "uint8" else tirx.reinterpret(dtype, found)


def nibble(byte: Expr, odd: Expr) -> Expr:
    """The int4 weight, as int8, in the low (odd 0) or high (odd 1) half of a byte that holds it plus 8."""
    half = (byte >> (odd * 4).astype("uint8")) & tirx.const(15, "uint8")
    return half.astype("int8") - tirx.const(8, "int8")
