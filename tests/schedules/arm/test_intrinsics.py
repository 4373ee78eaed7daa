"""The inner loops on NEON are products, by element where there is a dot product, and little else."""

from __future__ import annotations

import re

import pytest
from anchor_runs import anchor, loop_bodies
from kernel_runs import assembly

from hwq.schedule import kernel_for
from hwq.schedules.arm.intrinsics import dot
from hwq.target import Target

SQUARE = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}


def inner_loop(name: str, scheme: str, mnemonic: str, op: str = "conv2d") -> list[str]:
    """The fullest loop of a usual layer."""
    target = Target.load(name)
    workload = anchor(op, scheme, (1, 28, 28, 128), 128, **SQUARE)
    return loop_bodies(assembly(kernel_for(workload, target), target), mnemonic)[0]


@pytest.mark.parametrize(
    ("name", "scheme", "pattern", "macs", "most"),
    [
        ("arm-cortex-a76", "w8a8", r"sdot\s+v\d+.4s, v\d+.16b, v\d+.4b\[", 16, 1.4),
        ("arm-cortex-a76", "w4a8", r"sdot\s+v\d+.4s, v\d+.16b, v\d+.4b\[", 16, 1.5),
        ("arm-cortex-a72", "w8a8", r"sadalp\s+v\d+.4s, v\d+.8h", 16, 4.5),
        ("arm-cortex-a72", "w4a8", r"sadalp\s+v\d+.4s, v\d+.8h", 16, 4.5),
        ("arm-cortex-a72", "f32", r"fmla\s+v\d+.4s, v\d+.4s, v\d+.s\[", 4, 1.5),
    ],
)
def test_products_fill_the_inner_loop(name: str, scheme: str, pattern: str, macs: int, most: float) -> None:
    """At most ``most`` instructions for each vector of sums and step of the reduction, and no sum on the stack."""
    mnemonic = pattern.partition("\\")[0]
    loop = inner_loop(name, scheme, mnemonic)
    products = [line for line in loop if re.search(pattern, line)]
    assert len(products) == sum(mnemonic in line for line in loop) >= 56
    assert len(loop) / len(products) <= most, macs
    assert [line for line in loop if "[sp" in line] == []


@pytest.mark.parametrize(("scheme", "most"), [("w8a8", 0.55), ("w4a8", 0.4)])
def test_depthwise_adds_up_words(scheme: str, most: float) -> None:
    """Of four pixels of 16 channels and their 9 taps, the epilogue included."""
    loop = inner_loop("arm-cortex-a72", scheme, "smlal", "depthwise_conv2d")
    assert len(loop) / (4 * 16 * 9) <= most


def test_what_an_old_core_lacks_is_not_asked_of_it() -> None:
    target = Target.load("arm-cortex-a72")
    for op in ("conv2d", "dense", "depthwise_conv2d"):
        more = {} if op == "dense" else SQUARE
        shape = (4, 64) if op == "dense" else (1, 9, 9, 64)
        lines = assembly(kernel_for(anchor(op, "w8a8", shape, 64, **more), target), target)
        assert not any("dot" in line for line in lines)


def test_each_combination_has_a_name() -> None:
    names = {
        dot(name, held=held, in_registers=there)
        for name in ("neon.sdot", "neon.smlal")
        for held in (True, False)
        for there in (True, False)
    }
    assert len(names) == 8
