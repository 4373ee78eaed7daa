"""How many of TVM's worker threads the kernels called from this thread may use."""

from __future__ import annotations

import functools

import tvm

from hwq.cpu import available_cpus

_SHARE_ALL_CORES = -3  # TVM's ThreadGroup::kSpecifyThreadShareAllCore


@functools.cache
def _cpus_named_to_tvm() -> tuple[str, ...]:
    """This process's CPUs, told to TVM once and before it makes a pool: it would take half of them, for good."""
    cpus = tuple(str(cpu) for cpu in available_cpus())
    tvm.get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, len(cpus), list(cpus))
    return cpus


def use_threads(threads: int) -> None:
    """Let TVM use ``threads`` worker threads, at most one a CPU of this process; nothing happens if it is so already.

    Every CPU is named to TVM: given fewer, it would pin the calling thread to those.
    """
    cpus = _cpus_named_to_tvm()
    wanted = min(threads, len(cpus))
    if tvm.get_global_func("runtime.NumThreads")() != wanted:
        tvm.get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, wanted, list(cpus))
