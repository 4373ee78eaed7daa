"""What prices are learned from: the base counts threads where the schedules do."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from random_layers import drawn

from hwq.price_features import FAMILIES, FEATURES, describe, modelled
from hwq.schedule import kernel_for
from hwq.schedules.arm import smmla_plan
from hwq.target import Target
from hwq.workload import Workload

PARALLEL, FAMILY, MODELLED = (FEATURES.index(name) for name in ("parallel", "family", "modelled"))
SCHEDULES_AT = Path(__file__).parents[1] / "schedules"


def test_every_family_is_a_category_of_its_own() -> None:
    """By the names that the templates give their kernels; whole float functions are no operator that is learned of.

    Families that the shipped model knows keep their places.
    """
    texts = [path.read_text() for path in SCHEDULES_AT.rglob("*.py")]
    names = {name for text in texts for name in re.findall(r'^[A-Z_]*NAME = "([a-z0-9_/]+):', text, re.MULTILINE)}
    assert {"cpu/conv2d", "x86/amx", "arm/smmla", "generic/pool", "generic/float_func"} <= names
    assert names - {"generic/float_func"} == set(FAMILIES)
    assert len(set(FAMILIES)) == len(FAMILIES)
    assert FAMILIES.index("generic/layer_norm") < FAMILIES.index("arm/smmla") == 20


@pytest.mark.parametrize("out_c", [64, 67])
def test_matrix_products_of_arm_are_priced_by_their_plan(out_c: int) -> None:
    """What the plan expects, and the copy of the input on top."""
    target = Target.load("arm-neoverse-n2")
    shape = (1, 15, 15, 48)
    attrs = {"kernel": (3, 3), "strides": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    workload = Workload(
        op="conv2d",
        scheme="w8a8",
        input_shapes=(shape,),
        output_shape=(*shape[:3], out_c),
        has_bias=True,
        attrs=tuple(sorted(attrs.items())),
        out_dtype="int8",
    )
    name = kernel_for(workload, target).schedule
    found = describe(workload, name, "l2", target)
    model = modelled(workload, name.split(":")[0], target)
    assert model is not None
    assert found.features[FAMILY] == FAMILIES.index("arm/smmla")
    assert found.features[MODELLED] != -1.0
    least = min(smmla_plan.cycles(plan, target) for plan in smmla_plan.plans_of(workload))
    assert least < model.cycles < 1.3 * least
    assert model.ragged == (out_c == 67)
    assert found.base_s >= model.cycles / target.clock_hz


@pytest.mark.slow
def test_threads_are_counted_where_the_kernel_has_a_parallel_loop() -> None:
    """Near the threshold each schedule has its own word for what its work is; so not all, but almost."""
    target = replace(Target.load("x86-avx512-vnni"), cores=2)
    agree = []
    for workload in (one for one in drawn(150, seed=7) if one.parallel == 2):
        kernel = kernel_for(workload, target)
        split = "T.parallel" in kernel.func.script()
        found = describe(workload, f"{kernel.schedule}#0@l2", "l2", target)
        agree.append((found.features[PARALLEL] > 1) == split)
    assert len(agree) > 50
    assert sum(agree) >= 0.9 * len(agree)
