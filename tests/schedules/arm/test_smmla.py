"""The smmla kernels equal the reference at any shape, as an emulated board runs them, and are made of smmla."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from anchor_runs import RELU, RELU6, TABLED, anchor, make_arguments, packed
from arm_runs import results
from kernel_runs import Array, assembly

from hwq import device
from hwq.reference import evaluate
from hwq.schedules.arm.smmla import apply, templates
from hwq.schedules.arm.smmla_plan import REGISTERS, Tile, cycles, default_chunks, plans_of
from hwq.target import Target
from hwq.workload import Kernel, Workload

TARGETS = ("arm-neoverse-n2", "arm-apple-m2")
SCHEMES = ("w8a8", "w4a8")
SQUARE: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
# name: (input shape, output channels, the rest of ``anchor``)
CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "3x3": ((1, 7, 7, 16), 32, SQUARE),
    "residual, lopsided": (
        (3, 17, 7, 33),
        17,
        {"kernel": (3, 3), "strides": (2, 2), "padding": (0, 1, 1, 2), "residual": True},
    ),
    "stem": (
        (1, 16, 33, 3),
        64,
        {"kernel": (7, 7), "strides": (2, 2), "padding": (3, 3, 3, 3), "activation": RELU},
    ),
    "dilated, float out": (
        (1, 9, 17, 32),
        48,
        {"kernel": (3, 3), "padding": (2, 2, 2, 2), "dilation": (2, 2), "out": "float32", "residual": True},
    ),
    "1x1 table": ((3, 7, 7, 127), 24, {"activation": TABLED}),
    "1x1 float out": ((3, 1, 7, 16), 127, {"out": "float32", "activation": RELU6}),
    "strided 1x1": ((2, 9, 7, 24), 33, {"strides": (2, 2), "residual": True}),
    "padded 1x1": ((1, 6, 5, 16), 7, {"padding": (1, 1, 1, 1)}),
    "tall": ((1, 16, 4, 9), 127, {"kernel": (4, 3), "strides": (4, 1), "activation": RELU6}),
    "one row of a kernel": ((1, 16, 9, 17), 16, {"kernel": (1, 3), "strides": (2, 2), "padding": (0, 1, 0, 1)}),
    "one column of a kernel": ((1, 16, 9, 17), 7, {"kernel": (3, 1), "padding": (1, 0, 1, 0)}),
    "one column": ((1, 33, 1, 8), 1, SQUARE),
    "48 channels, table": ((1, 9, 9, 16), 48, {**SQUARE, "activation": TABLED}),
    "runs, table": ((1, 20, 21, 3), 8, {**SQUARE, "activation": TABLED}),
    "strided runs": ((2, 20, 21, 5), 1, {"kernel": (1, 5), "strides": (3, 2)}),
    "two pictures, 127": ((2, 8, 9, 127), 128, {**SQUARE, "activation": RELU}),
}
DENSE: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "wide": ((2, 128), 1000, {"out": "float32"}),
    "odd": ((3, 127), 33, {"activation": TABLED}),
    "one channel": ((7, 17), 1, {"activation": RELU, "has_bias": False}),
    "residual": ((33, 16), 16, {"residual": True}),
    "three axes": ((1, 16, 40), 48, {}),
}
SAMPLED = ("residual, lopsided", "stem", "odd")
# Layers that are split over threads: into equal shares, and where there are none.
THREADED: dict[str, Workload] = {
    "threads": anchor("conv2d", "w8a8", (1, 40, 40, 64), 64, **SQUARE, parallel=2),
    "threads, uneven": anchor("conv2d", "w8a8", (1, 7, 7, 1024), 512, parallel=2),
}
WIDE: dict[str, Workload] = {
    "28x28x128 3x3": anchor("conv2d", "w8a8", (1, 28, 28, 128), 128, **SQUARE, activation=RELU),
    "14x14x256 1x1": anchor("conv2d", "w8a8", (1, 14, 14, 256), 1024, residual=True),
    "64x768 dense": anchor("dense", "w8a8", (64, 768), 768),
}
Outcome = tuple[Array, Array]


def make(scheme: str, case: str) -> Workload:
    op, (shape, out_c, more) = ("conv2d", CASES[case]) if case in CASES else ("dense", DENSE[case])
    return anchor(op, scheme, shape, out_c, **more)


def all_kernels() -> Iterator[tuple[str, Workload, Kernel, bool]]:
    """Name, workload and kernel of every case, sampled variants among them; whether its inputs are extreme."""
    target = Target.load(TARGETS[0])
    for scheme in SCHEMES:
        for case in (*CASES, *DENSE):
            kernel = apply(workload := make(scheme, case), target)
            assert kernel is not None, case
            yield f"{scheme} {case}", workload, kernel, False
        for case in SAMPLED:
            found = list(templates(workload := make(scheme, case), target))
            for seed in (1, 2):
                kernel = renamed(found[seed * (len(found) - 1) // 2].kernel(seed), str(seed))
                yield f"{scheme} {case} {seed}", workload, kernel, False
        kernel = apply(workload := anchor("dense", scheme, (2, 512), 32, out="float32"), target)
        assert kernel is not None
        yield f"{scheme} extreme", workload, kernel, True
    for name, workload in THREADED.items():
        kernel = apply(workload, target)
        assert kernel is not None
        yield name, workload, kernel, False


NAMES = [
    *(f"{scheme} {case}" for scheme in SCHEMES for case in (*CASES, *DENSE, "extreme")),
    *(f"{scheme} {case} {seed}" for scheme in SCHEMES for case in SAMPLED for seed in (1, 2)),
    *THREADED,
]


def renamed(kernel: Kernel, suffix: str) -> Kernel:
    """The kernel under a symbol of its own."""
    symbol = f"{kernel.symbol}_{suffix}"
    return replace(kernel, symbol=symbol, func=kernel.func.with_attr("global_symbol", symbol))


@pytest.fixture(scope="module")
def outcomes(board_name: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What the board's kernels write, all of them in one library, and what the reference says."""
    target, folder, rng = Target.load(TARGETS[0]), tmp_path_factory.mktemp("smmla"), np.random.default_rng(0)
    made = list(all_kernels())
    found, cases = {}, []
    for name, workload, kernel, extreme in made:
        arguments = make_arguments(workload, target, rng)
        if extreme:  # all products are the largest there are
            arguments[0][:], arguments[1][:] = -128, -8 if workload.scheme == "w4a8" else -127
            arguments[5][1:] = (-1e30, 1e30)
        cases.append((workload, kernel, packed(workload, kernel, arguments)))
        found[name] = evaluate(workload, arguments, target.activation_storage)
    board = device.connect(board_name)
    written = results(board, target, folder, cases)
    device.close(board)
    return {name: (result, found[name]) for name, result in zip(found, written, strict=True)}


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(outcomes: dict[str, Outcome], name: str) -> None:
    result, expected = outcomes[name]
    np.testing.assert_array_equal(result, expected)
    assert expected.size < 99 or "extreme" in name or len(np.unique(expected)) > 5  # not all clamped


def test_every_case_is_run(outcomes: dict[str, Outcome]) -> None:
    assert set(outcomes) == set(NAMES)


def inner_loops(kernel: Kernel, target: Target) -> list[list[str]]:
    """The stretches of instructions between labels and jumps that multiply."""
    stretches: list[list[str]] = [[]]
    for line in assembly(kernel, target):
        if re.match(r"\.LBB\w+:", line):
            stretches.append([])
        if re.match(r"\s+[a-z]", line):
            stretches[-1].append(line.strip())
        if re.match(r"\s+(b|cb|tb)[.a-z]*\s.*LBB", line):
            stretches.append([])
    return [lines for lines in stretches if any(line.startswith("smmla") for line in lines)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("layer", WIDE)
def test_the_inner_loop_is_products_and_loads(layer: str, name: str, scheme: str) -> None:
    """At most 0.9 other instructions for each smmla, none of them from or to the stack."""
    target = Target.load(name)
    kernel = apply(replace(WIDE[layer], scheme=scheme), target)
    assert kernel is not None
    assert kernel.instruction == "smmla"
    loops = inner_loops(kernel, target)
    assert loops
    for lines in loops:
        assert len(lines) <= 1.9 * sum(line.startswith("smmla") for line in lines), lines
        assert not [line for line in lines if "[sp" in line]


@pytest.mark.parametrize("layer", WIDE)
def test_no_element_is_stored_alone(layer: str) -> None:
    target = Target.load(TARGETS[0])
    kernel = apply(WIDE[layer], target)
    assert kernel is not None
    lines = assembly(kernel, target)
    assert [line for line in lines if re.match(r"\s+(stu?r[bh]|st1\s+\{ v\d+\.[bh] \})\s", line)] == []
    assert any(re.match(r"\s+sqxtn2?\s+v\d+\.(8b|16b)", line) for line in lines)


def test_tables_are_looked_up_by_vectors() -> None:
    target = Target.load(TARGETS[0])
    kernel = apply(make("w8a8", "48 channels, table"), target)
    assert kernel is not None
    lines = assembly(kernel, target)
    assert any(re.match(r"\s+tbx\s+v\d+\.16b", line) for line in lines)
    assert [line for line in lines if re.match(r"\s+stu?rb\s", line)] == []


@pytest.mark.parametrize(
    ("workload", "why"),
    [
        (anchor("conv2d", "w8a8", (1, 8, 8, 32), 32, **SQUARE, groups=2), "groups"),
        (anchor("dense", "w4a8", (1, 512), 512), "one row"),
        (anchor("conv2d", "w8a8", (1, 8, 8, 7), 32), "fewer than 8 inputs"),
        (anchor("conv2d", "w8a8", (1, 8, 8, 4), 32, kernel=(3, 3), dilation=(2, 2)), "fewer than 8 inputs"),
        (anchor("conv2d", "f32", (1, 8, 8, 64), 32), "no smmla"),
        (anchor("depthwise_conv2d", "w8a8", (1, 8, 8, 64), 64, **SQUARE), "neither conv2d nor dense"),
        (anchor("dense", "w4a8", (2, 70000), 8), "too many products"),
    ],
)
def test_what_it_declines(workload: Workload, why: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert apply(workload, Target.load(TARGETS[0])) is None
    assert why in caplog.text


@pytest.mark.parametrize("target", [Target.load("arm-cortex-a76"), replace(Target.load(TARGETS[0]), compute=())])
def test_declines_a_machine_without_it(target: Target) -> None:
    assert apply(make("w8a8", "3x3"), target) is None


def test_declines_storage_of_uint8() -> None:
    assert apply(make("w8a8", "3x3"), replace(Target.load(TARGETS[0]), activation_storage="uint8")) is None


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", ["3x3", "stem", "odd"])
def test_packing_moves_every_weight_once(scheme: str, case: str, rng: np.random.Generator) -> None:
    """Each weight stands in one place, and all else is zero; int4 take half the bytes."""
    target = Target.load(TARGETS[0])
    kernel = apply(workload := make(scheme, case), target)
    assert kernel is not None
    weight = make_arguments(workload, target, rng)[1]
    assert kernel.pack is not None
    found = kernel.pack(weight)
    halves = [found.astype(np.int8) << 4 >> 4, found.astype(np.int8) >> 4] if scheme == "w4a8" else [found]
    values, counts = np.unique(np.concatenate([half.ravel() for half in halves]), return_counts=True)
    wanted = dict(zip(*np.unique(weight, return_counts=True), strict=True))
    assert {value: count for value, count in zip(values, counts, strict=True) if value} == {
        value: count for value, count in wanted.items() if value
    }


@pytest.mark.parametrize("layer", WIDE)
def test_tiles_have_registers_and_more_work_takes_longer(layer: str) -> None:
    target = Target.load(TARGETS[0])
    plans = plans_of(WIDE[layer])
    assert len(plans) > 9
    assert all(plan.tile.sums < REGISTERS for plan in plans)
    shape, output = WIDE[layer].input_shapes[0], WIDE[layer].output_shape
    double = replace(WIDE[layer], output_shape=(*output[:-1], 2 * output[-1]), residual=False)
    double = replace(double, input_shapes=(shape,))
    for one, two in zip(plans, plans_of(double), strict=True):
        assert one.tile == two.tile
        assert cycles(one, target) < cycles(two, target)


def test_chunks_keep_the_input_near_and_serve_all_threads() -> None:
    target = Target.load(TARGETS[0])
    plan = next(plan for plan in plans_of(WIDE["28x28x128 3x3"]) if plan.tile == Tile(rows=1, pairs=2, vectors=8))
    chunks = default_chunks(plan, target)
    assert plan.copied_bytes > target.l1_bytes / 2 >= plan.copied_bytes / chunks
    for threads in (2, 4, 7):
        assert default_chunks(replace(plan, workload=replace(plan.workload, parallel=threads)), target) % threads == 0


def test_the_templates_are_ranked_and_apart() -> None:
    found = list(templates(make("w8a8", "3x3"), Target.load(TARGETS[0])))
    assert len({template.variant for template in found}) == len(found)
    shares = [template.cycles for template in found]
    assert shares[0] == 1.0
    assert shares == sorted(shares)
