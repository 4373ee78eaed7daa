"""What quantizing costs in accuracy: hwq's schemes and mixes beside ONNX Runtime's and NNCF's int8, in one run.

    python benchmarks/bench_accuracy.py [--networks mobilenetv2,resnet32,resnet20,minilm,stories260k] [--pictures 600]
        [--json FILE]

For each real network, on pictures that nothing was calibrated on: w8a8 and w4a8 throughout, w4a8 with weights rounded
to the nearest, and the mix that ``hwq.compile`` finds within a share of w8a8's bytes and a drop (``MIXES``). The peers'
int8 comes from the same calibration pictures: ONNX Runtime's is QDQ, static, per channel; NNCF's both presets. Printed:
top-1 and what is lost of float's, the share of pictures with float's class, the logits' SQNR, bytes of weights. Times
have no part in the choice but for the mix's; the engine's wall time is printed beside it.

Of the language networks (``text_data``): w8a8, w8a8_dyn and mixes of int8 and int4 within shares of w8a8_dyn's bytes
(``TEXTS``), MiniLM calibrated on the dev split and judged on the test split, stories260K on its last stories and judged
on those before; beside them NNCF's int8 and int4 weights with each of its corrections, activations in float, which
OpenVINO runs. MiniLM takes an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

import hwq
from hwq.numerics import sqnr_db
from hwq.progress import lines

sys.path.insert(0, str(Path(__file__).resolve().parent))
import peers
import text_data
from race import Network
from real_data import Case, case

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Calibration and evaluation pictures; the budget: a share of w8a8's bytes, and top-1 that may be lost."""

    calibrate: int
    pictures: int
    share: float
    drop: float


MIXES = {
    "mobilenetv2": Mix(calibrate=128, pictures=600, share=0.65, drop=0.015),
    "resnet32": Mix(calibrate=256, pictures=2000, share=0.55, drop=0.007),
    "resnet20": Mix(calibrate=256, pictures=2000, share=0.60, drop=0.007),
}


# Shares of w8a8_dyn's bytes for the mixes of each language network.
TEXTS = {"minilm": (0.65,), "stories260k": (0.9, 0.85, 0.8, 0.75, 0.7)}
MIXED = ("w8a8_dyn", "w4a8_g64_dyn", "w4a16_g128")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRow:
    """A language network's figure, and float's: Spearman's rho (higher is better), or bits per byte (lower is)."""

    network: str
    contender: str
    figure: float
    in_float: float
    weight_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender's figures. drop, agreement: shares of the pictures; bytes of weights None for a peer."""

    network: str
    contender: str
    top1: float
    drop: float
    agreement: float
    sqnr_db: float
    weight_bytes: int | None


def rows_of(data: Case, mix: Mix, folder: Path, threads: int) -> list[Row]:
    """Every contender on the network of ``data``."""
    assert data.labels is not None
    labels, found = data.labels, []
    clean = onnx_outputs(data.model, data.inputs)

    def judge(contender: str, logits: Array, weight_bytes: int | None = None) -> None:
        top1, whole = (float((one.argmax(axis=1) == labels).mean()) for one in (logits, clean))
        row = Row(
            network=data.name,
            contender=contender,
            top1=top1,
            drop=whole - top1,
            agreement=float((logits.argmax(axis=1) == clean.argmax(axis=1)).mean()),
            sqnr_db=sqnr_db(clean, logits),
            weight_bytes=weight_bytes,
        )
        print(line(row), flush=True)
        found.append(row)

    judge("float (ONNX Runtime)", clean)
    model = hwq.load(str(data.model))
    sizes = {}
    for scheme in ("w8a8", "w4a8"):
        artifact = hwq.compile(model, calibration=data.calibration, schemes=[scheme], measure=False, threads=threads)
        sizes[scheme] = artifact.report["measured"]["weight_bytes"]
        judge(f"hwq {scheme}", artifact(data.inputs), sizes[scheme])
        if scheme == "w4a8":
            plain = hwq.build(model, replace(artifact.plan, roundings={}))
            judge("hwq w4a8, rounded to nearest", plain(data.inputs), sizes[scheme])
    began = time.perf_counter()
    budget = hwq.Budget(weight_bytes=mix.share * sizes["w8a8"], drop=mix.drop)
    artifact = hwq.compile(
        model,
        calibration=data.calibration,
        evaluate=(data.inputs, labels),
        budget=budget,
        threads=threads,
        progress=lines(sys.stderr),
    )
    size = artifact.report["measured"]["weight_bytes"]
    print(f"the mix took {time.perf_counter() - began:.0f} s; {artifact.report['verdict']}", flush=True)
    judge(f"hwq mix, {size / sizes['w8a8']:.0%} of w8a8's bytes", artifact(data.inputs), size)
    first = onnx.load(str(data.model), load_external_data=False).graph.input[0].name
    network = Network(name=data.name, path=folder / data.model.name, samples={first: data.calibration})
    network.path.write_bytes(data.model.read_bytes())
    for name, call in peer_calls(network).items():
        judge(name, call(data.inputs))
    return found


def text_rows(name: str, folder: Path, most: int | None, threads: int) -> list[TextRow]:
    """Every contender on the language network ``name``, on at most so many samples."""
    calibration: list[text_data.Feed]
    path = text_data.minilm(folder) if name == "minilm" else text_data.stories260k()
    model = hwq.load(path)
    if name == "minilm":
        one, other, scores = text_data.sentences("test", most)
        calibration = text_data.sentences_to_calibrate(64)

        def judge(call: text_data.Call) -> float:
            pair = (text_data.embeddings(call, feeds) for feeds in (one, other))
            return text_data.rank_correlation(*pair, scores)
    else:
        samples = text_data.stories(0, min(most or 100, 100 - text_data.CALIBRATE))
        calibration = text_data.stories(-text_data.CALIBRATE)[0]

        def judge(call: text_data.Call) -> float:
            return text_data.bits_per_byte(call, *samples)

    found: list[TextRow] = []

    def compiled(contender: str, schemes: tuple[str, ...], **more: Any) -> int:
        given = None if schemes == ("f32",) else calibration
        artifact = hwq.compile(model, calibration=given, schemes=schemes, measure=False, threads=threads, **more)
        return add(contender, judge(artifact), artifact.report["measured"]["weight_bytes"])

    def add(contender: str, figure: float, size: int) -> int:
        clean = found[0].figure if found else figure
        row = TextRow(network=name, contender=contender, figure=figure, in_float=clean, weight_bytes=size)
        print(f"| {name} | {contender} | {figure:.4f} | {figure - clean:+.4f} | {figure / clean - 1:+.2%} | {size} |")
        found.append(row)
        return size

    compiled("f32", ("f32",))
    # Most rows of short sentences are padding, which the least squared error of all rows looks at most.
    for observer in ("mse", "minmax"):
        compiled(f"w8a8, {observer}", ("w8a8",), observer=observer)
    int8 = compiled("w8a8_dyn", ("w8a8_dyn",))
    compiled("w4a8_g64_dyn", ("w4a8_g64_dyn",))
    for share in TEXTS[name]:
        budget = hwq.Budget(weight_bytes=share * int8)
        compiled(f"mix, at most {share:.0%} of w8a8_dyn's bytes", MIXED, budget=budget)
    if peers.available("nncf") and peers.available("openvino"):
        for way in peers.WEIGHTS:
            call, size = openvino_call(path, calibration, way, threads)
            add(f"NNCF {way}", judge(call), size)
    return found


def openvino_call(path: Path, calibration: list[text_data.Feed], way: str, threads: int) -> tuple[text_data.Call, int]:
    """(the network with NNCF's weights as a function of inputs, bytes of weights), in float all but these."""
    import openvino

    core = openvino.Core()
    found, size = peers.nncf_weights(core, path, calibration, way)
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    network = core.compile_model(found, "CPU", {**exact, "INFERENCE_NUM_THREADS": threads})

    def call(feed: text_data.Feed) -> Any:
        outputs = [value.copy() for value in network(feed).values()]
        return outputs[0] if len(outputs) == 1 else outputs

    return call, size


def onnx_outputs(path: Path, inputs: Array) -> Array:
    """The first output of the ONNX file on each sample, by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: one[None]})[0] for one in inputs])


def peer_calls(network: Network) -> dict[str, Callable[[Array], Array]]:
    """Each peer's int8 as a function from samples to logits."""
    calls: dict[str, Callable[[Array], Array]] = {}
    quantized = peers.onnx_runtime_int8(network)
    calls["ONNX Runtime int8"] = lambda inputs: onnx_outputs(quantized, inputs)
    if peers.available("nncf") and peers.available("openvino"):
        import openvino

        core = openvino.Core()
        for preset in peers.PRESETS:
            path = peers.nncf_int8(core, network, preset)
            compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            calls[f"NNCF int8, {preset}"] = lambda inputs, net=compiled: np.concatenate(
                [net(one[None])[0] for one in inputs]
            )
    return calls


def line(row: Row) -> str:
    """A row of the table."""
    size = "" if row.weight_bytes is None else f"{row.weight_bytes}"
    figures = f"{row.top1:.2%} | {100 * row.drop:.2f} | {row.agreement:.2%} | {row.sqnr_db:.1f} | {size}"
    return f"| {row.network} | {row.contender} | {figures} |"


def main() -> None:
    """All networks asked for, one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(MIXES))
    parser.add_argument("--pictures", type=int, help="at most so many to judge by")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the figures here as well")
    given = parser.parse_args()
    names = given.networks.split(",")
    for name in names:
        if name not in (*MIXES, *TEXTS):
            parser.error(f"--networks has {name!r}; accepted: {', '.join([*MIXES, *TEXTS])}")
    print("; ".join([f"hwq {hwq.Target.load('host').name}", peers.versions(), *peers.absent()]))
    print("| network | contender | top-1 | points lost | agreement | SQNR, dB | bytes of weights |")
    print("|---|---|---:|---:|---:|---:|---:|")
    rows: list[Row | TextRow] = []
    for name in (one for one in names if one in MIXES):
        mix = MIXES[name]
        data = case(name, evaluate=min(given.pictures or mix.pictures, mix.pictures), calibrate=mix.calibrate)
        with tempfile.TemporaryDirectory() as folder:
            rows += rows_of(data, mix, Path(folder), given.threads)
    if texts := [name for name in names if name in TEXTS]:
        print("\n| network | contender | Spearman's rho, or bits per byte | to float | | bytes of weights |")
        print("|---|---|---:|---:|---:|---:|")
    for name in texts:
        if name == "minilm" and (missing := text_data.minilm_missing()):
            print(f"minilm left out: {missing}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows += text_rows(name, Path(folder), given.pictures, given.threads)
    if given.json:
        Path(given.json).write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
