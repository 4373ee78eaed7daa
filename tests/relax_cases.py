"""What the tests of Relax passes share: one check of everything that a pass must show."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.target import Target

from hwq import relax_tools as rt

Array = np.ndarray[Any, Any]


def run(mod: IRModule, seed: int = 0) -> list[Array]:
    """The outputs of ``main`` on random float32 inputs, compiled without any schedule."""
    rng = np.random.default_rng(seed)
    inputs = [(rng.standard_normal(rt.shape_of(param)) * 3).astype(np.float32) for param in mod["main"].params]
    machine = relax.VirtualMachine(relax.build(mod, Target({"kind": "llvm"})), tvm.cpu())
    out = machine["main"](*(tvm.runtime.tensor(value) for value in inputs))
    return [out.numpy()] if hasattr(out, "numpy") else [item.numpy() for item in out]


def assert_same_numbers(before: IRModule, after: IRModule, tolerance: float = 1e-5) -> None:
    """Equal up to ``tolerance`` of the largest output: the same float32 sums, in another order or scaled earlier."""
    for old, new in zip(run(before), run(after), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=tolerance * max(float(np.abs(old).max()), 1e-3))


def assert_pass(step: Any, before: IRModule, expected: IRModule, *, numbers: bool = True) -> None:
    """``step`` turns ``before`` into ``expected``; it is well formed, at rest, and computes the same."""
    after = step(before)
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after, expected, map_free_vars=True)
    tvm.ir.assert_structural_equal(step(after), after)
    if numbers:
        assert_same_numbers(before, after)


def assert_left_alone(step: Any, before: IRModule) -> None:
    """``step`` changes nothing."""
    tvm.ir.assert_structural_equal(step(before), before)
