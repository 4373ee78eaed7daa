"""Whether budgets of latency are kept: one between uniform w4a8's time and float's, on ten networks.

    python benchmarks/bench_budgets.py [--networks resnet20,dscnn,...] [--threads 1] [--json FILE]

For each network float and w4a8 throughout are compiled and timed in turns; the budget is the geometric mean of the two
times. ``hwq.compile`` then chooses among all schemes within it, and what it delivers is timed in turns with the other
two, in a measurement of its own, beside what the compile itself measured. A budget is met if that median is within it.
Networks of ``networks`` have made-up weights.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hwq
from hwq.contest import interleaved
from hwq.target import host

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench_models import networks
from race import Network

TEN = (
    *("resnet20", "resnet32", "mobilenetv2", "resnet18", "efficientnet-lite0"),
    *("squeezenet", "resnet8", "dscnn", "vww", "autoencoder"),
)


def run(network: Network, threads: int) -> dict[str, Any]:
    """One network's row: milliseconds of w4a8, float, the budget and what was delivered, and whether that is met."""
    model, target = hwq.load(network.path), host()
    given: dict[str, Any] = {"calibration": network.samples, "threads": threads}
    ends = {scheme: hwq.compile(model, target, schemes=[scheme], **given) for scheme in ("w4a8", "f32")}
    x = network.feed()
    before = interleaved(ends, x)
    budget_s = math.sqrt(before["w4a8"] * before["f32"])
    began = time.perf_counter()
    row = {"network": network.name, **{name: value * 1e3 for name, value in before.items()}, "budget": budget_s * 1e3}
    try:
        artifact = hwq.compile(model, target, budget=hwq.Budget(latency_s=budget_s), **given)
    except hwq.HwqError as error:
        missing = {"compiled": None, "delivered": None, "met": False}
        return row | {**missing, "schemes": error.code, "seconds": time.perf_counter() - began}
    took = time.perf_counter() - began
    after = interleaved({**ends, "delivered": artifact}, x)["delivered"]
    used = Counter(artifact.plan.schemes[layer.name] for layer in model.graph.layers if layer.weight is not None)
    schemes = ", ".join(f"{count} {scheme}" for scheme, count in sorted(used.items()))
    compiled = artifact.report["measured"]["latency_s"]
    row |= {"compiled": compiled * 1e3}
    return row | {"delivered": after * 1e3, "met": after <= budget_s, "schemes": schemes, "seconds": took}


def main() -> None:
    """All networks asked for, one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(TEN))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the figures here as well")
    given = parser.parse_args()
    rows = []
    names = "w4a8, ms | f32, ms | budget, ms | as compiled, ms | delivered, ms | met | layers with weights | compile, s"
    print(f"| network | {names} |")
    print("|---|---:|---:|---:|---:|---:|---|---|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for network in networks(given.networks.split(","), Path(folder)):
            row = run(network, given.threads)
            rows.append(row)
            times = " | ".join(
                f"{row[key] or math.nan:.4f}" for key in ("w4a8", "f32", "budget", "compiled", "delivered")
            )
            met = "yes" if row["met"] else "no"
            print(f"| {row['network']} | {times} | {met} | {row['schemes']} | {row['seconds']:.0f} |", flush=True)
    print(f"\nmet: {sum(row['met'] for row in rows)} of {len(rows)}")
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
