"""Deliver: build an assignment into an artifact, measure it, and say what was predicted and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hwq import evaluate as evaluation_of
from hwq.artifact import Artifact, place_on
from hwq.assignment import Limits
from hwq.assignment import evaluate as sums_of
from hwq.certificate import certify, predicted_drop
from hwq.choose import Choice, problem_of
from hwq.compose import Pool, composed
from hwq.decided import compile_decided
from hwq.device import Device, closed_if_it_fails, connect, local
from hwq.evaluate import Evaluation
from hwq.execute import bind
from hwq.explain import explain
from hwq.graph import SPAN, WEIGHTED, Layer
from hwq.library import Packed, build_library, pack, repeated
from hwq.lower import CONVERSIONS, Program
from hwq.masks import limits
from hwq.measure import homes_by
from hwq.plan import Plan
from hwq.samples import Batch, made_up
from hwq.scheme import SCHEMES
from hwq.store import tool_versions
from hwq.study import Study, inputs_of, pool_of, roundings_of
from hwq.switches import verify_wanted
from hwq.verify import Accuracy, Run, require_equal, require_same_bits
from hwq.work import Work

BENCH_RUNS = 30
LAYER_RUNS = 10


def plan_of(study: Study, choice: Choice) -> Plan:
    """The choice as a plan."""
    solution = choice.solution
    return Plan(
        model=study.model.fingerprint,
        target=study.target.known_as,
        threads=study.threads,
        schemes=dict(solution.schemes),
        layers={
            name: (study.costs[name, scheme], study.losses[name, scheme]) for name, scheme in solution.schemes.items()
        },
        latency_s=solution.latency_s,
        weight_bytes=solution.weight_bytes,
        loss=solution.loss,
        noise_per_loss=study.noise_per_loss,
        dynamic=study.model.dynamic,
        why=explain_choices(study, solution.schemes),
        qparams=dict(study.qparams),
        means={tensor: tuple(mean) for tensor, mean in study.means.items()},
        roundings=roundings_of(study.roundings, solution.schemes),
        smoothing=study.smoothing,
    )


def priced(study: Study, plan: Plan) -> Plan:
    """``plan``, edited or not, with the latency and the bytes that the prices of ``study`` say; its loss stays."""
    free_of_loss = replace(study, losses=dict.fromkeys(study.costs, 0.0))
    now = sums_of(problem_of(free_of_loss), plan.schemes)
    layers = {
        name: (study.costs[name, scheme], plan.layers[name][1] if name in plan.layers else 0.0)
        for name, scheme in plan.schemes.items()
    }
    return replace(plan, latency_s=now.latency_s, weight_bytes=now.weight_bytes, layers=layers)


def deliver(study: Study, work: Work, plan: Plan, evaluation: Evaluation | None) -> Artifact:
    """The artifact of ``plan`` with its report; it holds the board, if there is one, and ``close`` gives that back.

    Raises as ``assemble`` and ``board_of``.
    """
    board = board_of(study)
    with closed_if_it_fails(board):
        artifact = assemble(study, work, plan, board)
        accuracy = None
        if evaluation is not None:
            accuracy = evaluation_of.judge(evaluation, run_of(study, pool_of(study, work), artifact))
        latency_s = artifact.benchmark(network_input(study), runs=BENCH_RUNS).median_s if study.timed else None
        describe(study, artifact, latency_s, accuracy, evaluation)
    return artifact


def board_of(study: Study) -> Device | None:
    """The board on which what is built is timed; None where that is here, or nowhere.

    Raises HwqError as ``hwq.device.connect``.
    """
    return connect(study.target.device) if study.timed and study.target.device != "local" else None


def run_of(study: Study, pool: Pool, artifact: Artifact) -> Run:
    """What gives the artifact's answers on samples: itself, or for another machine the same kernels of this one."""
    if artifact.placed is not None and not artifact.placed.remote:
        return artifact
    runner = composed(pool, study.program_here(artifact.plan.schemes))
    return evaluation_of.float_call(runner, inputs_of(study.graph))


def assemble(study: Study, work: Work, plan: Plan, board: Device | None = None) -> Artifact:
    """The artifact of ``plan``, built, and loaded on ``board``, or here where this CPU can run it for a local target;
    its report holds nothing but what the library weighs.

    Raises HwqError "kernel-differs" if HWQ_VERIFY is set and an integer kernel does not equal the NumPy reference, or
    the library gives other bits than its kernels one by one; on a board nothing is verified.
    """
    local_too = study.timed and study.target.device == "local"
    device = local() if local_too else board
    program = study.program(plan.schemes)
    home_of = homes_by(study.footprints, study.target)
    kernels = compile_decided([program], study.target, work.cache, study.decisions, home_of, known=study.kernels)
    packed = pack(program, kernels)
    library = build_library(program, kernels, packed, study.target)
    calls = tuple((kernels.of(step).symbol, step.name) for step in program.steps if step.workload is not None)
    artifact = Artifact(
        library=library,
        placed=None if device is None else place_on(library, study.target, device),
        plan=plan,
        report={"sizes": packed_sizes(program, packed)},
        target=study.target,
        threads=study.threads,
        inputs={name: spec for name, spec in inputs_of(study.graph).items() if name != SPAN},
        outputs={spec.name: (spec.shape, spec.dtype) for spec in study.model.outputs},
        length=study.model.length,
        rows=limits(study.graph),
        calls=calls,
    )
    if verify_wanted() and local_too:
        runner, x = bind(program, kernels), sample_of(study)
        require_equal(runner, x, study.target)
        require_same_bits(artifact, runner, x)
    return artifact


def weight_bytes(artifact: Artifact) -> int:
    """Bytes of all constants of an artifact that was assembled and not yet described."""
    return sum(artifact.report["sizes"].values())


def network_input(study: Study) -> dict[str, Any]:
    """One network-sized input, to be timed on: the first calibration batch, or made-up values; at most length."""
    return {name: value for name, value in sample_of(study).items() if name in study.graph.inputs}


def sample_of(study: Study) -> Batch:
    """The first calibration batch, or made-up values, as kernels take them one by one."""
    return study.kept[0] if study.kept else made_up(inputs_of(study.graph))


def describe(
    study: Study,
    artifact: Artifact,
    latency_s: float | None,
    accuracy: Accuracy | None,
    evaluation: Evaluation | None,
    limits: Limits | None = None,
) -> None:
    """Fill in the artifact's report: each layer and the whole, predicted against measured, and what else there was.

    latency_s: a call, as measured; None where nothing can be: then layers have no times either. limits: what the
    choice was held to. Of a plan that was given no alternatives are known, so none are told.
    """
    plan = artifact.plan
    times = {} if latency_s is None else artifact.layer_times(network_input(study), runs=LAYER_RUNS)
    timed = {layer.name for layer in study.graph.layers} & {name for _, name in artifact.calls}
    sizes: dict[str, int] = artifact.report.pop("sizes")
    layers = {layer.name for layer in study.graph.layers}
    rows = [
        _layer_row(study, plan, layer, times.get(layer.name, 0.0 if times else None), sizes.get(layer.name, 0))
        for layer in study.graph.layers
    ]
    conversions = [name for _, name in artifact.calls if name not in layers]
    measured: dict[str, Any] = {
        "latency_s": latency_s,
        "weight_bytes": sum(sizes.values()),
        "conversions": len(conversions),
        "conversions_s": sum(times[name] for name in conversions) if times else None,
        "expanded_bytes": artifact.library.expanded_bytes,
        "workspace_bytes": artifact.library.workspace_bytes,
        "library_bytes": len(artifact.library.code) + len(artifact.library.constants),
        "code_bytes": len(artifact.library.code),
        "drop": None if accuracy is None else accuracy.drop,
    }
    if accuracy is not None and evaluation is not None:
        measured["accuracy"] = evaluation_of.summary(accuracy, evaluation.source)
    noise = plan.loss * plan.noise_per_loss
    predicted = {
        "latency_s": plan.latency_s,
        "weight_bytes": plan.weight_bytes,
        "loss": plan.loss,
        "drop": _predicted_drop(noise, evaluation),
        "noise": noise,
    }
    costs = {name: study.costs[name, scheme] for name, scheme in plan.schemes.items() if name in timed}
    certificate = certify(
        predicted_s=plan.latency_s,
        measured_s=latency_s,
        costs=costs,
        times_s=times,
        predicted_bytes=plan.weight_bytes,
        sizes=sizes,
        drop=predicted["drop"],
        noise=noise,
        accuracy=accuracy,
    )
    if study.losses:
        problem = problem_of(study)
        weighted = [layer.name for layer in study.graph.layers if layer.op in WEIGHTED]
        told = explain(problem, sums_of(problem, plan.schemes), limits or Limits(), weighted)
        rows = [{**row, **told["layers"][row["name"]]} for row in rows]
        artifact.report.update({"front": told["front"], "near": told["near"]})
    artifact.report.update(
        {
            "model": study.model.name,
            "target": study.target.name,
            "cpu": study.target.cpu_model,
            "device": study.target.device,
            "threads": study.threads,
            "calibration_samples": study.samples,
            "tools": tool_versions(),
            "layers": rows,
            "predicted": predicted,
            "noise_per_loss": plan.noise_per_loss,
            "measured": measured,
            "certificate": certificate,
            "notes": notes(study, accuracy),
        }
    )


def _predicted_drop(noise: float, evaluation: Evaluation | None) -> float | None:
    """What the plan's noise does to float's answers on the evaluation's samples; None for a score of the user's own."""
    if evaluation is None or evaluation.function is not None:
        return None
    return predicted_drop(evaluation.float_outputs[0], evaluation.labels, noise)


def _layer_row(study: Study, plan: Plan, layer: Layer, measured_s: float | None, weight_bytes: int) -> dict[str, Any]:
    scheme = plan.schemes[layer.name]
    unit = (layer.name, scheme)
    return {
        "name": layer.name,
        "op": layer.op,
        "scheme": scheme,
        "predicted_s": study.costs[unit].latency_s,
        "price_source": study.costs[unit].source,
        "measured_s": measured_s,
        "weight_bytes": weight_bytes,
        "loss": study.losses.get(unit),
        "why": plan.why.get(layer.name, ""),
    }


def packed_sizes(program: Program, packed: Packed) -> dict[str, int]:
    """Bytes of each layer's constants as the library holds them: packed weights, biases, multipliers, tables.

    What a layer before it holds is not counted again. A conversion's zero point and scale are no weights; the library's
    size has them.
    """
    earlier = repeated(program, packed)
    return {
        step.name: sum(array.nbytes for i, array in enumerate(packed[step.name]) if (step.name, i) not in earlier)
        for step in program.steps
        if step.workload is not None and step.workload.op not in CONVERSIONS and step.constants
    }


def notes(study: Study, accuracy: Accuracy | None) -> list[str]:
    """What a reader should know: layers that stay in float because nothing else is there, and poor agreement."""
    found = _unmeasured(study)
    for name, axes in study.model.dynamic.items():
        ((axis, (least, most)),) = axes.items()
        found.append(
            f"axis {axis} of input {name!r} may be {least} to {most} long; prices and times are those of {most}"
        )
        if not study.model.seen:
            found.append(
                f"axis {axis} of input {name!r} was loaded {most} long only: what the network computes from the length "
                "itself is what it is there"
            )
    if not study.samples and any(study.losses.values()):
        found.append(
            "losses were not measured, for want of samples: they are the noise that rounding adds to each layer's own "
            "output, of activations a nominal one"
        )
    if study.model.float_ops:
        rows = ", ".join(f"{op} ({count})" for op, count in study.model.float_ops.items())
        found.append(f"kept in float, no integer kernel: {rows}")
    if accuracy is not None and accuracy.agreement is not None and accuracy.agreement < 0.9:
        found.append(
            f"the class agrees with float on only {accuracy.agreement:.1%} of the samples; a budget of drop avoids that"
        )
    return found


def _unmeasured(study: Study) -> list[str]:
    """What is not known of a machine that is not this one."""
    found = []
    target = study.target
    if target.device != "local" and target.emulated:
        found.append(f"latency and layer times were not measured: board {target.device!r} is an emulator")
    elif not study.timed:
        found.append(
            f"latency and layer times were not measured, only predicted: this CPU cannot run code for {target.name}, "
            "and no board was named"
        )
    if study.here is not target:
        found.append(f"accuracy is that of the same plan on this machine, {study.here.description}: integers are equal")
    if study.left_out:
        found.append(
            f"left out: {', '.join(study.left_out)}, which {target.name} has and this CPU has not, so that what it "
            "loses is not known"
        )
    return found


def explain_choices(study: Study, schemes: Mapping[str, str]) -> dict[str, str]:
    """For each layer one sentence: what it runs in, and what the others would have taken and lost."""
    return {layer.name: _why(study, layer, schemes[layer.name]) for layer in study.graph.layers}


def _why(study: Study, layer: Layer, scheme: str) -> str:
    names: Sequence[str] = study.candidates[layer.name]
    if layer.op == "reshape":
        return "a view of its input, free in any type"
    if names == ("f32",):
        able = study.target.schemes_for(layer.op)
        reason = (
            f"{study.target.name} has no integer kernel for {layer.op}"
            if able == ("f32",)
            else "no other scheme was allowed"
        )
        return f"f32: {reason}"
    parts = []
    for other in names:
        cost, loss = study.costs[layer.name, other], study.losses[layer.name, other]
        size = f", {cost.weight_bytes} bytes" if layer.op in WEIGHTED else ""
        lost = "" if other == "f32" else f", loss {loss:.1e}"
        parts.append(f"{other} {cost.latency_s * 1e6:.1f} us{size}{lost} ({cost.source})")
    rows = ""
    if layer.op == "gather" and (weight := SCHEMES[scheme].weight) is not None:
        rows = f"rows of int{weight.qtype.bits} are held so, whatever the allowed scheme: a table is only looked up; "
    if len(names) == 1:
        return f"{scheme}: {rows or 'the only scheme allowed; '}{parts[0]}"
    return f"{scheme}: {rows}chosen among {'; '.join(parts)}; conversions at its borders counted"
