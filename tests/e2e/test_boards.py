"""Arm boards: networks built here run on cores of three kinds, with the outputs of this machine and of NumPy.

The cores are emulated, each with the instructions of its kind and no others: what they compute is exact, how long it
takes means nothing. By default a small network; HWQ_FULL=1 takes real ones too, where they are (HWQ_DATA).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from boards import serving

import hwq
from hwq import reference
from hwq.cache import default_cache_dir
from hwq.choose import Choice, uniforms
from hwq.deliver import plan_of
from hwq.lower import Program
from hwq.model import Model
from hwq.progress import silent
from hwq.scheme import parse_schemes
from hwq.study import Study, study, study_of_plan
from hwq.target import Target
from hwq.work import open_work

FULL = os.environ.get("HWQ_FULL", "") not in ("", "0")
ROOT = Path(__file__).resolve().parents[2]
# The target, and the CPU that qemu is for it: none of qemu 7.2's is a Neoverse N2, so there it has all instructions.
CORES = {"arm-cortex-a72": "cortex-a72", "arm-cortex-a76": "cortex-a76", "arm-neoverse-n2": "max"}
REAL = ("resnet20", "mobilenetv2")
PICTURES, CALIBRATION = 2, 4


@functools.cache
def _script(name: str) -> ModuleType:
    """A file of benchmarks/."""
    spec = importlib.util.spec_from_file_location(f"hwq_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def network(name: str) -> tuple[Model, Any, Any]:
    """(model, calibration samples, pictures)."""
    if name in REAL:
        case = _script("real_data").case(name, PICTURES, CALIBRATION)
        return hwq.load(case.model), case.calibration, case.inputs[:PICTURES]
    samples = np.random.default_rng(3).normal(size=(CALIBRATION + PICTURES, 3, 32, 32)).astype(np.float32)
    path = default_cache_dir() / f"{name}.onnx"
    path.write_bytes(_script("networks").build(name).SerializeToString())
    return hwq.load(path, batch=1), samples[PICTURES:], samples[:PICTURES]


@functools.cache
def studied(name: str) -> Study:
    """Ranges and int8 and int4 weights, found on this machine and rounded to the nearest."""
    model, calibration, _ = network(name)
    work, allowed = open_work(model.fingerprint, model.name, None), parse_schemes(["w8a8", "w4a8"])
    host = Target.load("host")
    return study(model, host, work, calibration, allowed, 1, "minmax", False, silent, careful=False)


@functools.cache
def plan(name: str, scheme: str) -> hwq.Plan:
    """Every layer that can be in ``scheme`` so, and no other float where it can be integer."""
    found = studied(name)
    return plan_of(found, Choice(solution=uniforms(found)[scheme]))


@functools.cache
def here(name: str, scheme: str) -> Any:
    """The outputs of the plan built for this machine."""
    model, _, pictures = network(name)
    return hwq.build(model, plan(name, scheme))(pictures)


@pytest.fixture(scope="module", params=list(CORES))
def core(request: pytest.FixtureRequest, board_root: Path, tracker: str) -> Iterator[tuple[str, str]]:
    """(target, the board that is it)."""
    key = f"core-{request.param}"
    with serving(board_root, tracker, key, CORES[request.param]):
        yield request.param, f"{key}@{tracker}"


def numpy_outputs(program: Program, target: Target, picture: Any) -> list[Any]:
    """What the reference makes of one picture, kernel by kernel."""
    values = {program.inputs[0]: picture}
    for step in program.steps:
        inputs = [values[name] for name in step.inputs]
        if step.workload is None:
            values[step.output] = inputs[0].reshape(program.values[step.output][0])
        else:
            given = [*inputs, *step.constants]
            values[step.output] = reference.evaluate(step.workload, given, target.activation_storage)
    return [values[name] for name in program.outputs]


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("name", ["resnet8", *(REAL if FULL else ())])
def test_a_network_gives_the_same_bits_on_every_core(
    name: str, scheme: str, core: tuple[str, str], request: pytest.FixtureRequest
) -> None:
    target, board = core
    if name in REAL:
        request.getfixturevalue("data_dir")
    model, _, pictures = network(name)
    artifact = hwq.build(model, plan(name, scheme), Target.load(target).on(board))
    assert artifact.placed is None
    assert artifact.report["measured"]["latency_s"] is None
    assert any("is an emulator" in note for note in artifact.report["notes"])
    there = artifact.on(board)
    outputs = there(pictures)
    assert len(np.unique(outputs)) > 10
    np.testing.assert_array_equal(outputs, here(name, scheme))
    assert list(there.layer_times(pictures[:1], runs=1)) == [step for _, step in there.calls]
    assert there.emulated
    there.close()


@pytest.mark.parametrize("target", list(CORES))
def test_this_machine_gives_what_numpy_gives(target: str) -> None:
    """The program that is built for the core, in NumPy alone: no kernel of either machine."""
    model, _, pictures = network("resnet8")
    machine, given = Target.load(target), plan("resnet8", "w8a8")
    work = open_work(model.fingerprint, model.name, None)
    found = study_of_plan(model, machine, work, given, 1, lambda done, total: None, judged=False)
    (output,) = numpy_outputs(found.program(given.schemes), machine, pictures[:1])
    np.testing.assert_array_equal(output, here("resnet8", "w8a8")[:1])
