"""Whole networks, side by side in one process: hwq in float and in w8a8, ONNX Runtime in float and in int8.

    python benchmarks/bench_models.py [--networks resnet20,mobilenetv2,resnet50] [--threads 1,2] [--runs 30] [--quick]

One picture a call. Contenders take turns, round by round, so that a load on the machine falls on all of them. Ratios
are of the median of the faster half of a contender's calls, over all rounds: whatever else runs here only adds.
Inputs and outputs lie ready in the runtime's own memory on both sides.

ONNX Runtime is given its best setting: all graph optimizations, static shapes, its own pre-processing before
quantization, per-channel weights and uint8 activations calibrated on the same pictures, sequential execution, and
worker threads that spin while they wait. Spinning is worth a lot to it, and would be paid for by whoever runs next: so
every contender warms up before it is timed, and is followed by a pause in which its threads fall asleep.

Besides, what hwq.compile takes for ResNet-50 with all schemes, no tuning and an empty cache. ResNet-50's weights are
made up: its shapes are real, its answers mean nothing. The other networks come from HWQ_DATA.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

import hwq
from hwq.cpu import cpu_model
from hwq.progress import lines
from hwq.store import tool_versions

sys.path.insert(0, str(Path(__file__).resolve().parent))
from networks import resnet50
from real_data import case, data_dir

NETWORKS = ("resnet20", "mobilenetv2", "resnet50")
CALIBRATION = 32
ROUNDS = 10
WARM_UP = 3
PAUSE_S = 0.05
COMPILE_LIMIT_S = 180

Pictures = npt.NDArray[np.float32]
# How often to run, to the seconds of each run.
Contender = Callable[[int], list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """An ONNX file of batch 1 with pictures to calibrate on."""

    name: str
    path: Path
    pictures: Pictures


def networks(names: Sequence[str], folder: Path) -> Iterator[Network]:
    """The networks there are of ``names``; files that have to be made go to ``folder``."""
    for name in names:
        if name == "resnet50":
            proto = resnet50()
            rng = np.random.default_rng(0)
            pictures = rng.standard_normal((CALIBRATION, 3, 224, 224)).astype(np.float32)
        elif data_dir() is None:
            print(f"{name} is left out: no real networks here (HWQ_DATA)")
            continue
        else:
            found = case(name, evaluate=1, calibrate=CALIBRATION)
            proto, pictures = onnx.load(str(found.model)), found.calibration
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        path = folder / f"{name}.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(proto), str(path))
        yield Network(name=name, path=path, pictures=pictures)


# The peer


class Reader(quantization.CalibrationDataReader):
    """The calibration pictures, one by one, as ONNX Runtime asks for them."""

    def __init__(self, name: str, pictures: Pictures) -> None:
        self.batches = iter([{name: picture[None]} for picture in pictures])

    def get_next(self) -> dict[str, Pictures] | None:
        return next(self.batches, None)


def peer_int8(network: Network) -> Path:
    """ONNX Runtime's static quantization: QDQ, uint8 activations, int8 weights per channel."""
    prepared = network.path.with_suffix(".prepared.onnx")
    path = network.path.with_suffix(".int8.onnx")
    quant_pre_process(str(network.path), str(prepared), skip_symbolic_shape=True)  # no shape is free
    name = onnx.load(str(network.path)).graph.input[0].name
    quantization.quantize_static(
        str(prepared),
        str(path),
        Reader(name, network.pictures),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return path


def peer(path: Path, picture: Pictures, threads: int) -> Contender:
    """An ONNX Runtime session with all that makes it fast; see the module's text."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    value = onnxruntime.OrtValue.ortvalue_from_numpy(picture)
    binding.bind_ortvalue_input(session.get_inputs()[0].name, value)
    for output in session.get_outputs():
        binding.bind_ortvalue_output(
            output.name, onnxruntime.OrtValue.ortvalue_from_shape_and_type(output.shape, np.float32)
        )

    def run(count: int) -> list[float]:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            times.append(time.perf_counter() - start)
        return times

    return run


def ours(network: Network, scheme: str, threads: int) -> Contender:
    """The network compiled in one scheme throughout."""
    artifact = hwq.compile(
        hwq.load(network.path), calibration=network.pictures, schemes=[scheme], threads=threads, measure=False
    )
    picture = network.pictures[:1]
    return lambda count: artifact.times(picture, runs=count, warm_up=0)


# Measuring


def in_turns(contenders: Mapping[str, Contender], rounds: int, runs: int) -> dict[str, list[float]]:
    """The seconds of ``rounds`` times ``runs`` calls of each contender."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            run(WARM_UP)
            times[name] += run(runs)
            time.sleep(PAUSE_S)
    return times


def compare(network: Network, threads: int, rounds: int, runs: int) -> None:
    """Print one table: times, and how many times as fast as the fastest peer and as the peer's float each one is."""
    picture = network.pictures[:1]
    contenders = {
        "hwq f32": ours(network, "f32", threads),
        "hwq w8a8": ours(network, "w8a8", threads),
        "ONNX Runtime f32": peer(network.path, picture, threads),
        "ONNX Runtime int8": peer(peer_int8(network), picture, threads),
    }
    times = in_turns(contenders, rounds, runs)
    usual = {name: statistics.median(sorted(values)[: (len(values) + 1) // 2]) for name, values in times.items()}
    plain = usual["ONNX Runtime f32"]
    best = min(plain, usual["ONNX Runtime int8"])
    print(f"\n### {network.name}, {threads} thread{'s' if threads > 1 else ''}\n")
    print("| contender | ms | median of all | least | times as fast as the fastest peer | as ONNX Runtime f32 |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, values in times.items():
        shown = (usual[name], statistics.median(values), min(values))
        row = [f"{seconds * 1e3:.3f}" for seconds in shown] + [f"{one / usual[name]:.2f}" for one in (best, plain)]
        print(f"| {name} | {' | '.join(row)} |", flush=True)


def time_compile(network: Network) -> None:
    """Print what a compile with all schemes takes where nothing was compiled or measured before."""
    before = os.environ.get("HWQ_CACHE")
    with tempfile.TemporaryDirectory(prefix="hwq-bench-") as folder:
        os.environ["HWQ_CACHE"] = folder
        try:
            start = time.perf_counter()
            artifact = hwq.compile(
                hwq.load(network.path), calibration=network.pictures, trials=0, progress=lines(sys.stderr)
            )
            seconds = time.perf_counter() - start
        finally:
            os.environ.pop("HWQ_CACHE") if before is None else os.environ.update(HWQ_CACHE=before)
    chosen = list(artifact.plan.schemes.values())
    counts = ", ".join(f"{chosen.count(scheme)} layers in {scheme}" for scheme in sorted(set(chosen)))
    print(f"\n### hwq.compile of {network.name}: {seconds:.0f} s\n")
    given = f"{len(network.pictures)} pictures, trials=0, all schemes, {artifact.threads} threads, empty cache"
    verdict = artifact.report["verdict"]
    print(f"{given}; the limit is {COMPILE_LIMIT_S} s. Chosen: {counts}. {verdict}.", flush=True)


def machine() -> str:
    """What a reader of figures has to know."""
    versions = f"{tool_versions()}, ONNX Runtime {onnxruntime.__version__}"
    return f"{datetime.date.today()}, {cpu_model()}, {os.cpu_count()} cores; {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="of " + ", ".join(NETWORKS))
    parser.add_argument("--threads", default="1,2", help="worker threads, one table for each")
    parser.add_argument("--runs", type=int, default=30, help=f"timed calls in each of {ROUNDS} rounds")
    parser.add_argument("--quick", action="store_true", help="two short rounds, no timed compile")
    given = parser.parse_args()
    names, threads = given.networks.split(","), [int(count) for count in given.threads.split(",")]
    unknown = sorted(set(names) - set(NETWORKS))
    if unknown:
        parser.error(f"networks {', '.join(unknown)} are not known; accepted: {', '.join(NETWORKS)}")
    rounds, runs = (2, 3) if given.quick else (ROUNDS, given.runs)
    print(machine())
    with tempfile.TemporaryDirectory(prefix="hwq-bench-") as folder:
        for network in networks(names, Path(folder)):
            if network.name == "resnet50" and not given.quick:
                time_compile(network)
            for count in threads:
                compare(network, count, rounds, runs)


if __name__ == "__main__":
    main()
