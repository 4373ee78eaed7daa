"""How well scores rank whole assignments: isolated ones against re-anchored, on assignments that neither has seen.

    python benchmarks/bench_scores.py [--network mobilenetv2] [--size 0.65] [--plans 60] [--pictures 600] [--seed 0]

The network is studied as ``hwq.compile`` does it, without timing kernels, and scores are re-anchored for weights of at
most --size of the uniform w8a8's. Then --plans other random assignments around the proposal are run, on the calibration
samples that the scores come from and on pictures that no score has seen. Printed is Spearman's rank correlation of
predicted with measured loss, for both kinds of scores on both sets of samples, and R^2 where the samples are the same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from hwq import ridge
from hwq.assign import assign
from hwq.assignment import Limits
from hwq.choose import SLACK, problem_of, uniforms
from hwq.compose import Pool
from hwq.model import load
from hwq.progress import lines
from hwq.reanchor import drawn, features_of, losses_of, open_runs, reanchor, samples_for
from hwq.ridge import Vector
from hwq.samples import stream
from hwq.scheme import parse_schemes
from hwq.study import Study, inputs_of, study
from hwq.target import Target
from hwq.work import open_work

sys.path.insert(0, str(Path(__file__).resolve().parent))
from real_data import case


def main() -> None:
    """Study, re-anchor, draw, run, rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="mobilenetv2")
    parser.add_argument("--size", type=float, default=0.65)
    parser.add_argument("--plans", type=int, default=60)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work-dir", help="keep the results of stages here, to go on after an interrupt")
    given = parser.parse_args()
    data = case(given.network, evaluate=given.pictures)
    model, target, stages = load(str(data.model)), Target.load("host"), lines(sys.stdout)
    with tempfile.TemporaryDirectory() as folder:
        work = open_work(model.fingerprint, model.name, given.work_dir or folder)
        found = study(model, target, work, data.calibration, parse_schemes(None), 1, "mse", False, stages)
        limits = Limits(weight_bytes=given.size * uniforms(found)["w8a8"].weight_bytes)

        def propose(known: Study) -> tuple:
            problem = problem_of(known)
            return problem, [assign(problem, limits, slack=SLACK)]

        pool = Pool(kernels=found.kernels, target=target, cache=work.cache)
        runs = open_runs(found, work, pool, samples_for(found))
        with stages("re-anchor") as progress:
            anchors = reanchor(runs, propose, ["weight_bytes"], given.seed, progress=progress)
        assert anchors is not None, "too few assignments to fit"
        problem, (centre,) = propose(found)
        units = [unit for unit, value in found.losses.items() if value > 0]
        rng = np.random.default_rng([given.seed, 1_000])
        free = list(dict.fromkeys(layer for layer, _ in units))
        plans = drawn(problem, centre, free, ["weight_bytes"], given.plans, rng)
        plans = [one for one in plans if tuple(one.values()) not in runs.known]
        apart = open_work(model.fingerprint, model.name, work.stages / "held out")
        others = tuple(stream(data.inputs, inputs_of(found.graph)))
        inside = open_runs(found, apart, pool, samples_for(found))
        beyond = open_runs(replace(found, kept=others), apart, pool, len(others))
        measured = {}
        for name, where in (("calibration samples", inside), ("other pictures", beyond)):
            with stages(f"run {len(plans)} assignments on {len(where.batches)} {name}") as progress:
                rows = []
                for schemes in plans:
                    rows.append(losses_of(where, schemes).mean())
                    progress(len(rows), len(plans))
                measured[name] = np.array(rows)
    paired = {pair: pair.loss for pair in anchors.pairs}
    terms = np.array(
        [
            sum(loss for pair, loss in paired.items() if all(map(lambda a, b: one[a] == b, pair.layers, pair.schemes)))
            for one in plans
        ]
    )
    features = features_of(plans, units)
    predicted: dict[str, Vector] = {
        "isolated": features @ np.array([found.losses[unit] for unit in units]),
        "re-anchored": features @ np.array([anchors.losses[unit] for unit in units]) + terms,
    }
    print(f"\n{given.network}, {len(plans)} assignments held out, near {given.size:.0%} of the w8a8 size")
    print(
        f"fitted to {anchors.plans} on {anchors.samples} samples, {anchors.rounds} rounds, {len(paired)} pair terms; "
        f"by cross-validation R^2 {anchors.fitted.r2:.3f}, Spearman {anchors.fitted.spearman:.3f} "
        f"(isolated {anchors.isolated.r2:.3f}, {anchors.isolated.spearman:.3f})"
    )
    print(f"{'scores':<14}{'':>22}{'Spearman':>10}{'R^2':>8}")
    for name, losses in measured.items():
        for kind, values in predicted.items():
            quality = ridge.quality(values, losses)
            print(f"{kind:<14}{name:>22}{quality.spearman:>10.3f}{quality.r2:>8.3f}")


if __name__ == "__main__":
    main()
