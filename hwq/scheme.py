"""The small types that travel between the stages: number formats, schemes, costs, candidates and budgets.

NumPy only; everything here is a frozen value. The numerics of each scheme are in ``hwq.numerics``.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwq.errors import HwqError

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class QType:
    """A signed or unsigned integer of ``bits`` bits."""

    bits: int
    signed: bool = True

    @property
    def qmin(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorScheme:
    """How one tensor is quantized: per tensor (``axis=None``) or per index of ``axis``, symmetric or not.

    ``group_size`` splits the reduction axis, each group with its own scale; None is one scale for all of it.
    """

    qtype: QType
    axis: int | None = None
    group_size: int | None = None
    symmetric: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A named pair of weight and activation formats and the accumulator they share; None is ``floats``, not quantized.

    floats: the numbers that a scheme without integers multiplies, "float32" or "bfloat16" (weights are stored so;
    activations are float32 in memory, and rounded by the kernel that multiplies them). dynamic: the ranges of
    activations are found as the network runs, row by row (of a sequence: token by token), so float32 tensors enter and
    leave, and nothing has to be calibrated.
    """

    name: str
    weight: TensorScheme | None
    act: TensorScheme | None
    accum: str
    floats: str = "float32"
    dynamic: bool = False

    @property
    def domain(self) -> str:
        """The format in which tensors enter and leave a layer of this scheme: "int8" or "f32"."""
        return "f32" if self.act is None or self.dynamic else "int8"

    @property
    def integer(self) -> bool:
        """Whether its products are of integers: in every scheme of domain "int8", and in dynamic ones."""
        return self.act is not None

    @property
    def needs_samples(self) -> bool:
        """Whether a layer needs calibration: static integers for their ranges, bfloat16 for what it loses. Of weights
        alone, and of rows as they come, there is a nominal loss (``hwq.nominal``).
        """
        return self.domain == "int8" or self.floats != "float32"

    @property
    def weight_type(self) -> str:
        """What weights are, in the words of target files: "float32", "bfloat16", "int8", "int4" or, in groups of 64
        or 128 inputs with a scale each, "int4_g64" or "int4_g128"."""
        if self.weight is None:
            return self.floats
        groups = "" if self.weight.group_size is None else f"_g{self.weight.group_size}"
        return f"int{self.weight.qtype.bits}{groups}"

    @property
    def act_type(self) -> str:
        """What activations are when they are multiplied, in the same words; "int8_dyn" where each row has a range."""
        return self.floats if self.act is None else f"int{self.act.qtype.bits}{'_dyn' if self.dynamic else ''}"

    @property
    def weight_bits(self) -> int:
        """Bits of one stored weight."""
        return {"float32": 32, "bfloat16": 16}[self.floats] if self.weight is None else self.weight.qtype.bits

    @property
    def group_size(self) -> int | None:
        """Neighbouring inputs whose weights share a scale; None where all of a channel's do."""
        return None if self.weight is None else self.weight.group_size


_ACT8 = TensorScheme(qtype=QType(bits=8), symmetric=False)
_ROWS8 = TensorScheme(qtype=QType(bits=8), axis=0)

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="f32", weight=None, act=None, accum="float32"),
        Scheme(name="bf16", weight=None, act=None, accum="float32", floats="bfloat16"),
        Scheme(name="w8a8", weight=TensorScheme(qtype=QType(bits=8), axis=0), act=_ACT8, accum="int32"),
        Scheme(name="w4a8", weight=TensorScheme(qtype=QType(bits=4), axis=0), act=_ACT8, accum="int32"),
        Scheme(
            name="w4a8_g64",
            weight=TensorScheme(qtype=QType(bits=4), axis=0, group_size=64),
            act=_ACT8,
            accum="int32",
        ),
        Scheme(
            name="w8a8_dyn",
            weight=TensorScheme(qtype=QType(bits=8), axis=0),
            act=_ROWS8,
            accum="int32",
            dynamic=True,
        ),
        Scheme(
            name="w4a8_g64_dyn",
            weight=TensorScheme(qtype=QType(bits=4), axis=0, group_size=64),
            act=_ROWS8,
            accum="int32",
            dynamic=True,
        ),
        Scheme(
            name="w4a16_g128",
            weight=TensorScheme(qtype=QType(bits=4), axis=0, group_size=128),
            act=None,
            accum="float32",
        ),
    )
}


def parse_schemes(names: Iterable[str] | None) -> tuple[Scheme, ...]:
    """The schemes named, in the order of ``SCHEMES``; None is all of them.

    Raises HwqError "scheme-unknown" for a name that is not in ``SCHEMES``, "scheme-unknown" too for an empty list.
    """
    if names is None:
        return tuple(SCHEMES.values())
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in SCHEMES:
            raise HwqError("scheme-unknown", f"scheme {name!r} is not known; accepted: {', '.join(SCHEMES)}")
    if not wanted:
        raise HwqError("scheme-unknown", f"schemes is empty; give at least one of {', '.join(SCHEMES)}")
    return tuple(scheme for name, scheme in SCHEMES.items() if name in wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a layer costs in one scheme. source: "roofline", "learned" or "measured"; interval_s: a 90% interval."""

    latency_s: float
    weight_bytes: int
    source: str
    interval_s: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One choice for one layer: the scheme, the loss it adds (output error, 0 for float) and what it costs."""

    layer: str
    scheme: str
    loss: float
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Upper bounds; what is left out is minimized, latency first.

    ``drop`` is lost accuracy as a fraction (0.005 is half a point), ``latency_s`` seconds for one call,
    ``weight_bytes`` the packed weights with their scales. Raises HwqError "budget-invalid" for a bound that is not a
    positive number; a ``drop`` may be 0.
    """

    drop: float | None = None
    latency_s: float | None = None
    weight_bytes: float | None = None

    def __post_init__(self) -> None:
        for field, zero in (("drop", True), ("latency_s", False), ("weight_bytes", False)):
            value = getattr(self, field)
            if value is None:
                continue
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not number or not (value > 0 or (zero and value == 0)):
                accepted = "a number of at least 0" if zero else "a positive number"
                raise HwqError(
                    "budget-invalid", f"budget {field} is {value!r}; accepted: {accepted}, or None for no bound"
                )
