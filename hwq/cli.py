"""The shell commands, and what their options mean. How they end and where output goes is in ``hwq.shell``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from hwq import report as reports
from hwq import target as targets
from hwq.cli_lab import lab
from hwq.cli_store import store_group
from hwq.cli_tune import tune_command
from hwq.errors import HwqError
from hwq.files import write_atomic, write_npz
from hwq.graph import SPAN
from hwq.options import JobCommand, check_output, device_option, json_option, read_dynamic, read_shapes, threads_option
from hwq.samples import read_file
from hwq.scheme import SCHEMES, Budget, parse_schemes
from hwq.shell import Shell, count, emit, stages
from hwq.switches import debug_wanted
from hwq.units import parse


def _budget(drop: str | None, latency: str | None, size: str | None) -> Budget | None:
    if drop is None and latency is None and size is None:
        return None
    return Budget(
        drop=None if drop is None else parse(drop, "fraction", "--max-drop"),
        latency_s=None if latency is None else parse(latency, "time", "--max-latency"),
        weight_bytes=None if size is None else parse(size, "size", "--max-size"),
    )


# How long run and bench may hold a board: one whose client is gone without a word is free again after it.
SESSION_S = 3600.0
_TIMES = "Time kernels on this machine, or the board.  [default: where they can run]"
_DEVICE = "The board that is the target's machine, and times it: KEY, or KEY@HOST:PORT."
_SHAPES = "The whole shape of an input with other free axes (may be given again)."
_DYNAMIC = "An axis whose length may vary from call to call, and the lengths (may be given again)."
_DECODER = "Token by token, keys and values kept as float32 (--decoder), or as bytes (--decoder=int8)."
_SCHEMES = f"Schemes that layers may take, of {', '.join(SCHEMES)}; as w8a8,f32.  [default: all the target has]"
_ANCHORS = "About how long losses are corrected by runs of whole assignments; 0s: not at all."
_OBSERVERS = "How ranges are read: minmax, percentile, mse or entropy."


def _job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What compile and plan have in common."""
    options = (
        click.argument("model"),
        click.option("--target", metavar="NAME", help="One of `hwq targets`, or a .toml file.  [default: host]"),
        click.option("--device", metavar="KEY", help=_DEVICE),
        click.option("--calib", metavar="X.npz", help="Calibration samples: one array a model input, samples first."),
        click.option("--eval", "eval_", metavar="X.npz", help="Evaluation samples, with labels."),
        click.option("--max-drop", metavar="PERCENT", help="Accuracy that may be lost, as 0.5%."),
        click.option("--max-latency", metavar="TIME", help="Time one call may take, as 3ms."),
        click.option("--max-size", metavar="SIZE", help="Bytes the packed weights may take, as 4MB."),
        click.option("--schemes", metavar="LIST", help=_SCHEMES),
        click.option(
            "--trials", type=int, default=0, show_default=True, help="Candidates of the plan's kernels to try."
        ),
        click.option("--work-dir", metavar="FOLDER", help="Where stages keep what they found, to go on from there."),
        click.option("--threads", type=count, help="Worker threads.  [default: the target's cores]"),
        click.option("--batch", type=count, default=1, show_default=True, help="Size of a free batch axis."),
        click.option("--shape", "shapes", metavar="INPUT=1x3x8x8", multiple=True, help=_SHAPES),
        click.option("--dynamic", metavar="INPUT:AXIS=1..256", multiple=True, help=_DYNAMIC),
        click.option("--decoder", metavar="[=CACHE]", help=_DECODER),
        click.option("--observer", metavar="NAME", default="mse", show_default=True, help=_OBSERVERS),
        click.option("--sensitivity-time", metavar="TIME", default="2min", show_default=True, help=_ANCHORS),
        click.option("--measure/--no-measure", default=None, help=_TIMES),
        json_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def _schemes(text: str | None) -> list[str] | None:
    """The names of --schemes. Raises HwqError "scheme-unknown"."""
    names = None if text is None else [name.strip() for name in text.split(",") if name.strip()]
    parse_schemes(names)
    return names


def _samples(path: str | None, names: Sequence[str]) -> Any:
    return None if path is None else read_file(path, names)[0]


def _job(given: Mapping[str, Any], target: str | targets.Target | None) -> tuple[Any, Any, dict[str, Any]]:
    """(model, target, keyword arguments) of ``hwq.compile`` or ``hwq.plan`` from the options of ``_job_options``.

    A target of None, which ``hwq.build`` takes, stays None.
    """
    import hwq

    budget = _budget(given["max_drop"], given["max_latency"], given["max_size"])
    schemes = _schemes(given["schemes"])
    machine = None if target is None else hwq.Target.load(target)
    if machine is not None and given["device"] is not None:
        machine = machine.on(given["device"])
    shapes, dynamic = read_shapes(given["shapes"]), read_dynamic(given["dynamic"])
    model = hwq.load(given["model"], batch=given["batch"], shapes=shapes, dynamic=dynamic)
    if given["decoder"] is not None:
        model = hwq.decoder(model, cache=given["decoder"])
    names = tuple(name for name in model.graph.inputs if name != SPAN)
    evaluate = None
    if given["eval_"] is not None:
        inputs, labels = read_file(given["eval_"], names)
        if labels is None:
            message = f"samples file {given['eval_']!r} has no labels; accepted: an .npz with labels (N,)"
            raise HwqError("samples-invalid", message)
        evaluate = (inputs, labels)
    return (
        model,
        machine,
        {
            "calibration": _samples(given["calib"], names),
            "evaluate": evaluate,
            "budget": budget,
            "schemes": schemes,
            "trials": given["trials"],
            "work_dir": given["work_dir"],
            "threads": given["threads"],
            "observer": given["observer"],
            "sensitivity_s": parse(given["sensitivity_time"], "time", "--sensitivity-time"),
            "measure": given["measure"],
            "progress": stages(),
        },
    )


def _require_calibration(given: Mapping[str, Any]) -> None:
    asked = parse_schemes(_schemes(given["schemes"]))
    if given["calib"] is None and any(scheme.needs_samples for scheme in asked):
        without = ",".join(name for name, scheme in SCHEMES.items() if not scheme.needs_samples)
        message = f"--calib is missing; accepted: an .npz of samples, or --schemes of {without}, which need none"
        raise HwqError("samples-empty", message)


@click.group(cls=Shell, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metadata.version("hwq") if list(metadata.distributions(name="hwq")) else "uninstalled")
def main() -> None:
    """Give each layer of a trained network the bit width that pays on a machine, and compile it."""
    if debug_wanted():
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("hwq").setLevel(logging.DEBUG)


@main.command("demo", short_help="The whole flow, on a small network that ships with hwq.")
@click.option("-o", "--output", metavar="OUT.hwq", help="Keep the artifact here.")
@click.option("--threads", type=count, help="Worker threads.  [default: this machine's cores]")
@json_option
def demo_command(output: str | None, threads: int | None, as_json: bool) -> None:
    """Compile a small network that ships with hwq for this machine: float, int8 and int4 weights, chosen by layer."""
    import hwq
    from hwq.demo import load_demo

    check_output(output)
    path, calibration, evaluate = load_demo()
    artifact = hwq.compile(
        hwq.load(path),
        "host",
        calibration=calibration,
        evaluate=evaluate,
        budget=Budget(drop=0.01),
        threads=threads,
        progress=stages(),
    )
    if output is not None:
        artifact.save(output)
    emit(as_json, artifact.report, lambda console: reports.show(artifact.report, console))


@main.command("compile", cls=JobCommand, short_help="Compile MODEL into one artifact.")
@_job_options
@click.option("--plan", "plan_path", metavar="P.json", help="Build exactly this plan instead of choosing one.")
@click.option("-o", "--output", metavar="OUT.hwq", required=True, help="The artifact to write.")
@click.pass_context
def compile_command(ctx: click.Context, /, as_json: bool, plan_path: str | None, output: str, **given: Any) -> None:
    """Compile MODEL (.onnx) into one artifact: choose a scheme for each layer, build, verify, save."""
    import hwq
    from hwq.arguments import machine_of_plan

    check_output(output)
    if plan_path is None:
        model, target, job = _job(given, given["target"] or "host")
        _require_calibration(given)
        artifact = hwq.compile(model, target, **job)
    else:
        idle = (
            "calib",
            "max_drop",
            "max_latency",
            "max_size",
            "schemes",
            "trials",
            "observer",
            "measure",
            "sensitivity_time",
        )
        for name in idle:
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                option = name.replace("_", "-")
                raise click.UsageError(f"--{option} does not go with --plan, which has it settled.", ctx)
        plan = hwq.Plan.load(plan_path)
        known = None if given["device"] is None else machine_of_plan(plan)
        model, target, job = _job(given, given["target"] or known)
        keep = ("evaluate", "threads", "progress", "work_dir")
        artifact = hwq.build(model, plan, target, **{key: job[key] for key in keep})
    artifact.save(output)
    emit(as_json, {**artifact.report, "artifact": output}, lambda console: reports.show(artifact.report, console))


@main.command("plan", cls=JobCommand, short_help="Choose a scheme for each layer of MODEL without building it.")
@_job_options
@click.option("-o", "--output", metavar="P.json", help="The plan to write.")
def plan_command(as_json: bool, output: str | None, **given: Any) -> None:
    """Choose a scheme for each layer of MODEL (.onnx) without building it; the plan can be edited and compiled."""
    import hwq

    check_output(output)
    model, target, job = _job(given, given["target"] or "host")
    _require_calibration(given)
    plan = hwq.plan(model, target, **job)
    if output is not None:
        plan.save(output)
    emit(as_json, plan.to_dict(), lambda console: reports.show_plan(plan, console))


@main.command("explore", cls=JobCommand, short_help="Find the front of plans for MODEL over latency, size and loss.")
@_job_options
@click.option("--points", type=count, default=12, show_default=True, help="Plans at most, at least 3.")
@click.option("-o", "--output", metavar="FOLDER", help="Write each plan here, to be compiled by --plan.")
def explore_command(as_json: bool, points: int, output: str | None, **given: Any) -> None:
    """Find plans for MODEL (.onnx) of which none is beaten in latency, size and loss at once, with their accuracy."""
    import hwq
    from hwq.explore import save_front

    model, target, job = _job(given, given["target"] or "host")
    _require_calibration(given)
    front = hwq.explore(model, target, points=points, **job)
    rows = [point.to_dict() for point in front]
    if output is not None:
        for row, path in zip(rows, save_front(front, output), strict=True):
            row["plan"] = str(path)
    emit(as_json, {"points": rows}, lambda console: reports.show_front(rows, console))


@main.command("run", short_help="Run ARTIFACT on SAMPLES.")
@click.argument("artifact")
@click.argument("samples")
@click.option("-o", "--output", metavar="Y.npz", help="Write the outputs here.")
@device_option
@threads_option
@json_option
def run_command(
    artifact: str, samples: str, output: str | None, device: str | None, threads: int | None, as_json: bool
) -> None:
    """Run ARTIFACT (.hwq) on SAMPLES (.npz); says the outputs' shapes, and the accuracy where there are labels.

    A board is held for an hour at most.
    """
    import hwq
    from hwq.verify import check_labels, outputs_of, top1

    check_output(output)
    with hwq.Artifact.load(artifact, threads=threads, device=device, session_s=SESSION_S) as loaded:
        inputs, labels = read_file(samples, tuple(loaded.inputs))
        values = dict(zip(loaded.outputs, outputs_of(loaded, inputs), strict=True))
    if output is not None:
        write_npz(output, values)
    first = next(iter(values.values()))
    found: dict[str, Any] = {"outputs": {name: list(value.shape) for name, value in values.items()}}
    if labels is not None and first.ndim == 2:
        found["top1"] = top1(first, check_labels(inputs, labels, first))

    def show(console: Console) -> None:
        for name, value in values.items():
            console.print(f"{name}: {value.dtype} {tuple(value.shape)}", highlight=False, markup=False)
        if "top1" in found:
            console.print(f"top-1 accuracy: {reports.percent(found['top1'])}", highlight=False)

    emit(as_json, found, show)


@main.command("bench", short_help="Time ARTIFACT.")
@click.argument("artifact")
@click.option("--input", "samples", metavar="X.npz", help="Samples.  [default: made-up ones]")
@click.option("--runs", type=count, default=100, show_default=True, help="Timed calls, after a warm-up.")
@device_option
@threads_option
@json_option
def bench_command(
    artifact: str, samples: str | None, runs: int, device: str | None, threads: int | None, as_json: bool
) -> None:
    """Time ARTIFACT (.hwq): median and least seconds of one call. A board is held for an hour at most."""
    import hwq

    with hwq.Artifact.load(artifact, threads=threads, device=device, session_s=SESSION_S) as loaded:
        inputs = loaded.made_up_inputs() if samples is None else _samples(samples, tuple(loaded.inputs))
        result = loaded.benchmark(inputs, runs=runs)
        found: dict[str, Any] = {"median_s": result.median_s, "min_s": result.min_s, "runs": result.runs}
        found |= {"threads": loaded.threads, "emulated": loaded.emulated}
    times = f"median {reports.seconds(result.median_s)}, least {reports.seconds(result.min_s)}"
    line = f"{times}, {reports.count(runs, 'call')}, {reports.count(loaded.threads, 'thread')}"
    line += "; the board is an emulator, and its times mean nothing" if found["emulated"] else ""
    emit(as_json, found, lambda console: console.print(line, highlight=False))


@main.command("explain", short_help="Say what each layer of ARTIFACT runs in, and why.")
@click.argument("artifact")
@click.option("--layer", "layers", metavar="NAME", multiple=True, help="Only this layer (may be given again).")
@click.option("--html", "page", metavar="OUT.html", help="Write the whole report as a page, complete in itself.")
@json_option
def explain_command(artifact: str, layers: tuple[str, ...], page: str | None, as_json: bool) -> None:
    """Say what each layer of ARTIFACT (.hwq) runs in, and why; without --layer the whole report."""
    import hwq

    check_output(page)
    loaded = hwq.Artifact.load(artifact)
    report = loaded.report
    known = [row["name"] for row in report["layers"]]
    for layer in layers:
        if layer not in known:
            raise HwqError("layer-unknown", f"layer {layer!r} is not in {artifact!r}; accepted: {', '.join(known)}")
    chosen = {**report, "layers": [row for row in report["layers"] if not layers or row["name"] in layers]}
    if page is not None:
        from hwq.page import render

        write_atomic(page, render(report, loaded.plan).encode())

    def show(console: Console) -> None:
        if not layers:
            reports.show(report, console)
        reports.explain(report, layers, console)

    emit(as_json, chosen, show)


@main.command("targets", short_help="List the machines hwq knows, describe one, or measure this one.")
@click.argument("name", required=False)
@click.option("-o", "--output", metavar="T.toml", help="For probe: the target file to write.")
@json_option
def targets_command(name: str | None, output: str | None, as_json: bool) -> None:
    """List the machines hwq knows, or describe NAME: one of them, host (this one), or a .toml file, which is checked.

    NAME probe measures this machine's rates and writes a target file of them.
    """
    if name == "probe":
        _probe(output, as_json)
        return
    if output is not None:
        raise click.UsageError("-o goes with probe only.")
    if name is not None:
        target = targets.Target.load(name)
        emit(as_json, target.to_dict(), lambda console: reports.show_target(target.to_dict(), console))
        return
    known = [targets.Target.load(one) for one, _ in targets.names()]
    with contextlib.suppress(HwqError):  # not on x86-64
        known.insert(0, targets.host())
    rows = {one.name: {"machine": one.description, "builds": one.builds} for one in known}
    emit(as_json, rows, lambda console: reports.show_targets(rows, console))


def _probe(output: str | None, as_json: bool) -> None:
    """Measure this machine; the target file goes to ``output``, or to stdout."""
    from hwq.probe import probe

    check_output(output)
    with stages()("probe") as callback:
        text = probe(targets.host(), "measured" if output is None else Path(output).stem, callback)
    if output is not None:
        write_atomic(output, text.encode())
        emit(as_json, {"target": output}, lambda console: console.print(f"target file: {output}", markup=False))
    elif as_json:
        emit(True, {"toml": text}, lambda _: None)
    else:
        click.echo(text)


main.add_command(tune_command)
main.add_command(store_group)
main.add_command(lab)
