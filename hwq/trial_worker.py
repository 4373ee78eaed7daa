"""A worker of ``hwq.trial``: builds candidates, or tries them on one device.

Its first job is {"kind": "open", ...}: for a builder the memory that it may take, for the others the device. Then jobs
"build" (functions to an object file and a library) or "try" (a candidate beside the task's default). See ``hwq.crew``.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from hwq import device as devices
from hwq.compile_kernel import compile_to, is_whole, link
from hwq.crew import answer_jobs, die_with
from hwq.errors import HwqError

# Figures of each of the two kernels, in turns: so many, and more of a candidate that seems faster after them.
TURNS = (5, 11)
# A figure is the median of so many readings at least, so that no interruption is in it, and of as many more as take
# FIGURE_S in all. A reading is of one call, or of as many as take READING_S: the clock takes 0.05 us itself.
READINGS = 3
FIGURE_S = 0.003
READING_S = 5e-6
# Calls with weights that are not near: how long those of one figure may take.
ROUND_S = 0.006
# A candidate whose least figure is so many times the default's largest gets no fourth.
HOPELESS = 2.0
# Calls of one figure on a board, where the caches are swept before each.
SWEPT_CALLS = 5

Tell = Callable[[str], None]
Row = dict[str, Any]


@dataclass(slots=True, kw_only=True, eq=False)
class Bench:
    """What a worker holds between its jobs: the device, and of the last task its tensors and its default."""

    device: devices.Device | None = None
    until: float = float("inf")
    threads: int = 0
    task: str = ""
    tensors: dict[str, Any] = field(default_factory=dict)
    default: Call | None = None
    expected: Any = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """A loaded kernel and what it is called with: a tuple of arguments for each set of weights, all read in turn."""

    library: Any
    symbol: str
    turns: tuple[tuple[Any, ...], ...]
    sweep_bytes: int
    hot_s: float

    @property
    def out(self) -> Any:
        """The tensor that it writes."""
        return self.turns[0][-1]


def main(parent: int) -> None:
    """Works until its input ends. parent: the process that started it."""
    die_with(parent)
    answer_jobs(partial(_answer, Bench()))


def _answer(bench: Bench, content: Row, tell: Tell) -> Row:
    if content["kind"] == "open":
        return _open(bench, content)
    return build(content, tell) if content["kind"] == "build" else attempt(bench, content, tell)


def _open(bench: Bench, content: Mapping[str, Any]) -> Row:
    if "memory_bytes" in content:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = content["memory_bytes"] if hard == resource.RLIM_INFINITY else min(content["memory_bytes"], hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        return {}
    try:
        bench.device = devices.connect(
            content["device"], timeout_s=content["connect_s"], session_s=content["session_s"]
        )
        if bench.device.session is not None:
            bench.until = time.monotonic() + content["session_s"]
        devices.require_model(bench.device, content["cpu_model"])
    except HwqError as error:
        if bench.device is not None:
            devices.close(bench.device)
        return {"error": error.message, "aloud": error.code == "device-other"}
    return {}


def build(content: Mapping[str, Any], tell: Tell) -> Row:
    """Compile what the cache lacks, and link it: {}, {"refused": why}, or the machine's {"failed": [code, message]}."""
    tell("build")
    try:
        path = Path(content["object"])
        if not is_whole(path):
            functions = {symbol: tvm.ir.load_json(text) for symbol, text in content["functions"].items()}
            compile_to(path, functions, content["instruction"], tvm.target.Target(json.loads(content["target"])))
        link(Path(content["library"]), [path])
    except HwqError as error:
        failed = error.code == "save-failed"
        return {"failed": [error.code, error.message]} if failed else {"refused": f"{error.code}: {error.message}"}
    except MemoryError:
        return {"refused": "out of memory", "over": True}
    except Exception as error:  # the caller must hear of every job
        return {"refused": f"compile-failed: {error!r}"}
    return {}


def attempt(bench: Bench, content: Mapping[str, Any], tell: Tell) -> Row:
    """Check a candidate, and time it and the default in turns: {"seconds": [...], "default_s": [...]}, or
    {"refused": why}, {"default": what is wrong with the default}, {"lost": why}: the device does not answer any more.
    """
    assert bench.device is not None
    if bench.task and time.monotonic() > bench.until - content["needs_s"]:  # a new session may be as short
        return {"lost": "the time of the session is over", "again": True, "over": True}
    tell("default")
    task = content["task"]
    at_fault = "default"
    try:
        if bench.threads != content["threads"]:
            devices.set_threads(bench.device, content["threads"])
            bench.threads = content["threads"]
        if bench.task != content["name"]:
            bench.task, bench.tensors, bench.default = "", {}, None
            default = _load(bench, task, content["default"], None)
            bench.expected = np.load(task["expected"])
            wrong = _wrong(bench, default, task)
            if wrong is not None:
                return {"default": wrong}
            bench.task, bench.default = content["name"], default
        assert bench.default is not None
        at_fault = "refused"
        tell("candidate")
        candidate = _load(bench, task, content["candidate"], bench.default)
        wrong = _wrong(bench, candidate, task)
        if wrong is not None:
            return {"refused": wrong}
        seconds, default_s = _figures(bench, candidate, bench.default)
    except Exception as error:  # TVM raises many kinds
        text = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        lost = isinstance(error, HwqError) and error.code == "device-lost"
        return {"lost": text, "over": True} if lost else {at_fault: f"failed: {text}"}
    return {"seconds": seconds, "default_s": default_s}


def _load(bench: Bench, task: Mapping[str, Any], kernel: Mapping[str, Any], default: Call | None) -> Call:
    """The kernel's library and arguments on the device. Weights from afar are several, as many as the default has."""
    device = bench.device
    assert device is not None
    library = devices.load_library(device, Path(kernel["library"]))
    inputs = [_tensor(bench, name) for name in task["inputs"]]
    out = devices.empty(device, tuple(task["shape"]), task["dtype"])

    def arguments(fresh: bool) -> tuple[Any, ...]:
        found = [_tensor(bench, name, fresh) for name in kernel["constants"]]
        if kernel["expand"] is not None:
            symbol, shape, dtype = kernel["expand"]
            grown = devices.empty(device, tuple(shape), dtype)
            with devices.heard(device):
                library[symbol](found[kernel["weight"]], grown)
            found[kernel["weight"]] = grown
        return (*inputs, *found, out)

    turns = [arguments(fresh=False)]
    with devices.heard(device):
        timer = library.time_evaluator(kernel["symbol"], device.context, number=1, repeat=READINGS)
        hot_s = min(timer(*turns[0]).results)
    span, sweep = task["span_bytes"], 0
    if span and device.session is not None:
        sweep = span // 2  # as much is read as written
    elif span:
        held = sum(math.prod(each.shape) * np.dtype(each.dtype).itemsize for each in turns[0][len(inputs) : -1])
        copies = max(2, min(-(-span // held), int(ROUND_S / hot_s))) if default is None else len(default.turns)
        turns += [arguments(fresh=True) for _ in range(copies - 1)]
    return Call(library=library, symbol=kernel["symbol"], turns=tuple(turns), sweep_bytes=sweep, hot_s=hot_s)


def _tensor(bench: Bench, name: str, fresh: bool = False) -> Any:
    """The array of a file on the device, sent once a task; ``fresh``: once more, to memory of its own."""
    assert bench.device is not None
    if fresh:
        return devices.tensor(bench.device, np.load(name))
    if name not in bench.tensors:
        bench.tensors[name] = devices.tensor(bench.device, np.load(name))
    return bench.tensors[name]


def _wrong(bench: Bench, call: Call, task: Mapping[str, Any]) -> str | None:
    """Run it once, over bytes that it has to overwrite: what is wrong with its output, None if nothing is."""
    expected = bench.expected
    assert bench.device is not None
    with devices.heard(bench.device):
        call.out.copyfrom(_others(expected))
        call.library[call.symbol](*call.turns[0])
        result = call.out.numpy()
    if task["bound"] is None:
        different = result != expected
    else:
        different = ~(np.abs(result.astype(np.float64) - expected) <= np.load(task["bound"]))
    count = int(different.sum())
    return f"differs: {count} of {expected.size} elements" if count else None


def _others(expected: Any) -> Any:
    """An array that is wrong everywhere: a kernel that writes nothing is found out."""
    return ~expected if expected.dtype.kind in "iub" else np.full_like(expected, np.nan)


def _figures(bench: Bench, candidate: Call, default: Call) -> tuple[list[float], list[float]]:
    """(seconds of the candidate, of the default), measured in turns, first the one and then the other in front."""
    assert bench.device is not None
    seconds: list[float] = []
    default_s: list[float] = []
    pair = [(candidate, seconds), (default, default_s)]
    for turn in range(TURNS[1]):
        for call, found in pair if turn % 2 else reversed(pair):
            with devices.heard(bench.device):
                found.append(_figure_s(bench.device, call))
        if turn >= 2 and min(seconds) > HOPELESS * max(default_s):
            break
        if turn + 1 == TURNS[0] and statistics.median(map(operator.truediv, seconds, default_s)) >= 1:
            break
    return seconds, default_s


def _figure_s(device: devices.Device, call: Call) -> float:
    """Seconds a call takes, timed where the kernel runs."""
    if len(call.turns) > 1:
        return _call_s(call.library[call.symbol], call.turns)
    number = 1 if call.sweep_bytes else math.ceil(READING_S / call.hot_s)
    repeat = SWEPT_CALLS if call.sweep_bytes else max(READINGS, int(FIGURE_S / (number * call.hot_s)))
    timer = call.library.time_evaluator(
        call.symbol, device.context, number=number, repeat=repeat, cache_flush_bytes=call.sweep_bytes
    )
    return float(statistics.median(timer(*call.turns[0]).results))


def _call_s(call: Any, turns: Any) -> float:
    """Seconds a call takes: the median of one call with each of ``turns``, so that interruptions are not in it."""
    marks = [time.perf_counter()]
    for args in turns:
        call(*args)
        marks.append(time.perf_counter())
    return statistics.median(after - before for before, after in itertools.pairwise(marks))
