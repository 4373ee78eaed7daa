"""The shell commands. Each ends with 0, or with one clear sentence and another code: 1 failed, 2 usage, 130 interrupted."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from hwq import report as reports
from hwq import target as targets
from hwq.errors import HwqError
from hwq.progress import Stages, bars, lines
from hwq.scheme import Budget
from hwq.units import parse

INTERRUPTED = 130


@contextlib.contextmanager
def _outcome(as_json: bool) -> Iterator[None]:
    """Turns errors into one sentence (or one JSON object) and a code."""
    try:
        yield
    except HwqError as error:
        if as_json:
            click.echo(json.dumps({"error": {"code": error.code, "message": error.message}}))
        else:
            click.echo(f"error: {error.message}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("interrupted: what was finished is kept, and the same command goes on from there", err=True)
        sys.exit(INTERRUPTED)


def _stages(as_json: bool) -> Stages:
    console = Console(stderr=True)
    return bars(console) if console.is_terminal and not as_json else lines(sys.stderr)


def _console() -> Console:
    """Where tables go: as wide as the terminal, or wide enough for a file."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def _emit(as_json: bool, value: Mapping[str, Any], show: Callable[[Console], None]) -> None:
    if as_json:
        click.echo(json.dumps(value, indent=1))
    else:
        show(_console())


def read_samples(path: str, inputs: tuple[str, ...]) -> tuple[dict[str, Any], Any]:
    """(arrays by input name, labels or None) of an .npz: one array a model input, "x" for the only one, and "labels".

    Raises HwqError "samples-missing" or "samples-invalid".
    """
    try:
        with np.load(path, allow_pickle=False) as pack:
            arrays = {name: pack[name] for name in pack.files}
    except FileNotFoundError as error:
        raise HwqError("samples-missing", f"samples file {path} does not exist; accepted: an .npz") from error
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise HwqError("samples-invalid", f"samples file {path} cannot be read ({error}); accepted: an .npz of arrays") from error
    except Exception as error:  # zipfile and zlib errors have no common base
        raise HwqError("samples-invalid", f"samples file {path} is damaged ({error}); accepted: a whole .npz") from error
    labels = arrays.pop("labels", None)
    if "x" in arrays and len(inputs) == 1 and inputs[0] not in arrays:
        arrays[inputs[0]] = arrays.pop("x")
    if set(arrays) != set(inputs):
        names = ", ".join(inputs) + (" (or x)" if len(inputs) == 1 else "")
        raise HwqError("samples-invalid", f"samples file {path} holds {sorted(arrays)}; accepted: {names}, and optionally labels")
    return arrays, labels


def _option_list(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _budget(drop: str | None, latency: str | None, size: str | None) -> Budget | None:
    if drop is None and latency is None and size is None:
        return None
    return Budget(
        drop=None if drop is None else parse(drop, "fraction", "--max-drop"),
        latency_s=None if latency is None else parse(latency, "time", "--max-latency"),
        weight_bytes=None if size is None else parse(size, "size", "--max-size"),
    )


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")(command)


def _job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What compile and plan have in common."""
    options = (
        click.argument("model"),
        click.option("--target", default="host", show_default=True, help="A name of `hwq targets`, a .toml, or host."),
        click.option("--calib", help="Calibration samples (.npz: one array a model input, samples first)."),
        click.option("--eval", "eval_", help="Evaluation samples with labels (.npz)."),
        click.option("--max-drop", help="Accuracy that may be lost, as 0.5%."),
        click.option("--max-latency", help="Time one call may take, as 3ms."),
        click.option("--max-size", help="Bytes the packed weights may take, as 4MB."),
        click.option("--schemes", help="Schemes that layers may take, as w8a8,f32 (default: all)."),
        click.option("--trials", default=0, show_default=True, help="Auto-scheduling measurements."),
        click.option("--work-dir", type=click.Path(), help="Where stages keep results; the same call goes on from there."),
        click.option("--threads", type=click.IntRange(1), help="Worker threads (default: the target's cores)."),
        click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Size of a free batch axis."),
        click.option("--observer", default="mse", show_default=True, help="minmax, percentile, mse or entropy."),
        click.option("--measure/--no-measure", default=None, help="Time kernels here (default: where they can run)."),
    )
    for option in reversed(options):
        command = option(command)
    return _json_option(command)


def _job(given: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """(model, target, keyword arguments) of ``hwq.compile`` or ``hwq.plan`` from the options of ``_job_options``."""
    import hwq

    budget = _budget(given["max_drop"], given["max_latency"], given["max_size"])
    target = hwq.Target.load(given["target"])
    model = hwq.load(given["model"], batch=given["batch"])
    names = tuple(model.graph.inputs)
    calibration = None if given["calib"] is None else read_samples(given["calib"], names)[0]
    evaluate = None
    if given["eval_"] is not None:
        inputs, labels = read_samples(given["eval_"], names)
        if labels is None:
            raise HwqError("samples-invalid", f"samples file {given['eval_']} has no labels; accepted: an .npz with labels (N,)")
        evaluate = (inputs, labels)
    return (
        model,
        target,
        {
            "calibration": calibration,
            "evaluate": evaluate,
            "budget": budget,
            "schemes": _option_list(given["schemes"]),
            "trials": given["trials"],
            "work_dir": given["work_dir"],
            "threads": given["threads"],
            "observer": given["observer"],
            "measure": given["measure"],
            "progress": _stages(given["as_json"]),
        },
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hwq")
def main() -> None:
    """Give each layer of a trained network the bit width that pays on a machine, and compile it."""
    if os.environ.get("HWQ_DEBUG"):
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")


@main.command("compile")
@_job_options
@click.option("--plan", "plan_path", help="Build exactly this plan (.json) instead of choosing one.")
@click.option("-o", "--output", required=True, help="The artifact to write (.hwq).")
def compile_command(as_json: bool, plan_path: str | None, output: str, **given: Any) -> None:
    """Compile MODEL (.onnx) into one artifact."""
    with _outcome(as_json):
        import hwq

        model, target, job = _job({**given, "as_json": as_json})
        if plan_path is None:
            artifact = hwq.compile(model, target, **job)
        else:
            plan = hwq.Plan.load(plan_path)
            keep = ("evaluate", "threads", "progress", "work_dir")
            artifact = hwq.build(model, plan, target, **{key: job[key] for key in keep})
        artifact.save(output)
        _emit(as_json, {**artifact.report, "artifact": output}, lambda console: reports.show(artifact.report, console))


@main.command("plan")
@_job_options
@click.option("-o", "--output", help="The plan to write (.json).")
def plan_command(as_json: bool, output: str | None, **given: Any) -> None:
    """Choose a scheme for each layer of MODEL without building it."""
    with _outcome(as_json):
        import hwq

        model, target, job = _job({**given, "as_json": as_json})
        plan = hwq.plan(model, target, **job)
        if output is not None:
            plan.save(output)
        _emit(as_json, plan.to_dict(), lambda console: reports.show_plan(plan, console))


@main.command("run")
@click.argument("artifact")
@click.argument("samples")
@click.option("-o", "--output", help="Write the outputs to this .npz.")
@click.option("--threads", type=click.IntRange(1), help="Worker threads (default: those it was compiled for).")
@_json_option
def run_command(artifact: str, samples: str, output: str | None, threads: int | None, as_json: bool) -> None:
    """Run ARTIFACT on SAMPLES (.npz); prints the outputs' shapes, and the accuracy where there are labels."""
    with _outcome(as_json):
        import hwq
        from hwq.files import write_npz
        from hwq.verify import outputs_of, top1

        loaded = hwq.Artifact.load(artifact, threads=threads)
        inputs, labels = read_samples(samples, tuple(loaded.inputs))
        values = dict(zip(loaded.outputs, outputs_of(loaded, inputs), strict=True))
        if output is not None:
            write_npz(Path(output), values)
        first = next(iter(values.values()))
        found: dict[str, Any] = {"outputs": {name: list(value.shape) for name, value in values.items()}}
        if labels is not None and first.ndim == 2:
            found["top1"] = top1(first, np.asarray(labels))

        def show(console: Console) -> None:
            for name, shape in found["outputs"].items():
                console.print(f"{name}: {tuple(shape)}", highlight=False)
            if "top1" in found:
                console.print(f"top-1 accuracy: {reports.percent(found['top1'])}", highlight=False)

        _emit(as_json, found, show)


@main.command("bench")
@click.argument("artifact")
@click.option("--input", "samples", help="Samples (.npz); made-up ones without it.")
@click.option("--runs", type=click.IntRange(1), default=100, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Worker threads (default: those it was compiled for).")
@_json_option
def bench_command(artifact: str, samples: str | None, runs: int, threads: int | None, as_json: bool) -> None:
    """Time ARTIFACT: median and least seconds of one call."""
    with _outcome(as_json):
        import hwq

        loaded = hwq.Artifact.load(artifact, threads=threads)
        inputs = loaded.made_up_inputs() if samples is None else read_samples(samples, tuple(loaded.inputs))[0]
        result = loaded.benchmark(inputs, runs=runs)
        found = {"median_s": result.median_s, "min_s": result.min_s, "runs": result.runs, "threads": loaded.threads}
        line = f"median {reports.seconds(result.median_s)}, least {reports.seconds(result.min_s)}, {result.runs} runs"
        _emit(as_json, found, lambda console: console.print(f"{line}, {loaded.threads} thread(s)", highlight=False))


@main.command("explain")
@click.argument("artifact")
@click.option("--layer", "layers", multiple=True, help="Only this layer (may be given again).")
@_json_option
def explain_command(artifact: str, layers: tuple[str, ...], as_json: bool) -> None:
    """Say what each layer of ARTIFACT runs in, and why."""
    with _outcome(as_json):
        import hwq

        report = hwq.Artifact.load(artifact).report
        known = [row["name"] for row in report["layers"]]
        for layer in layers:
            if layer not in known:
                raise HwqError("layer-unknown", f"layer {layer!r} is not in {artifact}; accepted: {', '.join(known)}")
        chosen = {**report, "layers": [row for row in report["layers"] if not layers or row["name"] in layers]}

        def show(console: Console) -> None:
            if not layers:
                reports.show(report, console)
            reports.explain(report, layers, console)

        _emit(as_json, chosen, show)


@main.command("targets")
@click.argument("name", required=False)
@_json_option
def targets_command(name: str | None, as_json: bool) -> None:
    """List the machines hwq knows, or describe one (host is this one)."""
    with _outcome(as_json):
        if name is None:
            rows = targets.names()

            def show_all(console: Console) -> None:
                for row, text in rows:
                    console.print(f"{row:<18} {text}", highlight=False)

            _emit(as_json, dict(rows), show_all)
            return
        target = targets.Target.load(name)
        _emit(as_json, target.to_dict(), lambda console: reports.show_target(target.to_dict(), console))


@main.command("demo")
@click.option("-o", "--output", help="Keep the artifact here (.hwq).")
@click.option("--threads", type=click.IntRange(1), help="Worker threads (default: this machine's cores).")
@_json_option
def demo_command(output: str | None, threads: int | None, as_json: bool) -> None:
    """Compile a small network that ships with hwq for this machine: float, int8 and int4 weights, chosen by layer."""
    with _outcome(as_json):
        import hwq
        from hwq.demo import load_demo

        path, calibration, evaluate = load_demo()
        artifact = hwq.compile(
            hwq.load(path),
            "host",
            calibration=calibration,
            evaluate=evaluate,
            budget=Budget(drop=0.01),
            threads=threads,
            progress=_stages(as_json),
        )
        if output is not None:
            artifact.save(output)
        _emit(as_json, artifact.report, lambda console: reports.show(artifact.report, console))
