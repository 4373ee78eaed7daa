"""Tasks: each kernel of a network once, with how often it is called."""

from __future__ import annotations

from dataclasses import replace

import tiny

from hwq.lower import Program, lower
from hwq.numerics import QParams
from hwq.quantize import quantize_weights
from hwq.target import Target
from hwq.tasks import joined, tasks_of

HOST = Target.load("host")


def program(scheme: str = "f32") -> Program:
    """Three convolutions, of which two are alike, and a view."""
    width = 16
    layers = [
        tiny.conv("x", "a", (3, width)),
        tiny.conv("a", "b", (width, width), seed=2),
        tiny.conv("b", "c", (width, width), seed=3),
        tiny.layer("reshape", ["c"], "y", {"c": (1, 6, 5, width), "y": (1, 30 * width)}),
    ]
    graph = tiny.graph(layers, ["x"], ["y"])
    schemes = {name: scheme for name in ("a", "b", "c", "y")}
    qparams = dict.fromkeys(graph.shapes, QParams(scale=0.05, zero_point=-3))
    weights = quantize_weights(graph, {name: (one,) for name, one in schemes.items()}, qparams, {})
    return lower(graph, schemes, qparams, weights, HOST, 1)


def test_each_kernel_is_a_task_with_its_count() -> None:
    found = program()
    tasks = tasks_of(found, HOST, priority=3.0)
    assert [task.step for task in tasks] == [found.steps[0], found.steps[1]]
    assert [(task.count, task.weight) for task in tasks] == [(1, 3.0), (2, 6.0)]


def test_weights_are_where_the_whole_network_has_them() -> None:
    assert {task.home for task in tasks_of(program(), HOST)} == {"l2"}
    large = 10 * max(HOST.l2_bytes, HOST.l3_bytes)
    assert {task.home for task in tasks_of(program(), HOST, footprints={"f32": large})} == {"memory"}


def test_int4_weights_count_as_they_are_packed() -> None:
    counts = {task.workload.op: task.count for task in tasks_of(program("w4a8"), HOST)}
    assert counts["conv2d"] >= 1
    assert counts["quantize"] == 1


def test_kernels_of_several_networks_are_joined() -> None:
    tasks = tasks_of(program(), HOST)
    twice = joined([*tasks, *(replace(task, weight=3 * task.weight) for task in tasks)])
    assert [task.workload.key for task in twice] == sorted(task.workload.key for task in tasks)
    assert sorted((task.count, task.weight) for task in twice) == [(2, 4.0), (4, 8.0)]


def test_a_kernel_is_a_task_for_each_place_that_its_weights_are_in() -> None:
    tasks = tasks_of(program(), HOST)
    far = [replace(task, home="memory") for task in tasks]
    found = joined([*tasks, *far, *tasks])
    assert [(task.workload.key, task.home) for task in found] == sorted(
        (task.workload.key, task.home) for task in (*tasks, *far)
    )
    assert {task.home: task.count for task in found if task.workload == tasks[1].workload} == {"l2": 4, "memory": 2}
