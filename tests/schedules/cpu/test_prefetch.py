"""Weights asked for ahead of time: in the loop that was marked, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from anchor_runs import anchor, check_anchor, tier
from kernel_runs import assembly

from hwq.schedule import templates
from hwq.schedules.template import Choice, Template
from hwq.target import Target
from hwq.workload import Kernel, Workload


def kernels(template: Template) -> tuple[Kernel, Kernel]:
    """The template's kernel without and with it."""
    kernel, trace = template.made(Choice())
    *sizes, option = (trace.get_decision(inst) for inst in trace.insts if trace.get_decision(inst) is not None)
    assert int(option) == 0
    values = (*([int(size) for size in one] for one in sizes), 1)
    return kernel, template.made(Choice(values=values))[0]


def family(workload: Workload, target: Target, name: str) -> Template:
    """The first template of that family whose weights pass from memory to products with no buffer between."""
    found = (template for template in templates(workload, target) if template.name.startswith(name))
    return next(template for template in found if workload.scheme != "w4a8" or "registers" in template.variant)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("cpu/conv2d", "f32"), ("cpu/conv2d", "w8a8"), ("cpu/conv2d", "w4a8"), ("x86/winograd", "w8a8")],
)
def test_it_is_in_the_code_where_it_is_asked_for(name: str, scheme: str, rng: np.random.Generator) -> None:
    workload = anchor("conv2d", scheme, (1, 9, 8, 32), 64, kernel=(3, 3), padding=(1, 1, 1, 1))
    target = tier("x86-avx512-vnni")
    plain, ahead = kernels(family(workload, target, name))
    count = [sum("prefetch" in line for line in assembly(kernel, target)) for kernel in (plain, ahead)]
    assert count[0] == 0
    assert count[1] > 0
    check_anchor(lambda *_, **__: ahead, workload, target, rng)


def test_every_vector_of_the_next_blocks_is_asked_for() -> None:
    workload, target = anchor("conv2d", "w8a8", (1, 7, 7, 256), 96), Target.load("x86-avx512-vnni")
    for template in templates(workload, target)[:12]:
        vectors = int(template.variant.split(" ")[0].split("x")[2])
        _, ahead = kernels(template)
        text = ahead.func.script()
        assert text.count("llvm.prefetch") == vectors, template.variant
        assert f"* {vectors} + {vectors}" in text or vectors == 1  # block * vectors, and as many more
