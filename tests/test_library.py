"""The library: one file that gives what the kernels give one by one, in any process, the same file every time."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as floats
import tiny
import tvm
from tvm import te

from hwq.cache import default_cache_dir
from hwq.compile_kernel import compile_object, load_kernels
from hwq.device import local
from hwq.errors import HwqError
from hwq.execute import KernelSet, bind, compile_kernels, packed_constants, resident_bytes, run, to_device
from hwq.graph import SPAN, Shape
from hwq.library import MARK, Library, build_library, kernel_steps, pack
from hwq.lower import Program, Step, lower
from hwq.memory_plan import aligned
from hwq.placed import load_memory
from hwq.quantize import quantize_weights
from hwq.schedules.cpu.views import with_shapes
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Expand, Kernel

HOST = Target.load("host")
GRAPH = replace(tiny.net(), outputs=("logits", "join"))
SCHEMES = {"stem": "w8a8", "left": "w4a8", "join": "w8a8", "depth": "w8a8"}
X = np.random.default_rng(3).standard_normal((1, 6, 5, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def made() -> tuple[Program, KernelSet, Library]:
    params = tiny.ranges(floats.run_graph(GRAPH, {"x": X}))
    params["left:pre"] = params["left"]
    candidates = {layer.name: (SCHEMES.get(layer.name, "f32"),) for layer in GRAPH.layers}
    program = lower(GRAPH, SCHEMES, params, quantize_weights(GRAPH, candidates, params, {}), HOST, 1)
    kernels = compile_kernels([program], HOST, default_cache_dir())
    return program, kernels, build_library(program, kernels, pack(program, kernels), HOST)


def load(library: Library, folder: Path) -> Any:
    path = Path(tempfile.mkdtemp(dir=folder)) / "network.so"  # writing over a loaded library would end the process
    path.write_bytes(library.code)
    return tvm.runtime.load_module(str(path))


def results(program: Program) -> list[Any]:
    """Arrays for the outputs of ``program``, of values that it has to overwrite."""
    made = [np.full(shape, 99, dtype) for shape, dtype in (program.values[name] for name in program.outputs)]
    return [tvm.runtime.tensor(value) for value in made]


def call(library: Library, program: Program, folder: Path, x: Any = X) -> list[Any]:
    """The library's outputs for ``x``."""
    module, out = load(library, folder), results(program)
    assert module["main"](tvm.runtime.tensor(x), *load_memory(library, module, local()), *out) is None
    return [value.numpy() for value in out]


def test_library_gives_the_bits_of_the_kernels(made: tuple[Program, KernelSet, Library], tmp_path: Path) -> None:
    program, kernels, library = made
    env = run(bind(program, kernels), to_device({"x": X}))
    assert len(program.outputs) == 2
    for value, name in zip(call(library, program, tmp_path), GRAPH.outputs, strict=True):
        np.testing.assert_array_equal(value, env[name].numpy())


def test_library_gives_the_same_bits_in_another_process(
    made: tuple[Program, KernelSet, Library], tmp_path: Path
) -> None:
    """Which knows TVM's run time and NumPy, and nothing of hwq."""
    program, _, library = made
    script = """
import sys, numpy, tvm
library = tvm.runtime.load_module("network.so")
x, constants = (tvm.runtime.tensor(numpy.load(name)) for name in ("x.npy", "constants.npy"))
with numpy.load("y.npz") as empty:
    out = [tvm.runtime.tensor(empty[name]) for name in empty.files]
expanded, workspace = (tvm.runtime.empty((max(int(size), 1),), "uint8") for size in sys.argv[1:])
library["prepare"](constants, expanded)
library["main"](x, constants, expanded, workspace, *out)
numpy.savez("y.npz", *[value.numpy() for value in out])
assert "hwq" not in sys.modules
"""
    here = call(library, program, tmp_path)
    (tmp_path / "network.so").write_bytes(library.code)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "constants.npy", np.frombuffer(library.constants, np.uint8))
    np.savez(tmp_path / "y.npz", *[value.numpy() for value in results(program)])
    sizes = [str(size) for size in (library.expanded_bytes, library.workspace_bytes)]
    subprocess.run([sys.executable, "-c", script, *sizes], cwd=tmp_path, check=True)
    with np.load(tmp_path / "y.npz") as there:
        for mine, key in zip(here, there.files, strict=True):
            np.testing.assert_array_equal(mine, there[key])


def test_same_program_same_library(made: tuple[Program, KernelSet, Library]) -> None:
    program, kernels, library = made
    assert build_library(program, kernels, pack(program, kernels), HOST) == library


def test_library_holds_each_constant_once(made: tuple[Program, KernelSet, Library]) -> None:
    program, kernels, library = made
    for step in kernel_steps(program):
        for array in packed_constants(step, kernels):
            assert array.tobytes() in library.constants
            if array.nbytes >= 64:
                assert library.constants.count(array.tobytes()) == 1, step.name


def test_the_clock_is_read_between_kernels_in_order(made: tuple[Program, KernelSet, Library], tmp_path: Path) -> None:
    program, _, library = made
    module, out = load(library, tmp_path), results(program)
    count = len(list(kernel_steps(program))) + 2
    marks = tvm.runtime.tensor(np.zeros(MARK * count, np.int64))
    before = time.monotonic_ns()
    assert module["timed"](tvm.runtime.tensor(X), *load_memory(library, module, local()), *out, marks) is None
    after = time.monotonic_ns()
    read = marks.numpy().reshape(count, MARK) @ np.array([10**9, 1])
    assert (np.diff([before, *read, after]) >= 0).all()
    for value, expected in zip(out, call(library, program, tmp_path), strict=True):
        np.testing.assert_array_equal(value.numpy(), expected)


def test_a_full_temporary_folder_is_said_to_be_one(
    made: tuple[Program, KernelSet, Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network's own object file is no kernel of the cache, and constants take no room there."""
    program, kernels, library = made

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    free = len(library.code) * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, free))
    big = replace(program, steps=tuple(heavier(step, free) for step in program.steps))
    assert len(build_library(big, kernels, pack(big, kernels), HOST).constants) > free
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(HwqError, match="temporary files: No space left on device; accepted: TMPDIR set to") as caught:
        build_library(program, kernels, pack(program, kernels), HOST)
    assert caught.value.code == "save-failed"


def heavier(step: Step, more_bytes: int) -> Step:
    """``step`` with ``more_bytes`` of constants behind those of the last layer."""
    if step.name != "logits":
        return step
    weight, bias = step.constants
    return replace(step, constants=(weight, np.concatenate([bias, np.zeros(more_bytes // 4, np.float32)])))


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
    made: tuple[Program, KernelSet, Library], tmp_path: Path
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
    library = build_library(program, changed, pack(program, changed), HOST)
    assert library.expanded_bytes == aligned(packed[0].nbytes)
    assert stored[0].tobytes() in library.constants
    for value, name in zip(call(library, program, tmp_path), GRAPH.outputs, strict=True):
        np.testing.assert_array_equal(env[name].numpy(), expected[name].numpy())
        np.testing.assert_array_equal(value, expected[name].numpy())


def test_what_is_appended_lives_until_the_caller_gives_other_state(tmp_path: Path) -> None:
    """Two blocks of state are two sequences; kernel by kernel, a runner's buffers are a third."""
    shapes = {"x": (1, 1, 5), SPAN: (2,), "k": (1, 4, 5), "y": (1, 4, 5)}
    kept = tiny.layer("append", ("x", SPAN), "k", shapes)
    graph = tiny.graph([kept, tiny.layer("add", ("k", "k"), "y", shapes)], ("x", SPAN), ["y"])
    program = lower(replace(graph, dtypes={**graph.dtypes, SPAN: "int32"}), {}, {}, {}, HOST, 1)
    assert program.state == ("k",)
    kernels = compile_kernels([program], HOST, default_cache_dir())
    library = build_library(program, kernels, pack(program, kernels), HOST)
    assert library.state_bytes == aligned(4 * 4 * 5)
    module, runner = load(library, tmp_path), bind(program, kernels)
    memory = load_memory(library, module, local())
    states = [tvm.runtime.tensor(np.zeros(library.state_bytes, np.uint8)) for _ in range(2)]
    rows = np.random.default_rng(5).standard_normal((2, 4, 5)).astype(np.float32)
    for position in range(4):
        span = tvm.runtime.tensor(np.array([1, position + 1], np.int32))
        for turn, state in enumerate(states):
            x = tvm.runtime.tensor(rows[turn, position].reshape(1, 1, 5))
            (out,) = results(program)
            assert module["main"](x, span, *memory, state, out) is None
            expected = np.where(np.arange(4)[:, None] <= position, 2 * rows[turn], 0)
            np.testing.assert_array_equal(out.numpy()[0], expected)
        env = run(runner, {"x": x, SPAN: span})
        np.testing.assert_array_equal(env["y"].numpy()[0], expected)


def test_a_network_without_kernels(tmp_path: Path) -> None:
    program = lower(tiny.alone(tiny.flat("x", "y", 3)), {}, {}, {}, HOST, 1)
    library = build_library(program, compile_kernels([program], HOST, default_cache_dir()), {}, HOST)
    x = np.arange(3, dtype=np.float32).reshape(1, 1, 1, 3)
    (found,) = call(library, program, tmp_path, x)
    np.testing.assert_array_equal(found, x.reshape(1, 3))
