"""Study: everything a choice needs to know of one network on one machine, each stage kept in the work directory.

find candidates -> calibrate -> correct -> quantize -> sensitivity -> price. The result is plain values; ``hwq.choose``
picks from it and ``hwq.deliver`` builds the pick. Interrupted anywhere, the same call goes on from the last whole
result.

Candidates, prices and programs are those of the target; samples run through the kernels of the machine ``here``. That
is the target itself where this CPU can run it, else this machine: integers are the same on both, and so is what they
lose.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hwq import nominal, sensitivity
from hwq.arguments import can_time
from hwq.assignment import Pair
from hwq.cache import default_store_path
from hwq.calibrate import split_activations
from hwq.compose import Pool
from hwq.decided import Decisions, compile_decided, decisions_for, without_decided
from hwq.errors import HwqError
from hwq.execute import KernelSet, Runner, bind, compile_kernels
from hwq.graph import PASS_THROUGH, Graph, words_of
from hwq.learned_price import usable_for
from hwq.loss import Sums, noise_per_loss
from hwq.lower import Program, legal_schemes, lower
from hwq.measure import homes_by, recorded_kernels
from hwq.model import Model
from hwq.numerics import QParams
from hwq.observe import calibrated, rounded, smoothing_of
from hwq.observers import OBSERVERS
from hwq.plan import Plan
from hwq.pricing import Pricer, constant_bytes, footprints_of, moved_programs, price_network, price_programs
from hwq.progress import Callback, Stages
from hwq.quantize import Means, Weights, quantize_weights
from hwq.samples import Batch
from hwq.scheme import SCHEMES, Cost, Scheme
from hwq.smooth import Smoothing, smoothed
from hwq.target import Target, host
from hwq.threads import use_threads
from hwq.work import Work


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Study:
    """One network on one machine. candidates: layer -> schemes. losses and costs: (layer, scheme) -> value. means:
    tensor -> the means of its channels. roundings: (layer, scheme) -> how its weights are rounded, where not to
    nearest. conversions, direct_s, moved_s and rows_s: as in ``hwq.pricing.Prices``. runner: the float network, kernel
    by kernel. samples: how many calibration batches there were; kept: the first of them. pairs: what layers lose
    together beyond their own losses, where that is known. noise_per_loss: what turns a loss into the outputs' noise-to-
    signal ratio, as a rule.

    kernels: the target's. here: the machine on which samples run, with its own kernels in ``kernels_here``. left_out:
    schemes that the target has, but not ``here``, so that what they lose is not known. decisions: what tuning decided
    about the target's kernels, which are made so. footprints: as in ``hwq.pricing``. smoothing: what ``hwq.smooth`` did
    to the model's graph. careful: whether losses decide on the choice, so that to lower them is worth its time.
    """

    model: Model
    target: Target
    threads: int
    candidates: Mapping[str, tuple[str, ...]]
    qparams: Mapping[str, QParams]
    means: Means
    weights: Weights
    roundings: Mapping[tuple[str, str], str]
    kernels: KernelSet
    here: Target
    kernels_here: KernelSet
    runner: Runner
    losses: Mapping[tuple[str, str], float]
    costs: Mapping[tuple[str, str], Cost]
    conversions: Mapping[str, tuple[float, float]]
    direct_s: Mapping[str, float]
    moved_s: Mapping[str, float]
    rows_s: Mapping[str, float]
    kept: tuple[Batch, ...]
    samples: int
    pairs: tuple[Pair, ...] = ()
    noise_per_loss: float = 1.0
    left_out: tuple[str, ...] = ()
    smoothing: Smoothing = field(default_factory=dict)
    decisions: Decisions = field(default_factory=dict)
    footprints: Mapping[str, int] = field(default_factory=dict)
    careful: bool = True

    @property
    def timed(self) -> bool:
        """Whether what is built for the target can be timed: here, or on its board."""
        return can_time(self.target)

    @property
    def graph(self) -> Graph:
        return self.model.graph

    def program(self, schemes: Mapping[str, str]) -> Program:
        """The network lowered with these schemes for the target."""
        return lower(self.graph, schemes, self.qparams, self.weights, self.target, self.threads)

    def program_here(self, schemes: Mapping[str, str]) -> Program:
        """The same network for the machine on which samples run: the same integers come out."""
        return lower(self.graph, schemes, self.qparams, self.weights, self.here, self.threads)


def roundings_of(roundings: Mapping[tuple[str, str], str], schemes: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Those that a plan with ``schemes`` needs, as it holds them: layer -> (scheme, text)."""
    return {
        name: (scheme, roundings[name, scheme]) for name, scheme in schemes.items() if roundings.get((name, scheme))
    }


def inputs_of(graph: Graph) -> dict[str, tuple[tuple[int, ...], str]]:
    """The network's inputs as its callers give them: name -> (shape, dtype)."""
    return {name: (graph.shapes[name], graph.dtypes[name]) for name in graph.inputs}


def pool_of(study: Study, work: Work) -> Pool:
    """What assignments of ``study`` are put together from to run on samples."""
    return Pool(kernels=study.kernels_here, target=study.here, cache=work.cache)


def machine_for_samples(target: Target) -> Target:
    """The machine on which samples run for ``target``: itself where this CPU can, else this machine.

    Raises HwqError "target-host" where hwq has no kernels for this machine at all.
    """
    return host() if target.missing_flags() else target


def find_candidates(graph: Graph, target: Target, allowed: Sequence[Scheme]) -> dict[str, tuple[str, ...]]:
    """The schemes that each layer may run in."""
    return {layer.name: legal_schemes(graph, layer, target, allowed) for layer in graph.layers}


def study(
    model: Model,
    target: Target,
    work: Work,
    calibration: Any,
    allowed: Sequence[Scheme],
    threads: int,
    observer: str,
    measure: bool,
    stages: Stages,
    *,
    careful: bool = True,
) -> Study:
    """Find out what each layer loses and costs in each scheme it may run in. careful: loss decides on the choice.

    Raises HwqError for calibration samples that are missing, of the wrong shape or type, or constant, and for an
    ``observer`` that is not in OBSERVERS.
    """
    if observer not in OBSERVERS:
        raise HwqError("observer-unknown", f"observer {observer!r} is not known; accepted: {', '.join(OBSERVERS)}")
    graph = model.graph
    here = machine_for_samples(target)
    left_out = tuple(scheme.name for scheme in allowed if scheme.name in set(target.schemes) - set(here.schemes))
    candidates = find_candidates(graph, target, [scheme for scheme in allowed if scheme.name not in left_out])
    use_threads(threads)
    split = split_activations(graph)
    float_program = lower(split, {}, {}, {}, here, threads)
    with stages("compile float") as progress:
        kernels_here = compile_kernels([float_program], here, work.cache, progress)
    runner = bind(float_program, kernels_here)
    smoothing = smoothing_of(
        graph, candidates, runner, work, calibration, observer, inputs_of(graph), careful, stages
    )  # fmt: skip
    if smoothing:
        model, work = replace(model, graph=smoothed(graph, smoothing)), replace(work, changed=json.dumps(smoothing))
        graph, split = model.graph, split_activations(model.graph)
        float_program = lower(split, {}, {}, {}, here, threads)
        runner = bind(float_program, kernels_here)
    integers = any(SCHEMES[scheme].weight is not None for names in candidates.values() for scheme in names)
    qparams, means, kept, count, digest = calibrated(
        split, candidates, runner, work, calibration, observer, integers, inputs_of(graph), stages
    )
    with stages("correct") as progress:
        roundings = rounded(
            graph, candidates, runner, qparams, work, calibration, kept, count, digest, inputs_of(graph), careful,
            progress,
        )  # fmt: skip
    with stages("quantize") as progress:
        weights = quantize_weights(graph, candidates, qparams, means, progress, roundings)

    units = _units(graph, candidates, qparams, weights, here, threads)
    moved = moved_programs(graph, candidates, target, threads)
    with stages("compile") as progress:
        own = moved if here is target else []
        kernels_here = compile_kernels([*units.values(), *own], here, work.cache, progress, known=kernels_here)
    programs, kernels = [*units.values(), *moved], kernels_here
    if here is not target:
        programs = [*_units(graph, candidates, qparams, weights, target, threads).values(), *moved]
        with stages("compile for the target") as progress:
            kernels = compile_kernels(programs, target, work.cache, progress)
    losses = dict.fromkeys(units, 0.0)
    lost: dict[tuple[str, str], Sums] = {}
    # What only passes values through loses nothing of its own: where it is int8, a neighbour is, whose loss has the
    # quantized tensor in it (between float layers int8 costs two conversions, and is never chosen).
    passing = {layer.name for layer in graph.layers if layer.op in PASS_THROUGH}
    wanted = {unit: program for unit, program in units.items() if unit[1] != "f32" and unit[0] not in passing}
    for stage, floats in (("sensitivity", False), ("sensitivity bf16", True)):
        chosen = {unit: program for unit, program in wanted.items() if (SCHEMES[unit[1]].weight is None) == floats}
        if not chosen or not kept:
            continue
        few = sensitivity.samples_for(float_program, len(chosen), floats)
        journal = work.file(
            "sensitivity",
            ".json",
            model.fingerprint,
            kernels_here.code,
            digest,
            observer,
            few,
            sorted(chosen),
            sorted((*unit, text) for unit, text in roundings.items()),
        )
        with stages(stage) as progress:
            lost |= sensitivity.measure(runner, chosen, kernels_here, kept[:few], journal, progress, words_of(graph))
    losses |= {unit: sums.loss for unit, sums in lost.items()} if kept else nominal.losses(graph, weights, wanted)
    losses.update({(layer.name, "f32"): 0.0 for layer in graph.layers})
    found = Study(
        model=model,
        target=target,
        threads=threads,
        candidates=candidates,
        qparams=qparams,
        means=means,
        weights=weights,
        roundings=roundings,
        kernels=kernels,
        runner=runner,
        here=here,
        kernels_here=kernels_here,
        left_out=left_out,
        smoothing=smoothing,
        careful=careful,
        losses=losses,
        noise_per_loss=noise_per_loss(lost.values()),
        costs={},
        conversions={},
        direct_s={},
        moved_s={},
        rows_s={},
        kept=kept,
        samples=count,
    )
    return _priced(found, programs, work, measure, stages)


def priced_again(found: Study, work: Work, measure: bool, stages: Stages) -> Study:
    """``found`` with the kernels that the store has decided on by now (``hwq.tune``), and their prices."""
    units = _units(found.graph, found.candidates, found.qparams, found.weights, found.target, found.threads)
    moved = moved_programs(found.graph, found.candidates, found.target, found.threads)
    return _priced(found, [*units.values(), *moved], work, measure, stages)


def _priced(found: Study, programs: Sequence[Program], work: Work, measure: bool, stages: Stages) -> Study:
    """``found`` with kernels as decided, which compute the same, and the prices of all ``programs``."""
    new = price_programs(
        found.graph,
        found.candidates,
        programs,
        found.kernels,
        found.target,
        found.threads,
        work.cache,
        default_store_path(),
        measure,
        stages,
    )
    return replace(
        found,
        kernels=new.kernels,
        decisions=new.decisions,
        footprints=new.footprints,
        costs=new.prices.costs,
        conversions=new.prices.conversions,
        direct_s=new.prices.direct_s,
        moved_s=new.prices.moved_s,
        rows_s=new.prices.rows_s,
    )


def _units(
    graph: Graph,
    candidates: Mapping[str, Sequence[str]],
    qparams: Mapping[str, QParams],
    weights: Weights,
    machine: Target,
    threads: int,
) -> dict[tuple[str, str], Program]:
    """The program of every layer alone in every scheme it may run in."""
    return {
        (layer.name, scheme): sensitivity.unit_program(graph, layer, scheme, qparams, weights, machine, threads)
        for layer in graph.layers
        for scheme in candidates[layer.name]
    }


def study_of_plan(
    model: Model, target: Target, work: Work, plan: Plan, threads: int, progress: Callback, judged: bool = True
) -> Study:
    """What building a given plan needs: nothing is calibrated, measured or chosen; costs are those of records, or as
    learned. judged: it will be run on samples, for which another machine's plan needs kernels of this one.

    Raises HwqError "plan-ranges" for an integer layer with a tensor whose range the plan does not hold, and
    "scheme-not-here" where it is judged and this machine has no instruction for a scheme of it.
    """
    model = replace(model, graph=smoothed(model.graph, plan.smoothing))
    graph = model.graph
    candidates = {layer.name: (plan.schemes[layer.name],) for layer in graph.layers}
    for layer in graph.layers:
        if SCHEMES[plan.schemes[layer.name]].domain == "f32":
            continue
        needed = [*layer.int8_tensors]
        if layer.weight is not None and not layer.activation.clamps:
            needed.append(f"{layer.name}:pre")
        for tensor in needed:
            if tensor not in plan.qparams:
                raise HwqError(
                    "plan-ranges",
                    f"plan runs layer {layer.name!r} in {plan.schemes[layer.name]} but holds no range of tensor "
                    f"{tensor!r}; accepted: a plan made by hwq.plan with calibration samples",
                )
    use_threads(threads)
    here = machine_for_samples(target)
    float_program = lower(split_activations(graph), {}, {}, {}, here, threads)
    foreign = set(plan.schemes.values()) & set(target.schemes) - set(here.schemes)
    if judged and foreign:
        raise HwqError(
            "scheme-not-here",
            f"the plan has layers in {', '.join(sorted(foreign))}, which this CPU has no instruction for, so that they "
            "cannot be judged here; accepted: no evaluate",
        )
    roundings = {(name, scheme): text for name, (scheme, text) in plan.roundings.items()}
    weights = quantize_weights(graph, candidates, plan.qparams, plan.means, roundings=roundings)
    program = lower(graph, plan.schemes, plan.qparams, weights, target, threads)
    if here is target:
        kernels = kernels_here = compile_kernels([float_program, program], target, work.cache, progress)
    else:
        kernels = compile_kernels([program], target, work.cache, progress)
        mine = [lower(graph, plan.schemes, plan.qparams, weights, here, threads)] if judged else []
        kernels_here = compile_kernels([float_program, *mine], here, work.cache, progress)
    decisions = decisions_for(target, default_store_path())
    packed, resident = constant_bytes([program], kernels)
    every = sum(footprints_of([program], resident).values())
    footprints = dict.fromkeys(plan.schemes.values(), every)
    if decisions:
        known, home_of = without_decided(kernels, decisions), homes_by(footprints, target)
        kernels = compile_decided([program], target, work.cache, decisions, home_of, progress, known)
        packed, _ = constant_bytes([program], kernels)
    pricer = Pricer(
        target=target,
        threads=threads,
        kernels=kernels,
        footprints=footprints,
        learned=usable_for(target, work.cache),
        records=recorded_kernels([program], kernels, target, default_store_path(), footprints),
    )
    prices = price_network(graph, candidates, pricer, packed)
    return Study(
        model=model,
        target=target,
        threads=threads,
        candidates=candidates,
        qparams=plan.qparams,
        means=plan.means,
        weights=weights,
        roundings=roundings,
        kernels=kernels,
        here=here,
        kernels_here=kernels_here,
        runner=bind(float_program, kernels_here),
        losses={},
        costs=prices.costs,
        conversions=prices.conversions,
        direct_s=prices.direct_s,
        moved_s=prices.moved_s,
        rows_s=prices.rows_s,
        kept=(),
        samples=0,
        decisions=decisions,
        footprints=footprints,
        smoothing=plan.smoothing,
    )
