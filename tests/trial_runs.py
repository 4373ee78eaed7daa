"""A step to try candidates for, candidates that are wrong on purpose, and workers that fail where they are told to.

As the module of a crew's seats it is ``hwq.trial_worker``, but for kernels whose name ends in a word of BAD_BUILDS.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from anchor_runs import anchor, make_arguments
from tvm import tirx

from hwq import trial_worker
from hwq.lower import Program, Step
from hwq.schedule import kernel_for
from hwq.target import Target
from hwq.trial import Trial
from hwq.workload import Kernel, Workload

BAD_BUILDS = ("hangs", "hogs", "unlucky", "late")
SMALL = anchor("conv2d", "w8a8", (1, 6, 6, 16), 32)


def case(target: Target, workload: Workload = SMALL) -> tuple[Step, Program, Kernel]:
    """A step of ``workload`` with random constants, the program around it, and its default kernel."""
    arguments = make_arguments(workload, target, np.random.default_rng(0))
    count = len(workload.input_shapes)
    names = tuple(f"x{number}" for number in range(count))
    values = {name: (value.shape, str(value.dtype)) for name, value in zip(names, arguments, strict=False)}
    values["y"] = (workload.output_shape, target.activation_storage if workload.out_dtype == "int8" else "float32")
    constants = tuple(arguments[count:])
    step = Step(name="layer", workload=workload, inputs=names, output="y", constants=constants, weight=0)
    program = Program(inputs=names, outputs=("y",), values=values, steps=(step,))
    return step, program, kernel_for(workload, target)


def trial(kernel: Kernel) -> Trial:
    return Trial(decision="{}", kernel=kernel)


def named(kernel: Kernel, word: str) -> Kernel:
    """The same kernel under a name that ends in ``word``."""
    symbol = f"{kernel.symbol}_{word}"
    return replace(kernel, symbol=symbol, func=kernel.func.with_attr("global_symbol", symbol))


def doing(kernel: Kernel, word: str, *statements: Any) -> Kernel:
    """A kernel of the same arguments that does something else."""
    nothing = tirx.Evaluate(tirx.const(0, "int32"))
    body = tirx.SeqStmt([*statements, nothing]) if statements else nothing
    func = kernel.func.with_body(body)
    return replace(named(replace(kernel, func=func), word), instruction=None)


def illegal(kernel: Kernel) -> Kernel:
    """It executes an instruction that no processor has."""
    return doing(kernel, "illegal", tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.trap")))


def unselectable(kernel: Kernel) -> Kernel:
    """It has another machine's instruction in it, which ends LLVM and the process around it."""
    barrier = tirx.call_llvm_intrin("void", "llvm.aarch64.dmb", tirx.const(11, "int32"))
    return doing(kernel, "unselectable", tirx.Evaluate(barrier))


def endless(kernel: Kernel) -> Kernel:
    """It waits for a signal that does not come."""
    return doing(kernel, "endless", tirx.Evaluate(tirx.call_extern("int32", "pause")))


def idle(kernel: Kernel) -> Kernel:
    """It writes nothing."""
    return doing(kernel, "idle")


def sleepy(kernel: Kernel, least_s: float) -> Kernel:
    """The same, but slower."""
    sleep = tirx.Evaluate(tirx.call_extern("int32", "usleep", int(least_s * 1e6)))
    return doing(kernel, "sleepy", sleep, kernel.func.body)


def other_weights(kernel: Kernel) -> Kernel:
    """It computes with other weights."""
    pack = kernel.pack
    assert pack is not None
    return replace(kernel, pack=lambda weight: pack(np.roll(weight, 1)))


def main(parent: int) -> None:
    """``hwq.trial_worker.main`` with a compiler that has its faults."""
    compile_to = trial_worker.compile_to

    def compiled(path: Path, functions: Mapping[str, Any], *rest: Any) -> None:
        word = next(iter(functions)).rsplit("_", 1)[-1]
        if word in BAD_BUILDS:
            _fail(word)
        compile_to(path, functions, *rest)

    trial_worker.compile_to = compiled  # type: ignore[assignment]
    trial_worker.main(parent)


def _fail(word: str) -> None:
    if word == "hangs":
        time.sleep(600)
    elif word == "hogs":
        bytearray(20 << 30)
    else:  # the first time only
        try:
            Path(f"{os.environ['TRIAL_FLAG']}-{word}").touch(exist_ok=False)
        except FileExistsError:
            return
        if word == "late":
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)
