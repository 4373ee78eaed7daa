"""Compile a network: from an ONNX file to a library in which every layer runs in the format that pays.

Run it from top to bottom (`python tutorials/01_compile_a_network.py`, about a minute), or block by block in an editor
that knows `# %%`. It needs nothing but hwq: a small network for handwritten digits ships with it. `--small` takes fewer
pictures and times nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console

import hwq
from hwq import report
from hwq.demo import load_demo

SMALL = "--small" in sys.argv[1:]
console = Console(width=120)

# %% The network and its pictures
#
# A residual network with depthwise stages, trained on 16 x 16 grey pictures. Two sets of pictures: hwq watches the
# activations on the first, which need no labels; it judges what it has made on the second.

path, calibration, (pictures, labels) = load_demo()
if SMALL:
    calibration, pictures, labels = calibration[:16], pictures[:100], labels[:100]

# Loading turns the file into layers: a convolution with its bias, a residual addition and an activation is one layer,
# and each layer is one kernel in the end. Batch norms are gone, folded into the weights in front of them.

model = hwq.load(path)
for layer in model.graph.layers:
    extras = [layer.activation.kind] + ["residual"] * layer.residual
    print(f"{layer.name:<20} {layer.op:<18} {layer.output_shape!s:<18} {' '.join(extras)}")

# %% Compile, within a budget
#
# For this machine, one thread, losing at most half a point of accuracy. Whatever a budget leaves open is minimized,
# latency first. hwq runs each layer in float and in its integer forms, on real activations, to see what it loses; times
# each kernel, to see what it gains; lets a mixed-integer program choose; builds that choice, and whatever uniform
# scheme could be faster, float included; and delivers the best one that was measured to be within the budget.

settings = {"calibration": calibration, "threads": 1, "measure": not SMALL}
artifact = hwq.compile(model, "host", evaluate=(pictures, labels), budget=hwq.Budget(drop=0.005), **settings)

# %% Read what came out
#
# Every layer with its scheme, predicted beside measured: f32 is float, w8a8 int8, w4a8 int8 with weights in four bits.
# The loss is how far the layer alone moves the network's classes: their Kullback-Leibler divergence from float's.

report.show(artifact.report, console)
print(artifact.report["verdict"])

# The report is a plain dictionary, so a script can hold it against its own limits.

measured = artifact.report["measured"]
assert measured["drop"] <= 0.005
print(f"{measured['latency_s'] * 1e6:.0f} us, {measured['weight_bytes']} bytes of weights, drop {measured['drop']:.2%}")

# Why is a layer what it is? Each row says so in a sentence.

stem = next(row for row in artifact.report["layers"] if row["name"] == "stem")
print("stem ->", stem["why"])

# %% Run it, save it, load it
#
# NumPy in, NumPy out, any number of samples. The file holds code, weights, plan and report; it runs in another process
# and another folder, on any CPU that has the instructions, and gives the same bits.

logits = artifact(pictures)
print(f"{np.mean(logits.argmax(axis=1) == labels):.1%} of {len(labels)} pictures read rightly")

folder = Path(tempfile.mkdtemp(prefix="hwq-tutorial-"))
artifact.save(folder / "digits.hwq")
again = hwq.Artifact.load(folder / "digits.hwq", threads=1)
assert np.array_equal(again(pictures), logits)
print(f"{folder / 'digits.hwq'}: {(folder / 'digits.hwq').stat().st_size} bytes")

# %% A budget of bytes, and a plan to edit
#
# `hwq.plan` stops at the choice. Here weights may take three quarters of what they take in int8 throughout, so some of
# them have to be int4: those whose loss is least for the bytes they save.

int8 = hwq.plan(model, schemes=["w8a8"], **settings)
plan = hwq.plan(model, budget=hwq.Budget(weight_bytes=0.75 * int8.weight_bytes), **settings)
print(Counter(plan.schemes.values()), f"{plan.weight_bytes} of {int8.weight_bytes} bytes, loss {plan.loss:.2g}")

# A plan is a JSON file with one line for each layer, made to be edited. Say that the last layer has to be float,
# whatever that costs: change its line, and build exactly that.

plan.save(folder / "plan.json")
text = json.loads((folder / "plan.json").read_text())
text["layers"]["classifier"]["scheme"] = "f32"
(folder / "plan.json").write_text(json.dumps(text))

edited = hwq.build(model, hwq.Plan.load(folder / "plan.json"), evaluate=(pictures, labels))
assert edited.plan.schemes["classifier"] == "f32"
figures = edited.report["measured"]
print(f"edited: {figures['weight_bytes']} bytes, agrees with float on {figures['accuracy']['agreement']:.1%}")

# A budget that cannot be met is refused, with the closest one that can.

try:
    hwq.compile(model, budget=hwq.Budget(weight_bytes=1000), **settings)
except hwq.HwqError as error:
    print(f"{error.code}: {error}")

# %% Benchmark
#
# One call, its input in place, after a warm-up: the median and the least of so many runs.

for name, one in {"within half a point": artifact, "edited plan": edited}.items():
    times = one.benchmark(pictures[:1], runs=20 if SMALL else 200)
    print(f"{name:<20} median {times.median_s * 1e6:6.1f} us, least {times.min_s * 1e6:6.1f} us, {times.runs} runs")

# From here: `hwq compile --help` does the same from a shell; `hwq.compile(..., work_dir=...)` keeps what it found, so
# that an interrupted compile goes on; README.md lists targets, schemes and errors.
