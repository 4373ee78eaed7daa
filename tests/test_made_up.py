"""Made-up arguments suit the reference, and their float results do not depend on the order of a sum."""

from __future__ import annotations

import numpy as np
import pytest

from hwq import made_up, reference
from hwq.lab import CHANNELS, PIXELS
from hwq.probe import typical_workload
from hwq.target import Target

NAMES = ("x86-avx512-bf16", "x86-amx", "x86-generic", "arm-cortex-a72", "arm-cortex-a76")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("storage", ["uint8", "int8"])
def test_the_reference_takes_them_and_its_results_spread(name: str, storage: str) -> None:
    for row in Target.load(name).compute:
        workload = typical_workload(row, PIXELS, CHANNELS)
        if workload.op not in made_up.OPS:
            continue
        values = made_up.arguments(workload, storage, np.random.default_rng(0))
        again = made_up.arguments(workload, storage, np.random.default_rng(0))
        assert all(np.array_equal(a, b) for a, b in zip(values, again, strict=True))
        found = reference.evaluate(workload, values, storage)
        assert found.shape == workload.output_shape
        assert found.dtype == ("float32" if workload.out_dtype == "float32" else storage)
        assert len(np.unique(found)) > 100, "a kernel that is wrong would often be right by chance"


@pytest.mark.parametrize(("weight", "least", "most"), [("int8", -127, 127), ("int4", -8, 7)])
def test_weights_reach_the_ends_of_their_type(weight: str, least: int, most: int) -> None:
    rows = [row for row in Target.load("arm-cortex-a76").compute if row.weight == weight and row.lists("dense")]
    found = [made_up.arguments(typical_workload(row), "int8", np.random.default_rng(0)) for row in rows]
    found = [next(value for value in values[1:] if value.dtype == np.int8) for values in found]
    assert rows
    assert {(int(values.min()), int(values.max())) for values in found} == {(least, most)}


def test_float_results_are_exact() -> None:
    row = next(row for row in Target.load("x86-amx").compute if row.act == "float32" and "*" in row.ops)
    workload = typical_workload(row)
    x, weight, bias = made_up.arguments(workload, "uint8", np.random.default_rng(0))
    exact = reference.evaluate(workload, [x, weight, bias])
    forwards = np.cumsum((x[0, :5, :5] * weight[0]).ravel(), dtype=np.float32)[-1] + bias[0]
    backwards = np.cumsum((x[0, :5, :5] * weight[0]).ravel()[::-1], dtype=np.float32)[-1] + bias[0]
    assert forwards == backwards == exact[0, 2, 2, 0]
