"""Probe: measure on a machine the rates that a target file states, and write the file anew with what was measured.

Read rates come from summing a buffer of a size that the level holds; the start of a parallel loop from an empty one; a
compute row's rate from the kernel that would run, on a layer of ordinary size, epilogue included: what that row
is worth, not what the instruction could do. A row that has no kernel yet keeps its number and its source.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import te
from tvm.s_tir import Schedule

from hwq.compile_kernel import compile_code, link
from hwq.cost import op_macs
from hwq.device import Device, heard, load_library, local, set_threads, tensor
from hwq.errors import HwqError
from hwq.execute import quiet
from hwq.files import scratch
from hwq.graph import ANCHORS
from hwq.progress import Callback
from hwq.schedule import kernel_for
from hwq.scheme import SCHEMES
from hwq.target import Compute, Target
from hwq.workload import Kernel, Workload

# Many short repeats: some of them fall between what else the machine does.
_REPEATS = 35
_MIN_REPEAT_MS = 1
MEASURED = "measured: hwq targets probe"
_LARGEST_BUFFER_BYTES = 256 << 20
# Below this a call's own cost would count.
_SHORT_BYTES = 1 << 20


def probe(
    target: Target, name: str, progress: Callback = quiet, device: Device | None = None, source: str = MEASURED
) -> str:
    """The text of a .toml called ``name``, with every rate of ``target`` measured on one core of ``device``.

    device: None is this machine. source: what the file says beside each number that was measured.
    Raises HwqError "target-no-build" or "cpu-lacks" for a target that this machine cannot run, and as ``load_library``.
    """
    machine = device or local()
    if machine.session is None:
        target.require_builds()
        missing = target.missing_flags()
        if missing:
            message = f"target {target.name} cannot be probed here: this CPU lacks {', '.join(missing)}; probe host"
            raise HwqError("cpu-lacks", message)
    total, done = len(target.compute) + 4, 0
    set_threads(machine, target.cores)
    measured: dict[str, float] = {"parallel_overhead_s": parallel_overhead_s(target, machine)}
    set_threads(machine, 1)

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    step()
    for field, size in buffer_bytes(target).items():
        measured[field] = read_bytes_per_s(size, target, device=machine)
        step()
    rows = []
    for row in target.compute:
        rate = macs_per_cycle(row, target, machine)
        rows.append(row if rate is None else replace(row, macs_per_cycle=_three_figures(rate), source=source))
        step()
    sources = dict(target.sources) | dict.fromkeys(measured, source)
    changed: dict[str, Any] = {key: _three_figures(value) for key, value in measured.items()}
    changed |= {"compute": tuple(rows), "sources": tuple(sources.items())}
    return to_toml(replace(target, name=name, **changed))


def buffer_bytes(target: Target) -> dict[str, int]:
    """For each read rate of ``target`` the size of a buffer that its level holds and the one above does not."""
    sizes = {"l2_bytes_per_s": max(target.l2_bytes // 2, 2 * target.l1_bytes)}
    if target.l3_bytes:
        sizes["l3_bytes_per_s"] = max(target.l3_bytes // 4, 2 * target.l2_bytes)
    last = max(target.l2_bytes, target.l3_bytes)
    return sizes | {"memory_bytes_per_s": min(4 * last, max(_LARGEST_BUFFER_BYTES, 2 * last))}


def read_bytes_per_s(size: int, target: Target, streams: int = 1, device: Device | None = None) -> float:
    """How fast one core reads a buffer of ``size`` bytes over and over; a small one several times a call.

    streams: from how many places of it at once.
    """
    rows, turns = _rows_and_turns(size, streams)
    return turns * rows * 256 / fastest_s(read_kernel(size, target, streams), target, device)


def _rows_and_turns(size: int, streams: int) -> tuple[int, int]:
    """A buffer's rows of 256 bytes, and how often a call reads it."""
    return size // 256 // streams * streams, max(1, _SHORT_BYTES // size)


def read_kernel(size: int, target: Target, streams: int = 1) -> Any:
    """The PrimFunc that ``read_bytes_per_s`` times: the sums of a buffer's columns."""
    rows, turns = _rows_and_turns(size, streams)
    a = te.placeholder((rows, 64), "int32", "a")
    t, k = te.reduce_axis((0, turns), "t"), te.reduce_axis((0, rows), "k")
    func = te.create_prim_func([a, te.compute((64,), lambda i: te.sum(a[k, i], axis=[t, k]), "out")])
    schedule = Schedule(tvm.IRModule({"main": func}))
    block = schedule.get_sblock("out")
    column, turn, row = schedule.get_loops(block)
    stream, row = schedule.split(row, [streams, None])
    schedule.reorder(turn, row, stream, column)
    schedule.unroll(stream)
    copy = schedule.cache_write(block, 0, "local")  # the sums stay in registers
    for loop in (column, schedule.get_loops(copy)[0]):
        vectors, lane = schedule.split(loop, [None, target.lanes("int32")])
        schedule.vectorize(lane)
        schedule.unroll(vectors)
    schedule.decompose_reduction(block, turn)
    return schedule.mod["main"]


def parallel_overhead_s(target: Target, device: Device | None = None) -> float:
    """What a parallel loop over ``target.cores`` costs beside the same loop in one thread; at least 0.1 us."""
    a = te.placeholder((target.cores, 16), "float32", "a")

    def seconds(parallel: bool) -> float:
        func = te.create_prim_func([a, te.compute(a.shape, lambda i, j: a[i, j] + np.float32(1), "out")])
        schedule = Schedule(tvm.IRModule({"main": func}))
        if parallel:
            schedule.parallel(schedule.get_loops(schedule.get_sblock("out"))[0])
        return fastest_s(schedule.mod["main"], target, device)

    return max(1e-7, seconds(True) - seconds(False))


def macs_per_cycle(row: Compute, target: Target, device: Device | None = None) -> float | None:
    """What the kernel for the first operator of ``row`` does in a cycle of one core; None if there is no kernel."""
    workload = typical_workload(row)
    kernel = kernel_of(row, workload, target)
    if kernel is None:
        return None
    return op_macs(workload) / (fastest_s(kernel.func, target, device) * target.clock_hz)


def kernel_of(row: Compute, workload: Workload, target: Target) -> Kernel | None:
    """The kernel that ``row`` gives ``workload``; None if there is none.

    The row goes first: another that serves the same operator may stand before it.
    """
    try:
        return kernel_for(workload, replace(target, compute=(row, *target.compute)))
    except HwqError:
        return None


def typical_workload(row: Compute, pixels: int | None = None, channels: int = 128) -> Workload:
    """A layer for the first operator of ``row`` ("*": conv2d) of ordinary size: 28 x 28 pixels and 128 channels.

    Operators without weights get 14 x 14, so that what is measured is their arithmetic and not the L3. conv2d is 5x5:
    a 3x3 may be computed with fewer products than it has, and it is the instruction's rate that is wanted.
    """
    op = "conv2d" if row.ops[0] == "*" else row.ops[0]
    size = pixels or (28 if op in ANCHORS else 14)
    shape, pooled = (1, size, size, channels), (1, size // 2, size // 2, channels)
    window = {"kernel": (3, 3), "strides": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    inputs: tuple[tuple[int, ...], ...] = (shape,)
    output: tuple[int, ...] = shape
    attrs: dict[str, Any] = {}
    if op in ("conv2d", "depthwise_conv2d"):
        wide = {"kernel": (5, 5), "padding": (2, 2, 2, 2)}
        attrs = window | ({"groups": channels} if op == "depthwise_conv2d" else wide)
    elif op in ("max_pool2d", "avg_pool2d"):
        attrs = {"kernel": (2, 2), "strides": (2, 2), "padding": (0, 0, 0, 0), "dilation": (1, 1)}
        attrs, output = attrs | {"count_include_pad": False}, pooled
    elif op in ("add", "multiply"):
        inputs = (shape, shape)
    elif op == "attention":
        inputs, output = ((1, 4 * size, channels),) * 3, (1, 4 * size, channels)
        attrs = {"heads": 2, "kv_heads": 2, "scale": 1.0, "causal": False}
    elif op == "dense":
        inputs, output = ((channels, 2 * channels),), (channels, 2 * channels)
    elif op == "gather":  # rows that stay near
        inputs, output, attrs = ((size, size),), (size, size, channels), {"ids": "int64", "rows": channels}
    types = (row.weight, row.act)
    scheme = next((name for name, scheme in SCHEMES.items() if (scheme.weight_type, scheme.act_type) == types), "w8a8")
    return Workload(
        op=op,
        scheme=scheme,
        input_shapes=(*inputs, (channels,)) if SCHEMES[scheme].dynamic and op == "dense" else inputs,
        output_shape=output,
        attrs=tuple(sorted(attrs.items())),
        has_bias=op in ANCHORS,
        out_dtype="int8" if row.act == "int8" else "float32",
    )


def to_toml(target: Target) -> str:
    """The target file that reads back as ``target``; JSON's texts, lists and numbers are TOML's too."""
    texts = ("name", "description", "kind", "mtriple", "mcpu", "device", "activation_storage", "requantize")
    lines = ["[target]"]
    for key in (*texts, "builds", "mattr", "cpu_flags"):
        value = getattr(target, key)
        if value is not None:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    for key, source in target.sources:
        if getattr(target, key):
            lines.append(f"{key} = {{ value = {getattr(target, key)!r}, source = {json.dumps(source)} }}")
    for row in target.compute:
        lines += ["", "[[compute]]", f"macs_per_cycle = {row.macs_per_cycle!r}"]
        keys = ("ops", "weight", "act", "instruction", "native", "schedules", "source")
        lines += [f"{key} = {json.dumps(getattr(row, key), ensure_ascii=False)}" for key in keys]
    return "\n".join(lines) + "\n"


def _three_figures(value: float) -> float:
    """A measured rate without the digits that are noise."""
    return float(f"{value:.3g}")


def fastest_s(func: Any, target: Target, device: Device | None = None) -> float:
    """Seconds one call takes on made-up arguments, the least of several repeats: what else runs there only adds."""
    return min(timer(func, target, device)(_REPEATS, _MIN_REPEAT_MS))


def timer(func: Any, target: Target, device: Device | None = None) -> Callable[[int, int], list[float]]:
    """A function of (repeats, least ms of each) that gives for each repeat the seconds a call of ``func`` takes.

    Raises HwqError as ``compile_code``, ``link`` and ``load_library``, and "device-lost" when it is called.
    """
    machine = device or local()
    with scratch() as folder:
        code, library = folder / "probe.o", folder / "probe.so"
        code.write_bytes(compile_code({"main": func.with_attr("global_symbol", "main")}, None, target.tvm()))
        link(library, [code])
        module = load_library(machine, library)
    types = [param.ty for param in func.params]
    arguments = [tensor(machine, np.ones([int(extent) for extent in it.shape], str(it.dtype))) for it in types]

    def seconds(repeats: int, least_ms: int) -> list[float]:
        with heard(machine):
            clock = module.time_evaluator("main", machine.context, repeat=repeats, min_repeat_ms=least_ms)
            return list(clock(*arguments).results)

    return seconds
