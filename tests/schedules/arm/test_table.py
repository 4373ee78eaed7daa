"""Tables looked up by NEON are exact for every byte at every size, in kernels of their own and in epilogues."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from anchor_runs import TABLED, anchor
from arm_runs import check_layers, results
from kernel_runs import CHANNELS, assembly, make, numbers

from hwq import device
from hwq.reference import evaluate
from hwq.schedule import kernel_for
from hwq.schedules.arm import table
from hwq.target import Target

A76 = Target.load("arm-cortex-a76")
SHAPES = [*((3, 5, 3, channels) for channels in CHANNELS), (16,), (1, 64), (31, 33), (1, 15), (256, 16)]


def test_every_byte_of_every_size(board: device.Device, tmp_path: Path, rng: np.random.Generator) -> None:
    cases = []
    for shape in SHAPES:
        workload, entries = make("unary", "w8a8", [shape], shape), rng.permutation(256).astype(np.uint8)
        x = numbers(rng, shape, "int8")
        if shape == (256, 16):
            x = np.arange(-128, 128).astype(np.int8).repeat(16).reshape(shape)
        cases.append((workload, kernel_for(workload, A76), [x, entries]))
    assert sum(kernel.instruction == "tbl" for _, kernel, _ in cases) == len(SHAPES) - 1
    for (workload, _, arguments), result in zip(cases, results(board, A76, tmp_path, cases), strict=True):
        np.testing.assert_array_equal(result, evaluate(workload, arguments, "int8"), str(workload))


def test_epilogues_look_up_by_vectors(board: device.Device, tmp_path: Path, rng: np.random.Generator) -> None:
    more = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "activation": TABLED}
    workloads = [anchor("conv2d", "w8a8", (1, 7, 9, 40), out_c, **more) for out_c in (32, 48, 64)]
    workloads.append(anchor("depthwise_conv2d", "w8a8", (1, 7, 9, 48), 48, **more))
    ragged = [anchor("conv2d", "w8a8", (1, 7, 9, 40), out_c, **more) for out_c in (24, 17)]
    kernels = check_layers(board, A76, tmp_path, [*workloads, *ragged], rng)
    for kernel in kernels[: len(workloads)]:
        lines = assembly(kernel, A76)
        assert any("tbx" in line for line in lines)
        assert [line for line in lines if "strb" in line] == []


def test_what_is_declined() -> None:
    shape = (1, 2, 2, 8)
    assert table.apply(make("unary", "f32", [shape], shape), A76) is None
    assert table.apply(make("unary", "w8a8", [(15,)], (15,)), A76) is None
    assert table.apply(make("unary", "w8a8", [shape], shape), Target.load("x86-generic")) is None
    assert table.apply(make("unary", "w8a8", [shape], shape), replace(A76, activation_storage="uint8")) is None
