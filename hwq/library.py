"""Library: from a program and its compiled kernels to one shared library.

The program becomes a Relax function whose calls go to the kernels' symbols (``call_dps_packed``); TVM plans its memory
and compiles it to VM bytecode, and one link joins that with the very object files that were measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, te, tirx

from hwq.compile_kernel import link, require_space
from hwq.execute import KernelSet, packed_constants
from hwq.lower import Program
from hwq.target import Target


def _stub() -> tirx.PrimFunc:
    """A function nobody calls: a module without one of its own would be linked as C source, kernels being outside."""
    source = te.placeholder((1,), "int8")
    function = te.create_prim_func([source, te.compute((1,), lambda i: source[i])])
    return function.with_attr({"global_symbol": "hwq_stub", "tirx.is_scheduled": True})


def to_relax(program: Program, kernels: KernelSet) -> tvm.IRModule:
    """The program as a Relax function "main"; weights and other constants are constants of the function."""
    builder = relax.BlockBuilder()
    params = {name: relax.Var(f"x{i}", _type(program, name)) for i, name in enumerate(program.inputs)}
    env: dict[str, Any] = dict(params)
    with builder.function("main", list(params.values())):
        with builder.dataflow():
            for step in program.steps:
                args = [env[name] for name in step.inputs]
                if step.workload is None:
                    env[step.output] = builder.emit(relax.op.reshape(args[0], program.values[step.output][0]))
                    continue
                args += [relax.const(value) for value in packed_constants(step, kernels)]
                call = relax.op.call_dps_packed(kernels.of(step).symbol, args, _type(program, step.output))
                env[step.output] = builder.emit(call)
            results = [builder.emit_output(env[name]) for name in program.outputs]
        builder.emit_func_output(results[0] if len(results) == 1 else relax.Tuple(results))
    builder.add_func(_stub(), "hwq_stub")
    return builder.get()


def _type(program: Program, value: str) -> relax.TensorType:
    shape, dtype = program.values[value]
    return relax.TensorType(shape, dtype)


def build_library(program: Program, kernels: KernelSet, target: Target) -> bytes:
    """The shared library of ``program`` for ``target``, as the bytes of a .so file."""
    executable = relax.build(to_relax(program, kernels), target.tvm(), exec_mode="bytecode")
    used = dict.fromkeys(str(kernels.objects[step.workload]) for step in program.steps if step.workload is not None)
    constants = sum(array.nbytes for step in program.steps for array in step.constants)
    with tempfile.TemporaryDirectory(prefix="hwq-") as folder:
        path = Path(folder) / "network.so"
        require_space(path.parent, 2 * constants)  # once more in an object file

        def fcompile(output: str, files: Sequence[str], **_: Any) -> None:
            link(Path(output), [Path(file) for file in files])

        fcompile.output_format = "so"  # type: ignore[attr-defined]
        fcompile.object_format = "o"  # type: ignore[attr-defined]
        executable.export_library(str(path), fcompile=fcompile, addons=list(used), workspace_dir=folder)
        return path.read_bytes()
