"""Budgets and fronts: what a network can be on this machine, what each layer has to do with it, and how to choose.

Run it from top to bottom (`python tutorials/02_budgets_and_fronts.py`, about a minute), or block by block in an editor
that knows `# %%`. It needs nothing but hwq; the network and its pictures are those of the first tutorial. `--small`
takes fewer pictures and times nothing.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console

import hwq
from hwq import report
from hwq.demo import load_demo
from hwq.page import render

SMALL = "--small" in sys.argv[1:]
console = Console(width=120)
folder = Path(tempfile.mkdtemp(prefix="hwq-tutorial-"))

path, calibration, (pictures, labels) = load_demo()
if SMALL:
    calibration, pictures, labels = calibration[:16], pictures[:100], labels[:100]
model = hwq.load(path)
# The work directory keeps what the stages find: every call below begins where the one before has ended.
settings = {"calibration": calibration, "threads": 1, "measure": not SMALL, "work_dir": folder / "work"}

# %% The front
#
# Three things are wanted at once: few milliseconds, few bytes, little noise. No plan is best in all, so before a budget
# is set it helps to see what there is. `hwq.explore` studies the network once and asks the program for plans of which
# none is beaten by another in all three; with samples to judge by it runs the kernels of each plan.

front = hwq.explore(model, evaluate=(pictures, labels), points=10, **settings)
report.show_front([point.to_dict() for point in front], console)

fastest, smallest = front[0], min(front, key=lambda point: point.weight_bytes)
print(f"{len(front)} plans, from {fastest.latency_s * 1e6:.1f} us to {front[-1].latency_s * 1e6:.1f} us")
print(f"the smallest takes {smallest.weight_bytes} bytes and loses {smallest.drop:.1%} of {len(labels)} pictures")

# Beside a point there are others as good but for 2%: where one layer must stay as it is for reasons of yours, one of
# these may do.

for point in front:
    for other in point.alternatives[:1]:
        moved = {name: scheme for name, scheme in other.schemes.items() if scheme != point.plan.schemes[name]}
        print(f"{point.latency_s * 1e6:.1f} us, or {other.latency_s * 1e6:.1f} us with {moved}")

# %% Two budgets at once
#
# Any of drop, latency and bytes can be bounded, alone or together; what is left open is minimized, latency first. Here
# weights may take four fifths of int8's and at most one picture in a hundred may be lost.

int8 = hwq.plan(model, schemes=["w8a8"], **settings)
budget = hwq.Budget(weight_bytes=0.8 * int8.weight_bytes, drop=0.01)
artifact = hwq.compile(model, evaluate=(pictures, labels), budget=budget, **settings)
measured = artifact.report["measured"]
print(Counter(artifact.plan.schemes.values()))
print(
    f"{measured['weight_bytes']} of {budget.weight_bytes:.0f} bytes, drop {measured['drop']:.2%} of {budget.drop:.0%}"
)
assert measured["weight_bytes"] <= budget.weight_bytes
assert measured["drop"] <= budget.drop

# A budget that cannot be met is refused, with the figures of what can.

try:
    hwq.compile(model, evaluate=(pictures, labels), budget=hwq.Budget(latency_s=1e-9, drop=0.01), **settings)
except hwq.HwqError as error:
    print(f"{error.code}: {error}")

# %% The certificate
#
# Every artifact says what was predicted of it and what was measured, with intervals of 90%: those of the prices around
# the predicted times, and that of so few samples around the measured drop. The predicted drop comes from the noise and
# from how far apart float's two best classes are on each picture.

for line in report.certificate_lines(artifact.report):
    print(line)
drop = artifact.report["certificate"]["drop"]
print(f"between {drop['interval'][0]:.1%} and {drop['interval'][1]:.1%} are lost, by {drop['samples']} pictures")

# %% Which layers matter, and what if
#
# Each layer's row has its parts of time, bytes and loss; the next cheaper scheme and what that would save and cost with
# everything else as it is; and, for those that matter most, what the program makes of the network if the layer is
# forced to it. Nothing is run for that: it is all in the artifact, without the model.

print("the loss is held by:", report.holders(artifact.report))
artifact.save(folder / "digits.hwq")
again = hwq.Artifact.load(folder / "digits.hwq")
weighted = [row for row in again.report["layers"] if row["cheaper"] is not None]
for row in sorted(weighted, key=lambda row: -row["shares"]["loss"])[:3]:
    print(row["name"])
    for sentence in report.sentences(row, again.report):
        print("   ", sentence)

# %% The page
#
# `hwq explain digits.hwq --html digits.html` writes all of that to one file that needs no network: the front, every
# layer with its reasons, sensitivity and time by layer, the range of each tensor.

(folder / "digits.html").write_text(render(again.report, again.plan))
print(f"{folder / 'digits.html'}: {(folder / 'digits.html').stat().st_size} bytes")

# %% From a point to an artifact
#
# A point is a plan like any other: save it, edit it, build it. What is delivered has the accuracy that was measured
# kernel by kernel, since these are the kernels.

chosen = min((point for point in front if point.drop <= 0.01), key=lambda point: point.weight_bytes)
chosen.plan.save(folder / "plan.json")
built = hwq.build(model, hwq.Plan.load(folder / "plan.json"), evaluate=(pictures, labels))
assert built.report["measured"]["drop"] == chosen.drop
print(f"built: {built.report['measured']['weight_bytes']} bytes, drop {chosen.drop:.2%} as explored")

# From here: `hwq explore MODEL --calib X.npz --eval Y.npz -o FOLDER` writes the plans of the front from a shell, and
# `hwq compile MODEL --plan FOLDER/plan-03.json -o OUT.hwq` builds one of them.
