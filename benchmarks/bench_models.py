"""Whole networks, side by side in one process: hwq, ONNX Runtime and OpenVINO, in float and in int8.

    python benchmarks/bench_models.py [--networks resnet50,dscnn] [--threads 1,2] [--schemes f32,w8a8,mixed]
                                      [--no-amx] [--runs 30] [--quick] [--json FILE]

One sample a call. ``race`` says how times are taken and what counts of them, ``peers`` how the peers are set up.
Inputs and outputs lie ready in the runtime's own memory on all sides. hwq is compiled as a user compiles it:
``hwq.compile(model, calibration=..., schemes=[...], threads=...)``, kernels measured; "mixed" is all schemes.

--no-amx keeps hwq and OpenVINO from using AMX (and, on both sides, bfloat16 instructions). The header says what the CPU
has: figures of a machine without AMX are never those of one with it.

Besides, what hwq.compile takes for ResNet-50 with all schemes, no tuning and an empty cache. The networks of
``networks`` and ``transformer_networks`` have weights that are made up: their shapes are real, their answers mean
nothing. resnet20, resnet32 and mobilenetv2 come with their real weights from HWQ_DATA.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import hwq
from hwq.cpu import cpu_flags, cpu_model
from hwq.errors import HwqError
from hwq.progress import lines
from hwq.scheme import SCHEMES
from hwq.store import tool_versions
from hwq.target import Target, host

sys.path.insert(0, str(Path(__file__).resolve().parent))
import peers
from networks import NETWORKS, build
from race import Contender, Network, Result, in_turns, summary, table, to_json
from real_data import case, data_dir
from transformer_networks import BERT_BASE, MINILM, encoder

REAL = ("resnet20", "resnet32", "mobilenetv2")
# Encoders, and how many tokens they are given.
ENCODERS = {"minilm": (MINILM, 64), "bert-base": (BERT_BASE, 128)}
NAMES = tuple(dict.fromkeys(("resnet50", "resnet18", "mobilenetv2", *NETWORKS, "resnet20", "resnet32", *ENCODERS)))
MIXED = "mixed"
CALIBRATION = 32
ROUNDS = 10
QUICK = (5, 5)  # rounds and runs
COMPILE_LIMIT_S = 60
# What OpenVINO is kept to without AMX, and the flags that hwq then does without.
WITHOUT_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
BEYOND_VNNI = ("amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "avx512_bf16", "avx512_fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run."""

    networks: tuple[str, ...]
    threads: tuple[int, ...]
    schemes: tuple[str, ...]
    no_amx: bool
    rounds: int
    runs: int
    time_compile: bool
    json: Path | None

    @property
    def amx(self) -> bool:
        """Whether AMX is there and used."""
        return not self.no_amx and "amx_int8" in cpu_flags()


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The command line; ends the process with a usage text where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=_listed, default=NAMES, help="of " + ", ".join(NAMES))
    parser.add_argument("--threads", type=_counts, default=(1, 2), help="worker threads, one table for each")
    parser.add_argument("--schemes", type=_listed, default=("f32", "w8a8"), help="hwq's contenders: schemes, or mixed")
    parser.add_argument("--no-amx", action="store_true", help="AVX512-VNNI on both sides")
    parser.add_argument("--runs", type=int, default=30, help=f"timed calls in each of {ROUNDS} rounds")
    parser.add_argument("--quick", action="store_true", help="a few short rounds, no timed compile")
    parser.add_argument("--json", type=Path, help="write the results there as well")
    given = parser.parse_args(arguments)
    for what, values, known in (
        ("networks", given.networks, NAMES),
        ("schemes", given.schemes, (*SCHEMES, MIXED)),
    ):
        unknown = sorted(set(values) - set(known))
        if unknown:
            parser.error(f"{what} {', '.join(unknown)} are not known; accepted: {', '.join(known)}")
    rounds, runs = QUICK if given.quick else (ROUNDS, given.runs)
    return Options(
        networks=given.networks,
        threads=given.threads,
        schemes=given.schemes,
        no_amx=given.no_amx,
        rounds=rounds,
        runs=runs,
        time_compile=not given.quick,
        json=given.json,
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(count) for count in text.split(","))
    if min(counts) < 1:
        raise ValueError
    return counts


def machine(options: Options) -> str:
    """What a reader of figures has to know."""
    flags = cpu_flags()
    if "amx_int8" not in flags:
        amx = "AMX is absent from this CPU"
    elif options.no_amx:
        amx = "AMX is there and switched off for hwq and OpenVINO"
    else:
        amx = "AMX is there and in use"
    tools = f"{tool_versions()}, {peers.versions()}"
    return f"{datetime.date.today()}, {cpu_model()}, {os.cpu_count()} cores; {amx}; {tools}"


def target_of(options: Options) -> Target:
    """This machine; without AMX as if its CPU ended with AVX512-VNNI."""
    flags = cpu_flags()
    return host(flags.difference(BEYOND_VNNI) if options.no_amx else flags)


def networks(names: Sequence[str], folder: Path) -> Iterator[Network]:
    """The networks there are of ``names``; files that have to be made go to ``folder``."""
    for name in names:
        if name in ENCODERS:
            yield encoder_network(name, folder)
            continue
        if name in REAL and data_dir() is not None:
            found = case(name, evaluate=1, calibrate=CALIBRATION)
            proto, pictures = onnx.load(str(found.model)), found.calibration
        elif name in NETWORKS:
            proto = build(name)
            rng = np.random.default_rng(0)
            pictures = rng.standard_normal((CALIBRATION, *NETWORKS[name].sample)).astype(np.float32)
        else:
            print(f"{name} is left out: no real networks here (HWQ_DATA)")
            continue
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        path = folder / f"{name}.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(proto), str(path))
        yield Network(name=name, path=path, samples={proto.graph.input[0].name: pictures})


def encoder_network(name: str, folder: Path) -> Network:
    """A transformer with made-up weights; its samples are words by chance, all of them shown."""
    size, tokens = ENCODERS[name]
    path = folder / f"{name}.onnx"
    onnx.save(encoder(size, tokens), str(path))
    words = np.random.default_rng(0).integers(0, size.vocabulary, (CALIBRATION, tokens))
    samples = {"input_ids": words, "attention_mask": np.ones_like(words)}
    return Network(name=name, path=path, samples=samples, transformer=True)


def ours(network: Network, scheme: str, threads: int, target: Target) -> Contender:
    """The network as ``hwq.compile`` gives it with one scheme allowed, or all of them."""
    artifact = hwq.compile(
        hwq.load(network.path),
        target,
        calibration=network.samples,
        schemes=None if scheme == MIXED else [scheme],
        threads=threads,
    )
    feed = network.feed()
    return lambda count: artifact.times(feed, runs=count, warm_up=0)


def compare(network: Network, threads: int, options: Options) -> Result:
    """All contenders on one network. A scheme that hwq cannot compile it in is named with the error and left out."""
    target = target_of(options)
    contenders: dict[str, Contender] = {}
    for scheme in options.schemes:
        try:
            contenders[f"hwq {scheme}"] = ours(network, scheme, threads, target)
        except HwqError as error:
            print(f"hwq {scheme} of {network.name} is left out: {error.code}: {error}", flush=True)
    contenders |= peers.peers(network, threads)
    times = in_turns(contenders, options.rounds, options.runs)
    return Result(network=network.name, threads=threads, times=times)


def time_compile(network: Network, target: Target) -> dict[str, Any]:
    """Print and return what a compile with all schemes takes where nothing was compiled or measured before."""
    before = os.environ.get("HWQ_CACHE")
    with tempfile.TemporaryDirectory(prefix="hwq-bench-") as folder:
        os.environ["HWQ_CACHE"] = folder
        try:
            start = time.perf_counter()
            artifact = hwq.compile(
                hwq.load(network.path), target, calibration=network.samples, trials=0, progress=lines(sys.stderr)
            )
            seconds = time.perf_counter() - start
        finally:
            os.environ.pop("HWQ_CACHE") if before is None else os.environ.update(HWQ_CACHE=before)
    chosen = list(artifact.plan.schemes.values())
    counts = ", ".join(f"{chosen.count(scheme)} layers in {scheme}" for scheme in sorted(set(chosen)))
    print(f"\n### hwq.compile of {network.name}: {seconds:.0f} s\n")
    given = f"{network.count} pictures, trials=0, all schemes, {artifact.threads} threads, empty cache"
    verdict = artifact.report["verdict"]
    print(f"{given}; the limit is {COMPILE_LIMIT_S} s. Chosen: {counts}. {verdict}.", flush=True)
    return {"network": network.name, "seconds": seconds, "limit_s": COMPILE_LIMIT_S, "verdict": verdict}


def main() -> None:
    """Prints a table for each network and number of threads, then one of all."""
    options = parse()
    if options.no_amx:  # before OpenVINO is imported
        os.environ.update(WITHOUT_AMX)
    print("\n".join([machine(options), *peers.absent()]), flush=True)
    results: list[Result] = []
    compiled: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="hwq-bench-") as folder:
        for network in networks(options.networks, Path(folder)):
            if network.name == "resnet50" and options.time_compile:
                compiled.append(time_compile(network, target_of(options)))
            for count in options.threads:
                results.append(compare(network, count, options))
                print(f"\n{table(results[-1])}", flush=True)
    print(f"\n{summary(results, options.amx)}")
    if options.json is not None:
        found = {"machine": machine(options), "amx": options.amx, "compile": compiled}
        options.json.write_text(json.dumps(found | {"results": to_json(results, options.amx)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
