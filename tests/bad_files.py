"""Files that hwq must refuse: networks, samples, plans, a target, artifacts."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_nets
from demo_study import CALIBRATION, demo_artifact
from onnx import TensorProto, helper
from shell_runs import DEMO, write_samples

from hwq.demo import load_demo

SAMPLES = load_demo()[1][:CALIBRATION]


def write_bad_files(folder: Path) -> Path:
    """Fill ``folder`` with files of which each is wrong in its own way, and the few good ones that they need."""
    write_samples(folder)
    demo_artifact().save(folder / "demo.hwq")
    demo_artifact().plan.save(folder / "plan.json")
    whole = Path(DEMO).read_bytes()
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "text.onnx").write_text("# not a network\n" * 100)
    onnx.save(classical(), str(folder / "classical.onnx"))
    onnx.save(unsupported(), str(folder / "unsupported.onnx"))
    onnx.save(onnx_nets.network([onnx_nets.node("Relu", ["x"], ["y"])], opset=7), str(folder / "old.onnx"))
    free = onnx_nets.network([onnx_nets.node("Relu", ["x"], ["y"])], x=("N", 3, "H", 8))
    onnx.save(free, str(folder / "dynamic.onnx"))
    arrays = {
        "shape": SAMPLES[:, :, :8],
        "type": (SAMPLES * 16).astype(np.uint8),
        "nan": np.where(np.arange(16) == 3, np.float32("nan"), SAMPLES),
        "empty": SAMPLES[:0],
        "constant": np.full_like(SAMPLES, 0.25),
        "labels": SAMPLES,
    }
    for name, array in arrays.items():
        np.savez(folder / f"{name}.npz", x=array, labels=np.zeros(len(array), np.int64))
    np.savez(folder / "names.npz", picture=SAMPLES)
    np.savez(folder / "classes.npz", x=SAMPLES, labels=np.full(CALIBRATION, 10))
    (folder / "target.toml").write_text('[target]\nname = "mine"\nkind = "abacus"\n')
    plan = json.loads((folder / "plan.json").read_text())
    layers = plan["layers"]
    plans: dict[str, Any] = {
        "layer": {**plan, "layers": {**layers, "block9.conv1": layers["stem"]}},
        "missing": {**plan, "layers": {name: one for name, one in layers.items() if name != "stem"}},
        "scheme": {**plan, "layers": {**layers, "stem": {**layers["stem"], "scheme": "w2a2"}}},
        "illegal": {**plan, "layers": {**layers, "pool": {**layers["pool"], "scheme": "w4a8"}}},
        "ranges": {**plan, "qparams": {}},
        "other": {**plan, "model": "0" * 64},
    }
    for name, content in plans.items():
        (folder / f"plan-{name}.json").write_text(json.dumps(content))
    (folder / "plan-broken.json").write_text((folder / "plan.json").read_text()[:-20])
    artifact = (folder / "demo.hwq").read_bytes()
    (folder / "truncated.hwq").write_bytes(artifact[: len(artifact) // 2])
    foreign(folder / "demo.hwq", folder / "foreign.hwq")
    return folder


def classical() -> onnx.ModelProto:
    """A linear classifier of scikit-learn's kind."""
    node = helper.make_node("LinearRegressor", ["x"], ["y"], domain="ai.onnx.ml", coefficients=[1.0, 2.0], targets=1)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 2), ("y", 1)))
    return helper.make_model(
        helper.make_graph([node], "linear", [x], [y]), opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)]
    )


def unsupported() -> onnx.ModelProto:
    """Two operators of a kind that cannot be imported, one of another, and one that can."""
    node = onnx_nets.node
    return onnx_nets.network(
        [
            node("Relu", ["x"], ["a"]),
            node("DeformConv", ["a", "w", "o"], ["b"], domain=""),
            node("Det", ["a"], ["c"]),
            node("Det", ["x"], ["d"]),
        ],
        x=(1, 4, 5, 5),
        consts={"w": onnx_nets.weights(4, 4, 3, 3), "o": onnx_nets.weights(1, 18, 3, 3)},
        opset=19,
    )


def foreign(path: Path, output: Path) -> None:
    """The artifact as a machine with an instruction set of the future would have made it."""
    with zipfile.ZipFile(path) as pack:
        parts = {name: pack.read(name) for name in pack.namelist()}
    manifest = json.loads(parts["manifest.json"])
    manifest["target"]["cpu_flags"] += ["amx_future"]
    with zipfile.ZipFile(output, "w") as pack:
        for name, content in (parts | {"manifest.json": json.dumps(manifest).encode()}).items():
            pack.writestr(name, content)
