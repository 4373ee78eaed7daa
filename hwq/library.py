"""Library: from a program and its compiled kernels to one shared library and one block of constants.

Three functions are written for the network and linked with the very object files that were measured:

    main(inputs..., constants, expanded, workspace, outputs...)   the kernels, one after the other, by direct calls
    timed(inputs..., constants, expanded, workspace, outputs..., marks)   the same, and what the clock says in between
    prepare(constants, expanded)   once after loading: the weights of kernels that want them in a larger form

Where values live across calls, main and timed take ``state`` behind workspace: the caller keeps it, zero at first.
constants, expanded, workspace and state are bytes; where each array lies in them is written into the code. A call of a
kernel costs some 10 ns this way, where TVM's virtual machine takes 450: more than the kernels of a small network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq.compile_kernel import compile_code, link
from hwq.execute import Array, KernelSet, packed_constants
from hwq.files import scratch
from hwq.lower import Program, Step
from hwq.memory_plan import MemoryPlan, aligned, plan_memory, value_bytes
from hwq.tables import TABLE_OPS
from hwq.target import Target
from hwq.workload import Kernel

# Two 64-bit numbers: the seconds and nanoseconds of a struct timespec, of Linux's monotonic clock.
MARK = 2
CLOCK_MONOTONIC = 1

Packed = Mapping[str, Sequence[Array]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A network's shared library and constants; the sizes of the arrays that a caller gives it besides. state_bytes: 0
    where no value lives across calls; its functions then take no such array."""

    code: bytes
    constants: bytes
    expanded_bytes: int
    workspace_bytes: int
    state_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Layout:
    """Offsets of every constant, by step, and of the expanded weights; and the memory of values."""

    constants: Mapping[str, tuple[int, ...]]
    expanded: Mapping[str, int]
    memory: MemoryPlan
    constants_bytes: int
    expanded_bytes: int


def pack(program: Program, kernels: KernelSet) -> Packed:
    """The constants of each step that calls a kernel, as the library holds them."""
    return {step.name: packed_constants(step, kernels) for step in kernel_steps(program)}


def build_library(program: Program, kernels: KernelSet, packed: Packed, target: Target) -> Library:
    """The library of ``program`` for ``target``; packed: its constants, by ``pack``.

    Raises HwqError as ``compile_code``, ``link`` and ``scratch``.
    """
    layout = _layout(program, kernels, packed)
    constants = bytearray(layout.constants_bytes)
    for name, arrays in packed.items():
        for offset, array in zip(layout.constants[name], arrays, strict=True):
            constants[offset : offset + array.nbytes] = array.tobytes()
    used = dict.fromkeys(kernels.objects[step.workload] for step in kernel_steps(program) if step.workload is not None)
    code = compile_code(network_functions(program, kernels, layout, packed), None, target.tvm())
    with scratch() as folder:
        path, main = folder / "network.so", folder / "network.o"
        main.write_bytes(code)
        link(path, [main, *used])
        return Library(
            code=path.read_bytes(),
            constants=bytes(constants),
            expanded_bytes=layout.expanded_bytes,
            workspace_bytes=layout.memory.workspace_bytes,
            state_bytes=layout.memory.state_bytes,
        )


def kernel_steps(program: Program) -> Iterator[Step]:
    """The steps that call a kernel."""
    return (step for step in program.steps if step.workload is not None)


def repeated(program: Program, packed: Packed) -> dict[tuple[str, int], tuple[str, int]]:
    """(step, which of its constants) -> where an earlier step holds the same array (``hwq.tables``)."""
    seen: dict[int, tuple[str, int]] = {}
    found: dict[tuple[str, int], tuple[str, int]] = {}
    for step in kernel_steps(program):
        held = packed[step.name] if step.workload is not None and step.workload.op in TABLE_OPS else ()
        for i, array in enumerate(held):
            if seen.setdefault(id(array), (step.name, i)) != (step.name, i):
                found[step.name, i] = seen[id(array)]
    return found


def _layout(program: Program, kernels: KernelSet, packed: Packed) -> _Layout:
    constants: dict[str, tuple[int, ...]] = {}
    expanded: dict[str, int] = {}
    at = grown = 0
    earlier = repeated(program, packed)
    for step in kernel_steps(program):
        offsets = []
        for i, array in enumerate(packed[step.name]):
            if (step.name, i) in earlier:
                name, which = earlier[step.name, i]
                offsets.append(constants[name][which])
                continue
            offsets.append(at)
            at += aligned(array.nbytes)
        constants[step.name] = tuple(offsets)
        expand = kernels.of(step).expand
        if expand is not None:
            expanded[step.name] = grown
            grown += aligned(math.prod(expand.shape) * np.dtype(expand.dtype).itemsize)
    return _Layout(
        constants=constants,
        expanded=expanded,
        memory=plan_memory(program),
        constants_bytes=at,
        expanded_bytes=grown,
    )


# The functions, as TIR


def network_functions(program: Program, kernels: KernelSet, layout: _Layout, packed: Packed) -> dict[Any, Any]:
    """main, timed and prepare; and for each kernel a private function that wraps its arguments and calls it."""
    found: dict[Any, Any] = {}
    callees: dict[str, Any] = {}
    for step in kernel_steps(program):
        kernel = kernels.of(step)
        arrays = [(array.shape, str(array.dtype)) for array in packed[step.name]]
        if kernel.expand is not None and kernel.expand.symbol not in callees:
            assert step.weight is not None
            stored, result = arrays[step.weight], (kernel.expand.shape, kernel.expand.dtype)
            callees[kernel.expand.symbol] = tvm.ir.GlobalVar(f"call_{kernel.expand.symbol}")
            found[callees[kernel.expand.symbol]] = _caller(kernel.expand.symbol, [stored, result])
        if kernel.symbol not in callees:
            taken = [*(program.values[name] for name in step.inputs), *_read(kernel, step, arrays)]
            callees[kernel.symbol] = tvm.ir.GlobalVar(f"call_{kernel.symbol}")
            found[callees[kernel.symbol]] = _caller(kernel.symbol, [*taken, program.values[step.output]])
    return {
        "main": _network("main", program, kernels, layout, callees),
        "timed": _network("timed", program, kernels, layout, callees),
        "prepare": _prepare(program, kernels, layout, callees),
        **found,
    }


def _read(kernel: Kernel, step: Step, arrays: Sequence[tuple[Any, str]]) -> list[tuple[Any, str]]:
    """Shapes and types of a step's constants as its kernel reads them."""
    expand = kernel.expand
    return [
        (expand.shape, expand.dtype) if expand is not None and i == step.weight else array
        for i, array in enumerate(arrays)
    ]


def _caller(symbol: str, arguments: Sequence[tuple[Any, str]]) -> tirx.PrimFunc:
    """A private function of raw pointers that calls the packed function ``symbol`` and returns its error code.

    It stands between because TVM declares a directly called function anew at each call, and no linker finds the second.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        pointers = [T.arg(f"p{i}", T.handle(dtype)) for i, (_, dtype) in enumerate(arguments)]
        views = [T.decl_buffer(shape, dtype, data=at) for at, (shape, dtype) in zip(pointers, arguments, strict=True)]
        with T.attr("default", "device_id", 0), T.attr("default", "device_type", tvm.cpu().dlpack_device_type()):
            T.evaluate(T.call_cpacked(f"__tvm_ffi_{symbol}", *views))
    func = builder.get()
    body = tirx.SeqStmt([func.body, tirx.Return(tirx.const(0, "int32"))])
    return tirx.PrimFunc(func.params, body, tvm.ir.PrimType("int32"), func.attrs)


def _call(callee: Any, arguments: Sequence[Any]) -> None:
    """Calls a private function, and returns from here with its error if it fails."""
    with T.If(tvm.ir.Call(callee, list(arguments), ret_ty="int32") != 0), T.Then():
        T.Return(tirx.const(-1, "int32"))


def _bytes(name: str, size: int) -> Any:
    return T.arg(name, T.buffer((max(size, 1),), "uint8"))


def _network(name: str, program: Program, kernels: KernelSet, layout: _Layout, callees: Mapping[str, Any]) -> Any:
    """The kernels in order. In "timed" the clock is read before the first and after each, and twice at the end."""
    memory = layout.memory
    steps = list(kernel_steps(program))
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        given = [T.arg(f"x{i}", T.buffer(*program.values[value])) for i, value in enumerate(program.inputs)]
        constants, expanded = _bytes("constants", layout.constants_bytes), _bytes("expanded", layout.expanded_bytes)
        workspace = _bytes("workspace", memory.workspace_bytes)
        state = _bytes("state", memory.state_bytes) if memory.state_bytes else None
        results = [T.arg(f"y{i}", T.buffer(*program.values[value])) for i, value in enumerate(program.outputs)]
        marks = T.arg("marks", T.buffer((MARK * (len(steps) + 2),), "int64")) if name == "timed" else None

        def address(value: str) -> Any:
            place = memory.places[value]
            if place.base == "workspace":
                return T.address_of(workspace[place.offset])
            if place.base == "state":
                assert state is not None
                return T.address_of(state[place.offset])
            return (given if place.base == "input" else results)[place.index].data

        def mark(index: int) -> None:
            if marks is not None:
                at = T.address_of(marks[MARK * index])
                T.evaluate(T.call_extern("int32", "clock_gettime", CLOCK_MONOTONIC, at))

        mark(0)
        for index, step in enumerate(steps):
            arguments = [address(value) for value in step.inputs]
            for i, offset in enumerate(layout.constants[step.name]):
                grown = step.name in layout.expanded and i == step.weight
                arguments.append(T.address_of(expanded[layout.expanded[step.name]] if grown else constants[offset]))
            _call(callees[kernels.of(step).symbol], [*arguments, address(step.output)])
            mark(index + 1)
        mark(len(steps) + 1)
        for value, index in memory.copies:
            T.evaluate(
                T.call_extern("handle", "memcpy", results[index].data, address(value), value_bytes(program, value))
            )
        T.evaluate(tirx.const(0, "int32"))
    return _exported(builder.get(), name)


def _prepare(program: Program, kernels: KernelSet, layout: _Layout, callees: Mapping[str, Any]) -> Any:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("prepare")
        constants, expanded = _bytes("constants", layout.constants_bytes), _bytes("expanded", layout.expanded_bytes)
        for step in kernel_steps(program):
            expand = kernels.of(step).expand
            if expand is not None and step.weight is not None:
                stored = T.address_of(constants[layout.constants[step.name][step.weight]])
                _call(callees[expand.symbol], [stored, T.address_of(expanded[layout.expanded[step.name]])])
        T.evaluate(tirx.const(0, "int32"))
    return _exported(builder.get(), "prepare")


def _exported(func: Any, name: str) -> Any:
    return func.with_attrs({"global_symbol": name, "tirx.is_scheduled": True})
