"""hwq: the bit width at which each layer of a trained network should run on a machine, and the kernels for it."""

from __future__ import annotations

from hwq.artifact import Artifact, Benchmark
from hwq.compiler import build, compile, plan
from hwq.errors import HwqError
from hwq.model import Model, load
from hwq.plan import Plan
from hwq.scheme import Budget
from hwq.target import Target

__all__ = ["Artifact", "Benchmark", "Budget", "HwqError", "Model", "Plan", "Target", "build", "compile", "load", "plan"]
