"""The network and pictures that ship with hwq: what `hwq demo` compiles, without network or other packages.

The network is a residual CNN with depthwise stages, trained by ``tools/train_demo.py`` on the handwritten digits of
scikit-learn (1,797 pictures of 8 x 8, 17 grey levels). The pictures it was trained on do not ship; of the rest, 128 are
for calibration and 500 for evaluation, and no picture is in both.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

_DATA = Path(__file__).parent / "data"


def prepare(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """From pictures (N, 8, 8) with grey levels 0..16 to the network's input (N, 1, 16, 16) in [0, 1], each pixel twice
    as wide and high."""
    wide: npt.NDArray[np.float32] = pictures.repeat(2, axis=1).repeat(2, axis=2).astype(np.float32)
    return wide[:, None] / np.float32(16)


def load_demo() -> tuple[Path, npt.NDArray[np.float32], tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """The ONNX file; inputs for calibration (128, 1, 16, 16); for evaluation, inputs (500, ...) and labels."""
    with np.load(_DATA / "digits.npz") as archive:
        calibration, test, labels = (archive[key] for key in ("calibration", "test", "test_labels"))
    return _DATA / "digits.onnx", prepare(calibration), (prepare(test), labels.astype(np.int64))
