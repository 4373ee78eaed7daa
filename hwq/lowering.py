"""How kernels go from scheduled TIR to LLVM: TVM's own passes, and one more.

TVM takes memory for every "local" buffer from a pool, by a call, and LLVM must then write sums to it that nobody reads.
On the stack they are registers: layers of a few microseconds gain 2 to 5%, others nothing (measured on Zen 4).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx import compilation_pipeline
from tvm.tirx.stmt import AllocBuffer

# A part of every object's name: what is compiled another way is another object.
VERSION = "stack:1"
# A worker thread's stack holds megabytes; what is larger than this is no set of registers.
LARGEST_BYTES = 16384


@functools.cache
def pipeline() -> str:
    """The name under which TVM knows these passes; they are registered with it when it is first asked for."""
    passes, _, device = compilation_pipeline.get_tir_pipeline("s_tir")
    host = [_stack_locals, tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin()]
    compilation_pipeline.register_tir_pipeline(
        "hwq", lambda: (passes, lambda: tvm.ir.transform.Sequential(host), device)
    )
    return "hwq"


def _on_stack(allocation: Any) -> Any:
    buffer = allocation.buffer
    sizes = [int(size) for size in buffer.shape if isinstance(size, tirx.IntImm)]
    fixed = len(sizes) == len(buffer.shape)
    if buffer.scope() != "local" or not fixed or math.prod(sizes) * _item_bytes(buffer.dtype) > LARGEST_BYTES:
        return allocation
    return AllocBuffer(buffer, {"disable_lower_builtin": tirx.const(1, "int32")})


def _item_bytes(dtype: Any) -> int:
    """Bytes of one element, which may be a vector."""
    found = tvm_ffi.dtype(str(dtype))
    return -(-found.bits * found.lanes // 8)


@tvm.transform.module_pass(opt_level=0, name="hwq.StackLocals")  # type: ignore[untyped-decorator]
def _stack_locals(module: Any, _context: Any) -> Any:
    functions = {
        name: func.with_body(tvm_ffi.structural_map(func.body, (AllocBuffer, _on_stack), order="post"))
        for name, func in module.functions.items()
    }
    return tvm.IRModule(functions, attrs=module.attrs)
