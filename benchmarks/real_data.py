"""The real networks and samples beside the project, for benchmarks and tests: ``../shared/data`` or ``HWQ_DATA``."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network with its calibration inputs, evaluation inputs and labels (None where there are none)."""

    name: str
    model: Path
    calibration: npt.NDArray[np.float32]
    inputs: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64] | None


def data_dir() -> Path | None:
    """The folder, or None where it is absent."""
    given = os.environ.get("HWQ_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if (folder / "load.py").exists() else None


def _reader(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("hwq_shared_load", folder / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def case(name: str, evaluate: int | None = None, calibrate: int | None = None) -> Case:
    """ "resnet20", "resnet32", "mobilenetv2" or "ultraface", with at most so many samples.

    ultraface has no pictures of its own: it gets ImageNet ones, scaled to its 240 x 320 input.
    """
    folder = data_dir()
    assert folder is not None, "no data folder: see data_dir"
    load = _reader(folder)
    if name in ("resnet20", "resnet32"):
        inputs, labels = load.cifar10("test", evaluate)
        calibration, _ = load.cifar10("calib", calibrate or 256)
        path = folder / f"resnet_cifar10/{name}_cifar10.onnx"
        return Case(name=name, model=path, calibration=calibration, inputs=inputs, labels=labels)
    if name == "mobilenetv2":
        inputs, labels = load.imagenet_val(evaluate)
        calibration = load.imagenet_calib(calibrate or 128)
        path = folder / "mobilenetv2/mobilenetv2_1.0_224_fp32.onnx"
        return Case(name=name, model=path, calibration=calibration, inputs=inputs, labels=labels)
    assert name == "ultraface", name
    pictures = np.concatenate([load.imagenet_calib(calibrate or 64), load.imagenet_val(evaluate or 64)[0]])
    rows, columns = np.arange(240) * 224 // 240, np.arange(320) * 224 // 320
    scaled = np.ascontiguousarray(pictures[:, :, rows][:, :, :, columns])
    split = calibrate or 64
    path = folder / "extra_onnx/ultraface_RFB-320_no_post.onnx"
    return Case(name=name, model=path, calibration=scaled[:split], inputs=scaled[split:], labels=None)
