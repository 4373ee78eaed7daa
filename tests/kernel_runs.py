"""Compile one kernel, run it, and hold it to the reference: what the tests of the generic schedules share."""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi

from hwq.compile_kernel import require_instruction
from hwq.graph import Activation, Shape
from hwq.lowering import pipeline
from hwq.reference import evaluate
from hwq.schedule import kernel_for
from hwq.target import Target
from hwq.workload import Kernel, Workload

Array = npt.NDArray[Any]
STORAGES = ("uint8", "int8")
# Bytes: TVM's tensors begin at multiples of this, and so do those of a loaded model.
ALIGNMENT = 64
# Channel counts at which vector code goes wrong.
CHANNELS = (1, 7, 16, 17, 33, 127)
# Stores of one byte, word or float, but of constants.
SCALAR_STORE = re.compile(r"^\s*(movb|movw|v?pextrb|v?pextrw|v?movss)\b\s*[^$\s].*\)\s*$")


def machine(storage: str = "uint8") -> Target:
    """This machine, with activations stored as asked."""
    return replace(Target.load("host"), activation_storage=storage)


def make(
    op: str,
    scheme: str,
    inputs: Sequence[Shape],
    output: Shape,
    *,
    parallel: int = 1,
    activation: Activation | None = None,
    out_dtype: str | None = None,
    **attrs: Any,
) -> Workload:
    """A workload as ``hwq.lower`` makes it."""
    return Workload(
        op=op,
        scheme=scheme,
        input_shapes=tuple(inputs),
        output_shape=tuple(output),
        attrs=tuple(sorted(attrs.items())),
        activation=activation or Activation(),
        out_dtype=out_dtype or ("float32" if scheme == "f32" else "int8"),
        parallel=parallel,
    )


def numbers(rng: np.random.Generator, shape: Shape, dtype: str) -> Array:
    """Every byte there is, or ordinary floats."""
    if dtype == "float32":
        return rng.standard_normal(shape).astype(np.float32) * np.float32(4)
    return rng.integers(0, 256, shape).astype(np.uint8).view(dtype)


def ints(storage: str) -> Array:
    """(zp_a, zp_b, zp_y, lo, hi) that are all different and clamp some values."""
    return np.array([-5, 7, 1, -100, 90], np.int32) + np.int32(128 if storage == "uint8" else 0)


def at_the_edge(value: Array) -> Array:
    """A copy of ``value`` in front of a page that nobody may touch, so that reading or writing beyond its end ends the
    process. Kernels are promised a start at a multiple of ALIGNMENT: up to one byte less of that may lie between."""
    page = mmap.PAGESIZE
    held = -(-value.nbytes // page) * page
    pages = np.frombuffer(mmap.mmap(-1, held + page), np.uint8)
    assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(pages.ctypes.data + held), page, 0) == 0
    first = (held - value.nbytes) // ALIGNMENT * ALIGNMENT
    copy = pages[first : first + value.nbytes].view(value.dtype).reshape(value.shape)
    copy[...] = value
    return copy


def shared(value: Array) -> Any:
    """The tensor in the memory of ``value``."""
    return tvm_ffi.from_dlpack(value, require_alignment=ALIGNMENT)


def run(
    kernel: Kernel, target: Target, arguments: Sequence[Array], shape: Shape, dtype: str, weight: int | None = None
) -> Array:
    """The kernel's output, over a buffer of values that it has to overwrite; every argument is ``at_the_edge``, and the
    assembly holds the kernel's instruction. weight: which argument the kernel's own function expands, if it has one.
    """
    library = tvm.compile(tvm.IRModule(kernel.functions), target.tvm(), tir_pipeline=pipeline())
    require_instruction(kernel.symbol, kernel.instruction, library.mod.inspect_source("asm"))
    out = at_the_edge(np.full(shape, 99, dtype))
    values = [shared(at_the_edge(value)) for value in arguments]
    if kernel.expand is not None and weight is not None:
        expanded = shared(at_the_edge(np.full(kernel.expand.shape, 99, kernel.expand.dtype)))
        library[kernel.expand.symbol](values[weight], expanded)
        values[weight] = expanded
    library[kernel.symbol](*values, shared(out))
    return out.copy()


def check(
    workload: Workload,
    target: Target,
    arguments: Sequence[Array],
    *,
    tolerance: float = 0.0,
    kernel: Kernel | None = None,
) -> None:
    """The kernel of ``workload`` equals the reference, or is within ``tolerance`` relative to max(1, |reference|)."""
    dtype = target.activation_storage if workload.out_dtype == "int8" else "float32"
    result = run(kernel or kernel_for(workload, target), target, arguments, workload.output_shape, dtype)
    expected = evaluate(workload, arguments, target.activation_storage)
    if tolerance:
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(result, expected)
        assert result.dtype == expected.dtype


def assembly(kernel: Kernel, target: Target) -> list[str]:
    """The lines of the kernel's own computation; the target's instructions need not be this machine's."""
    library = tvm.compile(tvm.IRModule({kernel.symbol: kernel.func}), target.tvm(), tir_pipeline=pipeline())
    text = library.mod.inspect_source("asm")
    start = text.index(f"{kernel.symbol}_compute_:")
    return str(text[start : text.index(".Lfunc_end", start)]).splitlines()


def assert_vectorized(
    workload: Workload,
    *mnemonics: str,
    width: int | None = None,
    apply: Callable[[Workload, Target], Kernel | None] = kernel_for,
) -> None:
    """Built for AVX2 and for AVX512, the kernel uses the instructions on whole registers (or on ``width`` bits), and
    stores no single element. apply: the family, where it is not the first that takes the workload."""
    for name in ("x86-avx2", "x86-avx512-vnni"):
        target = Target.load(name)
        kernel = apply(workload, target)
        assert kernel is not None
        lines = assembly(kernel, target)
        register = {256: "%ymm", 512: "%zmm"}[width or target.vector_bits]
        for wanted in mnemonics:
            assert any(re.match(rf"\s*{wanted}\w*\s", line) and register in line for line in lines), (name, wanted)
        assert [line for line in lines if SCALAR_STORE.match(line)] == [], name
