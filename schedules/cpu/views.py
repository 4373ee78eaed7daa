"""Buffers of a kernel's arguments under other shapes than the computation used.

A computation over flat rows or pixels schedules better than one full of divisions; the caller still passes tensors of
the layer's own shapes. Both name the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import tirx

from hwq.graph import Shape


def with_shapes(func: Any, shapes: Mapping[int, Shape]) -> Any:
    """``func`` with the buffer of each parameter in ``shapes`` (by position) declared in that shape, equally large."""
    params = list(func.params)
    body = [func.body]
    for position, shape in shapes.items():
        inner = params[position]
        params[position] = tirx.decl_buffer(shape, inner.dtype, inner.name)
        body.insert(0, tirx.DeclBuffer(inner, data=params[position].data))
    return tirx.PrimFunc(params, tirx.SeqStmt(body), func.ret_type, func.attrs)
