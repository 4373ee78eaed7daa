"""hwq: the bit width at which each layer of a trained network should run on a machine, and the kernels for it.

A name is imported when it is first used: the shell answers at once, and Ctrl-C is its own from the start.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwq.artifact import Artifact, Benchmark
    from hwq.compiler import build, compile, plan
    from hwq.decode import decoder
    from hwq.errors import HwqError
    from hwq.explore import Point, explore
    from hwq.model import Model, load
    from hwq.plan import Plan
    from hwq.scheme import Budget
    from hwq.session import Session
    from hwq.target import Target

__all__ = [
    "Artifact",
    "Benchmark",
    "Budget",
    "HwqError",
    "Model",
    "Plan",
    "Point",
    "Session",
    "Target",
    "build",
    "compile",
    "decoder",
    "explore",
    "load",
    "plan",
]

_HOMES = {
    **{"Artifact": "artifact", "Benchmark": "artifact", "Budget": "scheme", "HwqError": "errors", "Model": "model"},
    **{"Plan": "plan", "Target": "target", "build": "compiler", "compile": "compiler", "load": "model"},
    **{"Point": "explore", "Session": "session", "decoder": "decode", "explore": "explore", "plan": "compiler"},
}


class _Face(types.ModuleType):
    """The package. Importing its module ``hwq.plan`` would bind that to ``hwq.plan``, which is the function."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"hwq.{_HOMES[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
