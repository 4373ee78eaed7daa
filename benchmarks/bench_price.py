"""Predicted against measured time, of kernels and of whole networks that the learned price has never seen.

    python benchmarks/bench_price.py [--networks mobilenetv2,resnet20,...] [--threads 1] [--json FILE]

For each real network every kernel of every scheme is priced by the shipped model, as with measure=False, and measured:
alone, as a record is, and within the network (uniform assignments, each built and run). Kernels of layers that the
model was trained on are left out. Printed for each network: the median error of learned prices and of the roofline's,
how many measurements lie in the learned interval, and both rank correlations with what was measured; of the layers
within networks the learned prices' median error, and how many lie in the intervals of records; then each whole, as
summed from learned prices, as fitted (t = a * sum + b) to the other networks, and as summed from records.

The cross-validated figures of the model's own training set stand above the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from hwq import load
from hwq.assign import assign
from hwq.assignment import evaluate
from hwq.certificate import WHOLE
from hwq.choose import Choice, problem_of, uniforms
from hwq.cost import fit_whole, price_roofline
from hwq.deliver import assemble, network_input, plan_of
from hwq.learned_price import Learned, layer_digest, shipped
from hwq.lower import Program, layer_workload
from hwq.pricing import Pricer, constant_bytes, footprints_of, measured, moved_programs, price_network
from hwq.progress import silent
from hwq.scheme import SCHEMES
from hwq.sensitivity import unit_program
from hwq.study import Study, study
from hwq.target import Target
from hwq.work import Work, open_work
from hwq.workload import Workload

sys.path.insert(0, str(Path(__file__).resolve().parent))
import real_data

NAMES = ("resnet20", "resnet32", "mobilenetv2", "ultraface")
# Samples to calibrate with: ranges change no kernel's time.
CALIBRATE = 2
ROUNDS, ROUND_RUNS = 8, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One kernel. alone_s: as a record has it; inside_s: within a network, the mean where it is called often."""

    op: str
    scheme: str
    learned_s: float
    low_s: float
    high_s: float
    roofline_s: float
    alone_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """One layer of one assignment: its learned price, its record's interval, and what it took within the network."""

    learned_s: float
    low_s: float
    high_s: float
    measured_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """One assignment of a network, in seconds: learned prices summed, records summed, and as measured."""

    network: str
    assignment: str
    learned_s: float
    records_s: float
    measured_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All of one network. seen: kernels left out. inside: each layer of every assignment."""

    network: str
    points: list[Point]
    inside: list[Inside]
    wholes: list[Whole]
    seen: int


def look_at(name: str, threads: int, target: Target, model: Learned, store: Path) -> Found:
    """Prices and measurements of the network called ``name``."""
    case = real_data.case(name, evaluate=1, calibrate=CALIBRATE)
    network = load(case.model)
    work = open_work(network.fingerprint, name, None)
    bare = study(network, target, work, case.calibration, tuple(SCHEMES.values()), threads, "mse", False, silent)
    programs = programs_of(bare)
    packed, resident = constant_bytes(programs, bare.kernels)
    learned = Pricer(
        target=target,
        threads=threads,
        kernels=bare.kernels,
        footprints=footprints_of(programs, resident),
        learned=model,
        records={},
    )
    recorded = measured(learned, programs, store, lambda done, total: None)
    new = [workload for workload in recorded.records if layer_digest(workload) not in model.seen]
    points = [point for workload in new if (point := point_of(workload, learned, recorded))]
    predicted, known = (priced(bare, pricer, packed) for pricer in (learned, recorded))
    inside, wholes = run(name, predicted, known, model, work)
    seen = len(recorded.records) - len(new)
    return Found(network=name, points=points, inside=inside, wholes=wholes, seen=seen)


def programs_of(found: Study) -> list[Program]:
    """Every layer alone in every scheme, and the conversions that do a transpose."""
    units = [
        unit_program(found.graph, layer, scheme, found.qparams, found.weights, found.target, found.threads)
        for layer in found.graph.layers
        for scheme in found.candidates[layer.name]
    ]
    return [*units, *moved_programs(found.graph, found.candidates, found.target, found.threads)]


def priced(found: Study, pricer: Pricer, packed: Mapping[Workload, int]) -> Study:
    """The study with the prices of ``pricer``."""
    prices = price_network(found.graph, found.candidates, pricer, packed)
    return replace(
        found,
        costs=prices.costs,
        conversions=prices.conversions,
        direct_s=prices.direct_s,
        moved_s=prices.moved_s,
        rows_s=prices.rows_s,
    )


def point_of(workload: Workload, learned: Pricer, recorded: Pricer) -> Point | None:
    """The kernel's prices; None for one that nothing is learned of."""
    price = learned.cost(workload)
    if price.source != "learned":
        return None
    return Point(
        op=workload.op,
        scheme=workload.scheme,
        learned_s=price.latency_s,
        low_s=price.interval_s[0],
        high_s=price.interval_s[1],
        roofline_s=price_roofline(workload, learned.target, learned.threads).latency_s,
        alone_s=recorded.records[workload].median_s,
    )


def run(name: str, predicted: Study, known: Study, model: Learned, work: Work) -> tuple[list[Inside], list[Whole]]:
    """The uniform assignments and the fastest, built and run: each new layer, and wholes."""
    problem, other = problem_of(predicted), problem_of(known)
    solutions = uniforms(known) | {"fastest": assign(other)}
    artifacts = {key: assemble(known, work, plan_of(known, Choice(solution=one))) for key, one in solutions.items()}
    x = network_input(known)
    times = {key: min(artifacts[key].times(x, runs=ROUND_RUNS, warm_up=2)) for key in artifacts}
    for _ in range(ROUNDS - 1):  # in turns: a load on the machine falls on all
        times = {key: min(least, *artifacts[key].times(x, runs=ROUND_RUNS, warm_up=2)) for key, least in times.items()}
    new = {
        layer.name
        for layer in predicted.graph.layers
        if (workload := layer_workload(layer, "f32", "float32", 1)) and layer_digest(workload) not in model.seen
    }
    inside, wholes = [], []
    for key, solution in solutions.items():
        within = artifacts[key].layer_times(x, runs=30)
        for layer, scheme in solution.schemes.items():
            cost = predicted.costs[layer, scheme]
            if layer in new and cost.source == "learned" and layer in within:
                low, high = known.costs[layer, scheme].interval_s
                inside.append(Inside(learned_s=cost.latency_s, low_s=low, high_s=high, measured_s=within[layer]))
        wholes.append(
            Whole(
                network=name,
                assignment=key,
                learned_s=evaluate(problem, solution.schemes).latency_s,
                records_s=evaluate(other, solution.schemes).latency_s,
                measured_s=times[key],
            )
        )
    return inside, wholes


# What is printed


def kernels_table(found: Sequence[Found]) -> str:
    """A line for each network, and one for all."""
    names = "kernels  seen  learned  roofline  in interval  rank learned  roofline  median width  inside  records hold"
    lines = [f"{'network':14} {names}"]
    rows = [(one.network, one.points, one.seen, one.inside) for one in found]
    everything = [point for one in found for point in one.points]
    rows.append(("all", everything, sum(one.seen for one in found), [pair for one in found for pair in one.inside]))
    for name, points, seen, inside in rows:
        alone = np.array([point.alone_s for point in points])
        learned, roofline = (np.array([getattr(point, key) for point in points]) for key in ("learned_s", "roofline_s"))
        held = np.mean([point.low_s <= point.alone_s <= point.high_s for point in points])
        width = np.median([point.high_s / point.low_s for point in points])
        ranks = [stats.spearmanr(values, alone).statistic for values in (learned, roofline)]
        within = np.median([abs(one.learned_s / one.measured_s - 1) for one in inside])
        records = np.mean([one.low_s <= one.measured_s <= one.high_s for one in inside])
        lines.append(
            f"{name:14} {len(points):7} {seen:5} {np.median(abs(learned / alone - 1)):8.1%}"
            f" {np.median(abs(roofline / alone - 1)):9.1%} {held:12.1%} {ranks[0]:13.3f} {ranks[1]:9.3f}"
            f" {width:13.2f} {within:7.1%} {records:13.1%}"
        )
    return "\n".join(lines)


def wholes_table(found: Sequence[Found]) -> str:
    """A line for each assignment: the sums, and the sum as fitted to the other networks."""
    lines = [f"{'network':14} {'assignment':12} measured  learned sum          fitted          records' sum"]
    wholes = [whole for one in found for whole in one.wholes]
    errors: dict[str, list[float]] = {"sum": [], "fitted": [], "records": []}
    for whole in wholes:
        others = [(it.learned_s, it.measured_s) for it in wholes if it.network != whole.network]
        fitted_s = fit_whole(others).whole_s(whole.learned_s)
        values = {"sum": whole.learned_s, "fitted": fitted_s, "records": whole.records_s}
        for key, value in values.items():
            errors[key].append(abs(value / whole.measured_s - 1))
        shown = "".join(f" {value * 1e3:9.3f} ms {value / whole.measured_s - 1:+6.1%}" for value in values.values())
        lines.append(f"{whole.network:14} {whole.assignment:12} {whole.measured_s * 1e3:6.3f} ms{shown}")
    held = sum(WHOLE[0] <= it.measured_s / it.records_s <= WHOLE[1] for it in wholes)
    lines.append(f"{held} of {len(wholes)} wholes took {WHOLE[0]:g} to {WHOLE[1]:g} of their records' sum")
    fit = fit_whole([(it.learned_s, it.measured_s) for it in wholes])
    lines.append("median error: " + ", ".join(f"{key} {np.median(values):.1%}" for key, values in errors.items()))
    lines.append(f"fit of all: t = {fit.scale:.3f} * sum + {fit.offset_s * 1e6:.1f} us, residual {fit.residual:.1%}")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=lambda text: tuple(text.split(",")), default=NAMES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all points and wholes there as well")
    given = parser.parse_args()
    model, target = shipped(), Target.load("host")
    print(f"shipped model: {json.dumps(dict(model.summary))}", flush=True)
    found = []
    with tempfile.TemporaryDirectory(prefix="hwq-") as folder:
        for name in given.networks:
            found.append(look_at(name, given.threads, target, model, Path(folder) / "records.sqlite"))
            print(f"{name} done", flush=True)
    print(kernels_table(found))
    print(wholes_table(found))
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1))


if __name__ == "__main__":
    main()
