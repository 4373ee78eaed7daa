"""What a compile holds in memory does not depend on how many samples it is calibrated with."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hwq.process import peak_memory_bytes

pytestmark = pytest.mark.slow

# Samples from a generator, each made as it is asked for; weights are corrected too, since schemes are asked for.
CODE = """
import sys
import numpy as np
import hwq
from hwq.demo import load_demo

path, pictures, _ = load_demo()
samples = (np.roll(pictures[i % len(pictures)], i, axis=-1)[None] for i in range(int(sys.argv[1])))
artifact = hwq.compile(hwq.load(path), calibration=samples, schemes=["w8a8", "w4a8"], threads=1, measure=False,
                       work_dir=sys.argv[2])
assert artifact.report["calibration_samples"] == int(sys.argv[1])
print(artifact.report["compile"]["peak_memory_bytes"])
"""


@pytest.mark.skipif(peak_memory_bytes() is None, reason="this system has no /proc/self/status")
def test_ten_times_the_samples_take_no_more_memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    peaks = []
    for samples in (64, 64, 640):  # the first one compiles kernels
        args = [sys.executable, "-c", CODE, str(samples), str(tmp_path_factory.mktemp("work"))]
        peaks.append(int(subprocess.run(args, capture_output=True, text=True, check=True).stdout))
    print("MB at most:", *(f"{peak / 1e6:.0f}" for peak in peaks))
    assert peaks[2] <= 1.03 * peaks[1]
