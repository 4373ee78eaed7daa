"""Placed: a network's library where it runs, on this machine or on a board, with its memory there; called and timed.

Constants, expanded weights and workspace are put there once. What a call of a board's takes is measured on the board:
the network between it and here is in no figure.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm_ffi

from hwq.device import Device, empty, heard, load_library, set_threads, tensor
from hwq.errors import HwqError
from hwq.library import MARK, Library
from hwq.memory_plan import ALIGNMENT

Array = npt.NDArray[Any]
# How often a board runs the network before the run whose layers count.
WARM = 3

Specs = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placed:
    """A loaded library. memory: its constants, expanded weights and workspace, as its functions take them."""

    device: Device
    module: Any
    memory: tuple[Any, Any, Any]

    @property
    def remote(self) -> bool:
        """Whether it runs on a board."""
        return self.device.session is not None


def place(library: Library, device: Device) -> Placed:
    """Load ``library`` on ``device``. Raises as ``load_library``, and HwqError "kernel-failed"."""
    module = load_library(device, library.code)
    with heard(device):
        return Placed(device=device, module=module, memory=load_memory(library, module, device))


def load_memory(library: Library, module: Any, device: Device) -> tuple[Any, Any, Any]:
    """A loaded library's constants, weights expanded from them, and an empty workspace."""
    constants = tensor(device, np.frombuffer(library.constants or bytes(1), np.uint8))
    sizes = (library.expanded_bytes, library.workspace_bytes)
    expanded, workspace = (empty(device, (max(size, 1),), "uint8") for size in sizes)
    succeed(module["prepare"](constants, expanded))
    return constants, expanded, workspace


def arguments(
    placed: Placed, inputs: Sequence[Array], outputs: Specs, threads: int, state: Any | None = None
) -> list[Any]:
    """The arguments of "main" on the device, the outputs last; ``threads`` are set for it. state: as ``new_state``
    makes it, where the library has some."""
    with heard(placed.device):
        set_threads(placed.device, threads)
        given = [tensor(placed.device, value) for value in inputs]
        kept = [] if state is None else [state]
        return [*given, *placed.memory, *kept, *(empty(placed.device, *spec) for spec in outputs.values())]


def new_state(placed: Placed, library: Library) -> Any:
    """What lives across calls of a library, on the device and as it is at first; None where it has none."""
    return tensor(placed.device, np.zeros(library.state_bytes, np.uint8)) if library.state_bytes else None


def call(placed: Placed, args: Sequence[Any], outputs: int) -> tuple[Array, ...]:
    """Run the network: its last ``outputs`` arguments as arrays. Raises HwqError "kernel-failed", "device-lost"."""
    run(placed, args)
    with heard(placed.device):
        return tuple(value.numpy() for value in args[len(args) - outputs :])


def run(placed: Placed, args: Sequence[Any]) -> None:
    """Run the network on its arguments. Raises HwqError "kernel-failed", "device-lost"."""
    with heard(placed.device):
        succeed(placed.module["main"](*args))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Held:
    """An argument that is there for many calls. array: its memory, on this machine; None where that is a board's."""

    tensor: Any
    array: Array | None

    @staticmethod
    def of(device: Device, shape: Sequence[int], dtype: str) -> Held:
        """An argument of zeros on ``device``. Raises HwqError "device-lost"."""
        if device.session is not None:
            return Held(tensor=tensor(device, np.zeros(shape, dtype)), array=None)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        room = np.zeros(size + ALIGNMENT, np.uint8)
        start = -room.ctypes.data % ALIGNMENT
        array = room[start : start + size].view(dtype).reshape(shape)
        return Held(tensor=tvm_ffi.from_dlpack(array, require_alignment=ALIGNMENT), array=array)

    def write(self, value: Any) -> None:
        """Make it ``value``, which may broadcast."""
        if self.array is None:
            self.tensor.copyfrom(np.broadcast_to(np.asarray(value, str(self.tensor.dtype)), self.tensor.shape))
        else:
            self.array[...] = value

    def read(self) -> Array:
        """What it is, as an array of its own."""
        found: Array = self.tensor.numpy() if self.array is None else self.array.copy()
        return found


def call_times(placed: Placed, args: Sequence[Any], runs: int, warm_up: int) -> list[float]:
    """The seconds of each of ``runs`` calls, in order, by the clock of the machine that runs them."""
    main = placed.module["main"]
    with heard(placed.device):
        if placed.remote:
            for _ in range(max(1, warm_up)):
                succeed(main(*args))
            timer = placed.module.time_evaluator("main", placed.device.context, number=1, repeat=runs)
            return list(timer(*args).results)
        found = []
        for turn in range(warm_up + runs):
            start = time.perf_counter()
            code = main(*args)
            passed_s = time.perf_counter() - start
            succeed(code)
            if turn >= warm_up:
                found.append(passed_s)
        return found


def between_kernels(placed: Placed, args: Sequence[Any], kernels: int, runs: int) -> npt.NDArray[np.float64]:
    """Seconds (runs, kernels + 1) that each of so many kernels took in "timed"; the last is of the clock alone.

    A board runs it ``WARM`` times for each figure: after what it does for the network between, its caches are cold.
    """
    samples = []
    with heard(placed.device):
        marks = empty(placed.device, (MARK * (kernels + 2),), "int64")
        timed = placed.module["timed"]
        again = placed.module.time_evaluator("timed", placed.device.context, number=WARM) if placed.remote else None
        for _ in range(runs + 1):  # the first is a warm-up
            succeed(timed(*args, marks))
            if again is not None:
                again(*args, marks)
            seconds, nanoseconds = marks.numpy().reshape(-1, MARK).T
            samples.append(np.diff(seconds - seconds[0]) + np.diff(nanoseconds) * 1e-9)
    return np.array(samples[1:])


def succeed(code: Any) -> None:
    """Raises HwqError "kernel-failed" if a function of a library says that a kernel of it failed."""
    if code is not None:
        raise HwqError("kernel-failed", f"a kernel of the library failed (code {code}); please report the network")
