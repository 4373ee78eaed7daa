"""What a compile holds in memory does not depend on how many samples it is calibrated with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx_nets import network, node, weights

from hwq.process import peak_memory_bytes

pytestmark = pytest.mark.slow

SIDE = 224
SAMPLE_BYTES = 3 * SIDE * SIDE * 4
# Samples from a generator, each made as it is asked for; weights are corrected too, since schemes are asked for.
CODE = f"""
import sys
import numpy as np
import hwq

rng = np.random.default_rng(0)
samples = (rng.standard_normal((1, 3, {SIDE}, {SIDE}), np.float32) for _ in range(int(sys.argv[2])))
artifact = hwq.compile(hwq.load(sys.argv[1]), calibration=samples, schemes=["w8a8", "w4a8"], threads=1, measure=False,
                       work_dir=sys.argv[3])
assert artifact.report["calibration_samples"] == int(sys.argv[2])
print(artifact.report["compile"]["peak_memory_bytes"])
"""


@pytest.mark.skipif(peak_memory_bytes() is None, reason="this system has no /proc/self/status")
def test_more_samples_take_no_more_memory(tmp_path: Path) -> None:
    """Beyond the first 64, which are kept to judge by."""
    nodes = [
        node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1], strides=[4, 4]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w2"], ["c"], name="second", strides=[2, 2]),
        node("GlobalAveragePool", ["c"], ["d"]),
        node("Flatten", ["d"], ["y"]),
    ]
    consts = {"w1": weights(8, 3, 3, 3), "w2": weights(6, 8, 1, 1, seed=2)}
    path = tmp_path / "net.onnx"
    onnx.save(network(nodes, x=("N", 3, SIDE, SIDE), consts=consts), path)
    peaks = []
    counts = (64, 64, 400)  # the first one compiles kernels
    for run, samples in enumerate(counts):
        args = [sys.executable, "-c", CODE, str(path), str(samples), str(tmp_path / f"work{run}")]
        peaks.append(int(subprocess.run(args, stdout=subprocess.PIPE, text=True, check=True).stdout))
    print("MB at most:", *(f"{peak / 1e6:.0f}" for peak in peaks))
    assert peaks[2] - peaks[1] < 0.2 * (counts[2] - counts[1]) * SAMPLE_BYTES
