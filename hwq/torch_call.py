"""One call of an ATen operator, as ``hwq.torch_convert`` and ``hwq.torch_views`` see it, and what both do with it.

Where ONNX has the same operator, its converter in ``hwq.onnx_convert`` does the work, so that padding, slices and
products look alike from both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from hwq import onnx_convert
from hwq import relax_tools as rt
from hwq.graph import Shape

_OPSET = 18  # of the ONNX forms


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of an ATen operator: ``args`` by the names of its schema, tensors as Relax expressions.

    dtype: of the (first) result, by NumPy's name, "" where it is no tensor. emit binds a value.
    """

    op: str
    args: Mapping[str, Any]
    dtype: str
    emit: Callable[[rt.Expr], rt.Expr]

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def shape(self, name: str) -> Shape:
        return rt.shape_of(self.args[name])

    def ints(self, name: str, rank: int) -> Shape:
        """A list of integers, one integer repeated where the schema allows it."""
        value = self.args[name]
        found = rt.ints(value if isinstance(value, list | tuple) else [value])
        return found * rank if len(found) == 1 else found

    def axis(self, name: str, of: str = "self") -> int:
        return int(self.args[name]) % max(len(self.shape(of)), 1)


def through_onnx(call: Call, op: str, inputs: list[Any], **attrs: Any) -> Any:
    """What the converter of an ONNX operator makes of ``inputs``: expressions, arrays, None for what is not given."""
    outputs = attrs.pop("outputs", 1)
    arrays = [rt.value_of(item) if rt.is_const(item) else item for item in inputs]
    exprs = [rt.const(item) if isinstance(item, np.ndarray) else item for item in inputs]
    node = onnx_convert.Node(
        op=op, attrs=attrs, opset=_OPSET, inputs=tuple(exprs), outputs=outputs, emit=call.emit,
        arrays=tuple(item if isinstance(item, np.ndarray) else None for item in arrays),
    )  # fmt: skip
    results = onnx_convert.CONVERTERS[op](node)
    if results is None:
        raise NotImplementedError(f"{op} in this form")
    return results if outputs > 1 else results[0]


def number(value: Any, dtype: str) -> rt.Expr:
    """A number as a tensor without axes."""
    return relax.const(value, dtype)


def cast(call: Call, value: Any, dtype: str) -> rt.Expr:
    """A tensor or number as a tensor of ``dtype``."""
    if not isinstance(value, relax.Expr):
        return number(value, dtype)
    return value if rt.dtype_of(value) == dtype else call.emit(relax.op.astype(value, dtype))
