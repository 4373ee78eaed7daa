"""The search space: what is proposed is right, new, and the same again; a decision's text is all a kernel needs."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anchor_runs import RELU, SCHEMES, TABLED, anchor, check_anchor, tier

from hwq.compile_kernel import object_path
from hwq.errors import HwqError
from hwq.schedule import kernel_for, templates
from hwq.space import default_decision, propose
from hwq.target import Target
from hwq.workload import Kernel, Workload

VNNI = Target.load("x86-avx512-vnni")
SQUARE: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
WINOGRAD = anchor("conv2d", "w8a8", (1, 8, 8, 32), 32, **SQUARE, activation=RELU)
STRIDED = anchor("conv2d", "w4a8", (2, 9, 11, 24), 33, **SQUARE, strides=(2, 2), activation=TABLED)
DENSE = anchor("dense", "w8a8", (7, 133), 127, residual=True)
WORKLOADS = {
    "winograd": (WINOGRAD, "x86-avx2"),
    "strided int4": (STRIDED, "x86-avx2"),
    "1x1, threads": (anchor("conv2d", "w8a8", (1, 17, 16, 64), 64, residual=True, parallel=2), "x86-avx512-vnni"),
    "groups": (anchor("conv2d", "w8a8", (1, 8, 9, 12), 33, **SQUARE, groups=3), "x86-avx2"),
    "product of few rows": (anchor("conv2d", "w4a8", (1, 3, 3, 128), 48), "x86-avx512-vnni"),
    "dense": (DENSE, "x86-avx2"),
    "dense in groups": (anchor("dense", "w4a8_g64", (3, 127), 33), "x86-avx512-vnni"),
    "depthwise": (anchor("depthwise_conv2d", "w8a8", (1, 14, 13, 80), 80, **SQUARE, strides=(2, 2)), "x86-avx2"),
    "float depthwise": (anchor("depthwise_conv2d", "f32", (1, 9, 17, 33), 33, **SQUARE), "x86-avx2"),
    "float": (anchor("conv2d", "f32", (1, 7, 9, 17), 33, **SQUARE), "x86-avx2"),
}


def seconds_of(decision: str) -> float:
    """A time that depends on nothing but the decision, and is refused at times."""
    number = zlib.crc32(decision.encode()) % 97
    return math.inf if number % 7 == 0 else 1e-6 * (50 + number)


def code_of(kernel: Kernel, target: Target) -> str:
    return object_path(kernel, target, Path()).stem


def search(workload: Workload, target: Target, rounds: int, count: int, seed: int = 0) -> list[tuple[str, Kernel]]:
    """Everything that was proposed, in order."""
    tried: dict[str, float] = {}
    found = []
    for _ in range(rounds):
        proposed = propose(workload, target, tried, count, seed)
        assert not tried.keys() & {decision for decision, _ in proposed}
        tried |= {decision: seconds_of(decision) for decision, _ in proposed}
        found += proposed
    return found


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_is_proposed_is_right(name: str, rng: np.random.Generator) -> None:
    workload, target = WORKLOADS[name][0], tier(WORKLOADS[name][1])
    found = search(workload, target, 3, 3)
    assert len(found) == 9
    for decision, kernel in found[::3]:
        check_anchor(lambda *_, kernel=kernel, **__: kernel, workload, target, rng)
        assert code_of(kernel_for(workload, target, decision=decision), target) == code_of(kernel, target)


@pytest.mark.parametrize("workload", [WINOGRAD, STRIDED, DENSE])
def test_the_same_search_finds_the_same(workload: Workload) -> None:
    first, again = (search(workload, VNNI, 3, 4) for _ in range(2))
    assert [decision for decision, _ in first] == [decision for decision, _ in again]
    codes = [code_of(kernel, VNNI) for _, kernel in first]
    assert len({*codes, code_of(kernel_for(workload, VNNI), VNNI)}) == len(codes) + 1


def test_a_seed_of_its_own_finds_others() -> None:
    one, other = ([decision for decision, _ in search(STRIDED, VNNI, 3, 4, seed=seed)] for seed in (0, 1))
    assert one != other


def test_times_decide_what_comes_next() -> None:
    """The faster of two algorithms is varied, whichever it is."""
    tried = [str(default_decision(WINOGRAD, VNNI)), *(decision for decision, _ in propose(WINOGRAD, VNNI, {}, 3, 0))]
    kinds = {json.loads(decision)[0].split(":")[0] for decision in tried}
    assert kinds == {"x86/winograd", "cpu/conv2d"}
    for winner in kinds:
        times = {decision: 1.0 if winner in decision else 2.0 for decision in tried}
        assert all(winner in decision for decision, _ in propose(WINOGRAD, VNNI, times, 6, 0))


def test_a_search_ends() -> None:
    workload = anchor("dense", "f32", (1, 5), 3)
    found = search(workload, VNNI, 12, 8)
    decisions = [decision for decision, _ in found]
    assert len(found) < 12 * 8
    assert len(set(decisions)) == len(decisions)
    tried = {decision: seconds_of(decision) for decision in decisions}
    assert propose(workload, VNNI, tried, 8, 0) == []


def test_the_default_is_a_decision_too() -> None:
    for workload, name in WORKLOADS.values():
        target = Target.load(name)
        decision = default_decision(workload, target)
        assert decision is not None
        default = kernel_for(workload, target)
        assert code_of(kernel_for(workload, target, decision=decision), target) == code_of(default, target)
        template = templates(workload, target)[0]
        assert json.loads(decision)[:2] == [template.name, template.variant]
        assert template.name == default.schedule


def test_kernels_without_templates_have_nothing_to_search() -> None:
    for op in ("add", "float"):
        workload = Workload(op=op, scheme="w8a8", input_shapes=((4, 4),) * 2, output_shape=(4, 4))
        assert propose(workload, VNNI, {}, 3, 0) == []
        assert default_decision(workload, VNNI) is None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_int4_may_be_unpacked_in_registers_or_through_a_buffer(scheme: str) -> None:
    found = templates(anchor("conv2d", scheme, (1, 28, 28, 64), 64, **SQUARE), VNNI)
    how = {template.variant.partition(" ")[2] for template in found if template.name.startswith("cpu/conv2d")}
    assert how == ({"", "buffer", "registers"} if scheme == "w4a8" else {""})


# A workload whose default decision has two factors and a pick behind them.
PICKED = WORKLOADS["1x1, threads"][0]


def parts(workload: Workload) -> tuple[str, str, list[Any]]:
    """The default decision's template, variant and values."""
    text = default_decision(workload, VNNI)
    assert text is not None
    template, variant, values = json.loads(text)
    return template, variant, values


def changed(workload: Workload = PICKED, **others: Any) -> str:
    """The default decision with other parts."""
    found = dict(zip(("template", "variant", "values"), parts(workload), strict=True)) | others
    return json.dumps([found["template"], found["variant"], found["values"]])


def with_value(place: int, value: Any) -> str:
    """The default decision with another value at ``place``."""
    _, _, values = parts(PICKED)
    return changed(values=[*values[:place], value, *values[place + 1 :]])


def turned(place: int) -> str:
    """... with the two factors at ``place`` the other way round: the second is more than there may be."""
    _, _, values = parts(PICKED)
    return with_value(place, values[place][::-1])


NO_JSON = "accepted: JSON of a template's name, its variant, and a list of values"
NO_TEMPLATE = "which is none of its templates"
FACTORS, PICK = "accepted: two whole numbers whose product is ", "accepted: a place among 2 options"
BROKEN: dict[str, tuple[Callable[[], str], str]] = {
    "empty": (lambda: "", NO_JSON),
    "no JSON": (lambda: "1x7x2x16", NO_JSON),
    "a number": (lambda: "3", NO_JSON),
    "another JSON": (lambda: '{"template": "cpu/conv2d:9"}', NO_JSON),
    "cut off": (lambda: changed()[:-1], NO_JSON),
    "null": (lambda: changed(values=None), NO_JSON),
    "another version": (lambda: changed(template=parts(PICKED)[0].split(":")[0] + ":0"), NO_TEMPLATE),
    "another family": (lambda: changed(template="cpu/depthwise:2"), NO_TEMPLATE),
    "no such tile": (lambda: changed(variant="9x9x9x9"), NO_TEMPLATE),
    "no values": (lambda: changed(values=[]), "has the value []; accepted: a value for each sampling instruction"),
    "too many": (lambda: changed(values=[*parts(PICKED)[2], 0]), "; accepted: 3 values"),
    "does not divide": (lambda: with_value(0, [3, 5]), f"[3, 5]; {FACTORS}"),
    "too large": (lambda: turned(1), "at most"),
    "negative": (lambda: with_value(0, [-number for number in parts(PICKED)[2][0]]), f"; {FACTORS}"),
    "no numbers": (lambda: with_value(0, [str(number) for number in parts(PICKED)[2][0]]), f"; {FACTORS}"),
    "no option": (lambda: with_value(2, 2), f"the value 2; {PICK}"),
    "a flag": (lambda: with_value(2, True), f"the value True; {PICK}"),
}


def test_what_is_broken_below_is_whole_before() -> None:
    *factors, pick = parts(PICKED)[2]
    assert [len(pair) for pair in factors] == [2, 2]
    assert pick in (0, 1)
    for decision in (changed(), with_value(2, 1 - pick)):
        assert kernel_for(PICKED, VNNI, decision=decision).schedule == parts(PICKED)[0]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_decision_is_refused(name: str) -> None:
    decision, tells = BROKEN[name]
    with pytest.raises(HwqError) as caught:
        kernel_for(PICKED, VNNI, decision=decision())
    assert caught.value.code == "decision-invalid"
    assert tells in caught.value.message


def test_foreign_decisions_among_those_tried_do_no_harm() -> None:
    tried = {"": 1e-6, '["cpu/conv2d:0","1x1x1x16",[]]': 1e-6, changed(STRIDED, values=[]): 1e-6}
    proposed = propose(STRIDED, VNNI, tried, 2, 0)
    assert len(proposed) == 2
