"""The memory plan: whatever lives at the same time lies apart, little room is wasted, outputs go to the caller."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from hwq.lower import Program, Step, lower
from hwq.memory_plan import ALIGNMENT, Place, aligned, plan_memory, value_bytes
from hwq.target import Target
from hwq.workload import Workload


def step(output: str, *inputs: str, view: bool = False) -> Step:
    shape = (1,)
    workload = Workload(op="add", scheme="f32", input_shapes=(shape,), output_shape=shape)
    return Step(name=output, workload=None if view else workload, inputs=inputs, output=output)


def program(sizes: dict[str, int], steps: list[Step], outputs: tuple[str, ...]) -> Program:
    values = {name: ((size,), "uint8") for name, size in sizes.items()}
    return Program(inputs=("x",), outputs=outputs, values=values, steps=tuple(steps))


def test_a_chain_takes_two_places_in_turn() -> None:
    steps = [step("a", "x"), step("b", "a"), step("c", "b"), step("d", "c"), step("y", "d")]
    found = plan_memory(program(dict.fromkeys("xabcdy", 100), steps, ("y",)))
    assert found.workspace_bytes == 2 * aligned(100)
    assert found.places["x"] == Place(base="input")
    assert found.places["y"] == Place(base="output")
    assert found.places["a"] == found.places["c"] != found.places["b"]
    assert found.copies == ()


def test_a_residual_keeps_its_place_until_it_is_read() -> None:
    steps = [step("a", "x"), step("b", "a"), step("c", "b"), step("y", "c", "a")]
    found = plan_memory(program(dict.fromkeys("xabcy", 64), steps, ("y",)))
    assert found.workspace_bytes == 3 * 64
    assert len({found.places[name] for name in "abc"}) == 3


def test_a_view_is_its_source_and_keeps_it_alive() -> None:
    steps = [step("a", "x"), step("v", "a", view=True), step("b", "x"), step("c", "b"), step("y", "v", "c")]
    found = plan_memory(program(dict.fromkeys("xavbcy", 64), steps, ("y",)))
    assert found.places["v"] == found.places["a"]
    assert found.places["a"] not in (found.places["b"], found.places["c"])


def test_outputs_that_share_bytes_are_copied() -> None:
    steps = [step("a", "x"), step("v", "a", view=True), step("w", "x", view=True)]
    found = plan_memory(program(dict.fromkeys("xavw", 64), steps, ("a", "v", "w", "a")))
    assert found.places["a"] == Place(base="output")
    assert found.copies == (("v", 1), ("w", 2), ("a", 3))
    assert found.workspace_bytes == 0


def test_what_lives_across_calls_has_a_block_of_its_own() -> None:
    """Also where it is written late and read early, and where it is an output besides."""
    steps = [step("a", "x"), step("k", "a"), step("b", "k"), step("v", "b"), step("y", "v")]
    given = program({"x": 64, "a": 64, "k": 100, "b": 64, "v": 10, "y": 64}, steps, ("y", "v"))
    found = plan_memory(replace(given, state=("k", "v")))
    assert found.places["k"] == Place(base="state", offset=0)
    assert found.places["v"] == Place(base="state", offset=aligned(100))
    assert found.state_bytes == aligned(100) + aligned(10)
    assert found.copies == (("v", 1),)
    assert {found.places[name].base for name in "ab"} == {"workspace"}
    assert plan_memory(given).state_bytes == 0


def test_values_and_sizes_of_a_lowered_network() -> None:
    lowered = lower(tiny.net(), {}, {}, {}, Target.load("host"), 1)
    found = plan_memory(lowered)
    assert found.places.keys() == lowered.values.keys()
    assert value_bytes(lowered, "x") == 4 * np.prod(lowered.values["x"][0])
    inner = [aligned(value_bytes(lowered, name)) for name, place in found.places.items() if place.base == "workspace"]
    assert max(inner) <= found.workspace_bytes < sum(inner)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_lives_at_once_never_overlaps(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 14))
    names = ["x", *(f"v{i}" for i in range(count))]
    sizes = {name: data.draw(st.integers(1, 500)) for name in names}
    steps = []
    for i in range(count):
        taken = data.draw(st.lists(st.sampled_from(names[: i + 1]), min_size=1, max_size=3))
        steps.append(step(names[i + 1], *taken))
    found = plan_memory(program(sizes, steps, (names[-1],)))
    reads = {name: [at for at, one in enumerate(steps) if name in one.inputs] for name in names}
    spans = {name: (at, max([at, *reads[name]])) for at, name in enumerate(names[1:])}
    for name, place in found.places.items():
        if place.base != "workspace":
            continue
        assert place.offset % ALIGNMENT == 0
        assert place.offset + sizes[name] <= found.workspace_bytes
        for other, there in found.places.items():
            if other == name or there.base != "workspace":
                continue
            together = spans[name][0] <= spans[other][1] and spans[other][0] <= spans[name][1]
            apart = place.offset + sizes[name] <= there.offset or there.offset + sizes[other] <= place.offset
            assert apart or not together, (name, other)


@pytest.mark.parametrize(("size", "rounded"), [(0, 0), (1, 64), (64, 64), (65, 128)])
def test_sizes_are_whole_cache_lines(size: int, rounded: int) -> None:
    assert aligned(size) == rounded
