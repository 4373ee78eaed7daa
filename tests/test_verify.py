"""What was delivered against what it should be: integers against NumPy, outputs against float, labels."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tvm
from demo_study import demo_pictures, demo_study, demo_work, random_schemes
from kernel_runs import machine

from hwq.errors import HwqError
from hwq.execute import BoundStep, Runner, bind, compile_kernels
from hwq.graph import Activation
from hwq.lower import lower
from hwq.quantize import quantize_weights
from hwq.scheme import SCHEMES
from hwq.study import inputs_of
from hwq.verify import Accuracy, check_labels, compare, differing_steps, outputs_of, require_equal, top1

PICTURES = {"x": np.zeros((4, 2), np.float32)}
LOGITS = np.float32([[3, 1, 0], [0, 2, 1], [0, 1, 5], [9, 0, 0]])  # classes 0 1 2 0


@pytest.fixture(scope="module")
def runner() -> Runner:
    """The demo network with layers in all schemes, bound to real kernels."""
    study = demo_study()
    program = study.program(random_schemes(study, np.random.default_rng(3)))
    return bind(program, compile_kernels([program], study.target, demo_work().cache))


def batch() -> dict[str, Any]:
    (name,) = inputs_of(demo_study().graph)
    return {name: demo_pictures()[0][:1]}


# Integers


def test_every_integer_step_is_compared_and_equal(runner: Runner) -> None:
    found = differing_steps(runner, batch(), demo_study().target)
    integer = {
        one.step.name
        for one in runner.steps
        if one.step.workload is not None and SCHEMES[one.step.workload.scheme].domain == "int8"
    }
    assert set(found) == integer
    assert any("quantize" in name for name in found), "conversions count as integer steps"
    assert set(found.values()) == {0}
    require_equal(runner, batch(), demo_study().target)


def test_a_kernel_that_differs_is_named_with_the_number_of_elements(runner: Runner) -> None:
    """The step's bias on the device is not the one that it says it has."""
    steps = list(runner.steps)
    position = next(i for i, one in enumerate(steps) if one.step.name == "block2.conv2")
    arrays = [value.numpy() for value in steps[position].constants]
    bias = next(i for i, array in enumerate(arrays) if array.dtype == np.int32 and array.ndim == 1 and len(array) > 8)
    arrays[bias] = arrays[bias] + 100_000
    wrong = replace(steps[position], constants=tuple(tvm.runtime.tensor(array) for array in arrays))
    steps[position] = wrong
    broken = Runner(program=runner.program, steps=tuple(steps))
    found = differing_steps(broken, batch(), demo_study().target)
    assert found["block2.conv2"] > 0
    assert [name for name, count in found.items() if count] == ["block2.conv2"], "those after it get what it wrote"
    with pytest.raises(HwqError, match=rf"block2.conv2 \({found['block2.conv2']} elements\)") as caught:
        require_equal(broken, batch(), demo_study().target)
    assert caught.value.code == "kernel-differs"


@pytest.mark.parametrize("scheme", ["w8a8_dyn", "w4a8_g64_dyn", "w4a16_g128"])
def test_integer_weights_whose_layers_write_floats_are_compared(scheme: str, tmp_path: Path) -> None:
    """A table, a layer with a clamp and one without: the last is a float's polynomial."""
    found = _differing(scheme, tmp_path, change=False)
    expected = {"table": 0, "relu": 0} if scheme != "w4a8_g64_dyn" else {"relu": 0}
    assert {name: count for name, count in found.items() if ":" not in name} == expected
    wrong = _differing(scheme, tmp_path, change=True)
    assert all(wrong[name] > 0 for name in expected)


def _differing(scheme: str, cache: Path, *, change: bool) -> dict[str, int]:
    """change: the scales that a step has on the device are not those that it says it has."""
    rng, target = np.random.default_rng(0), machine()
    shapes = {"ids": (1, 5), "table": (1, 5, 64), "relu": (1, 5, 40), "gelu": (1, 5, 40)}
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((9, 64), (40, 64), (40, 64))]
    graph = tiny.graph(
        [
            tiny.layer("gather", ["ids"], "table", shapes, weight=weights[0], attrs={"ids": "int64", "rows": 9}),
            tiny.layer("dense", ["table"], "relu", shapes, weight=weights[1], activation=Activation(kind="relu")),
            tiny.layer("dense", ["table"], "gelu", shapes, weight=weights[2], activation=Activation(kind="gelu")),
        ],
        ["ids"],
        ["relu", "gelu"],
    )
    graph = replace(graph, dtypes={**graph.dtypes, "ids": "int64"})
    schemes = {name: scheme for name in ("relu", "gelu")} | {"table": "f32" if scheme == "w4a8_g64_dyn" else scheme}
    allowed = {name: (one,) for name, one in schemes.items()}
    program = lower(graph, schemes, {}, quantize_weights(graph, allowed, {}, {}), target, 1)
    runner = bind(program, compile_kernels([program], target, cache))
    if change:
        steps = [_doubled(one) if one.step.name in schemes else one for one in runner.steps]
        runner = Runner(program=program, steps=tuple(steps))
    return differing_steps(runner, {"ids": np.arange(5)[None]}, target)


def _doubled(bound: BoundStep) -> BoundStep:
    """Float constants on the device twice what they are."""
    arrays = [value.numpy() for value in bound.constants]
    doubled = [tvm.runtime.tensor(array * 2 if array.dtype == np.float32 else array) for array in arrays]
    return replace(bound, constants=tuple(doubled))


# Outputs


def accuracy(mine: Any, **options: Any) -> Accuracy:
    given: dict[str, Any] = {"labels": None, "score": None, "float_score": None, **options}
    return compare(lambda _: mine, (LOGITS,), PICTURES, **given)


def test_with_labels_the_drop_is_the_accuracy_lost() -> None:
    mine = LOGITS.copy()
    mine[1] = [5, 0, 0]
    found = accuracy(mine, labels=np.array([0, 1, 1, 0]))  # float has 3 of 4 right, this 2 of 4
    assert (found.float_score, found.score, found.drop, found.agreement) == (0.75, 0.5, 0.25, 0.75)
    assert found.samples == 4
    noise, signal = 25 + 4 + 1, float((LOGITS**2).sum())
    assert found.sqnr_db == (pytest.approx(10 * math.log10(signal / noise)),)


def test_better_than_float_is_a_negative_drop() -> None:
    mine = LOGITS.copy()
    mine[2] = [0, 9, 0]
    assert accuracy(mine, labels=np.array([0, 1, 1, 0])).drop == -0.25


def test_without_labels_the_drop_is_the_share_of_changed_classes() -> None:
    mine = LOGITS.copy()
    mine[1] = [5, 0, 0]
    found = accuracy(mine)
    assert (found.score, found.float_score, found.drop, found.agreement) == (None, None, 0.25, 0.75)


def test_scores_of_a_function_are_taken_as_they_are() -> None:
    assert accuracy(LOGITS, score=31.0, float_score=31.5).drop == 0.5


def test_equal_outputs_have_no_noise() -> None:
    assert accuracy(LOGITS).sqnr_db == (math.inf,)


@pytest.mark.parametrize("shape", [(4, 1), (4, 3, 2), (12, 3), (4,)])
def test_what_is_no_class_for_each_sample_has_no_agreement(shape: tuple[int, ...]) -> None:
    output = np.ones(shape, np.float32)
    found = compare(lambda _: (output, LOGITS), (output, LOGITS), PICTURES, None, None, None)
    assert found.agreement is None
    assert found.drop is None
    assert len(found.sqnr_db) == 2


def test_outputs_are_a_tuple() -> None:
    assert outputs_of(lambda _: LOGITS, PICTURES)[0] is LOGITS
    assert outputs_of(lambda _: (LOGITS, LOGITS), PICTURES) == (LOGITS, LOGITS)


# Labels


@pytest.mark.parametrize("labels", [[0, 1, 2, 0], np.uint8([0, 1, 2, 0]), (0, 1, 2, 0)])
def test_labels_of_any_integer_type_are_taken(labels: Any) -> None:
    checked = check_labels(PICTURES, labels, LOGITS)
    assert checked.dtype == np.int64
    assert top1(LOGITS, checked) == 1.0


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0, 1, 2], r"int64 of shape \(3,\); accepted: integers of shape \(4,\)"),
        ([0.0, 1.0, 2.0, 0.0], r"float64 of shape \(4,\); accepted: integers"),
        (np.eye(3)[[0, 1, 2, 0]].astype(int), r"shape \(4, 3\)"),  # one-hot
        ([0, 1, 2, 3], "go from 0 to 3; accepted: 0 to 2, the network's classes"),
        ([1, 2, 3, 1], "go from 1 to 3"),  # counted from 1
        ([-1, 0, 1, 2], "go from -1 to 2"),
        ([[0], [1, 2], 3, 4], "are no array"),
        (["a", "b", "c", "d"], "accepted: integers"),
        (None, "accepted: integers"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels: Any, text: str) -> None:
    with pytest.raises(HwqError, match=text) as caught:
        check_labels(PICTURES, labels, LOGITS)
    assert caught.value.code == "labels-invalid"


@pytest.mark.parametrize("shape", [(4, 1), (4, 3, 2), (12, 3), (4,)])
def test_labels_need_a_class_for_each_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(HwqError, match=r"accepted: labels for an output of \(N, classes\), or a function") as caught:
        check_labels(PICTURES, [0, 1, 2, 0], np.ones(shape, np.float32))
    assert caught.value.code == "labels-invalid"
