"""A library on a board: the same bits as here, timed by the board's clock, and given up where the board is gone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from boards import serving_here
from demo_study import demo_artifact, demo_pictures

from hwq import device
from hwq.artifact import Artifact
from hwq.errors import HwqError
from hwq.target import Target

PICTURES = demo_pictures()[0]


@pytest.fixture
def there(near_name: str) -> Iterator[Artifact]:
    """The demo on a board, which is free again after the test."""
    found = demo_artifact().on(near_name)
    yield found
    found.close()


@pytest.fixture
def round_trip_s(there: Artifact) -> float:
    """What the line to the board takes at least, for a call that does nothing."""
    assert there.placed is not None
    nothing = there.placed.device.session.get_function("runtime.NumThreads")
    times = []
    for _ in range(20):
        start = time.perf_counter()
        nothing()
        times.append(time.perf_counter() - start)
    return min(times)


def test_a_board_gives_the_same_bits(there: Artifact) -> None:
    assert there.placed is not None
    assert there.placed.remote
    np.testing.assert_array_equal(there(PICTURES[:5]), demo_artifact()(PICTURES[:5]))
    assert there.to_bytes() == demo_artifact().to_bytes()


def test_a_board_that_was_given_back_is_there_for_others(near_name: str) -> None:
    for _ in range(2):
        found = demo_artifact().on(near_name)
        found(PICTURES[:1])
        found.close()
    with pytest.raises(HwqError) as lost:
        found(PICTURES[:1])
    assert lost.value.code == "device-lost"
    demo_artifact().close()  # of this machine there is nothing to give back
    demo_artifact()(PICTURES[:1])


def test_the_line_to_the_board_is_in_no_time(there: Artifact, round_trip_s: float) -> None:
    """The demo takes some 20 us; the line, 100 and more for each call, would be in all of them."""
    times = there.times(PICTURES[:1], runs=7)
    assert len(times) == 7
    assert 1e-7 < min(times) < round_trip_s
    found = there.benchmark(PICTURES[:1], runs=5)
    assert (found.runs, found.min_s > 0) == (5, True)
    layers = there.layer_times(PICTURES[:1], runs=5)
    assert list(layers) == [step for _, step in there.calls]
    assert 0.2 * min(times) < sum(layers.values()) < round_trip_s * len(layers) / 2


def test_layers_of_a_board_take_what_they_take_here(there: Artifact) -> None:
    """The board is this machine; whatever else runs here falls on both."""
    here = demo_artifact().layer_times(PICTURES[:1], runs=30)
    ratios = [seconds / here[name] for name, seconds in there.layer_times(PICTURES[:1], runs=30).items()]
    assert 0.3 < statistics.median(ratios) < 3


def test_a_session_ends_after_its_time(near_name: str, tmp_path: Path) -> None:
    demo_artifact().save(tmp_path / "demo.hwq")
    loaded = Artifact.load(tmp_path / "demo.hwq", device=near_name, session_s=2)
    loaded(PICTURES[:1])
    device.close(device.connect(near_name))  # the board is waited for, until it has ended the session
    with pytest.raises(HwqError) as caught:
        loaded(PICTURES[:1])
    assert caught.value.code == "device-lost"


def test_a_file_is_loaded_onto_a_board(there: Artifact, tmp_path: Path, tracker: str) -> None:
    demo_artifact().save(tmp_path / "demo.hwq")
    with serving_here(tracker, "once"):
        loaded = Artifact.load(tmp_path / "demo.hwq", device=f"once@{tracker}")
        np.testing.assert_array_equal(loaded(PICTURES[:2]), demo_artifact()(PICTURES[:2]))
    for use in (lambda: loaded(PICTURES[:1]), lambda: loaded.layer_times(PICTURES[:1])):
        with pytest.raises(HwqError, match="does not answer any more") as caught:
            use()
        assert caught.value.code == "device-lost"


def test_a_board_that_cannot_run_it_is_refused_and_free_again(near_name: str, tmp_path: Path) -> None:
    """While the error is kept, and all that it refers to."""
    target = replace(Target.load("host"), name="future", cpu_flags=("flag_no_cpu_has",))
    future = replace(demo_artifact(), target=target)
    future.save(tmp_path / "future.hwq")
    kept = []
    for put in (future.on, lambda name: Artifact.load(tmp_path / "future.hwq", device=name)):
        with pytest.raises(HwqError, match="it lacks flag_no_cpu_has, which target future needs") as caught:
            put(near_name)
        assert caught.value.code == "device-other"
        kept.append(caught.value)
    with demo_artifact().on(near_name) as there:
        there(PICTURES[:1])
    device.close(device.connect(near_name))


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_trouble_on_the_board_is_not_the_files(
    error: type[Exception], near_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo_artifact().save(tmp_path / "demo.hwq")

    def full(*_: object) -> None:
        raise error("first line\nno memory left")

    monkeypatch.setattr("hwq.placed.load_memory", full)
    with pytest.raises(HwqError, match=r"near@.* does not take the artifact: no memory left; accepted") as caught:
        Artifact.load(tmp_path / "demo.hwq", device=near_name)
    assert caught.value.code == "device-other"
    with pytest.raises(HwqError) as here:
        Artifact.load(tmp_path / "demo.hwq", device=device.LOCAL)
    assert here.value.code == "artifact-broken"
    device.close(device.connect(near_name))


def test_local_is_here() -> None:
    again = demo_artifact().on(device.LOCAL)
    assert again.placed is not None
    assert not again.placed.remote
    np.testing.assert_array_equal(again(PICTURES[:2]), demo_artifact()(PICTURES[:2]))
