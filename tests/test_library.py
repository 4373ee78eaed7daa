"""The library: one file that gives what the kernels give one by one, in any process, the same file every time."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as floats
import tiny
import tvm
from tvm import relax

from hwq.cache import default_cache_dir
from hwq.execute import KernelSet, bind, compile_kernels, packed_constants, run, to_device
from hwq.library import build_library, to_relax
from hwq.lower import Program, lower
from hwq.quantize import quantize_weights
from hwq.target import Target

HOST = Target.load("host")
GRAPH = replace(tiny.net(), outputs=("logits", "join"))
SCHEMES = {"stem": "w8a8", "left": "w4a8", "join": "w8a8", "depth": "w8a8"}
X = np.random.default_rng(3).standard_normal((1, 6, 5, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def made() -> tuple[Program, KernelSet, bytes]:
    params = tiny.ranges(floats.run_graph(GRAPH, {"x": X}))
    params["left:pre"] = params["left"]
    candidates = {layer.name: (SCHEMES.get(layer.name, "f32"),) for layer in GRAPH.layers}
    program = lower(GRAPH, SCHEMES, params, quantize_weights(GRAPH, candidates, params, {}), HOST, 1)
    kernels = compile_kernels([program], HOST, default_cache_dir())
    return program, kernels, build_library(program, kernels, HOST)


def load(library: bytes, folder: Path) -> Any:
    path = folder / "network.so"
    path.write_bytes(library)
    return relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())


def test_library_gives_the_bits_of_the_kernels(made: tuple[Program, KernelSet, bytes], tmp_path: Path) -> None:
    program, kernels, library = made
    found = load(library, tmp_path)["main"](tvm.runtime.tensor(X))
    env = run(bind(program, kernels), to_device({"x": X}))
    assert len(found) == 2
    for value, name in zip(found, GRAPH.outputs, strict=True):
        np.testing.assert_array_equal(value.numpy(), env[name].numpy())


def test_library_gives_the_same_bits_in_another_process(made: tuple[Program, KernelSet, bytes], tmp_path: Path) -> None:
    """Which knows TVM's run time and NumPy, and nothing of hwq."""
    script = """
import sys, numpy, tvm
from tvm import relax
machine = relax.VirtualMachine(tvm.runtime.load_module("network.so"), tvm.cpu())
found = machine["main"](tvm.runtime.tensor(numpy.load("x.npy")))
numpy.savez("y.npz", *[value.numpy() for value in found])
assert "hwq" not in sys.modules
"""
    (tmp_path / "network.so").write_bytes(made[2])
    np.save(tmp_path / "x.npy", X)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    here = load(made[2], tmp_path)["main"](tvm.runtime.tensor(X))
    with np.load(tmp_path / "y.npz") as there:
        for mine, key in zip(here, there.files, strict=True):
            np.testing.assert_array_equal(mine.numpy(), there[key])


def test_same_program_same_library(made: tuple[Program, KernelSet, bytes]) -> None:
    program, kernels, library = made
    assert build_library(program, kernels, HOST) == library


def test_library_holds_each_constant_once(made: tuple[Program, KernelSet, bytes]) -> None:
    program, kernels, library = made
    for step in program.steps:
        for array in packed_constants(step, kernels) if step.workload is not None else ():
            if array.nbytes >= 64:
                assert library.count(array.tobytes()) == 1, step.name


def test_relax_function_calls_the_kernels_in_order(made: tuple[Program, KernelSet, bytes]) -> None:
    program, kernels, _ = made
    text = to_relax(program, kernels).script()
    places = [text.find(kernels.of(step).symbol) for step in program.steps if step.workload is not None]
    assert -1 not in places
    relax.analysis.well_formed(to_relax(program, kernels))
    assert text.count("R.call_dps_packed") == sum(step.workload is not None for step in program.steps)


def test_a_network_without_kernels(tmp_path: Path) -> None:
    program = lower(tiny.alone(tiny.flat("x", "y", 3)), {}, {}, {}, HOST, 1)
    library = build_library(program, compile_kernels([program], HOST, default_cache_dir()), HOST)
    x = np.arange(3, dtype=np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_array_equal(load(library, tmp_path)["main"](tvm.runtime.tensor(x)).numpy(), x.reshape(1, 3))
