"""What a kernel has to compute, without the numbers: the key under which kernels are compiled, measured and stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy.typing as npt

from hwq.graph import Activation, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One kernel's job. Two layers of equal workload share one compiled kernel; their numbers are arguments.

    op: an operator of ``hwq.graph``, "quantize" / "dequantize", or "row_scale" / "quantize_rows". scheme: a name of
    SCHEMES. input_shapes: data inputs, of dynamic schemes the rows and their scales, the residual last. out_dtype:
    "int8" (in the target's storage) or "float32". attrs: sorted (key, value) pairs of the layer's attributes.
    float_residual: the residual is float32 though x is not. parallel: worker threads the kernel may be split over (1:
    no parallel loop).
    cut: how many tokens the shapes hold where the kernel takes one more input, how many of them there are
    (``hwq.schedules.cut``); 0 where it does not.
    """

    op: str
    scheme: str
    input_shapes: tuple[Shape, ...]
    output_shape: Shape
    attrs: tuple[tuple[str, Any], ...] = ()
    activation: Activation = field(default_factory=Activation)
    has_bias: bool = False
    residual: bool = False
    float_residual: bool = False
    out_dtype: str = "float32"
    parallel: int = 1
    cut: int = 0

    def attr(self, key: str) -> Any:
        """The value of an attribute that workloads of this op have."""
        return dict(self.attrs)[key]

    @property
    def key(self) -> str:
        """A stable text of this workload's whole content. What came later is in it only where it is used: records of
        what was there before keep their keys."""
        content = asdict(self)
        for later in ("float_residual", "cut"):
            if not content[later]:
                del content[later]
        return json.dumps(content, sort_keys=True, default=str)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.key.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expand:
    """What makes of packed weights, once when a library is loaded, what the kernel reads: func(packed, expanded).

    For kernels that want their weights in a form too large to store. shape and dtype are the expanded array's.
    """

    symbol: str
    func: Any
    shape: Shape
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kernel:
    """A scheduled kernel: the function, how its weights are packed, and the instruction its assembly must hold.

    pack: from integer (or float) weights as in ``Layer.weight`` to the array that is stored; None without weights.
    expand: from there to the array the kernel reads, where it is another; its function is compiled beside the kernel's.
    schedule: file and version ("x86/conv:1"), a part of every stored record's key. macs: multiply-accumulates a call.
    """

    symbol: str
    func: Any
    schedule: str
    pack: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None
    instruction: str | None = None
    expand: Expand | None = None

    @property
    def functions(self) -> dict[str, Any]:
        """Every function of the kernel's object file, by symbol."""
        return {self.symbol: self.func} | ({self.expand.symbol: self.expand.func} if self.expand else {})
