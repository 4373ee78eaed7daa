"""The package's face: its names, imported when they are first used."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import pytest

import hwq


def test_every_name_is_there() -> None:
    for name in hwq.__all__:
        value = getattr(hwq, name)
        assert value.__name__ == name
        assert value.__module__.startswith("hwq.")


def test_plan_is_the_function_whatever_was_imported_before() -> None:
    module = importlib.import_module("hwq.plan")
    assert isinstance(module, types.ModuleType)
    assert callable(hwq.plan)
    assert hwq.Plan is module.Plan
    code = "import hwq.plan, hwq; from hwq import plan; assert callable(hwq.plan) and plan is hwq.plan"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'hwq' has no attribute 'compil'"):
        _ = hwq.compil  # type: ignore[attr-defined]


def test_the_shell_answers_before_tvm_is_imported() -> None:
    """It takes seconds, in which Ctrl-C would end in a traceback."""
    code = "import sys, hwq, hwq.cli; print(sorted({'tvm', 'scipy', 'onnx', 'networkx'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
