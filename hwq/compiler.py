"""compile, plan and build: the stages in order, and nothing else.

study (calibrate, quantize, sensitivity, price) -> choose -> assemble, and again while what was built misses the budget
-> settle -> compare it with uniform assignments -> describe the best. ``plan`` chooses and settles; ``build`` delivers
a given plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hwq import evaluate as evaluation_of
from hwq.arguments import (
    check_budget,
    check_drop,
    check_measure,
    check_model,
    check_plan,
    check_seconds,
    check_threads,
    check_trials,
    machine_of_plan,
    machine_to_build,
    schemes_of_network,
    schemes_on,
)
from hwq.artifact import Artifact
from hwq.cache import default_store_path
from hwq.choose import choose
from hwq.decode import check_samples, plan_for
from hwq.deliver import deliver, plan_of, priced
from hwq.dispose import dispose
from hwq.errors import HwqError
from hwq.evaluate import Evaluation
from hwq.graph import Graph
from hwq.lower import legal_schemes
from hwq.masks import limits
from hwq.model import Model, varying
from hwq.plan import Plan
from hwq.process import peak_memory_bytes
from hwq.progress import Stages, silent
from hwq.reanchor import TIME_S, anchored
from hwq.samples import as_batch, repeatable, stream
from hwq.scheme import SCHEMES, Budget
from hwq.settle import settled
from hwq.study import Study, inputs_of, priced_again, study, study_of_plan
from hwq.target import Target
from hwq.tasks import joined, tasks_of
from hwq.tune import tune
from hwq.work import Work, open_work


def compile(
    model: Model,
    target: Target | str | Path = "host",
    *,
    calibration: Any = None,
    evaluate: Any = None,
    budget: Budget | None = None,
    schemes: Iterable[str] | None = None,
    trials: int = 0,
    work_dir: str | Path | None = None,
    threads: int | None = None,
    seed: int = 0,
    sensitivity_s: float = TIME_S,
    observer: str = "mse",
    measure: bool | None = None,
    dynamic: Any = None,
    progress: Stages = silent,
) -> Artifact:
    """Compile ``model`` for ``target`` with each layer in the scheme that pays, and measure what came out.

    calibration: an array, or an iterable of arrays or of dicts (input name -> array), batch axis first. evaluate:
    (inputs, labels), or a function of a run callable that returns a score, higher is better; without it a budget of
    drop is held against changed classes on calibration samples. budget: None minimizes latency, then loss.
    trials: candidates of the kernels of the plan that will have been tried in all, for faster ones (``hwq.tune``).
    measure: time kernels on the target's machine; None does where they can run. For a target that this CPU cannot run
    nothing is timed but on the board that its ``device`` names: all else is found out here, where integers are the
    same, prices are predictions, and the report says so. The artifact holds that board, for which others wait, until
    ``artifact.close()``, or the end of ``with hwq.compile(...) as artifact``. dynamic: axes whose
    lengths may vary from call to call, input name -> axis -> (least, most), as {"input_ids": {1: (1, 256)}}: one
    artifact then takes sequences of any of these lengths, each with the bits of the artifact of that length; prices and
    measurements are those of the most. sensitivity_s: about how many seconds
    whole assignments are run for, where losses decide which one is best; 0 trusts the losses of single layers. Raises
    HwqError for whatever the caller can mend, "budget-impossible" among them, with the closest that can be met.
    """
    began = time.monotonic()
    budget = check_budget(budget)
    check_seconds("sensitivity_s", sensitivity_s)
    found, work = studied(
        model,
        target,
        calibration=calibration,
        evaluate=evaluate,
        schemes=schemes,
        trials=trials,
        work_dir=work_dir,
        threads=threads,
        observer=observer,
        measure=measure,
        dynamic=dynamic,
        budget=budget,
        careful=budget != Budget() or schemes is not None,
        progress=progress,
    )
    evaluation = evaluated(found, evaluate, progress)
    found = tuned(found, work, budget, evaluation, trials, seed, progress)
    artifact = dispose(found, work, budget, evaluation, progress, seed, sensitivity_s)
    artifact.report["compile"] = {"seconds": time.monotonic() - began, "peak_memory_bytes": peak_memory_bytes()}
    return artifact


def plan(
    model: Model,
    target: Target | str | Path = "host",
    *,
    calibration: Any = None,
    evaluate: Any = None,
    budget: Budget | None = None,
    schemes: Iterable[str] | None = None,
    trials: int = 0,
    work_dir: str | Path | None = None,
    threads: int | None = None,
    seed: int = 0,
    sensitivity_s: float = TIME_S,
    observer: str = "mse",
    measure: bool | None = None,
    dynamic: Any = None,
    progress: Stages = silent,
) -> Plan:
    """The assignment that ``compile`` would start from, without building it. Arguments and errors as ``compile``."""
    budget = check_budget(budget)
    check_seconds("sensitivity_s", sensitivity_s)
    found, work = studied(
        model,
        target,
        calibration=calibration,
        evaluate=None if budget.drop is None else evaluate,
        schemes=schemes,
        trials=trials,
        work_dir=work_dir,
        threads=threads,
        observer=observer,
        measure=measure,
        dynamic=dynamic,
        budget=budget,
        careful=budget != Budget() or schemes is not None,
        progress=progress,
    )
    evaluation = evaluated(found, evaluate, progress) if budget.drop is not None else None
    found = tuned(found, work, budget, evaluation, trials, seed, progress)
    choice = choose(found, work, budget, evaluation, stages=progress, seed=seed, time_s=sensitivity_s)
    found, choice = settled(anchored(found, choice.anchors), work, choice, evaluation, progress)
    return plan_of(found, choice)


def build(
    model: Model,
    plan: Plan,
    target: Target | str | Path | None = None,
    *,
    evaluate: Any = None,
    work_dir: str | Path | None = None,
    threads: int | None = None,
    progress: Stages = silent,
) -> Artifact:
    """Build exactly ``plan``; without a target for its own, which must be host or one that hwq ships.

    On a board that the target's ``device`` names the artifact holds it until ``artifact.close()``, as ``compile`` says.

    Raises HwqError "plan-layers" for a layer that the model lacks or the plan forgets, "plan-illegal" for a scheme that
    the target has no kernel for, "plan-other" for a plan of another model, "plan-ranges" for an integer layer whose
    ranges the plan does not hold, and for model and target as ``compile`` does.
    """
    check_model(model)
    check_plan(plan)
    if plan.dynamic and model.length is None:
        model = varying(model, plan.dynamic)
    check_threads(threads)
    machine = machine_of_plan(plan) if target is None else machine_to_build(target)
    check_samples(model, "evaluate", evaluate)
    graph = model.graph
    plan = plan_for(model, plan)
    plan.check_layers([layer.name for layer in graph.layers])
    for layer in graph.layers:
        legal = legal_schemes(graph, layer, machine, tuple(SCHEMES.values()))
        if plan.schemes[layer.name] not in legal:
            raise HwqError(
                "plan-illegal",
                f"plan gives layer {layer.name!r} ({layer.op}) scheme {plan.schemes[layer.name]!r}, which "
                f"{machine.name} cannot run it in; accepted: {', '.join(legal)}",
            )
    if plan.model != model.fingerprint:
        raise HwqError(
            "plan-other",
            f"plan was made for a model of fingerprint {plan.model[:8]!r}, this one has {model.fingerprint[:8]!r}: "
            "weights, batch size or source differ (a torch module and its ONNX export are two), so its ranges may not "
            "hold; accepted: the same model, loaded alike",
        )
    check_rows(graph, None, evaluate)
    work = open_work(model.fingerprint, model.name, work_dir)
    with progress("compile") as callback:
        judged = evaluate is not None
        found = study_of_plan(model, machine, work, plan, threads or plan.threads, callback, judged)
    evaluation = None if evaluate is None else evaluated(found, evaluate, progress)
    with progress("build"):
        return deliver(found, work, priced(found, plan), evaluation)


def studied(
    model: Model,
    target: Target | str | Path,
    *,
    calibration: Any,
    evaluate: Any,
    schemes: Iterable[str] | None,
    trials: int,
    work_dir: str | Path | None,
    threads: int | None,
    observer: str,
    measure: bool | None,
    dynamic: Any,
    budget: Budget,
    careful: bool,
    progress: Stages,
) -> tuple[Study, Work]:
    """The arguments of compile, plan and explore checked, then studied."""
    check_model(model)
    check_samples(model, "calibration", calibration)
    check_samples(model, "evaluate", evaluate)
    if dynamic is not None:
        model = varying(model, dynamic)
    check_drop(model.graph, budget, calibration, evaluate)
    check_trials(trials)
    machine = machine_to_build(target)
    timed = check_measure(measure, machine)
    if trials and not timed:
        message = f"trials is {trials}, but no kernel is to be timed, or can be; accepted: 0, or measure"
        raise HwqError("trials-invalid", message)
    allowed = schemes_on(machine, schemes)
    if schemes is None:
        allowed = schemes_of_network(model.graph, allowed)
    check_threads(threads)
    check_rows(model.graph, calibration, evaluate)
    work = open_work(model.fingerprint, model.name, work_dir)
    cores = threads or machine.cores
    return study(model, machine, work, calibration, allowed, cores, observer, timed, progress, careful=careful), work


def check_rows(graph: Graph, calibration: Any, evaluate: Any) -> None:
    """Raises HwqError, before anything runs, for samples of a network that looks rows up in tables, where they do not
    fit it. All other samples are checked as they are read."""
    inputs, rows = inputs_of(graph), limits(graph)
    if rows and repeatable(calibration):
        for _ in stream(calibration, inputs, rows=rows):
            pass
    if rows and isinstance(evaluate, tuple | list) and len(evaluate) == 2:
        as_batch(evaluate[0], inputs, "evaluate", rows)


def evaluated(found: Study, evaluate: Any, progress: Stages) -> Evaluation | None:
    """The samples to judge by, with float's outputs on them; None where there are none."""
    with progress("evaluate float"):
        return evaluation_of.prepare(evaluate, found.kept, found.runner, inputs_of(found.graph), limits(found.graph))


def tuned(
    found: Study,
    work: Work,
    budget: Budget,
    evaluation: Evaluation | None,
    trials: int,
    seed: int,
    progress: Stages,
) -> Study:
    """``found`` with the kernels tuned that the fastest plan within the budget of drop and bytes needs, priced anew.

    Of ``trials`` those count that the store holds for these kernels already. Raises HwqError as choose and tune do.
    """
    if not trials:
        return found
    free = replace(budget, latency_s=None)  # what is too slow may not be when it is tuned
    choice = choose(found, work, free, evaluation, stages=progress, seed=seed, time_s=0.0)
    tasks = joined(tasks_of(found.program(choice.solution.schemes), found.target, found.footprints))
    with progress("tune") as callback:
        tune(
            tasks,
            found.target,
            work.cache,
            default_store_path(),
            trials=trials,
            seed=seed,
            threads=found.threads,
            devices=(found.target.device,),
            tell=lambda standing: callback(standing.trials, trials),
        )
    return priced_again(found, work, True, progress)
