"""Decoding, token by token: a LLaMA-like stack with made-up weights, beside OpenVINO's int8 and int4 of the network.

    python benchmarks/bench_decode.py [--layers 8] [--width 2048] [--threads 1,2] [--schemes w8a8_dyn,w4a8_g64_dyn]
                                      [--past 128] [--rounds 6] [--quick] [--json FILE]

At one token every weight is read once and multiplied once, so that the limit is the memory's: its bandwidth is measured
first, with as many threads, and each contender's bytes of weights a second are held against it. hwq steps a session
whose cache has ``past`` tokens in it; OpenVINO gets the step as a network of its own, with as many keys and values as
inputs, which lie ready, weights compressed by NNCF (``compress_weights``: int8, or int4 in groups of 64 and 128, the
fastest counts), and its dynamic quantization of activations as it comes and in groups of 32 to 128, the fastest counts.
The embedding's table is not among the bytes: one row of it is read.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import te
from tvm.s_tir import Schedule

import hwq
from hwq.artifact import Artifact
from hwq.cpu import cpu_model
from hwq.probe import fastest_s
from hwq.target import Target, host
from hwq.threads import use_threads

sys.path.insert(0, str(Path(__file__).resolve().parent))
import peers
from race import Contender, in_turns, usual_s
from transformer_networks import LLAMA_STACK, Size, decoder, decoder_step

# Bytes that no cache here holds.
FAR_BYTES = 1 << 28
# Places of memory that a thread reads at once.
STREAMS = 4
RUNS = 8
# At least so much of the memory's bandwidth, and so much faster than int8, are int4 weights to be.
LEAST_SHARE, LEAST_GAIN = 0.8, 1.6
GROUPS = (64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender with so many threads: seconds a token, bytes of weights that a token reads."""

    name: str
    threads: int
    token_s: float
    weight_bytes: int


def memory_bytes_per_s(target: Target, threads: int) -> float:
    """What ``threads`` cores read from memory together, each at ``STREAMS`` places."""
    rows = FAR_BYTES // 256 // threads // STREAMS
    a = te.placeholder((threads, STREAMS, rows, 64), "int32", "a")
    s, k = te.reduce_axis((0, STREAMS), "s"), te.reduce_axis((0, rows), "k")
    func = te.create_prim_func([a, te.compute((threads, 64), lambda t, i: te.sum(a[t, s, k, i], axis=[s, k]), "out")])
    schedule = Schedule(tvm.IRModule({"main": func}))
    block = schedule.get_sblock("out")
    thread, column, stream, row = schedule.get_loops(block)
    schedule.reorder(thread, row, stream, column)
    schedule.unroll(stream)
    schedule.parallel(thread)
    copy = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(copy, thread)
    for loop in (column, schedule.get_loops(copy)[-1]):
        vectors, lane = schedule.split(loop, [None, target.lanes("int32")])
        schedule.vectorize(lane)
        schedule.unroll(vectors)
    schedule.decompose_reduction(block, row)
    use_threads(threads)
    return threads * STREAMS * rows * 256 / fastest_s(schedule.mod["main"], replace(target, cores=threads))


def streamed_bytes(artifact: Artifact) -> int:
    """Packed bytes of the weights that every token reads: all but the embedding's table."""
    layers = artifact.report["layers"]
    return sum(layer["weight_bytes"] for layer in layers if layer["op"] != "gather")


def ours(artifact: Artifact, past: int, vocabulary: int) -> Contender:
    """A session with ``past`` tokens in its cache, stepped on; it starts again when the cache is full."""
    session = artifact.start()
    rng = np.random.default_rng(0)
    words = rng.integers(0, vocabulary, (1, past))

    def run(count: int) -> list[float]:
        session.reset()
        session(words)
        times = []
        for token in rng.integers(0, vocabulary, (count, 1, 1)):
            start = time.perf_counter()
            session(token)
            times.append(time.perf_counter() - start)
        return times

    return run


def compiled(size: Size, schemes: Sequence[str], threads: int, length: int) -> dict[str, Artifact]:
    """The step of the stack in each scheme throughout."""
    model = hwq.decoder(hwq.load(decoder(size, length)))
    return {scheme: hwq.compile(model, host(), schemes=[scheme], threads=threads) for scheme in schemes}


def openvino_steps(size: Size, past: int, threads: int, folder: Path) -> dict[str, tuple[Contender, int]]:
    """OpenVINO's int8 and int4 in their best settings, and the bytes of weights a token reads."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    core = openvino.Core()
    path = folder / "step.onnx"
    if not path.exists():
        onnx.save(decoder_step(size, past), str(path))
    modes: dict[str, list[Callable[[], Any]]] = {
        "OpenVINO int8": [lambda: nncf.compress_weights(core.read_model(str(path)))],
        "OpenVINO int4": [
            lambda group=group: nncf.compress_weights(
                core.read_model(str(path)),
                mode=nncf.CompressWeightsMode.INT4_SYM,
                group_size=group,
                ratio=1.0,
                all_layers=True,
            )
            for group in GROUPS
        ],
    }
    found: dict[str, tuple[Contender, int]] = {}
    for name, makers in modes.items():
        settings = {
            f"{index}, {dynamic}": openvino_step(core, model, size, threads, dynamic)
            for index, model in enumerate([make() for make in makers])
            for dynamic in (None, 0, 32, 64, 128)
        }
        times = in_turns(settings, 2, 4)
        best = min(settings, key=lambda key: min(times[key]))
        print(f"{name}, threads {threads}: best is (groups {GROUPS}, dynamic) {best}", file=sys.stderr, flush=True)
        bits, group = (8.0, size.width) if "int8" in name else (4.0, GROUPS[int(best.split(",")[0])])
        found[name] = settings[best], int(weights_of(size) * (bits / 8 + 2 / group))
    return found


def weights_of(size: Size) -> int:
    """How many weights a token is multiplied with."""
    attention = 2 * size.width**2 + 2 * size.width * size.groups * size.head
    return size.layers * (attention + 3 * size.width * size.inner) + size.width * size.vocabulary


def openvino_step(core: Any, model: Any, size: Size, threads: int, dynamic: int | None) -> Contender:
    """A compiled step with all that makes it fast, its inputs in place."""
    import openvino

    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": True,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if dynamic is not None:
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = dynamic
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    rng = np.random.default_rng(0)
    for given in model.inputs:
        shape = [int(extent) for extent in given.get_shape()]
        value = rng.standard_normal(shape, np.float32)
        words = given.get_element_type() == openvino.Type.i64
        value = rng.integers(0, size.vocabulary, shape) if words else value
        request.set_tensor(given.get_any_name(), openvino.Tensor(value))

    def run(count: int) -> list[float]:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            request.infer(share_outputs=True)
            times.append(time.perf_counter() - start)
        return times

    return run


def compare(size: Size, given: argparse.Namespace, threads: int, folder: Path) -> list[Row]:
    """Every contender, in turns."""
    length = given.past + RUNS + 8
    artifacts = compiled(size, given.schemes, threads, length)
    contenders: dict[str, tuple[Contender, int]] = {
        f"hwq {scheme}": (ours(artifact, given.past, size.vocabulary), streamed_bytes(artifact))
        for scheme, artifact in artifacts.items()
    }
    if peers.available("openvino") and peers.available("nncf"):
        contenders |= openvino_steps(size, given.past, threads, folder)
    times = in_turns({name: run for name, (run, _) in contenders.items()}, given.rounds, RUNS)
    return [
        Row(name=name, threads=threads, token_s=usual_s(times[name]), weight_bytes=size_bytes)
        for name, (_, size_bytes) in contenders.items()
    ]


def table(rows: Sequence[Row], bandwidth: Mapping[int, float]) -> str:
    """All rows: ms a token, tokens a second, and the share of the memory's bandwidth."""
    lines = [
        "| contender | threads | ms a token | tokens/s | MB of weights | GB/s | of the memory's |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        rate = row.weight_bytes / row.token_s
        lines.append(
            f"| {row.name} | {row.threads} | {row.token_s * 1e3:.2f} | {1 / row.token_s:.1f} | "
            f"{row.weight_bytes / 1e6:.1f} | {rate / 1e9:.1f} | {rate / bandwidth[row.threads]:.0%} |"
        )
    return "\n".join(lines)


def verdicts(rows: Sequence[Row], bandwidth: Mapping[int, float]) -> list[str]:
    """The bars: int4's share of the bandwidth, and its gain over int8."""
    lines = []
    for threads, schemes in itertools.groupby(rows, lambda row: row.threads):
        found = {row.name: row for row in schemes}
        fours = [row for name, row in found.items() if name.startswith("hwq w4")]
        eight = found.get("hwq w8a8_dyn")
        for row in fours:
            share = row.weight_bytes / row.token_s / bandwidth[threads]
            word = "met" if share >= LEAST_SHARE else "missed"
            lines.append(f"{row.name}, {threads} threads: {share:.0%} of the bandwidth; >= {LEAST_SHARE:.0%}: {word}")
            if eight is not None:
                gain = eight.token_s / row.token_s
                word = "met" if gain >= LEAST_GAIN else "missed"
                lines.append(f"{row.name}, {threads} threads: {gain:.2f} times int8's tokens; >= {LEAST_GAIN}: {word}")
    return lines


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LLAMA_STACK.layers)
    parser.add_argument("--width", type=int, default=LLAMA_STACK.width)
    parser.add_argument("--threads", type=lambda text: [int(count) for count in text.split(",")], default=[1, 2])
    parser.add_argument("--schemes", type=lambda text: text.split(","), default=["w8a8_dyn", "w4a8_g64_dyn"])
    parser.add_argument("--past", type=int, default=128, help="tokens in the cache")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--json", type=Path, help="write the results there as well")
    given = parser.parse_args()
    given.rounds = 2 if given.quick else given.rounds
    scale = given.width / LLAMA_STACK.width
    size = replace(LLAMA_STACK, layers=given.layers, width=given.width, inner=int(LLAMA_STACK.inner * scale))
    print(f"{datetime.date.today()}, {cpu_model()}; {peers.versions()}")
    rows: list[Row] = []
    bandwidth: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="hwq-bench-") as folder:
        for threads in given.threads:
            bandwidth[threads] = memory_bytes_per_s(host(), threads)
            print(f"memory, {threads} threads: {bandwidth[threads] / 1e9:.1f} GB/s", flush=True)
            rows += compare(size, given, threads, Path(folder))
    print(table(rows, bandwidth))
    print("\n".join(verdicts(rows, bandwidth)))
    if given.json:
        found = [
            {"name": it.name, "threads": it.threads, "token_s": it.token_s, "bytes": it.weight_bytes} for it in rows
        ]
        given.json.write_text(json.dumps({"rows": found, "memory_bytes_per_s": bandwidth}, indent=1))


if __name__ == "__main__":
    main()
