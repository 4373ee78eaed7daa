"""Library: from a program and its compiled kernels to one shared library.

The program becomes a Relax function "main" whose calls go to the kernels' symbols (``call_dps_packed``); TVM plans its
memory and compiles it to VM bytecode, and one link joins that with the very object files that were measured. Another
function, "prepare", is called once when the library is loaded: it expands the weights of kernels that want them in a
form too large to store, and "main" takes what it returns after the network's own inputs.
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
from hwq.lower import Program, Step
from hwq.target import Target


def _stub() -> tirx.PrimFunc:
    """A function nobody calls: a module without one of its own would be linked as C source, kernels being outside."""
    source = te.placeholder((1,), "int8")
    function = te.create_prim_func([source, te.compute((1,), lambda i: source[i])])
    return function.with_attr({"global_symbol": "hwq_stub", "tirx.is_scheduled": True})


def to_relax(program: Program, kernels: KernelSet) -> tvm.IRModule:
    """The program as the functions "prepare" and "main"; weights and other constants are constants of theirs."""
    builder = relax.BlockBuilder()
    constants = {
        step.name: [relax.const(value) for value in packed_constants(step, kernels)]
        for step in program.steps
        if step.workload is not None
    }
    grown = [step for step in program.steps if step.workload is not None and kernels.of(step).expand is not None]
    with builder.function("prepare", []):
        with builder.dataflow():
            expanded = [builder.emit_output(_expanded(step, constants[step.name], kernels)) for step in grown]
        builder.emit_func_output(relax.Tuple(expanded))
    taken = {
        step.name: relax.Var(f"w{i}", value.ty) for i, (step, value) in enumerate(zip(grown, expanded, strict=True))
    }
    params = {name: relax.Var(f"x{i}", _type(program, name)) for i, name in enumerate(program.inputs)}
    env: dict[str, Any] = dict(params)
    with builder.function("main", [*params.values(), *taken.values()]):
        with builder.dataflow():
            for step in program.steps:
                args = [env[name] for name in step.inputs]
                if step.workload is None:
                    env[step.output] = builder.emit(relax.op.reshape(args[0], program.values[step.output][0]))
                    continue
                args += [
                    taken[step.name] if i == step.weight and step.name in taken else value
                    for i, value in enumerate(constants[step.name])
                ]
                call = relax.op.call_dps_packed(kernels.of(step).symbol, args, _type(program, step.output))
                env[step.output] = builder.emit(call)
            results = [builder.emit_output(env[name]) for name in program.outputs]
        builder.emit_func_output(results[0] if len(results) == 1 else relax.Tuple(results))
    builder.add_func(_stub(), "hwq_stub")
    return builder.get()


def _expanded(step: Step, constants: Sequence[Any], kernels: KernelSet) -> Any:
    """The call that expands a step's weight."""
    expand = kernels.of(step).expand
    assert expand is not None
    assert step.weight is not None
    result = relax.TensorType(expand.shape, expand.dtype)
    return relax.op.call_dps_packed(expand.symbol, [constants[step.weight]], result)


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
