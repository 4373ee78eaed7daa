"""Jobs: the networks of a job file tuned on its targets, one after the other, and what came of it.

Whatever was measured is in the store, so a job that was stopped or killed at any moment, called again, goes on from
there. What a job notes itself is the time it has spent, where its end is a number of hours.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hwq import device as devices_of
from hwq.cache import default_cache_dir, default_store_path
from hwq.calibrate import split_activations
from hwq.errors import HwqError
from hwq.execute import bind, compile_kernels
from hwq.files import write_atomic
from hwq.graph import Graph
from hwq.job_file import Job, JobModel, JobTarget
from hwq.learned_price import refresh
from hwq.lower import Program, legal_schemes, lower
from hwq.model import Model, load
from hwq.numerics import QParams
from hwq.observe import calibrated
from hwq.progress import Stages, silent
from hwq.quantize import quantize_weights
from hwq.samples import read_file
from hwq.scheme import parse_schemes
from hwq.space import propose
from hwq.store import tool_versions
from hwq.study import inputs_of
from hwq.target import Target
from hwq.tasks import Task, joined, tasks_of
from hwq.tune import Standing, Tuned, tune
from hwq.work import open_work

log = logging.getLogger(__name__)

LOCAL = "local"
# What becomes of a board that does not answer.
SILENT = ("device-lost", "device-missing", "tracker-missing")
# The range of every tensor where there are no samples: ranges are arguments of a kernel, which do not change its time.
MADE_UP = QParams(scale=0.05, zero_point=-3)

Tell = Callable[[str, Standing], None]
Ranges = Mapping[str, QParams]


def untold(target: str, standing: Standing) -> None:
    """Tells nothing of how far a job is."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Network:
    """A model of the job with its ranges, read once for all targets."""

    given: JobModel
    model: Model
    ranges: Ranges


def run_job(
    job: Job,
    *,
    tell: Tell = untold,
    stages: Stages = silent,
    try_them: Any = None,
    candidates_of: Any = None,
) -> dict[str, Any]:
    """Do what ``job`` says; gives its report as plain values, which is also written into the work directory.

    try_them, candidates_of: as ``hwq.tune.tune``. However tuning ends, the report is written: with the "error" that
    ended it, the targets that were done, and how far the "unfinished" one was. Devices that do not answer are left out,
    with a warning in the log, where another of the target does.

    Raises HwqError as loading models and targets, "scheme-not-here", "job-invalid" for devices of one target that are
    different machines, as ``hwq.device`` where none of a target's answers, and as ``tune``.
    """
    began = time.monotonic()
    machines, networks = _checked(job, stages)
    options = {} if candidates_of is None else {"candidates_of": candidates_of}
    found: list[dict[str, Any]] = []
    last: list[tuple[str, Standing]] = []  # of the target that is tuned
    error: dict[str, str] | None = None
    try:
        for given, (machine, devices) in zip(job.targets, machines, strict=True):
            threads = given.threads or machine.cores
            last.clear()
            with stages(f"tasks for {machine.name}"):
                programs = _programs(networks, machine, threads)
                tasks = joined(
                    task
                    for network, _, program in programs
                    for task in tasks_of(program, machine, priority=network.given.priority)
                )
            name = json.dumps([given.name, threads, list(given.devices or (machine.device,))])
            clock = _Clock(path=job.work_dir / "spent.json", name=name)
            spent_s, start = clock.spent_s(), time.monotonic()
            until = None if job.hours is None else start + max(0.0, job.hours * 3600 - spent_s)

            def told(
                standing: Standing, name: str = machine.name, clock: _Clock = clock, since: float = start - spent_s
            ) -> None:
                clock.note(time.monotonic() - since)
                last[:] = [(name, standing)]
                tell(name, standing)

            tuned = tune(
                tasks,
                machine,
                default_cache_dir(),
                default_store_path(),
                trials=job.trials,
                seed=job.seed,
                threads=threads,
                devices=devices,
                until=until,
                try_them=try_them,
                tell=told,
                **options,
            )
            if tuned.kept:
                with stages("learn"):
                    refresh(machine, default_store_path(), default_cache_dir())
            late = until is not None and time.monotonic() >= until
            found.append(
                _report(
                    machine,
                    devices,
                    threads,
                    tuned,
                    programs,
                    _unreached(tasks, tuned, machine, job.seed, candidates_of or propose) if late else (),
                )
            )
            last.clear()
    except BaseException as caught:
        code, message = (
            (caught.code, caught.message) if isinstance(caught, HwqError) else ("interrupted", "interrupted")
        )
        if not isinstance(caught, HwqError | KeyboardInterrupt):
            code, message = "internal", repr(caught)
        error = {"code": code, "message": message}
        raise
    finally:
        report = {
            "job": str(job.path),
            "seconds": time.monotonic() - began,
            "tools": tool_versions(),
            "seed": job.seed,
            "error": error,
            "targets": found,
            "unfinished": [{"target": name, "standing": asdict(standing)} for name, standing in last],
        }
        with contextlib.ExitStack() as ends:
            if error is not None:  # it is the one to be told of
                ends.enter_context(contextlib.suppress(HwqError))
            write_atomic(job.work_dir / "report.json", json.dumps(report, indent=1).encode())
    return report


def _checked(job: Job, stages: Stages) -> tuple[list[tuple[Target, tuple[str, ...]]], list[_Network]]:
    """The targets' machines with their devices, and the networks: all that can be wrong with a job is found before its
    work directory is made, and that before any work."""
    for number, given in enumerate(job.models, 1):
        with _entry(job, f"model {number}"):
            for what, path in (("model", given.path), ("samples", given.calibration)):
                if path is not None and not path.is_file():
                    raise HwqError(
                        f"{what}-missing", f"{what} file {str(path)!r} is no file; accepted: one that is there"
                    )
    machines = []
    for number, one in enumerate(job.targets, 1):
        with _entry(job, f"target {number}"):
            machines.append(_machine(one))
    models = []
    for number, given in enumerate(job.models, 1):
        with _entry(job, f"model {number}"):
            for machine, _ in machines:
                _schemes(given, machine)
            with stages(f"load {given.path.name}"):
                models.append(load(given.path, batch=given.batch, shapes=dict(given.shapes)))
    _make(job.work_dir)
    networks = []
    for number, (given, model) in enumerate(zip(job.models, models, strict=True), 1):
        with _entry(job, f"model {number}"):
            networks.append(_Network(given=given, model=model, ranges=_ranges(given, model, job, stages)))
    return machines, networks


@contextlib.contextmanager
def _entry(job: Job, name: str) -> Iterator[None]:
    """What is wrong in here is said with the job's file and the entry ("model 2")."""
    try:
        yield
    except HwqError as error:
        raise HwqError(error.code, f"job file {job.path}: {name}: {error.message}") from error


def _unreached(tasks: Sequence[Task], tuned: Tuned, machine: Target, seed: int, candidates_of: Any) -> tuple[str, ...]:
    """The workloads that there was no time for: neither tuned nor left alone, though there are ways to choose from."""
    known = {task.workload for task in tuned.tasks}
    return tuple(
        task.workload.key
        for task in tasks
        if task.workload.key not in known
        and task.step.name not in tuned.idle
        and candidates_of(task.workload, machine, {}, 1, seed, task.step.func)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clock:
    """The seconds spent on a target by all calls of a job. A damaged note counts as none."""

    path: Path
    name: str

    def _known(self) -> dict[str, float]:
        try:
            found = json.loads(self.path.read_bytes())
            return {str(name): max(0.0, float(seconds)) for name, seconds in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.debug("%s is damaged (%r): the time starts anew", self.path, error)
            return {}

    def spent_s(self) -> float:
        return self._known().get(self.name, 0.0)

    def note(self, seconds: float) -> None:
        write_atomic(self.path, json.dumps({**self._known(), self.name: seconds}).encode())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"cannot make the work directory {str(folder)!r}: {reason}; accepted: a writable folder"
        raise HwqError("save-failed", message) from error


def _machine(given: JobTarget) -> tuple[Target, tuple[str, ...]]:
    """The target as its devices are, and those of the devices that answer; what is to be said of others is logged."""
    machine = Target.load(given.name)
    devices = given.devices or (machine.device,)
    machine.require_builds()
    missing = machine.missing_flags()
    if LOCAL in devices and missing:
        raise HwqError(
            "target-not-here",
            f"{given.name} needs {', '.join(missing)}, which this CPU lacks; accepted: devices that are boards which "
            "have it",
        )
    found: dict[str, Target] = {}
    mute: dict[str, HwqError] = {}
    for text in devices:
        try:
            found[text] = devices_of.resolved(machine.on(text))
        except HwqError as error:
            if error.code not in SILENT:
                raise
            mute[text] = error
    if not found:
        raise next(iter(mute.values()))
    for text, why in mute.items():
        log.warning("device %s of target %s is left out: %s", text, given.name, why.message)
    at, first = next(iter(found.items()))
    for text, one in found.items():
        if one.fingerprint != first.fingerprint:
            raise HwqError(
                "job-invalid",
                f"devices of {given.name} are different machines: {at} is {first.cpu_model or 'this one'!r}, {text} is "
                f"{one.cpu_model or 'this one'!r}; accepted: devices that are alike, or a target for each",
            )
    return first, tuple(found)


def _schemes(given: JobModel, machine: Target) -> tuple[str, ...]:
    """The schemes of a model on one machine. Raises HwqError "scheme-not-here"."""
    for scheme in given.schemes or ():
        if scheme not in machine.schemes:
            raise HwqError(
                "scheme-not-here",
                f"{given.path.name} asks for {scheme!r}, which {machine.name} has no instruction for; accepted: "
                f"{', '.join(machine.schemes)}",
            )
    return given.schemes or machine.schemes


def _ranges(given: JobModel, model: Model, job: Job, stages: Stages) -> Ranges:
    """The parameters of every tensor, made up where there are no samples."""
    split = split_activations(model.graph)
    if given.calibration is None:
        return dict.fromkeys(split.dtypes, MADE_UP)
    host = Target.load("host")
    program = lower(split, {}, {}, {}, host, host.cores)
    work = open_work(model.fingerprint, model.name, job.work_dir / model.fingerprint[:16])
    samples = read_file(given.calibration, tuple(model.graph.inputs))[0]
    runner = bind(program, compile_kernels([program], host, work.cache))
    integers = _uniform(model.graph, "w8a8", host)
    candidates = {name: (scheme,) for name, scheme in integers.items()}
    return calibrated(split, candidates, runner, work, samples, "mse", True, inputs_of(model.graph), stages)[0]


def _uniform(graph: Graph, scheme: str, machine: Target) -> dict[str, str]:
    """Every layer in ``scheme``, or in what comes nearest to it on ``machine``."""
    allowed = parse_schemes([scheme])
    return {layer.name: legal_schemes(graph, layer, machine, allowed)[-1] for layer in graph.layers}


def _programs(networks: Sequence[_Network], machine: Target, threads: int) -> list[tuple[_Network, str, Program]]:
    """Every network in each of its schemes."""
    found = []
    for network in networks:
        graph = network.model.graph
        for scheme in _schemes(network.given, machine):
            schemes = _uniform(graph, scheme, machine)
            candidates = {name: (one,) for name, one in schemes.items()}
            weights = quantize_weights(graph, candidates, network.ranges, {})
            found.append((network, scheme, lower(graph, schemes, network.ranges, weights, machine, threads)))
    return found


def _report(
    machine: Target,
    devices: Sequence[str],
    threads: int,
    tuned: Tuned,
    programs: Sequence[tuple[_Network, str, Program]],
    unreached: Sequence[str],
) -> dict[str, Any]:
    """One target's part of the report. Of a network: the seconds of those of its kernels that were tasks. unreached:
    workloads that there was no time for."""
    times = {task.workload: (task.default_s, task.best_s) for task in tuned.tasks}
    networks = []
    for network, scheme, program in programs:
        keys = [step.workload.key for step in program.steps if step.workload is not None]
        known = [times[key] for key in keys if key in times]
        networks.append(
            {
                "model": str(network.given.path),
                "scheme": scheme,
                "kernels": len(keys),
                "tuned": len(known),
                "unreached": sum(key in unreached for key in keys),
                "default_s": sum(default_s for default_s, _ in known),
                "best_s": sum(best_s for _, best_s in known),
            }
        )
    return {
        "target": machine.name,
        "cpu": machine.cpu_model,
        "fingerprint": machine.fingerprint,
        "devices": list(devices),
        "threads": threads,
        "kept": tuned.kept,
        "standing": asdict(tuned.standing),
        "networks": networks,
        "idle": dict(tuned.idle),
        "tasks": [{**asdict(task), "won_s": task.won_s} for task in tuned.tasks],
    }
