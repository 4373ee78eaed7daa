"""The library: one file that gives what the kernels give one by one, in any process, the same file every time."""

from __future__ import annotations

import math
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
from tvm import relax, te

from hwq.cache import default_cache_dir
from hwq.compile_kernel import compile_object, load_kernels
from hwq.execute import KernelSet, bind, compile_kernels, packed_constants, resident_bytes, run, to_device
from hwq.graph import Shape
from hwq.library import build_library, to_relax
from hwq.lower import Program, lower
from hwq.quantize import quantize_weights
from hwq.schedules.generic import common
from hwq.schedules.x86.views import with_shapes
from hwq.target import Target
from hwq.workload import Expand, Kernel

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


def reversed_weights(kernel: Kernel, shape: Shape) -> Kernel:
    """``kernel`` with its packed weights, of ``shape``, stored back to front and turned when a library is loaded."""
    size = math.prod(shape)
    stored = te.placeholder((size,), "int8", "stored")
    turned = te.compute((size,), lambda i: stored[size - 1 - i])
    symbol = f"{kernel.symbol}_expand"
    func = common.named(symbol, te.create_prim_func([stored, turned]), "test").func
    flat = with_shapes(func, {1: shape})
    pack = kernel.pack
    assert pack is not None
    return replace(
        kernel,
        pack=lambda weight: np.ascontiguousarray(pack(weight).reshape(-1)[::-1]),
        expand=Expand(symbol=symbol, func=flat, shape=shape, dtype="int8"),
    )


def test_weights_are_expanded_once_when_a_library_is_loaded(
    made: tuple[Program, KernelSet, bytes], tmp_path: Path
) -> None:
    program, kernels, _ = made
    stem = next(step for step in program.steps if step.name == "stem")
    assert stem.workload is not None
    packed = packed_constants(stem, kernels)
    turned = reversed_weights(kernels.of(stem), packed[0].shape)
    objects = {**kernels.objects, stem.workload: compile_object(turned, HOST, tmp_path)}
    chosen = {**kernels.kernels, stem.workload: turned}
    changed = KernelSet(
        kernels=chosen, objects=objects, libraries=dict.fromkeys(chosen, load_kernels(objects.values()))
    )
    env = run(bind(program, changed), to_device({"x": X}))
    expected = run(bind(program, kernels), to_device({"x": X}))
    stored = packed_constants(stem, changed)
    assert stored[0].ndim == 1
    assert resident_bytes(stem, changed, stored) == sum(array.nbytes for array in packed)
    machine = load(build_library(program, changed, HOST), tmp_path)
    (weight,) = machine["prepare"]()
    np.testing.assert_array_equal(weight.numpy(), packed[0])
    found = machine["main"](tvm.runtime.tensor(X), weight)
    for value, name in zip(found, GRAPH.outputs, strict=True):
        np.testing.assert_array_equal(env[name].numpy(), expected[name].numpy())
        np.testing.assert_array_equal(value.numpy(), expected[name].numpy())


def test_a_network_without_kernels(tmp_path: Path) -> None:
    program = lower(tiny.alone(tiny.flat("x", "y", 3)), {}, {}, {}, HOST, 1)
    library = build_library(program, compile_kernels([program], HOST, default_cache_dir()), HOST)
    x = np.arange(3, dtype=np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_array_equal(load(library, tmp_path)["main"](tvm.runtime.tensor(x)).numpy(), x.reshape(1, 3))
