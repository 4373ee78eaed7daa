"""A board on the shelf: check it, tune a network's kernels on it, and run there what was compiled here.

Run it from top to bottom (`python tutorials/03_tune_on_a_board.py`, a minute or two), or block by block in an editor
that knows `# %%`. It needs nothing but hwq: without a board, this machine serves as one, which is reached the same way.
With a board: `--board KEY@HOST:PORT --target NAME`, such as `--board pi5@192.0.2.10:9190 --target arm-cortex-a76`. How
a board gets onto the shelf is in BOARDS.md. `--small` takes few trials.
"""

from __future__ import annotations

import argparse
import atexit
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

import hwq
from hwq.address import Tracker
from hwq.cli_tune import line_of, show
from hwq.demo import load_demo
from hwq.errors import HwqError
from hwq.job import run_job
from hwq.job_file import read_job
from hwq.lab import check
from hwq.tracker import shelves

parser = argparse.ArgumentParser()
parser.add_argument("--small", action="store_true")
parser.add_argument("--board", help="KEY@HOST:PORT; without it this machine is one")
parser.add_argument("--target", default="host", help="what the board is")
given = parser.parse_args()
console = Console(width=120)
folder = Path(tempfile.mkdtemp(prefix="hwq-tutorial-"))

# %% A tracker and a board
#
# A tracker knows who is on the shelf; boards announce themselves to it under a key, which names their kind. In a lab
# these are two commands in two shells, `hwq lab tracker` and, on each board, `hwq lab serve --key bench`: TVM's own
# tracker and server. Here both run on this machine, unless a board was named.


def start(*command: str) -> None:
    """Run ``hwq lab ...`` beside this process, until it ends."""
    code = "from hwq.cli import main; main()"
    with (folder / "lab.log").open("a") as log:
        process = subprocess.Popen([sys.executable, "-c", code, "lab", *command], stdout=log, stderr=log)
    atexit.register(process.terminate)


def wait_for_board(tracker: Tracker, seconds: float = 60.0) -> None:
    """Until a board has announced itself at ``tracker``."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if any(shelf.free for shelf in shelves(tracker)):
                return
        except HwqError:  # no tracker yet
            pass
        time.sleep(0.2)
    sys.exit(f"no board came to {tracker} in {seconds:g} s; see {folder / 'lab.log'}")


if given.board is None:
    with socket.socket() as line:  # a port that is free
        line.bind(("127.0.0.1", 0))
        tracker = Tracker(host="127.0.0.1", port=line.getsockname()[1])
    start("tracker", "--host", tracker.host, "--port", str(tracker.port))
    start("serve", "--key", "bench", "--tracker", str(tracker), "--host", "127.0.0.1")
    wait_for_board(tracker)
board = given.board or f"bench@{tracker}"
target = hwq.Target.load(given.target)
print(f"board {board} as target {target.name}")

# %% Is the board fit to measure on?
#
# `hwq lab check KEY --target T` tries what the target file promises: a kernel for each of its instructions, whose
# output has to equal the NumPy reference, and whether the clock and the timings are steady. `-o T.toml` would go on to
# measure the board's rates into a target file of its own.

checkup = check(target, board)
for one in checkup.boards:
    for finding in one.findings:
        print(f"{finding.what}: {finding.found}")
print(f"fits: {'yes' if checkup.fits else 'not in everything, so its times are to be taken with care'}")

# %% Compiled here, run there
#
# `target.on(board)` is the same machine, reached by the board's name: kernels are compiled here, and timed there, so
# what the plan predicts is that board's. Accuracy is found here: an integer layer gives the same integers everywhere.
# The artifact runs on the board, which needs TVM's runtime and nothing else, and holds it until `close` gives it back.

path, calibration, (pictures, labels) = load_demo()
calibration, pictures, labels = calibration[:16], pictures[:100], labels[:100]
model = hwq.load(path)
settings = {"calibration": calibration, "schemes": ["w8a8"], "threads": 1, "work_dir": folder / "work"}
before = hwq.compile(model, target.on(board), evaluate=(pictures, labels), **settings)
before.save(folder / "before.hwq")
answers = before(pictures)
right = (answers.argmax(axis=1) == labels).mean()
print(f"on the board {right:.1%} of {len(labels)} pictures are read rightly")
print(f"a call takes {before.benchmark(pictures[:1]).median_s * 1e6:.1f} us there")
before.close()

# %% A job
#
# The kernels come with decisions that are good without a trial: tiles, chunks, how far loops are written out.
# `hwq tune` tries others on the board, kernel after kernel, where the most can still be saved. What is faster beyond
# noise, and equal in output, is kept in the store. A job is a file; killed at any moment, the same command goes on.

(folder / "night.toml").write_text(f"""
trials = {24 if given.small else 160}
work_dir = "night.work"

[[model]]
path = "{path}"
schemes = ["w8a8"]

[[target]]
name = "{given.target}"
devices = ["{board}"]
threads = 1
""")
job = read_job(folder / "night.toml")
report = run_job(job, tell=lambda name, standing: print(line_of(name, standing), file=sys.stderr))
show(report, console)

# Run again, it finds all it did in the store, and has nothing left to do. (On an emulated board, whose times mean
# nothing, nothing is kept, and it begins anew.)

again = run_job(job)
print(f"the second run took {again['seconds']:.1f} s, the first {report['seconds']:.1f} s")

# %% What it was worth
#
# Every later compile for this machine takes the decisions from the store by itself. Integers stay what they were, so
# the two artifacts give the same bits. Their times are taken in turns, since a board's clock has moods; each turn puts
# an artifact on the board and gives the board back.

after = hwq.compile(model, target.on(board), evaluate=(pictures, labels), **settings)
same = np.array_equal(after(pictures), answers)
after.save(folder / "after.hwq")
after.close()
print(f"the same bits before and after: {same}")
assert same, "a tuned kernel computes something else"


def call_s(name: str) -> float:
    """The least seconds that a call of a saved artifact takes on the board."""
    artifact = hwq.Artifact.load(folder / name, device=board)
    try:
        return min(artifact.times(pictures[:1]))
    finally:
        artifact.close()


ratios = [call_s("after.hwq") / call_s("before.hwq") for _ in range(2 if given.small else 10)]
print(f"a call takes {np.median(ratios):.2f} of what it took")

# %% The store
#
# Records, trials and decisions stand under the machine that they were measured on and the tools that made the code, and
# are used for no other. `hwq store list` shows what there is, `export` and `import` carry it to the other machines of a
# team, and `merge` joins two stores.
