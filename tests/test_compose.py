"""Composing: a program of pooled kernels gives what the same program bound by itself gives."""

from __future__ import annotations

import numpy as np
import pytest
from demo_study import demo_study, demo_work, random_schemes

from hwq import compose as module
from hwq.compose import Pool, composed
from hwq.execute import bind, compile_kernels, run, to_device


def pool() -> Pool:
    found = demo_study()
    return Pool(kernels=found.kernels, target=found.target, cache=demo_work().cache)


def test_outputs_are_those_of_the_program_by_itself(rng: np.random.Generator) -> None:
    """Several assignments in turn on one pool, whose buffers each leaves dirty for the next."""
    found, shared = demo_study(), pool()
    batch = to_device(found.kept[0])
    for _ in range(4):
        program = found.program(random_schemes(found, rng))
        kernels = compile_kernels([program], found.target, demo_work().cache)
        mine, alone = run(composed(shared, program), batch), run(bind(program, kernels), batch)
        for name in program.outputs:
            np.testing.assert_array_equal(mine[name].numpy(), alone[name].numpy())


def test_nothing_is_compiled_or_bound_twice(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    found, shared = demo_study(), pool()
    one, other = (found.program(random_schemes(found, rng)) for _ in range(2))
    composed(shared, one)
    composed(shared, other)
    before = dict(shared.steps)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(module, "compile_kernels", fail)
    monkeypatch.setattr(module, "bind_step", fail)
    again = composed(shared, one)
    assert [bound.step.name for bound in again.steps] == [step.name for step in one.steps]
    assert shared.steps == before
