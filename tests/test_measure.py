"""Measuring kernels: every distinct one once, kept at once, and the faster half of the figures counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from hwq import device, measure
from hwq.cache import default_cache_dir
from hwq.errors import HwqError
from hwq.execute import KernelSet, compile_kernels, loaded_on
from hwq.lower import Program, lower
from hwq.measure import fill, home_of_weights, measure_kernels, time_step
from hwq.store import everything
from hwq.target import Target

HOST = Target.load("host")
SMALL = replace(HOST, l2_bytes=1000, l3_bytes=5000)


@pytest.fixture(scope="module")
def made() -> tuple[Program, KernelSet]:
    """Three kernels: two equal convolutions, one of twice the channels, a dense layer."""
    layers = [
        tiny.conv("x", "a", (16, 16), size=(8, 8)),
        tiny.conv("a", "b", (16, 16), size=(8, 8), seed=2),
        tiny.conv("b", "c", (16, 64), size=(8, 8), seed=3),
        tiny.pooled("c", "d", 64, size=(8, 8)),
    ]
    program = lower(tiny.graph(layers, ["x"], ["d"]), {}, {}, {}, HOST, 1)
    return program, compile_kernels([program], HOST, default_cache_dir())


@pytest.mark.parametrize(("dtype", "least", "most"), [("float32", -6, 6), ("uint8", 0, 99), ("bool", 0, 1)])
def test_made_up_values_are_ordinary(dtype: str, least: int, most: int) -> None:
    values = fill((1000,), dtype)
    assert str(values.dtype) == dtype
    assert least <= values.min() < values.max() <= most
    assert len(np.unique(values)) > 1
    np.testing.assert_array_equal(values, fill((1000,), dtype))


@pytest.mark.parametrize(
    ("footprint", "home"), [(999, "l2"), (1000, "l2"), (1001, "l3"), (2500, "l3"), (2501, "memory"), (9999, "memory")]
)
def test_weights_are_where_the_whole_of_them_fits(footprint: int, home: str) -> None:
    assert home_of_weights(footprint, SMALL) == home


def test_figures_are_seconds_of_one_call(made: tuple[Program, KernelSet]) -> None:
    """Four times the work takes longer, and no plausible machine needs a tenth of a second or a nanosecond for it."""
    program, kernels = made
    least = []
    for step in (program.steps[0], program.steps[2]):
        times = time_step(step, program, kernels, "l2", HOST)
        assert len(times) == measure.REPEATS
        assert all(1e-8 < time < 0.1 for time in times)
        least.append(min(times))
    assert least[1] > 1.5 * least[0]


def test_weights_from_afar_are_as_many_as_that_takes(
    made: tuple[Program, KernelSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call reads weights that were not read for longer than the nearer memory holds."""
    program, kernels = made
    step = program.steps[2]
    seen: list[Any] = []

    def function(_: Any) -> Any:
        return lambda *args: seen.append(args[1])

    monkeypatch.setattr(KernelSet, "function", lambda self, workload: function(workload))
    monkeypatch.setattr(measure, "SMALL_WEIGHTS_BYTES", 1000)
    machine = replace(HOST, l2_bytes=100_000, l3_bytes=400_000)
    times = time_step(step, program, kernels, "l3", machine)
    assert len(times) == measure.REPEATS
    distinct = {id(weight): weight for weight in seen}
    assert sum(int(np.prod(weight.shape)) * 4 for weight in distinct.values()) >= 4 * machine.l2_bytes * 0.9
    last = seen[-len(distinct) :]
    assert len({id(weight) for weight in last}) == len(distinct), "all in turn"


def test_each_distinct_kernel_is_measured_once_and_kept(
    made: tuple[Program, KernelSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, kernels = made
    path = tmp_path / "records.sqlite"
    seen: list[tuple[int, int]] = []
    found = measure_kernels([program, program], kernels, HOST, path, 1, {}, lambda *at: seen.append(at))
    assert found.keys() == {step.workload for step in program.steps} == set(kernels.kernels)
    assert len(found) == 3
    assert seen == [(done, 3 * measure.PASSES) for done in range(1, 3 * measure.PASSES + 1)]
    assert {record.key for record in everything(path)} == {record.key for record in found.values()}
    monkeypatch.setattr(measure, "time_step", lambda *_: pytest.fail("measured again"))
    assert measure_kernels([program], kernels, HOST, path, 1, {}) == found


def test_the_faster_half_counts(
    made: tuple[Program, KernelSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, kernels = made
    figures = iter([[9.0, 1.0, 8.0, 2.0, 7.0], [3.0, 100.0, 100.0, 100.0, 100.0]] * 3)
    one = replace(program, steps=program.steps[:1])
    monkeypatch.setattr(measure, "time_step", lambda *_: next(figures))
    (record,) = measure_kernels([one], kernels, HOST, tmp_path / "records.sqlite", 1, {}).values()
    assert (record.median_s, record.runs) == (3.0, 5), "of 1, 2, 3, 7, 8"


def test_records_tell_where_the_weights_were(
    made: tuple[Program, KernelSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, kernels = made
    asked: list[str] = []

    def timed(step: Any, program: Any, kernels: Any, home: str, target: Any, device: Any) -> list[float]:
        asked.append(home)
        return [1.0]

    monkeypatch.setattr(measure, "time_step", timed)
    path = tmp_path / "records.sqlite"
    near = measure_kernels([program], kernels, SMALL, path, 1, {"f32": 900})
    far = measure_kernels([program], kernels, SMALL, path, 1, {"f32": 900_000})
    assert asked == ["l2"] * 3 * measure.PASSES + ["memory"] * 3 * measure.PASSES
    assert {record.key.schedule.split("@")[1] for record in near.values()} == {"l2"}
    assert {record.key.schedule.split("@")[1] for record in far.values()} == {"memory"}


def test_what_was_measured_before_an_interrupt_stays(made: tuple[Program, KernelSet], tmp_path: Path) -> None:
    program, kernels = made
    path = tmp_path / "records.sqlite"
    last = 3 * (measure.PASSES - 1)

    def stop(done: int, total: int) -> None:
        if done == last + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_kernels([program], kernels, HOST, path, 1, {}, stop)
    assert len(everything(path)) == 2
    seen: list[int] = []
    measure_kernels([program], kernels, HOST, path, 1, {}, lambda done, total: seen.append(total))
    assert set(seen) == {measure.PASSES}, "one kernel was left"


def test_a_board_is_measured_without_the_line_to_it(
    made: tuple[Program, KernelSet], near_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board is this machine. A call over the line takes 50 us and more; these kernels take two or three."""
    program, kernels = made
    step = program.steps[2]
    monkeypatch.setattr(measure, "SMALL_WEIGHTS_BYTES", 1000)
    board = device.connect(near_name)
    assert step.workload is not None
    there = loaded_on(kernels, [step.workload], board)
    assert set(there.libraries) == {step.workload}
    machine = replace(HOST, l2_bytes=100_000, l3_bytes=400_000)
    for home in ("l2", "l3", "memory"):
        times = time_step(step, program, there, home, machine, board)
        here = time_step(step, program, kernels, home, machine)
        assert len(times) == measure.REPEATS
        assert 0.2 * min(here) < min(times) < 5 * min(here), home
    device.close(board)


def test_a_board_s_records_are_its_own(
    made: tuple[Program, KernelSet], near_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, kernels = made
    path = tmp_path / "records.sqlite"
    there = device.resolved(Target.load("x86-generic").on(near_name))
    one = replace(program, steps=program.steps[:1])
    kernels = compile_kernels([one], there, default_cache_dir())
    (record,) = measure_kernels([one], kernels, there, path, 1, {}).values()
    assert record.key.target == there.fingerprint
    assert [kept.key for kept in everything(path)] == [record.key]
    other = replace(there, cpu_model=f"emulated {there.cpu_model}")
    with pytest.raises(HwqError, match="and what is measured is 'emulated ") as caught:
        measure_kernels([one], kernels, other, path, 1, {})
    assert caught.value.code == "device-other"
    facts = replace(device.local_facts(), cpu_model=other.cpu_model)
    monkeypatch.setattr(device, "facts", lambda machine: facts)
    assert len(measure_kernels([one], kernels, other, path, 1, {})) == 1
    assert [kept.key for kept in everything(path)] == [record.key], "an emulator's times are no records"
